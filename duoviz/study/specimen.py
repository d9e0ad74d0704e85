"""Which findings of the small model hold on a real one: measured once, on all routes of tied layers, and shipped as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from .. import claims, corpus, frames, places, store
from ..records import Curve, Tokens
from .study import Study

TABLES = places.SHIPPED / "data" / "specimen"
NAMES = ("luck", "searches", "findings")
MODEL, GROUPS, DOCUMENTS, POSITIONS, SEARCHED = "data/smollm2-duo", 10, 88, 8, 48


def measured(
    model: str = MODEL,
    *,
    groups: int = GROUPS,
    documents: int = DOCUMENTS,
    positions: int = POSITIONS,
    searched: int = SEARCHED,
    length: int = 128,
    sources: Sequence[str] = corpus.SHIPPED,
) -> dict[str, pd.DataFrame]:
    """What all routes of tied layers say under `reference:big`.

    Tables: `luck` (see `frames.luck_gains`) and `searches` (see `frames.searched`), averaged over some positions of each
    document; `findings`, those of this module over every position (see `claims.table`).

    Args:
        model: folder or Hub id.
        groups: runs of layers that choose together.
        documents, length, sources: as of `Study`.
        positions: of each document, evenly spaced.
        searched: documents of each source for `findings`.

    Raises:
        ValueError, FileNotFoundError: as `Study` has it; the base of an adapter is not here.
    """
    study = Study(model=model, sources=tuple(sources), documents=documents, length=length, groups=groups)
    whole = replace(study, documents=searched)
    lucky, searches, said = [], [], []
    for source in sources:
        tokens = study.tokens(source)
        lucky.append(frames.luck_gains(study.luck(source, positions=positions), tokens))
        searches.append(frames.searched(study.landscapes(source, positions=positions), tokens))
        said += findings(whole.survey(source, context="reference:big"), whole.tokens(source))
    luck, searching = (pd.concat(tables, ignore_index=True) for tables in (lucky, searches))
    return {"luck": luck, "searches": searching, "findings": claims.table(said)}


def findings(found: Mapping[str, Curve], tokens: Tokens) -> list[claims.Claim]:
    """What the small model is known for, as claims that any model can be asked: does the oracle beat all big with the fewest big
    layers that there are, and with a third of them; does it then gain more over all big than the null control, on tokens that the
    model made up; and does the label-free policy beat all big?

    Args:
        found: curves of the objectives `nll`, `null` and `expected`, as of `Study.survey`.
        tokens: what was searched.
    """
    budgets = found["nll"].budgets
    few, third = int(budgets[1]), int(budgets[abs(budgets - budgets[-1] / 3).argmin()])

    def gain(name: str, k: int) -> np.ndarray:
        return found[name].loss_nats[-1] - found[name].at(k)[0]

    beyond = gain("nll", third) - gain("null", third)
    asked = {
        "the fewest big layers under the oracle beat all big": gain("nll", few),
        "a third of the layers big under the oracle beats all big": gain("nll", third),
        "with a third of the layers big the oracle gains more than on made-up tokens": beyond,
        "a third of the layers big, chosen without the answer, beats all big": gain("expected", third),
    }
    return [claims.claim(text, more, tokens.documents, source=tokens.source) for text, more in asked.items()]


def write(tables: dict[str, pd.DataFrame], folder: Path = TABLES) -> None:
    """Ship the tables."""
    store.write_tables(tables, folder)


def read(folder: Path = TABLES) -> dict[str, pd.DataFrame]:
    """The shipped tables, which need no model.

    Raises:
        FileNotFoundError: there are none.
    """
    return store.read_tables(folder, NAMES)
