"""Training a router for a model: on which text, and where it is kept."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pandas as pd

from .. import corpus, router, store
from ..model import LanguageModel
from ..router import Mixture
from .study import Study


def train_router(
    path: str, out: Path, *, mixture: Mixture, tokens: int = 1_000_000, seed: int = 0
) -> tuple[router.Router, pd.DataFrame]:
    """Train a router on the python sources, set its thresholds on the calibration texts and save it.

    Returns:
        The router, and its training log, which is also saved.

    Raises:
        ValueError: as `router.train`; another process is training a router in this folder.
    """
    here, plan = Study(model=path), router.Stage3(mixture, tokens=tokens, seed=seed)
    with store.only_writer(out / "training.lock"):
        made, log = router.train(
            here.lm, training_rows(here.lm, tokens, seed=seed), plan, checkpoint=out / "training.pt"
        )
        router.calibrate(made, here.lm, here.calibration())
        router.save(made, out)
        (out / "training.pt").unlink(missing_ok=True)
        log.to_parquet(out / "training-log.parquet", index=False)
    return made, log


def training_rows(lm: LanguageModel, tokens: int, *, seed: int = 0) -> np.ndarray:
    """About so many tokens of the python sources' train split, prose and code in turn: uint16 `[row, token]`. Documents are
    drawn without replacement, so that a few are of all kinds."""
    halves = []
    for source in corpus.PYTHON:
        listed = corpus.documents(source, split="train")
        random.Random(seed).shuffle(listed)
        sizes = np.cumsum([len(document.text) for document in listed])
        few = listed[: int(np.searchsorted(sizes, 4 * tokens)) + 1]  # more characters than half the tokens take
        halves.append(corpus.packed(lm.tokenizer, few, length=lm.context))
    number = max(1, min(*map(len, halves), tokens // lm.context // 2))
    return np.stack([half[:number] for half in halves], axis=1).reshape(2 * number, -1)
