"""Which findings of the small model hold on a real one: measured once, on all routes of tied layers, and shipped as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from .. import corpus, frames, places, store
from .study import Study

TABLES = places.SHIPPED / "data" / "specimen"
MODEL, GROUPS, DOCUMENTS, POSITIONS = "data/smollm2-duo", 10, 88, 8


def measured(
    model: str = MODEL,
    *,
    groups: int = GROUPS,
    documents: int = DOCUMENTS,
    positions: int = POSITIONS,
    length: int = 128,
    sources: Sequence[str] = corpus.SHIPPED,
) -> dict[str, pd.DataFrame]:
    """What all routes of tied layers say under `reference:big`, averaged over some positions of each document.

    Tables: `luck` (see `frames.luck_gains`) and `searches` (see `frames.searched`).

    Args:
        model: folder or Hub id.
        groups: runs of layers that choose together.
        documents, length, sources: as of `Study`.
        positions: of each document, evenly spaced.

    Raises:
        ValueError, FileNotFoundError: as `Study` has it; the base of an adapter is not here.
    """
    study = Study(model=model, sources=tuple(sources), documents=documents, length=length, groups=groups)
    lucky, searches = [], []
    for source in sources:
        tokens = study.tokens(source)
        lucky.append(frames.luck_gains(study.luck(source, positions=positions), tokens))
        searches.append(frames.searched(study.landscapes(source, positions=positions), tokens))
    return {"luck": pd.concat(lucky, ignore_index=True), "searches": pd.concat(searches, ignore_index=True)}


def write(tables: dict[str, pd.DataFrame], folder: Path = TABLES) -> None:
    """Ship the tables."""
    store.write_tables(tables, folder)


def read(folder: Path = TABLES) -> dict[str, pd.DataFrame]:
    """The shipped tables, which need no model.

    Raises:
        FileNotFoundError: there are none.
    """
    return store.read_tables(folder, ("luck", "searches"))
