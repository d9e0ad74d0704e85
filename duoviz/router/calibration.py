"""From soft shares to hard ones: offsets with which a router's choices meet its budget on given text."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from jaxtyping import Int8
from scipy.optimize import brentq
from torch import Tensor

from ..model import LanguageModel
from ..records import Tokens
from .linear import NAMES, Router


@torch.no_grad()
def calibrate(
    router: Router, lm: LanguageModel, tokens: Tokens | np.ndarray, *, rounds: int = 12, near: float = 0.0
) -> Router:
    """Set the router's offsets so that its hard choices meet the budget on calibration text.

    One number per choice but the first, each found by Brent's method on the realised share of a whole forward pass (a choice
    changes the inputs of later layers and tokens, so the shares of the logits alone would not do). The closest offsets
    seen are kept.

    Args:
        router: changed in place and returned; `facts["calibrated"]` tells the shares met.
        lm: its model.
        tokens: calibration text.
        rounds: most passes over the offsets, where there are two.
        near: how far a share may stay from the one asked for; one decision at least.

    Raises:
        ValueError: as `Router.run`.
    """
    asked = np.array(router.mixture.shares)
    near = max(near, 1 / (lm.check(tokens).scored.sum() * lm.layers))
    best = (np.inf, router.offset)

    def misses() -> np.ndarray:
        nonlocal best
        chosen = router.routes(lm, tokens)
        found = np.array([_share(chosen, choice) for choice in router.choices]) - asked
        if abs(found).max() < best[0]:
            best = (abs(found).max(), router.offset.clone())
        return found

    router.offset.zero_()
    misses()  # a router that plans whole routes meets its budget as it is
    for _ in range(rounds if len(asked) > 2 else 1):
        if best[0] <= near:
            break
        for index in range(1, len(asked)):
            meet(router.offset, index, lambda: misses()[index], near=near)  # noqa: B023 - called at once
    router.offset.copy_(best[1])
    router.facts["calibrated"] = realised(router.routes(lm, tokens))
    return router


def meet(offset: Tensor, index: int, miss: Callable[[], float], *, near: float) -> None:
    """Move one offset to where its choice's share, which rises with it, is met: `miss()` is realised minus asked."""
    centre, width = float(offset[index]), 1.0

    @cache
    def at(value: float) -> float:
        offset[index] = value
        found = miss()
        return 0.0 if abs(found) <= near else found

    while width < 2**20 and not at(centre - width) <= 0 <= at(centre + width):
        width *= 4
    if at(centre - width) <= 0 <= at(centre + width):
        offset[index] = brentq(at, centre - width, centre + width, xtol=1e-7, maxiter=30, disp=False)


def realised(routes: Int8[np.ndarray, "seq position layer"]) -> dict[str, float]:
    """Shares of the three choices over scored positions and layers."""
    return {name: _share(routes, choice) for name, choice in NAMES.items()}


def _share(routes: np.ndarray, choice: int) -> float:
    return float((routes[routes[..., 0] >= 0] == choice).mean())
