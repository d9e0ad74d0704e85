"""Measurements for a GPU: exact searches of large models, decoding and stage 1, each beside the device's own matrix rate.

Every model has random weights, so that nothing has to be brought along; all sizes can be shrunk to rehearse on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from .. import oracle
from ..model import CLASSES, LanguageModel, RandomPolicy, forward_flops
from ..records import Tokens
from ..routes import Space
from ..training import PRESETS, Preset
from .decoding import Step, steps
from .table import Row, line, write


@dataclass(frozen=True)
class Sizes:
    """How large the measurements are.

    Attributes:
        paper: a model in the shape of the paper's.
        deep: one of many layers, for searches without enumeration and for stage 1.
        square: side of the matrices whose product is the rate.
        documents, length: texts of a search.
        rows: of a stage-1 step, each as long as the deep model's context.
        batches: texts side by side in `generate`.
    """

    paper: Preset
    deep: Preset
    square: int
    documents: int
    length: int
    rows: int
    batches: tuple[int, ...]


LARGE = Sizes(
    paper=PRESETS["paper"],
    deep=replace(PRESETS["paper"], hidden=1024, layers=24, heads=16, big=4096, small=256, context=1024),
    square=8192,
    documents=16,
    length=32,
    rows=32,
    batches=(1, 8, 32),
)
TOY = Sizes(
    paper=replace(PRESETS["tiny"], hidden=32, layers=4, big=64, small=8, vocab=256, context=64),
    deep=replace(PRESETS["tiny"], hidden=32, layers=6, big=64, small=8, vocab=256, context=32),
    square=128,
    documents=2,
    length=6,
    rows=2,
    batches=(1, 2),
)
"""A rehearsal on a CPU, in seconds."""


def run(out: Path, *, device: str = "cuda", sizes: Sizes = LARGE, say: Callable[[str], None] = print) -> list[Row]:
    """All measurements; each is written as soon as it is there, so that nothing is lost if time runs out.

    Args:
        out: the file, JSON.
        device: as in `duoviz.model.load`.
        sizes: of everything.
        say: is given each line as it is ready.

    Raises:
        ValueError: a device that is not there.
    """
    rows: list[Row] = []
    cells: list[Step] = []
    for one in _measured(torch.device(device), sizes):
        if isinstance(one, Step):
            cells.append(one)
            say(f"{one.way}, batch of {one.batch}: {one.ms:.3g} ms a step, {one.limit:.0%} of the memory's rate")
        else:
            rows.append(one)
            say(line(one))
        write(rows, out, cells, of="the first of these models")
    return rows


def _measured(device: torch.device, sizes: Sizes) -> Iterator[Row | Step]:
    rate = product_rate(device, sizes.square)
    yield Row(f"bfloat16 product of {sizes.square:,} x {sizes.square:,}", rate / 1e12, "TFLOP/s")
    lm = random_model(sizes.paper, device)
    yield from _exact(lm, sizes, rate)
    yield from _rounded(lm, sizes)
    yield from steps(lm, None, rounds=2, batches=sizes.batches)
    del lm
    deep = random_model(sizes.deep, device)
    yield from _paths(deep, sizes, rate)
    yield _stage_1(deep, sizes, rate)


def random_model(shape: Preset, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> LanguageModel:
    """A Duo model of a shape with random weights, the same for every dtype."""
    torch.manual_seed(0)
    with device:
        model = CLASSES[shape.family][1](shape.config()).to(dtype).eval()
    return LanguageModel(model, None, path="random weights")


def texts(lm: LanguageModel, documents: int, length: int) -> Tokens:
    """Texts of random tokens."""
    return lm.check(np.random.default_rng(0).integers(0, lm.vocab, (documents, length)))


def product_rate(device: torch.device, side: int) -> float:
    """FLOPs a second of a product of two square matrices in bfloat16."""
    one, other = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
    return 2 * side**3 / _seconds(lambda: one @ other, device, times=5)


def _seconds(call: Callable[[], object], device: torch.device, *, times: int = 1) -> float:
    """Of one call, after one that does not count."""
    call()
    _wait(device)
    began = time.perf_counter()
    for _ in range(times):
        call()
    _wait(device)
    return (time.perf_counter() - began) / times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _exact(lm: LanguageModel, sizes: Sizes, rate: float) -> Iterator[Row]:
    """Every route and budget of every token."""
    space, tokens = Space(lm.layers, "SB"), texts(lm, sizes.documents, sizes.length)
    setting = oracle.Setting(batch_size=sizes.documents, quiet=True, max_flops=np.inf)

    def search() -> None:
        oracle.by_budget(lm, tokens, context="reference:big", setting=setting)

    flops, seconds = oracle.estimate(lm, tokens, space, context="reference:big"), _seconds(search, lm.device)
    name = f"oracle, {lm.layers} layers of width {lm.model.config.hidden_size}, all {space.count():,} routes of a token"
    each = 1e3 * seconds / int(tokens.scored.sum())
    yield Row(name, each, "ms", flops / seconds / rate, "FLOPs with whole heads / product rate")


def _rounded(lm: LanguageModel, sizes: Sizes) -> Iterator[Row]:
    """How often bfloat16 takes the route that float32 takes."""
    exact = random_model(sizes.paper, lm.device, torch.float32)
    tokens, quiet = texts(lm, 2, min(sizes.length, 9)), oracle.Setting(quiet=True, max_flops=np.inf)
    one, other = (oracle.by_budget(each, tokens, context="reference:big", setting=quiet) for each in (exact, lm))
    same = (one.routes == other.routes).all(-1)[1:-1].mean()
    yield Row("bfloat16: routes that are those of float32, random weights", 100 * float(same), "%")


def _paths(lm: LanguageModel, sizes: Sizes, rate: float) -> Iterator[Row]:
    """All budgets without enumeration."""
    tokens = texts(lm, sizes.documents, sizes.length)
    setting = oracle.Setting(batch_size=sizes.documents, quiet=True, max_flops=np.inf)
    found = oracle.by_budget(lm, tokens, context="reference:big", method="paths-1", setting=setting)
    assert found.effort is not None, "a search counts"
    each, share = found.effort.seconds / int(tokens.scored.sum()), found.effort.flops / found.effort.seconds / rate
    yield Row(f"paths-1, {lm.layers} layers, all budgets of a token", 1e3 * each, "ms", share, "FLOPs / product rate")


def _stage_1(lm: LanguageModel, sizes: Sizes, rate: float) -> Row:
    """Forward, backward and AdamW with random routes; products in bfloat16, weights in float32."""
    model, length = lm.model.float().train(), lm.model.config.max_position_embeddings
    optimizer = torch.optim.AdamW(model.parameters(), fused=lm.device.type == "cuda")
    ids = torch.randint(0, lm.vocab, (sizes.rows, length), device=lm.device)

    def step() -> None:
        with torch.autocast(lm.device.type, torch.bfloat16):
            loss = model(ids, labels=ids, use_cache=False, duo_policy=RandomPolicy()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = _seconds(step, lm.device, times=3)
    routes = RandomPolicy().routes(sizes.rows, length, lm.layers).numpy()
    flops = 3 * forward_flops(model, routes)
    name = f"stage 1, {lm.layers} layers of width {model.config.hidden_size}, {sizes.rows} x {length} tokens a step"
    return Row(name, ids.numel() / seconds / 1e3, "thousand tokens/s", flops / seconds / rate, "FLOPs / product rate")
