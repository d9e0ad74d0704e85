"""Kind `threshold`: nothing is trained; one number of a token is compared with an offset that meets the budget.

A token takes a larger choice where its number is larger: where it is rarer, its state has moved further, or the model is less
sure. What learned routers must beat. Source: Schuster et al., arXiv 2207.07061 (CALM), for confidence as a signal to go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..model import LanguageModel
from .linear import Router

if TYPE_CHECKING:
    from .past import Past
    from .training import Stage3

NUMBERS = ("frequency", "change", "entropy")
"""What can be compared."""


def loss(
    lm: LanguageModel, router: Router, ids: Int[Tensor, "row token"], plan: Stage3, past: Past, draw: torch.Generator
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Set the weights by hand; a loss of nothing, and what is logged."""
    with torch.no_grad():
        router.weight.zero_()
        router.bias.zero_()
        router.weight[:, :, 0] = torch.arange(
            len(router.choices), dtype=torch.float32
        )  # larger numbers, larger choices
        out = lm.model(ids, labels=ids, duo_router=router.eval(), use_cache=False)
        chosen = router.choose(out.router_logits)
    shares = router.shares(chosen)
    yield 0.0 * router.bias.sum(), {"loss_nats": out.loss.item(), "shares": shares}
