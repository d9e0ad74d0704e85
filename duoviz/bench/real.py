"""Searches on a real language model: tied layers exactly, all layers by paths, and what its large vocabulary costs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import numpy as np

from .. import oracle
from ..branching import Trie
from ..model import LanguageModel
from ..oracle import leaves
from ..records import Curve, Tokens
from ..routes import Space
from .products import BOUNDING, noted, sample, timed, trie_products, ways, work_of
from .table import Row

GROUPS = 10
TEXTS = 4


def searches(lm: LanguageModel, tokens: Tokens, *, groups: int = GROUPS) -> Iterator[Row]:
    """Exact over tied layers, and by `paths` over them and over all layers, for every number of big layers.

    Args:
        lm: the model.
        tokens: texts; 17 tokens of the first four are searched.
        groups: runs of layers that choose.
    """
    name, few = f"{lm.layers} layers in {groups} groups", tokens[:TEXTS].cut(17)
    space, scored, shape = (
        Space(lm.layers, "SB", groups=groups),
        int(few.scored.sum()),
        (lm.model.config.hidden_size, lm.vocab),
    )
    spent: dict[str, float] = defaultdict(float)
    with ExitStack() as stack:
        for place, what in ((leaves, "whole"), (leaves._Bound, "_below")):
            stack.enter_context(patch.object(place, what, _watched(getattr(place, what), spent)))
        exact = _curve(lm, few, space, "exhaustive")
    seconds = exact.effort.seconds
    yield Row(f"{name}, all {space.count():,} routes and budgets of a token", 1e3 * seconds / scored, "ms")
    finished = spent["leaves"] / scored
    head = 2 * shape[0] * (finished * shape[1] + space.count() * BOUNDING)
    work = exact.effort.flops / scored - space.count() * 2 * shape[0] * shape[1] + head
    products = list(trie_products(lm, Trie(space.enumerate()), texts=len(few)))
    rate = work_of(products) / min(timed(ways(products), 1))
    del products
    yield Row(f"matrix products at the shapes of {name}, the faster of two libraries", rate / 1e9, "GFLOP/s")
    limit = "limit: FLOPs / product rate"
    yield Row(f"trie of {name} with bounded head", work / 1e9, "GFLOP", seconds / scored / (work / rate), limit)
    yield Row(f"leaves that take the whole vocabulary of {lm.vocab:,}", 100 * finished / space.count(), "%")
    yield Row("time in the head, bounds included", 100 * spent["seconds"] / seconds, "%")
    for method in ("paths-1", "paths-4", "descent"):
        found = _curve(lm, few, space, method)
        between = slice(1, -1)
        regret = np.nanmean((found.loss_nats - exact.loss_nats)[between])
        share = found.effort.flops / exact.effort.flops
        tried = f"{method} over {groups} groups: mean regret of all budgets after {found.effort.routes:.0f} routes"
        yield Row(tried, float(regret), "nats", share, "FLOPs of exact")
    with noted() as shapes:
        deep = _curve(lm, few, Space(lm.layers, "SB"), "paths-1")
    each, flops = deep.effort.seconds / scored, deep.effort.flops / scored
    some = sample(shapes)
    rate = work_of(some) / min(timed(ways(some), 1))
    yield Row(f"paths-1 over {lm.layers} layers, all {lm.layers + 1} budgets of a token", float(each), "s")
    own = f"its work, of which {len(some)} of {len(shapes):,} products alone run at {rate / 1e9:.3g} GFLOP/s"
    yield Row(own, flops / 1e12, "TFLOP", float(each / (flops / rate)), limit)


def _curve(lm: LanguageModel, tokens: Tokens, space: Space, method: str) -> Any:
    """The curve of all budgets behind all big tokens; its effort has no replays."""
    quiet = oracle.Setting(quiet=True, max_flops=np.inf)
    found: Curve = oracle.by_budget(lm, tokens, choices=space, context="reference:big", method=method, setting=quiet)
    return found


def _watched(call: Callable[..., Any], spent: dict[str, float]) -> Callable[..., Any]:
    """A function of the head that notes its time, and how many leaves took the whole vocabulary."""

    def watched(*args: Any) -> Any:
        began = time.perf_counter()
        made = call(*args)
        spent["seconds"] += time.perf_counter() - began
        whole = call.__name__ == "whole"
        spent["leaves"] += len(args[1]) if whole else len(args[1]) * len(args[2])
        return made

    return watched
