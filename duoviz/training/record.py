"""What a model's folder says of its training: the legs in which it was trained, and on what."""

from __future__ import annotations

import json
from dataclasses import asdict
from logging import getLogger
from pathlib import Path
from typing import Any

import pandas as pd

from .. import corpus
from .preset import Preset

LOG = getLogger(__name__)
CONVERSION = "conversion.json"
RECORD = ("training.json", "training-log.parquet", CONVERSION)
"""What a model's folder holds about its training, and about how small FFNs were added to it."""


def warn_of_split(folder: Path | str, source: str) -> None:
    """Log a warning if a source's holdout may hold text that a model was trained on: it read the source when its documents
    were split in another way. A model without a record says nothing."""
    path = Path(folder) / RECORD[0]
    if source not in corpus.PYTHON or not path.is_file():
        return
    legs, _ = read_record(path.parent, path.parent.name)
    if other := {leg["split"] for leg in legs if source in leg["sources"]} - {corpus.SPLIT}:
        LOG.warning(
            "%s was trained on %s split by the %s of its documents, which is split by their %s now: what is scored may hold"
            " text that the model has read",
            folder,
            source,
            " or ".join(sorted(other)),
            corpus.SPLIT,
        )


def read_record(folder: Path, name: str) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Legs and log that a folder holds; a leg that does not say its name has the one given."""
    facts_path, log_path = (folder / file for file in RECORD[:2])
    if not facts_path.is_file():
        return [], pd.DataFrame()
    path = facts_path
    try:
        facts = json.loads(facts_path.read_text())
        legs = [_leg(leg, name) for leg in facts.get("legs", [facts])]
        path = log_path
        log = pd.read_parquet(log_path) if log_path.is_file() else pd.DataFrame()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): put the right file there, or remove it") from error
    if "legs" not in facts and facts.get("continued"):
        raise ValueError(
            f"{facts_path} says that the model was continued, but not from what: repeat the command that trained it,"
            " which writes its model again"
        )
    return legs, log


def _leg(facts: dict[str, Any], name: str) -> dict[str, Any]:
    """A leg as `Stage1.leg` writes it, also from facts of a time when a model had but one."""
    kept = ("sources", "policy", "seed", "micro_rows", "steps", "steps_planned", "tokens")
    return {
        "name": facts.get("name", name),
        "start": facts.get("start"),
        "frozen": facts.get("frozen", False),
        "optimizer": facts.get("optimizer", "adamw"),
        "split": facts.get("split", "text"),
        "distil": facts.get("distil", 0.0),
        "bf16": facts.get("bf16", False),
        "conversion": facts.get("conversion"),
        "preset": asdict(Preset(**facts["preset"])),
        **{key: facts[key] for key in kept},
    }
