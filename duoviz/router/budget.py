"""Kind `budget`: the cross-entropy of a soft mixture of the choices, and the distance of its shares from the budget.

Paper: arXiv 2410.10846, section 2, stage 3. Differs: see `duoviz.router`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..model import LanguageModel
from .linear import Mixture, Router

if TYPE_CHECKING:
    from .past import Past
    from .training import Stage3


def loss(
    lm: LanguageModel, router: Router, ids: Int[Tensor, "row token"], plan: Stage3, past: Past, draw: torch.Generator
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """The loss of a step, and what is logged of it."""
    out = forward(lm, router.train(), ids, plan, labels=ids)
    found, shares = budget_loss(router.weights(out.router_logits), plan.mixture)
    yield (
        out.loss + plan.alpha * found,
        {
            "loss_nats": out.loss.item(),
            "budget_loss": found.item(),
            "shares": shares.tolist(),
        },
    )


def forward(lm: LanguageModel, router: Router, ids: Int[Tensor, "row token"], plan: Stage3, **asked: Any) -> Any:
    """The model's output on one batch of texts, in the precision of the plan."""
    with torch.autocast(lm.device.type, torch.bfloat16, enabled=plan.bf16):
        return lm.model(ids, duo_router=router, use_cache=False, **asked)


def budget_loss(
    probabilities: Float[Tensor, "seq token layer choice"], mixture: Mixture
) -> tuple[Float[Tensor, ""], Float[Tensor, " choice"]]:
    """Squared distance of a sequence's mean probabilities from the budget, averaged over the batch; and the mean shares.

    With two choices one share says all, and its square alone is taken; with three the squares are summed.

    Paper: arXiv 2410.10846, section 2, stage 3. Differs: per sequence, see `duoviz.router`.
    """
    means = probabilities.mean((1, 2))
    asked = means.new_tensor(mixture.shares)
    squares = (means - asked) ** 2
    per_sequence = squares[:, -1] if len(mixture.choices) == 2 else squares.sum(-1)
    return per_sequence.mean(), means.mean(0).detach()
