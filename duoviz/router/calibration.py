"""From soft shares to hard ones: offsets with which a router's choices meet its budget on given text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Int8
from torch import Tensor

from ..model import LanguageModel
from ..records import Tokens
from .linear import NAMES, Router


@torch.no_grad()
def calibrate(router: Router, lm: LanguageModel, tokens: Tokens | np.ndarray, *, rounds: int = 12) -> Router:
    """Set the router's offsets so that its hard choices meet the budget on calibration text.

    One number per choice but the first, each found by bisection on the realised share of a whole forward pass (a choice
    changes the inputs of later layers and tokens, so the shares of the logits alone would not do). The closest offsets
    seen are kept.

    Args:
        router: changed in place and returned; `facts["calibrated"]` tells the shares met.
        lm: its model.
        tokens: calibration text.
        rounds: most passes over the offsets, where there are two; it ends when every share is met to one decision.

    Raises:
        ValueError: as `Router.run`.
    """
    asked = np.array(router.mixture.shares)
    near = 1 / (lm.check(tokens).scored.sum() * lm.layers)
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
            bisect(router.offset, index, lambda: misses()[index], near=near)  # noqa: B023 - called at once
    router.offset.copy_(best[1])
    router.facts["calibrated"] = realised(router.routes(lm, tokens))
    return router


def bisect(offset: Tensor, index: int, miss: Callable[[], float], *, near: float) -> None:
    """Move one offset to where its choice's share, which rises with it, is met: `miss()` is realised minus asked."""
    centre, width = float(offset[index]), 1.0

    def at(value: float) -> float:
        offset[index] = value
        return miss()

    while width < 2**20 and not at(centre - width) <= 0 <= at(centre + width):
        width *= 4
    low, high = centre - width, centre + width
    for _ in range(30):
        found = at((low + high) / 2)
        if abs(found) <= near:
            return
        low, high = (low, (low + high) / 2) if found > 0 else ((low + high) / 2, high)


def realised(routes: Int8[np.ndarray, "seq position layer"]) -> dict[str, float]:
    """Shares of the three choices over scored positions and layers."""
    return {name: _share(routes, choice) for name, choice in NAMES.items()}


def _share(routes: np.ndarray, choice: int) -> float:
    return float((routes[routes[..., 0] >= 0] == choice).mean())
