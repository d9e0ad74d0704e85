"""A budget for the text as a whole: how many big layers each of its tokens gets (`sequence_mean`).

Per token budgets are a restriction: a policy that may move big layers from one token to another can only gain on what it
minimises. The best way to do so is an exact dynamic program over the per-token curves, which are each other's under a
`reference` context only: there a token's routes change no other token's values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64

from ..records import Curve


def sequence_mean(curve: Curve) -> Curve:
    """A policy's routes when its budgets are means over each text instead of every token's.

    Args:
        curve: over all budgets, searched under a `reference` context; its minimised values are what is added up, so that a
            label-free policy is allocated without the label too.

    Returns:
        A `Curve` over the same budgets, now means over each text's scored positions. What it realises is in its routes.

    Raises:
        ValueError: a curve of another context, of some budgets only, or without its minimised values.
    """
    if not curve.context.startswith("reference:"):
        raise ValueError(
            f"context {curve.context!r}: mean budgets need a reference context, where tokens do not interact"
        )
    if curve.minimised is None or curve.budgets.tolist() != list(range(curve.routes.shape[-1] + 1)):
        raise ValueError(
            "mean budgets need a searched curve over all budgets, with its minimised values: search again (fresh) where it"
            " was stored by an earlier version"
        )
    layers = allocated(curve.minimised, curve.budgets.tolist())
    seq, position = np.indices(layers.shape[1:])
    loss, routes = (each[np.maximum(layers, 0), seq, position] for each in (curve.loss_nats, curve.routes))
    return Curve(f"{curve.name}, mean budget", curve.context, curve.budgets, loss, routes)


def allocated(
    values: Float[np.ndarray, "k seq position"], means: Sequence[float | int]
) -> Int64[np.ndarray, "mean seq position"]:
    """How many big layers each position of a text should have, so many on average, for the least sum of some values, by an
    exact dynamic program. -1 where a position is not scored.

    Args:
        values: of every position with 0, 1, ... big layers; NaN where not scored.
        means: big layers per scored position; a text's sum is rounded to a whole number.

    Raises:
        ValueError: a mean outside the budgets.
    """
    most = len(values) - 1
    if not all(0 <= mean <= most for mean in means):
        raise ValueError(f"mean budgets {list(means)}: the curve runs from 0 to {most} big layers")
    found = np.full((len(means), *values.shape[1:]), -1, np.int64)
    for seq in range(values.shape[1]):
        places = np.flatnonzero(np.isfinite(values[0, seq]))
        costs = values[:, seq, places].astype(float)
        least = np.append(
            0.0, np.full(most * len(places), np.inf)
        )  # of each sum of big layers, over the positions so far
        taken = np.zeros((len(places), len(least)), np.int64)
        for step in range(len(places)):
            ways = np.full((most + 1, len(least)), np.inf)
            for k in range(most + 1):
                ways[k, k:] = least[: len(least) - k] + costs[k, step]
            taken[step], least = ways.argmin(0), ways.min(0)
        for row, mean in enumerate(means):
            left = round(mean * len(places))
            for step in reversed(range(len(places))):
                found[row, seq, places[step]] = taken[step, left]
                left -= taken[step, left]
    return found
