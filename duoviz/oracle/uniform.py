"""Every token takes the same route: the paper's fixed patterns."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from jaxtyping import Float32, Int8

from ..branching import Trie, Work, uniform_leaves
from ..model import LanguageModel, undisturbed
from ..progress import Watch, bar, unwatched
from ..records import Tokens
from ..routes import BIG, SMALL, Space, by_big
from .cost import check_cost, estimate
from .methods import METHODS, parse
from .tried import Tried, answer


@undisturbed
def uniform_losses(
    lm: LanguageModel,
    tokens: Tokens | np.ndarray,
    routes: Int8[np.ndarray, "route layer"],
    *,
    batch_size: int = 8,
    watch: Watch = unwatched,
) -> Float32[np.ndarray, "route seq position"]:
    """Losses in nats when all tokens of a text take one route, for routes in lexicographic order.

    Every route is a whole forward pass; routes that begin alike share the layers of their beginning.
    """
    tokens, trie = lm.check(tokens), Trie(routes)
    found = np.empty((len(routes), *tokens.scored.shape), np.float32)
    for start in range(0, len(tokens), batch_size):
        part = tokens[start : start + batch_size]
        for number, (leaf, hidden) in enumerate(uniform_leaves(lm, part.ids, trie), 1):
            found[leaf, start : start + batch_size] = lm.losses(hidden, part)
            watch((start + len(part) * number / len(routes)) / len(tokens))
    return found


def uniform_work(tokens: Tokens, routes: Int8[np.ndarray, "route layer"]) -> Work:
    """What one forward pass for each route takes: nothing is counted as shared, though beginnings are."""
    nodes = float(tokens.scored.sum()) * routes.size
    big, small = (float(tokens.scored.sum() * (routes == choice).sum()) for choice in (BIG, SMALL))
    return Work(nodes, nodes * tokens.ids.shape[1] / 2, big, small)


def fixed(
    lm: LanguageModel,
    tokens: Tokens | np.ndarray,
    *,
    choices: str | Space = "SB",
    method: str = "exhaustive",
    seed: int = 0,
    max_flops: float = 1e15,
) -> Int8[np.ndarray, "k layer"]:
    """For every number k of big layers, the one route that is best on average when every token takes it.

    Args:
        lm: the model.
        tokens: calibration text, never the text that the routes will be scored on; about 2,000 positions.
        choices: allowed choices, or a space (see `by_budget`).
        method: `"exhaustive"`, or a search that does not enumerate, such as `"paths"` (see `duoviz.oracle.methods`); each route
            that it tries is a forward pass.
        seed: of a search that draws.
        max_flops: refuse a choice that would cost more.

    Raises:
        ValueError: choices without B, an unknown method or one that only draws routes, or a choice among too many routes.

    Paper: arXiv 2410.10846, figure 4, "fixed".
    """
    spaces = by_big(lm.layers, choices)
    whole = replace(spaces[0], big=None)
    name, number = parse(method, whole, curve=True)
    if name == "random":
        raise ValueError(f"method {method!r}: a fixed route is searched by exhaustive, or by {', '.join(METHODS)}")
    tries = whole.count() if name == "exhaustive" else METHODS[name].tries(whole, number)
    check_cost(estimate(lm, tokens, whole, context="uniform") * min(1.0, tries / whole.count()), max_flops)
    text = np.zeros(1, np.int64)  # all texts are one question
    with bar(f"the best of about {tries:,} fixed routes") as watch:

        def means(asked: np.ndarray, routes: np.ndarray) -> np.ndarray:
            done = len(tried.questions)
            shown = partial(_share, watch, done / tries, len(asked) / tries)
            return np.nanmean(uniform_losses(lm, tokens, routes, watch=shown), axis=(1, 2))[:, None]

        tried = Tried(means, lm.layers)
        if name == "exhaustive":
            tried(np.zeros(whole.count(), np.int64), whole.enumerate())
        else:
            draws = [np.random.default_rng([seed, place]) for place in range(len(spaces))]
            answer(METHODS[name].searches(spaces, draws, text, number), tried)
    return np.concatenate([tried.best(space, text)[0] for space in spaces])


def _share(watch: Watch, done: float, part: float, share: float) -> None:
    """Tell the share of all that is done, from that of a part."""
    watch(min(1.0, done + part * share))


def same_for_all(tokens: Tokens, route: Int8[np.ndarray, " layer"]) -> Int8[np.ndarray, "seq position layer"]:
    """One route at every scored position; -1 elsewhere."""
    routes = np.broadcast_to(route, (*tokens.scored.shape, len(route))).astype(np.int8)
    routes[~tokens.scored] = -1
    return routes
