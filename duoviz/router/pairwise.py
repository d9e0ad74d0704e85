"""Kind `pairwise`: at the first layer, the whole route of a token, the best by its predicted losses with exactly the budget.

One network predicts, from the input of the first FFN, a term for each layer that is big and one for each pair of them; their sum
is the loss of a route, up to what all routes of the token share. Landscapes of routes are nearly of that form (notebook 7), so
that such a router misses only what the first layer does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import oracle
from ..model import LanguageModel
from ..routes import BIG, Space
from .distil import BATCH, Recorder, remembered
from .linear import Mixture, Router
from .processes import number

if TYPE_CHECKING:
    from .past import Past
    from .training import Stage3

MOST_LAYERS = 16
"""Up to which all routes of a budget are looked at: 12,870 at most."""
SURE = 1e6
"""Logit of what the plan has: no offset changes it."""


class Pairwise(Router):
    """A router that plans a token's route at its first layer.

    Args:
        layers, hidden, mixture, units, reads, seed: as of `Router`; `mixture` of two choices and a whole number of big layers.

    Raises:
        ValueError: another mixture, or more layers than can be enumerated.
    """

    def __init__(
        self, layers: int, hidden: int, mixture: Mixture, *, units: int = 0, reads: str = "ffn", seed: int = 0
    ) -> None:
        super().__init__(layers, hidden, mixture, units=units, reads=reads, seed=seed)
        big = mixture.big * layers
        if (
            len(mixture.choices) != 2
            or BIG not in mixture.choices
            or abs(big - round(big)) > 1e-3
            or layers > MOST_LAYERS
        ):
            raise ValueError(
                f"kind 'pairwise' with {mixture} over {layers} layers: give big and one other choice, a whole number of big"
                f" layers (big = k / {layers}), and at most {MOST_LAYERS} layers"
            )
        self._make_networks(1, layers + layers * (layers - 1) // 2, seed)
        self.plans = torch.from_numpy(Space(layers, mixture.letters, big=round(big)).enumerate())

    @cached_property
    def forms(self) -> Float[Tensor, "route term"]:
        """Which terms each route has."""
        return terms_of(self.plans)

    def given(self, model: Any, tokens: Tensor, begun: int) -> Any:
        """What is read, and room for the pass's plan."""
        return {"read": super().given(model, tokens, begun), "plan": None}

    def read(self, x: Float[Tensor, "*token hidden"], given: Any) -> Float[Tensor, "*token width"]:
        """What the network sees."""
        return super().read(x, given["read"])

    def logits(
        self, layer: int, x: Float[Tensor, "*token hidden"], given: Any = None
    ) -> Float[Tensor, "*token choice"]:
        """What the plan has, which is made at the first layer."""
        if layer == 0:
            predicted = self.network(0, self.read(x.float(), given)) @ self.forms.T.to(x.device)
            given["plan"] = self.plans.to(x.device)[predicted.argmin(-1)]
        taken = given["plan"][..., layer].reshape(x.shape[:-1])
        return SURE * (taken[..., None] == torch.tensor(self.choices, device=x.device)).float()

    def flops(self, vocab: int) -> int:
        """FLOPs of a token; multiply-adds count twice."""
        terms = self.weight.shape[1]
        inside = self.units * (self.width + terms) if self.units else self.width * terms
        return 2 * (inside + terms * len(self.plans))


CLASSES: dict[str, type[Router]] = {"pairwise": Pairwise}
"""Routers that are of a class of their own, by kind."""


def terms_of(routes: Int[Tensor, "*any layer"]) -> Float[Tensor, "*any term"]:
    """1 for each layer that is big, then for each pair of such layers; else 0."""
    big = (routes == BIG).float()
    one, other = np.triu_indices(routes.shape[-1], k=1)
    return torch.cat([big, big[..., one] * big[..., other]], -1)


def loss(
    lm: LanguageModel, router: Router, ids: Int[Tensor, "row token"], plan: Stage3, past: Past, draw: torch.Generator
) -> Iterator[tuple[Tensor | None, dict[str, Any]]]:
    """The losses of the gradient steps after one batch of texts, if it ends a round, and what is logged of them."""
    assert isinstance(router, Pairwise), "made for this kind"
    inputs = Recorder(router.eval())
    with torch.no_grad():
        out = lm.model(ids, labels=ids, duo_router=inputs, use_cache=False)
        chosen = router.choose(out.router_logits)[:, :-1]
    shape = (len(ids), ids.shape[1] - 1, plan.samples)
    drawn = router.plans[torch.randint(len(router.plans), shape, generator=draw)]
    routes = chosen.to(torch.int8).cpu().numpy()
    losses = oracle.alternatives(lm, ids.cpu().numpy(), routes, drawn.numpy(), objectives=(plan.objective,))[0]
    nats = torch.from_numpy(losses).to(ids.device).flatten(0, 1)
    x = inputs.seen[0].reshape(*ids.shape, -1)[:, :-1].flatten(0, 1)
    past.memory.add(remembered(x, plan, draw), nats - nats.mean(-1, keepdim=True), drawn.flatten(0, 1))
    record = {"loss_nats": out.loss.item(), "unexplained": float("nan"), "shares": router.shares(chosen)}
    if not past.round_ends(plan.rounds):
        yield None, record
        return
    for done, parts in past.memory.again(plan.epochs, max(1, BATCH // number()), draw):
        read, want, some = (part.to(ids.device) for part in parts)
        found = torch.einsum("rt,rct->rc", router.network(0, read.float()), terms_of(some))
        off = (found - found.mean(-1, keepdim=True) - want).square().mean()
        unexplained = off.item() / max(float(want.square().mean()), 1e-12)
        yield off, {**record, "rate": 1 - done, "unexplained": unexplained}
