"""Kind `distil`: each layer's logits learn what its choices would lose, along the router's own routes.

The losses are those of `oracle.flips`: of a token whose other layers, and all earlier tokens, keep the routes that the router
takes now. Minus the loss in nats is the logit, up to what all choices of a token share; the offsets of `calibrate` then buy the
largest gains that the budget allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import oracle
from ..model import LanguageModel
from .calibration import meet
from .linear import Router
from .processes import averaged, number

if TYPE_CHECKING:
    from .past import Past
    from .training import Stage3

BATCH = 1024
"""Positions of a gradient step, of all processes."""
MOST = torch.finfo(torch.float16).max


def loss(
    lm: LanguageModel, router: Router, ids: Int[Tensor, "row token"], plan: Stage3, past: Past, draw: torch.Generator
) -> Iterator[tuple[Tensor | None, dict[str, Any]]]:
    """The losses of the gradient steps after one batch of texts, if it ends a round, and what is logged of them."""
    inputs = Recorder(router.eval())
    tokens = ids.cpu().numpy()
    _meet_budget(router, lm, ids)
    with torch.no_grad():
        out = lm.model(ids, labels=ids, duo_router=inputs, use_cache=False)
        chosen = router.choose(out.router_logits)[:, :-1]
    losses = oracle.flips(
        lm, tokens, chosen.to(torch.int8).cpu().numpy(), objectives=(plan.objective,), choices=plan.mixture.letters
    )[0]
    gains = torch.from_numpy(losses[..., :1] - losses).to(ids.device).flatten(0, 1)  # [position, layer, choice]
    x = [inputs.seen[layer].reshape(*ids.shape, -1)[:, :-1].flatten(0, 1) for layer in range(lm.layers)]
    past.memory.add(remembered(torch.stack(x, 1), plan, draw), gains)
    record = {"loss_nats": out.loss.item(), "unexplained": float("nan"), "shares": router.shares(chosen)}
    if not past.round_ends(plan.rounds):
        yield None, record
        return
    for done, parts in past.memory.again(plan.epochs, max(1, BATCH // number()), draw):
        read, want = (part.to(ids.device) for part in parts)
        logits = torch.stack([router.network(layer, read[:, layer].float()) for layer in range(lm.layers)], 1)
        off = (logits - logits[..., :1] - want)[..., 1:].square().mean()
        unexplained = off.item() / max(float(want[..., 1:].var()), 1e-12)
        yield off, {**record, "rate": 1 - done, "unexplained": unexplained}


def remembered(x: Tensor, plan: Stage3, draw: torch.Generator) -> Tensor:
    """What is read of some positions, float16; dealt out to other positions if the plan says so."""
    x = x.clamp(-MOST, MOST).half()
    return x[torch.randperm(len(x), generator=draw)] if plan.shuffled else x


@torch.no_grad()
def _meet_budget(router: Router, lm: LanguageModel, ids: Int[Tensor, "row token"]) -> None:
    """Set the offsets so that the logits of one pass over this text would meet the budget; later layers then see other inputs, so
    that the routes meet it nearly."""
    logits = lm.model(ids, duo_router=router, use_cache=False).router_logits

    def miss(choice: int) -> float:
        return float(averaged((router.choose(logits) == choice).float().mean())) - router.mixture.share(choice)

    for _ in range(1 if len(router.choices) == 2 else 3):  # where there are two offsets, each moves the other's share
        for index, choice in enumerate(router.choices[1:], 1):
            meet(router.offset, index, partial(miss, choice), near=1e-3)


class Recorder(torch.nn.Module):
    """A router that keeps what it reads at its layers.

    Attributes:
        seen: by layer.
    """

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.inside, self.choices, self.given = router, router.choices, router.given
        self.seen: dict[int, Tensor] = {}
        self.eval()

    def logits(
        self, layer: int, x: Float[Tensor, "*token hidden"], given: Any = None
    ) -> Float[Tensor, "*token choice"]:
        """The router's own."""
        self.seen[layer] = self.inside.read(x.detach().float(), given)
        return self.inside.logits(layer, x, given)

    def choose(self, logits: Float[Tensor, "*any choice"]) -> Int[Tensor, "*any"]:
        """The router's own."""
        return self.inside.choose(logits)
