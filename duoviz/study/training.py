"""Training on top of an existing model: routers for a Duo model, and small FFNs for a dense one."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from .. import convert, corpus, router, store, training
from ..model import config_for, load_model, read_tokenizer, save_adapter
from ..model.adapter import base_of
from ..records import above_zero
from ..router import Mixture
from .study import Study

OWN_DOCUMENTS = 10_000
"""Documents of a source of your own that training text is drawn from; it may have no end."""
MEASURED_ROWS = 16
"""Training rows on which the use of neurons is measured."""


def train_router(
    path: str,
    out: Path,
    *,
    mixture: Mixture,
    tokens: int = 1_000_000,
    sources: Sequence[str] = corpus.PYTHON,
    seed: int = 0,
    **ways: Any,
) -> tuple[router.Router, pd.DataFrame]:
    """Train a router, set its thresholds on the calibration texts and save it.

    Args:
        path: folder or Hub id of the model.
        out: folder of the router; a training that was cut off goes on from there.
        mixture: its budget.
        tokens: training tokens.
        sources: text.
        seed: of every draw.
        **ways: `kind`, `units` and others of `router.Stage3`.

    Returns:
        The router, and its training log, which is also saved.

    Raises:
        ValueError: as `router.train` and `training_rows`; another process is training a router in this folder.

    Under torchrun every process calls this; the first writes.
    """
    here, plan = Study(model=path), router.Stage3(mixture, tokens=tokens, seed=seed, **ways)
    with (
        router.together() as first,
        store.only_writer(out / "training.lock") if first else nullcontext(),
        store.room_in(out),
    ):
        length = min(training.ROW, here.lm.context)
        rows = training_rows(here.lm.tokenizer, tokens, length=length, sources=sources, seed=seed)
        made, log = router.train(here.lm, rows, plan, checkpoint=out / "training.pt")
        router.calibrate(made, here.lm, here.calibration())
        if first:
            router.save(made, out)
            (out / "training.pt").unlink(missing_ok=True)
            log.to_parquet(out / "training-log.parquet", index=False)
    return made, log


def train_small(
    path: str,
    out: Path,
    *,
    small: int | None = None,
    begin: str = "neurons",
    layer_tokens: int = 0,
    tokens: int = 0,
    learning_rate: float = 1e-3,
    rows: int = 32,
    sources: Sequence[str] = corpus.PYTHON,
    seed: int = 0,
    adapter: bool = False,
    **ways: Any,
) -> Path:
    """Give a dense model small FFNs and train them with random routes; returns the folder of the Duo model, or adapter.

    Args:
        path: folder or Hub id of the dense model.
        out: folder of the run; one that was cut off goes on from there.
        small, begin: as in `duoviz.convert.convert`.
        layer_tokens: on which each small FFN first learns by itself what its big one does (`duoviz.convert.imitate`); 0 for none.
        tokens: of training with random routes; 0 for none.
        learning_rate: its peak, of both.
        rows: sequences of a step of the training with random routes.
        sources: text on which the use of neurons is measured, and which is trained on.
        seed: of every draw.
        adapter: save the small FFNs alone, beside the name of the dense model (see `duoviz.model.adapter`).
        **ways: `frozen`, `distil`, `micro_rows` and others of `training.Stage1`.

    Raises:
        ValueError: as `convert.convert`, `training_rows` and `training.train`; another process writes to this folder; an
            adapter of a model whose other weights are trained too.
    """
    if adapter and not ways.get("frozen", False):
        raise ValueError("an adapter holds the small FFNs alone: train them alone (frozen)")
    for name, number in (("tokens", tokens), ("layer_tokens", layer_tokens)):
        if not isinstance(number, int) or number < 0:
            raise ValueError(f"{name} {number!r}: give a whole number of training tokens, or 0 for none")
    above_zero(learning_rate=learning_rate)
    begun = out / "converted"
    asked: dict[str, Any] = {"model": str(path), "begin": begin, "small": small, "seed": seed, "sources": list(sources)}
    if layer_tokens:
        asked |= {"layer_tokens": layer_tokens, "learning_rate": learning_rate}
    with store.only_writer(out / "training.lock"), store.room_in(out):
        plan = None
        whole = convert.dense(path)
        if tokens > 0:  # what is wrong with it is said before anything is computed
            width = convert.small_width(whole, small)
            shape = training.Preset.of(config_for(whole, small_width=width), tokens=tokens, learning_rate=learning_rate)
            shape = replace(shape, rows=rows)
            plan = training.Stage1(out=out, preset=shape, sources=tuple(sources), seed=seed, start=out, **ways)
        if not begun.is_dir():
            _convert(begun, asked, context=whole.max_position_embeddings)
        known = json.loads((begun / training.CONVERSION).read_text())
        if known != asked:
            raise ValueError(f"{out} holds a conversion with {known}: repeat that, or give another folder")
        folder = begun if plan is None else training.train(replace(plan, start=begun))
        return _adapter(folder, out / "adapter", path) if adapter else folder


def _convert(folder: Path, asked: dict[str, Any], *, context: int) -> None:
    """Write a dense model with the small FFNs that were asked for; all of it is there or nothing."""
    path, number = asked["model"], asked.get("layer_tokens", 0)
    length, tokenizer = min(training.ROW, context), read_tokenizer(path)
    drawn: dict[str, Any] = {"sources": asked["sources"], "seed": asked["seed"]}
    rows = training_rows(tokenizer, MEASURED_ROWS * length + number, length=length, **drawn)
    ids = torch.from_numpy(rows[:MEASURED_ROWS].astype(np.int64))
    model = convert.convert(path, ids, small=asked["small"], begin=asked["begin"], seed=asked["seed"])
    partial, checkpoint = folder.with_name("converted.partial"), folder.with_name("imitation.pt")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if number:
        alone = convert.Imitation(number, learning_rate=asked["learning_rate"])
        log = convert.imitate(model, rows[MEASURED_ROWS:], alone, checkpoint=checkpoint)
        log.to_parquet(partial / "imitation-log.parquet", index=False)
    model.save_pretrained(partial)
    assert tokenizer is not None, "`training_rows` has refused a model without one"
    tokenizer.save_pretrained(partial)
    for file in (Path(path) / name for name in training.RECORD):
        if file.is_file():
            shutil.copyfile(file, partial / file.name)
    (partial / training.CONVERSION).write_text(json.dumps(asked, indent=1) + "\n")
    partial.rename(folder)
    checkpoint.unlink(missing_ok=True)


def _adapter(folder: Path, out: Path, base: str) -> Path:
    """What a converted model's folder holds beside the dense model, and what it says of its training."""
    save_adapter(load_model(folder), out, base=base)
    for path in (folder / name for name in (*training.RECORD, "README.md") if (folder / name).is_file()):
        if path.suffix == ".parquet":
            shutil.copyfile(path, out / path.name)
        else:  # where the dense model was on this machine is nobody else's business
            (out / path.name).write_text(path.read_text().replace(str(base), str(base_of(out))))
    return out


def training_rows(
    tokenizer: Any, tokens: int, *, length: int, sources: Sequence[str] = corpus.PYTHON, seed: int = 0
) -> np.ndarray:
    """About so many tokens of the sources' train split in turn: uint16 or uint32 `[row, token]`. Documents are drawn without
    replacement, so that a few are of all kinds.

    Raises:
        ValueError: an unknown source, too little text for a row, no tokenizer.
    """
    parts = []
    for source in sources:
        listed = corpus.documents(source, split="train", limit=None if source in corpus.PYTHON else OWN_DOCUMENTS)
        if source in corpus.PYTHON:  # your own text is read in the order in which its rows are held out
            random.Random(seed).shuffle(listed)
        sizes = np.cumsum([len(document.text) for document in listed])
        wanted = 8 * tokens // len(sources)  # more characters than the tokens take
        few = listed[: int(np.searchsorted(sizes, wanted)) + 1]
        rows = corpus.packed(tokenizer, few, length=length)
        parts.append(rows if source in corpus.PYTHON or len(rows) == 1 else training.apart(rows)[0])
    turns = [row for turn in zip_longest(*parts) for row in turn if row is not None]
    return np.stack(turns[: max(1, tokens // length)])
