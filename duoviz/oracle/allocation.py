"""Budgets that hold on average over a text (`sequence_mean`): how many big layers each of its tokens gets.

A budget for every single token is a restriction: a policy that may move big layers from one token to another can only gain. The
best allocation is found by an exact dynamic program over the tokens' curves. It needs a `reference` context, in which the route
of one token does not change the losses of another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64

from ..records import Curve


def sequence_mean(curve: Curve) -> Curve:
    """A policy's routes when its budgets are means over each text instead of every token's.

    Args:
        curve: searched under a `reference` context; its minimised values are what is added up, so that a label-free policy is
            allocated without the label too.

    Returns:
        A `Curve` over the same budgets, now means over each text's scored positions. What it realises is in its routes.

    Raises:
        ValueError: a curve of another context, or without its minimised values.
    """
    if not curve.context.startswith("reference:"):
        raise ValueError(
            f"context {curve.context!r}: mean budgets need a reference context, where tokens do not interact"
        )
    if curve.minimised is None:
        raise ValueError(
            "mean budgets need a searched curve with its minimised values: search again (fresh) where it was stored by an"
            " earlier version"
        )
    layers = allocated(curve.minimised, curve.budgets.tolist(), curve.budgets.tolist())
    seq, position = np.indices(layers.shape[1:])
    loss, routes = (each[np.maximum(layers, 0), seq, position] for each in (curve.loss_nats, curve.routes))
    return Curve(f"{curve.name}, mean budget", curve.context, curve.budgets, loss, routes)


def allocated(
    values: Float[np.ndarray, "k seq position"], budgets: Sequence[int], means: Sequence[float | int]
) -> Int64[np.ndarray, "mean seq position"]:
    """Which budget each position of a text should have, so many big layers on average, for the least sum of some values, by an
    exact dynamic program: places in `budgets`; -1 where a position is not scored.

    Args:
        values: of every position at each budget; NaN where not scored.
        budgets: numbers of big layers, ascending.
        means: big layers per scored position; a text's sum is rounded to a whole number, and down to one that budgets add up
            to.

    Raises:
        ValueError: a mean outside the budgets.
    """
    if not all(budgets[0] <= mean <= budgets[-1] for mean in means):
        raise ValueError(f"mean budgets {list(means)}: the curve runs from {budgets[0]} to {budgets[-1]} big layers")
    more = [budget - budgets[0] for budget in budgets]
    found = np.full((len(means), *values.shape[1:]), -1, np.int64)
    for seq in range(values.shape[1]):
        places = np.flatnonzero(np.isfinite(values[0, seq]))
        costs = values[:, seq, places].astype(float)
        # of each sum of big layers above the least budget, over the positions so far
        least = np.append(0.0, np.full(more[-1] * len(places), np.inf))
        taken = np.zeros((len(places), len(least)), np.int64)
        for step in range(len(places)):
            ways = np.full((len(more), len(least)), np.inf)
            for k, extra in enumerate(more):
                ways[k, extra:] = least[: len(least) - extra] + costs[k, step]
            taken[step], least = ways.argmin(0), ways.min(0)
        for row, mean in enumerate(means):
            left = round((mean - budgets[0]) * len(places))
            left = int(np.flatnonzero(np.isfinite(least[: left + 1]))[-1])
            for step in reversed(range(len(places))):
                found[row, seq, places[step]] = taken[step, left]
                left -= more[taken[step, left]]
    return found
