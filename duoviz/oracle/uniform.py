"""Every token takes the same route: the paper's fixed patterns."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int8

from ..model import LanguageModel
from ..records import Tokens
from ..routes import Space


def uniform_losses(
    lm: LanguageModel, tokens: Tokens | np.ndarray, routes: Int8[np.ndarray, "route layer"], *, batch_size: int = 8
) -> Float32[np.ndarray, "route seq position"]:
    """Losses in nats when all tokens of a text take one route: one ordinary forward pass per route."""
    tokens = lm.check(tokens)
    return np.stack([lm.score(tokens, route, batch_size=batch_size) for route in routes])


def fixed(
    lm: LanguageModel, tokens: Tokens | np.ndarray, *, choices: str = "SB", candidates: int | None = None, seed: int = 0
) -> Int8[np.ndarray, "k layer"]:
    """For every number k of big layers, the one route that is best on average when every token takes it.

    Args:
        lm: the model.
        tokens: calibration text, never the text that the routes will be scored on; about 2,000 positions.
        choices: allowed choices.
        candidates: look at so many routes of each budget, drawn at random, instead of all.
        seed: of that draw.

    Paper: arXiv 2410.10846, figure 4, "fixed".
    """
    found = []
    for k in range(lm.layers + 1):
        space = Space(lm.layers, choices, big=k)
        few = candidates is not None and candidates < space.count()
        routes = space.sample(candidates, seed=seed) if few else space.enumerate()
        means = np.nanmean(uniform_losses(lm, tokens, routes), axis=(1, 2))
        found.append(routes[int(means.argmin())])
    return np.stack(found)


def same_for_all(tokens: Tokens, route: Int8[np.ndarray, " layer"]) -> Int8[np.ndarray, "seq position layer"]:
    """One route at every scored position; -1 elsewhere."""
    routes = np.broadcast_to(route, (*tokens.scored.shape, len(route))).astype(np.int8)
    routes[~tokens.scored] = -1
    return routes
