"""A step of `generate`: how long it takes by what its tokens take, and how many texts go side by side.

Decoding reads weights. A step of one text reads only what its route takes; a step of many texts with routes of their own
reads nearly everything, whatever the routes are: of the big FFNs `1 - (1 - p)^B` for shares p and B texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int8
from transformers.generation.stopping_criteria import StoppingCriteriaList

from ..model import LanguageModel, RandomPolicy, attention_widths
from ..model.routing import SCOPE, holding
from ..router import Router
from ..routes import BIG, SKIP, SMALL

BATCHES = (1, 2, 4, 8, 32)
PROMPT = 16
STEPS = 12
STOCK, WHOLE = "transformers, dense", "all big"

SAID = """A step of `generate` with {of}. In each cell: its time; how many times faster it is than all big; the share of the big
FFNs that at least one of the texts takes; and the share of the time that reading what it touches would take."""


@dataclass(frozen=True)
class Step:
    """One cell of the table.

    Attributes:
        way: what the tokens take.
        batch: texts side by side.
        ms: median milliseconds of a step.
        gigabytes: weights, keys and values that a step touches, by count.
        touched: share of the big FFNs that at least one of the texts takes.
        limit: share of the time that reading so many bytes takes, at the memory's rate measured beside it.
    """

    way: str
    batch: int
    ms: float
    gigabytes: float
    touched: float
    limit: float


@torch.no_grad()
def steps(lm: LanguageModel, router: Router | None, *, rounds: int = 3, batches: Sequence[int] = ()) -> Iterator[Step]:
    """Every way at every number of texts; the ways take turns, after one round that does not count.

    Args:
        lm: the model.
        router: one of its routers, or None.
        rounds: how often each way makes a text of `STEPS` tokens.
        batches: texts side by side; `BATCHES` if none are given.
    """
    ways, dense = _ways(lm, router), lm.model.dense()
    rate = memory_rate(lm)
    for batch in batches or BATCHES:
        prompt = torch.randint(0, lm.known, (batch, PROMPT), generator=torch.Generator().manual_seed(batch)).to(
            lm.device
        )
        found: dict[str, list[float]] = {name: [] for name in (STOCK, *ways)}
        routes = {}
        for turn in range(rounds + 1):
            for name in found:
                stamps, taken = ways[name](prompt) if name in ways else _generated(dense, prompt)
                found[name] += np.diff(stamps).tolist() if turn else []
                routes[name] = np.full((1, STEPS, lm.layers), BIG, np.int8) if taken is None else taken
        for name, seconds in found.items():
            scope = "block" if "blocks" in name else "ffn"
            read = touched_bytes(lm, routes[name], scope=scope, batch=batch)
            big = float((routes[name] == BIG).any(0).mean())
            second = float(np.median(seconds))
            yield Step(name, batch, 1e3 * second, read / 1e9, big, read / rate / second)


def _ways(lm: LanguageModel, router: Router | None) -> dict[str, Callable[[torch.Tensor], Any]]:
    """Every way to route, by what the table calls it: each makes text of a prompt."""
    layers = np.arange(lm.layers)
    half, most = (np.where(layers % every == 0, BIG, SKIP).astype(np.int8) for every in (2, 4))
    rest = RandomPolicy(0.5, 0.5, 0.0) if lm.model.has_small else RandomPolicy(0.5, 0.0, 0.5)
    named = "small" if lm.model.has_small else "skipped"
    ways: dict[str, dict[str, Any]] = {
        WHOLE: {"duo_routes": "all-big"},
        "half of the FFNs skipped": {"duo_routes": half},
        "three quarters of the FFNs skipped": {"duo_routes": most},
        "half of the blocks skipped": {"duo_routes": half},
        "three quarters of the blocks skipped": {"duo_routes": most},
        f"one random route a step, half {named}": {"duo_routes": rest.routes(1, PROMPT + STEPS + 1, lm.layers)},
        f"random routes of each text, half {named}": {"duo_policy": rest},
    }
    if router is not None:
        ways["router, routes of each text"] = {"duo_router": router}
    return {
        name: partial(_generated, lm.model, scope="block" if "blocks" in name else "ffn", **way)
        for name, way in ways.items()
    }


def _generated(
    model: Any, prompt: torch.Tensor, *, scope: str = "ffn", **way: Any
) -> tuple[list[float], Int8[np.ndarray, "text step layer"] | None]:
    """When each token of a text was there, and the routes of the tokens that were read one by one."""
    stamps: list[float] = []

    def stamp(ids: torch.Tensor, scores: Any) -> torch.Tensor:
        if ids.is_cuda:
            torch.cuda.synchronize()
        stamps.append(time.perf_counter())
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    asked = {"max_new_tokens": STEPS + 1, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with holding(SCOPE, scope):
        made = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            stopping_criteria=StoppingCriteriaList([stamp]),
            return_dict_in_generate=True,
            **asked,
            **way,
        )
    routes = getattr(made, "duo_routes", None)
    return stamps, None if routes is None else routes[:, -STEPS:].numpy()


def touched_bytes(lm: LanguageModel, routes: Int8[np.ndarray, "text step layer"], *, scope: str, batch: int) -> float:
    """Bytes that a step reads on average: the head, of every layer the attention (keys and values alone where all texts skip
    the block) and each FFN that any text takes, and the keys and values of all earlier tokens."""
    config, family = lm.model.config, lm.model.family
    d, (h, g) = config.hidden_size, attention_widths(config)
    big, small = ((routes == choice).any(0).sum(-1).mean() for choice in (BIG, SMALL))
    skipped = (routes == SKIP).all(0).sum(-1).mean() if scope == "block" else 0.0
    ffns = family.flops(config, big=float(big), small=float(small)) / 2  # a multiplication and an addition each
    attention = 2 * d * (h + g) * lm.layers - 2 * d * h * skipped
    weights = d * lm.vocab + attention + ffns
    cached = 2 * g * batch * ((PROMPT + STEPS / 2) * (lm.layers - skipped) + skipped)
    return float((weights + cached) * next(lm.model.parameters()).element_size())


def memory_rate(lm: LanguageModel) -> float:
    """Bytes that this machine reads in a second: the best of five sums over as many numbers as the model has."""
    numbers = torch.ones(sum(p.numel() for p in lm.model.parameters()), device=lm.device)
    best = np.inf
    for _ in range(6):
        began = time.perf_counter()
        float(numbers.sum())
        best = min(best, time.perf_counter() - began)
    return 4 * len(numbers) / best


def grid(found: list[Step]) -> str:
    """The steps as a markdown table: a line for each way, a column for each number of texts."""
    by = {(step.way, step.batch): step for step in found}
    batches = sorted({step.batch for step in found})
    lines = [
        "| a step, texts side by side | " + " | ".join(map(str, batches)) + " |",
        "|---" * (len(batches) + 1) + "|",
    ]
    for way in dict.fromkeys(step.way for step in found):
        cells = []
        for batch in batches:
            step = by[way, batch]
            faster = by[WHOLE, batch].ms / step.ms
            cells.append(f"{step.ms:.0f} ms, {faster:.2f}×, {100 * step.touched:.0f} %, {100 * step.limit:.0f} %")
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
