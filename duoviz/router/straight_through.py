"""Kind `straight-through`: hard choices are drawn, their gradient is that of the probabilities; multipliers hold the budget.

The method of multipliers: to the budget loss comes each choice's distance from its share times a multiplier that grows by
that distance, so that the budget is met whatever the loss says. Sources: Jang et al., arXiv 1611.01144 (straight-through
Gumbel-softmax); SkipGPT, arXiv 2506.04179 (routers of layers trained so).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..model import LanguageModel
from .budget import budget_loss, forward
from .linear import NAMES, Router

if TYPE_CHECKING:
    from .past import Past
    from .training import Stage3

DUAL = 0.03
"""Of the distance from the budget, times alpha, that the multipliers move by in a step. On the planted rule of the tests, with
half of the budget that it needs, alpha 30 and learning rates of 0.003 and 0.03, the shares of both kinds end within 0.01 of
it; with 0.1 those of `policy` swing by 0.07."""


def loss(
    lm: LanguageModel, router: Router, ids: Int[Tensor, "row token"], plan: Stage3, past: Past, draw: torch.Generator
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """The loss of a step, and what is logged of it."""
    router.drawn = draw
    try:
        out = forward(lm, router.train(), ids, plan, labels=ids)
        # the probabilities, not what was drawn with them: the same mean, with less noise
        means = (router.beta * out.router_logits).softmax(-1)
    finally:
        router.drawn = None
    found, shares = budget_loss(means, plan.mixture)
    multipliers = held(past.log, router)
    off = means.mean((0, 1, 2)) - means.new_tensor(plan.mixture.shares)
    total = out.loss + plan.alpha * found + (off * multipliers.to(off.device)).sum()
    moved = multipliers + DUAL * plan.alpha * off.detach().cpu()
    yield (
        total,
        {
            "loss_nats": out.loss.item(),
            "budget_loss": found.item(),
            **dict(zip(names(router), moved.tolist())),
            "shares": shares.tolist(),
        },
    )


def held(log: Sequence[dict[str, Any]], router: Router) -> Float[Tensor, " choice"]:
    """The multipliers after the steps so far; zeros before the first."""
    return torch.tensor([log[-1][name] if log else 0.0 for name in names(router)])


def names(router: Router) -> list[str]:
    """Columns of the log that hold the multipliers, in the order of the choices."""
    return [f"multiplier_{name}" for name, choice in NAMES.items() if choice in router.choices][::-1]
