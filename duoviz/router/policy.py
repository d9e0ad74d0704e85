"""Kind `policy`: routes are drawn, and made likelier where a token's loss is below that of other draws of the same text.

REINFORCE with the mean of the draws as its baseline; a token's reward is its own loss, and what its choices cost by the
multipliers that hold the budget (`straight_through`). Sources: Williams 1992; Kool et al. 2019, "Buy 4 REINFORCE samples, get
a baseline for free!".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ..model import LanguageModel
from ..model.routing import NOTED, holding
from .budget import forward
from .linear import Router
from .processes import averaged
from .straight_through import DUAL, held, names

if TYPE_CHECKING:
    from .past import Past
    from .training import Stage3


def loss(
    lm: LanguageModel, router: Router, ids: Int[Tensor, "row token"], plan: Stage3, past: Past, draw: torch.Generator
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """The loss of a step, and what is logged of it."""
    router.eval().drawn = draw
    multipliers, taken = held(past.log, router).to(ids.device), []
    try:
        with holding(NOTED, lambda _, tokens, routing: taken.append(routing.taken())):
            out = forward(lm, router, ids.repeat(plan.samples, 1), plan)
    finally:
        router.drawn = None
    places = torch.searchsorted(torch.tensor(router.choices, device=ids.device), taken[0].to(ids.device))[:, :-1]
    logits = router.beta * out.router_logits[:, :-1]
    chosen = logits.log_softmax(-1).gather(-1, places[..., None])[..., 0].sum(-1)
    with torch.no_grad():
        targets = ids[:, 1:].repeat(plan.samples, 1)
        nats = nn.functional.cross_entropy(out.logits[:, :-1].float().transpose(1, 2), targets, reduction="none")
        shares = nn.functional.one_hot(places, len(router.choices)).float().mean(2)
        means = averaged(shares.mean((0, 1)))
        off = means - means.new_tensor(plan.mixture.shares)
        # the gradient of the augmented Lagrangian: without its second part the shares swing about the budget
        worse = (nats + shares @ (multipliers + plan.alpha * off)).unflatten(0, (plan.samples, -1))
        # against the mean of the other draws, which does not depend on this one
        advantage = (worse - worse.mean(0)) * plan.samples / (plan.samples - 1)
        moved = multipliers + DUAL * plan.alpha * off
    yield (
        (advantage.flatten(0, 1) * chosen).mean(),
        {
            "loss_nats": nats.mean().item(),
            **dict(zip(names(router), moved.tolist())),
            "shares": means.tolist(),
        },
    )
