"""Figure 8 of the paper at a size for two CPU cores: one Duo model beside dense ones of equal FLOPs, and beside Duo models that
dense ones became.

Paper: arXiv 2410.10846, figure 8. Differs: every model has read 5 M tokens instead of 300 B; what is measured is the loss on text
that was never trained on, not ARC-easy and HellaSwag; and in (c) the frozen model has read all of the tokens before its small
FFNs read half as many again (the paper shares 300 B out as 200 and 100), so that it has had more, not as much.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import corpus, frames, places, store, training
from ..model import LanguageModel, RandomPolicy, forward_flops, load
from ..routes import BIG
from .training import train_small

TABLES = places.SHIPPED / "data" / "figure8"
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
SHAPE = replace(training.PRESETS["tiny"], tokens=5_000_000)
MORE_TOKENS = 2_500_000
"""What those models read more that a dense one becomes."""
CONVERSIONS: dict[str, dict[str, Any]] = {
    "frozen-random": {"begin": "random", "frozen": True, "learning_rate": 2e-3},
    "frozen-neurons": {"begin": "neurons", "frozen": True, "learning_rate": 2e-3},
    "frozen-distilled": {"begin": "neurons", "frozen": True, "learning_rate": 2e-3, "distil": 1.0},
    "together": {"begin": "neurons", "frozen": False, "learning_rate": 1e-3},
}


def train(
    out: Path,
    *,
    shape: training.Preset = SHAPE,
    more_tokens: int = MORE_TOKENS,
    sources: Sequence[str] = corpus.PYTHON,
    say: Callable[[str], None] = print,
) -> None:
    """Train all models of the figure into folders of `out`; repeated, it goes on from where it was cut off.

    Args:
        out: a folder; the dense models of equal FLOPs are in it as `dense-<width of their FFN>`.
        shape: of the Duo model.
        more_tokens: what the models read more that the widest dense one becomes.
        sources: text.
        say: is told which training begins.

    Raises:
        ValueError: a folder that holds another training.
    """
    text: dict[str, Any] = {"sources": tuple(sources), "micro_rows": 16}
    say(f"duo: {shape.tokens:,} tokens")
    training.train(training.Stage1(out=out / "duo", preset=shape, **text))
    dense = _dense(out, shape)
    for folder in dense.values():
        say(f"{folder.name}: {shape.tokens:,} tokens")
        preset = replace(shape, big=int(folder.name.rpartition("-")[2]))
        training.train(training.Stage1(out=folder, preset=preset, policy=RandomPolicy(1.0, 0.0, 0.0), **text))
    for name, ways in CONVERSIONS.items():
        say(f"{name}: {more_tokens:,} tokens")
        train_small(str(dense[1.0] / "model"), out / name, small=shape.small, tokens=more_tokens, **ways, **text)


def _dense(out: Path, shape: training.Preset) -> dict[float, Path]:
    """Folders of the dense models that cost as much as the Duo model with a share of big layers."""
    return {share: out / f"dense-{round(shape.small + share * (shape.big - shape.small))}" for share in SHARES}


def measured(
    out: Path, *, shape: training.Preset = SHAPE, documents: int = 48, length: int = 128
) -> dict[str, pd.DataFrame]:
    """What those models lose on the shipped texts.

    Tables: `shares` (a and b: the columns of `frames.measured`, share, mflop a token; runs dense and duo), `beginnings` (c:
    those columns and policy, small or random; runs duo and the names of `CONVERSIONS`), `curves` (c: `frames.held_losses`).
    """
    models = {name: load(out / name / "model") for name in ("duo", *CONVERSIONS)}
    dense = {share: load(folder / "model", choices="-B") for share, folder in _dense(out, shape).items()}
    shares, beginnings = [], []
    for source in corpus.SHIPPED:
        tokens = corpus.blocks(models["duo"].tokenizer, source, documents=documents, length=length)
        seqs, positions = tokens.scored.shape
        drawn = {s: RandomPolicy(s, 1 - s).routes(seqs, positions, shape.layers).numpy() for s in SHARES}
        for share, own in dense.items():
            losses = {"dense": own.score(tokens, "B" * shape.layers), "duo": models["duo"].score(tokens, drawn[share])}
            shares.append(frames.measured(losses, tokens, share=share, mflop=_mflop(own, length)))
        for policy, routes in (("small", "S" * shape.layers), ("random", drawn[0.5])):
            losses = {name: lm.score(tokens, routes) for name, lm in models.items()}
            beginnings.append(frames.measured(losses, tokens, policy=policy))
    tables = {"shares": shares, "beginnings": beginnings, "curves": [*_curves(out)]}
    return {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}


def _mflop(lm: LanguageModel, length: int) -> float:
    routes = np.full((1, length, lm.layers), BIG, np.int8)
    return forward_flops(lm.model, routes) / length / 1e6


def _curves(out: Path) -> Iterator[pd.DataFrame]:
    for run in ("duo", *CONVERSIONS):
        legs = json.loads((out / run / "model" / "training.json").read_text())["legs"]
        log = pd.read_parquet(out / run / "model" / "training-log.parquet")
        yield frames.held_losses(log, run=run, before=sum(leg["tokens"] for leg in legs[:-1]))


def write(tables: dict[str, pd.DataFrame], folder: Path = TABLES) -> None:
    """Keep the tables, as `read` finds them."""
    store.write_tables(tables, folder)


def read(folder: Path = TABLES) -> dict[str, pd.DataFrame]:
    """The tables that are shipped.

    Raises:
        FileNotFoundError: there are none.
    """
    return store.read_tables(folder, ("shares", "beginnings", "curves"))
