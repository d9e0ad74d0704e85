"""Measurements on the losses of all routes at some positions: additivity, the luck of many candidates, the regret of searches."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from .. import frames, metrics, oracle, records, routes
from ..model import LanguageModel

CANDIDATES = tuple(2**power for power in range(20))
"""Numbers of random routes whose best is compared with all big, up to all routes."""
NULL_DRAWS = 4
"""Sampled targets of a landscape's position."""
NUMBERS = {
    "paths": (1, 2, 4, 8),
    "descent": (0, 1, 2, 4),
    "surrogate": (20, 40, 80, 160),
    "beam": (4, 8, 16, 32),
    "mcts": (25, 50, 100, 200),
}
RETRACED = tuple(f"{name}-{number}" for name, numbers in NUMBERS.items() for number in numbers)
"""Methods that do not enumerate, with their numbers."""


def asked(space: routes.Space) -> dict[str, Any]:
    """What is looked at in the landscapes of a space."""
    candidates = sorted({*(k for k in CANDIDATES if k < space.count()), space.count()})
    return {"candidates": candidates, "methods": RETRACED, "draws": NULL_DRAWS}


def spaced(tokens: records.Tokens, positions: int) -> list[int]:
    """So many positions of a text, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, tokens.scored.shape[1] - 1, positions).astype(int)).tolist()


def measured(
    lm: LanguageModel, tokens: records.Tokens, space: routes.Space, *, positions: int, seed: int
) -> dict[str, pd.DataFrame]:
    """What all routes of some positions say, under `reference:big`; a row of each table is a position of a text.

    Tables (columns beside seq and position): `additivity` (additive, pairwise: R squared), `candidates` (candidates,
    true_nats, null_nats: expected gain over all big of the best of so many random routes), `methods` (method, space:
    free or each budget; regret_nats, routes).

    Args:
        lm: the model.
        tokens: its texts.
        space: all routes of the allowed choices.
        positions: of each text, evenly spaced.
        seed: of sampled targets and of methods that draw.
    """
    places = spaced(tokens, positions)
    drawn = [f"null:{seed + draw}" for draw in range(NULL_DRAWS)]
    true, *null = oracle.landscapes(lm, tokens, space, places, objectives=("nll", *drawn))
    made: dict[str, list[pd.DataFrame]] = {"additivity": [], "candidates": [], "methods": []}
    fits = dict(zip(("additive", "pairwise"), oracle.additivity(space, true)))
    made["additivity"].append(frames.sampled(tokens, places, fits))
    for k in asked(space)["candidates"]:
        one, *others = (each[..., -1] - metrics.least_of(each, k) for each in (true, *null))
        gains = {"true_nats": one, "null_nats": np.mean(others, axis=0)}
        made["candidates"].append(frames.sampled(tokens, places, gains, candidates=k))
    spaces = {"free": [space], "each budget": routes.by_big(lm.layers, space)}
    for (name, searched), method in product(spaces.items(), RETRACED):
        regret, tried = oracle.retraced(space, true, searched, method, seed=seed)
        found = {"regret_nats": regret.mean(0), "routes": tried}
        made["methods"].append(frames.sampled(tokens, places, found, method=method, space=name))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in made.items()}


def luck(lm: LanguageModel, tokens: records.Tokens, space: routes.Space, *, positions: int) -> dict[str, pd.DataFrame]:
    """What the best of all routes gains at some positions, by luck and by insight: the table `luck` of `frames.luck_losses`."""
    places = spaced(tokens, positions)
    return {"luck": frames.luck_losses(oracle.luck(lm, tokens, space, places), tokens, places)}
