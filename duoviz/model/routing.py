"""The Duo layer: one FFN site that holds a big and a small FFN, and the strategies that say which of them a token takes.

`DuoFFN` and `DuoLayer` are mixed into a family's own FFN and decoder layer, so that attention, norms and residuals stay
the family's code. A forward pass makes one `Routing` and hands it from layer to layer. Between a layer and its FFN, which the
family's code calls, it travels in a context variable: every thread has its own, and no attribute of a module changes.

Paper: arXiv 2410.10846, section 2, figure 1.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, Cache

from ..families import Family
from ..routes import BIG, SKIP, SMALL
from .rows import Rows

T = TypeVar("T")


@contextmanager
def holding(variable: ContextVar[T], value: T) -> Iterator[None]:
    """A context variable has a value, in this thread alone."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def in_this_thread(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that only notes what its own thread does: others may use the same model meanwhile."""
    return partial(_called_in, threading.get_ident(), hook)


def _called_in(thread: int, hook: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    if threading.get_ident() == thread:
        hook(*args, **kwargs)


@runtime_checkable
class Routing(Protocol):
    """What a forward pass does at every FFN site."""

    def at_ffn(self, ffn: DuoFFN, layer: int, x: Float[Tensor, "*token hidden"]) -> Float[Tensor, "*token hidden"]:
        """The output of the FFN site of `layer` for its (normalised) input."""

    def at_layer_end(
        self, layer: int, before: Float[Tensor, "batch token hidden"], after: Float[Tensor, "batch token hidden"]
    ) -> Float[Tensor, "batch token hidden"]:
        """The output of the whole layer, from its input and what it computed."""


ATTENTION: ContextVar[str | None] = ContextVar("duo_attention", default=None)
"""Name of the attention function that layers call instead of the one in the configuration."""
SCOPE: ContextVar[str | None] = ContextVar("duo_skip_scope", default=None)
"""What a skip leaves out instead of what the configuration says."""
NOTED: ContextVar[Callable[[nn.Module, int, Any], None] | None] = ContextVar("duo_noted", default=None)
"""Is told of each forward pass: the model, how many tokens it read, and what routed them."""
ROUTING: ContextVar[Routing | None] = ContextVar("duo_routing", default=None)
"""What the decoder layer that is at work has its FFN do; None is big."""


class DuoFFN(nn.Module):
    """A family's FFN (big) with a second, narrower one of the same kind as its child `small`.

    The big FFN keeps its own parameter names, so a Duo checkpoint also opens as the dense model. Where the layer has a norm
    for the FFN's output, each of the two goes through it here: a soft mixture of them is then one of what the layer would
    add, and not of what a norm brings to the same length whatever the skip's share is.

    Attributes:
        small: the small FFN.
        family: of the model.
        layer_index: of the layer.
        residual_factor: what the layer multiplies the output by before it adds it.
        post_norm: the layer's norm of the output, or None.
    """

    small: nn.Module
    family: Family
    layer_index: int
    residual_factor: float = 1.0
    post_norm: PostNorm | None = None

    def forward(self, x: Float[Tensor, "*token hidden"]) -> Float[Tensor, "*token hidden"]:
        routing = ROUTING.get()
        return self.big(x) if routing is None else routing.at_ffn(self, self.layer_index, x)

    def linears(self, ffn: nn.Module | None = None) -> list[Any]:
        """The linear maps of an FFN (the big one if none is given): those into its inner neurons, last the one out of them."""
        return [getattr(ffn or self, name) for name in (*self.family.into, self.family.out)]

    def big(self, x: Float[Tensor, "*token hidden"]) -> Float[Tensor, "*token hidden"]:
        """The big FFN: the dense model's own, and the norm after it."""
        one_text = self.family.experts and x.ndim == 2  # experts want [batch, token, hidden]
        made = super().forward(x[None])[0] if one_text else super().forward(x)
        return made if self.post_norm is None else self.post_norm(made, inner=True)

    def narrow(self, x: Float[Tensor, "*token hidden"]) -> Float[Tensor, "*token hidden"]:
        """The small FFN, and the norm after it."""
        made = self.small(x)
        return made if self.post_norm is None else self.post_norm(made, inner=True)

    def run(self, choice: int, x: Float[Tensor, "*token hidden"]) -> Float[Tensor, "*token hidden"]:
        """What one choice makes of all tokens."""
        return self.big(x) if choice == BIG else self.narrow(x) if choice == SMALL else torch.zeros_like(x)

    def dispatch(self, x: Float[Tensor, "*token hidden"], choices: Int[Tensor, ...]) -> Float[Tensor, "*token hidden"]:
        """Each token through the FFN chosen for it: tokens are gathered by choice, so no work is done twice.

        With gradients on, both FFNs run even on no tokens: distributed training needs a gradient for every parameter (experts
        give one for no tokens as `grouped_mm`, which is what they run as unless told otherwise, and none as `eager`).
        """
        flat, choices = x.reshape(-1, x.shape[-1]), choices.reshape(-1)
        # found where the choices are: on the CPU, no layer waits for the device
        rows = {choice: (choices == choice).nonzero()[:, 0].to(x.device) for choice in (BIG, SMALL)}
        if not torch.is_grad_enabled():
            for choice in (BIG, SMALL):
                if len(rows[choice]) == len(flat):
                    return self.run(choice, x)
        big, small = self.big(Rows.apply(flat, rows[BIG])), self.narrow(Rows.apply(flat, rows[SMALL]))
        out = big.new_zeros(flat.shape)  # under autocast of another dtype than x
        return out.index_copy(0, rows[BIG], big).index_copy(0, rows[SMALL], small).reshape(x.shape)


class PostNorm(nn.Module):
    """A family's norm of the FFN's output, which `DuoFFN` applies; where the layer comes to it, it has been done."""

    def forward(self, x: Float[Tensor, "*token hidden"], *, inner: bool = False) -> Float[Tensor, "*token hidden"]:
        return super().forward(x) if inner else x


class DuoLayer(nn.Module):
    """A family's decoder layer that takes the forward pass's `Routing`.

    The routing is set inside `forward`, which is inside the checkpointed function: a recomputed layer takes the same
    routes.

    Attributes:
        family, layer_index: as of its FFN.
    """

    family: Family
    layer_index: int

    @property
    def duo_ffn(self) -> DuoFFN:
        """The FFN that the layer calls; where somebody has wrapped or replaced it, what is inside.

        Raises:
            ValueError: it has been replaced by something else.
        """
        found = self.family.find_ffn(self)
        inside = (module for module in found.modules() if isinstance(module, DuoFFN))
        if (ffn := next(inside, None)) is None:
            raise ValueError(
                f"layer {self.layer_index} has a {type(found).__name__} where its Duo FFN was: it has no choices"
            )
        return ffn

    def forward(
        self,
        hidden_states: Float[Tensor, "batch token hidden"],
        *args: object,
        duo_routing: Routing | None = None,
        **kwargs: object,
    ) -> Float[Tensor, "batch token hidden"]:
        if unknown := [name for name in kwargs if name.startswith("duo_")]:
            raise ValueError(f"{', '.join(unknown)} given to the backbone: give routes to the model with the head")
        token = ROUTING.set(duo_routing)
        try:
            if isinstance(duo_routing, GivenRoutes) and duo_routing.leaves_out(self.layer_index):
                if any(isinstance(one, Cache) for one in (*args, *kwargs.values())):
                    self._write_keys(hidden_states, *args, **kwargs)
                return hidden_states
            after = self.dense_forward(hidden_states, *args, **kwargs)
        finally:
            ROUTING.reset(token)
        return after if duo_routing is None else duo_routing.at_layer_end(self.layer_index, hidden_states, after)

    @property
    def dense_forward(self) -> Callable[..., Float[Tensor, "batch token hidden"]]:
        """The family's own forward; where it writes its FFN out, the first of these modules does the work of all."""
        if not self.family.written_out:
            return super().forward
        first, *others = self.family.written_out
        seen = with_children(self, {first: self.family.find_ffn(self), **dict.fromkeys(others, nn.Identity())})
        return super(DuoLayer, seen).forward

    def _write_keys(self, hidden_states: Float[Tensor, "batch token hidden"], *args: object, **kwargs: object) -> None:
        """Only what later tokens attend to: the layer's forward as far as its keys and values are in the cache."""
        lean = {}
        for name, part in self._modules.items():
            width = getattr(getattr(part, "q_proj", None), "out_features", None)
            if width is not None:  # whatever has no width makes its queries
                lean[name] = with_children(part, {"q_proj": _NoQuery(width)})
        with holding(ATTENTION, KEYS_ONLY), suppress(_Written):
            with_children(self, lean).dense_forward(hidden_states, *args, **kwargs)


def with_children(module: Any, children: dict[str, nn.Module]) -> Any:
    """The module as if it had these children, sharing everything else with it; nothing of it changes."""
    seen = object.__new__(type(module))  # by itself, copying a sharded layer would make one
    vars(seen).update({**vars(module), "_modules": {**module._modules, **children}})
    return seen


class _NoQuery(nn.Module):
    """Stands where queries are made, and makes zeros.

    Args:
        width: of the queries.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Float[Tensor, "batch token hidden"]) -> Float[Tensor, "batch token query"]:
        return x.new_zeros(*x.shape[:-1], self.width)


class _Written(Exception):
    """Keys and values are in the cache."""


def _written(*args: object, **kwargs: object) -> Any:
    raise _Written


KEYS_ONLY = "duo_keys_only"
AttentionInterface.register(KEYS_ONLY, _written)


class GivenRoutes:
    """Every token takes a given route.

    Args:
        routes: int8 `[batch or 1, token or 1, layer]`.
        skip_scope: `"ffn"` or `"block"`.

    Attributes:
        attentions: whether every layer's attention is asked for, that of skipped ones too.
    """

    attentions = False

    def __init__(self, routes: Int[Tensor, "batch token layer"], *, skip_scope: str) -> None:
        self.routes, self.skip_scope = routes.cpu(), skip_scope
        flat = self.routes.flatten(0, 1)
        alike = torch.where((flat == flat[:1]).all(0), flat[0], -1) if len(flat) else flat.new_full(flat.shape[1:], BIG)
        self.of_all: list[int] = alike.tolist()  # the choice that all tokens share, or -1

    def leaves_out(self, layer: int) -> bool:
        """Whether nothing of a layer is needed but its keys and values."""
        if self.skip_scope == "ffn" or self.of_all[layer] != SKIP or self.attentions:
            return False
        return not torch.is_grad_enabled() and not torch.compiler.is_compiling()

    def at_ffn(self, ffn: DuoFFN, layer: int, x: Tensor) -> Tensor:
        if self.of_all[layer] >= 0 and not torch.is_grad_enabled():
            return ffn.run(self.of_all[layer], x)
        return ffn.dispatch(x, self.routes[..., layer].expand(self._tokens(x)))

    def at_layer_end(self, layer: int, before: Tensor, after: Tensor) -> Tensor:
        if self.skip_scope == "ffn" or self.of_all[layer] > SKIP:
            return after
        skipped = (self.routes[..., layer] == SKIP).to(after.device)
        return torch.where(skipped[..., None], before.to(after.device), after)

    def taken(self) -> Int[Tensor, "batch token layer"]:
        """The routes; 1 for the texts or the tokens is for all of them."""
        return self.routes

    def _tokens(self, x: Tensor) -> tuple[int, int]:
        """`[batch, token]` of the site's input, which some families hand over flattened."""
        if x.ndim == 3:
            return x.shape[0], x.shape[1]
        batch, tokens, _ = self.routes.shape
        batch = batch if tokens == 1 else x.shape[0] // tokens  # routes that are the same for all texts have one row
        return batch, x.shape[0] // batch


class LearnedRoutes:
    """A router chooses: a soft mixture while it trains, the best choice when it is used.

    Args:
        router: a module whose `logits(layer, x)` are float `[*token, choice]`, one column per entry of its `choices`; its
            `choose(logits)` says which is taken, its `weights(logits)` how the outputs are mixed.
        skip_scope: `"ffn"` or `"block"`.
        soft: mix the outputs by probability instead of choosing.
        given: what the router wants to know of this pass (its own `given`), and is handed back with every layer's input.
    """

    def __init__(self, router: Any, *, skip_scope: str, soft: bool, given: Any = None) -> None:
        self.router, self.skip_scope, self.soft, self.given = router, skip_scope, soft, given
        self.logits: dict[int, Tensor] = {}
        self.chosen: dict[int, Tensor] = {}
        self._skipped: Tensor | None = None
        self._mixed: Tensor | None = None
        self._factor = 1.0

    def at_ffn(self, ffn: DuoFFN, layer: int, x: Tensor) -> Tensor:
        logits = self.router.logits(layer, x) if self.given is None else self.router.logits(layer, x, self.given)
        self.logits[layer] = logits
        if not self.soft:
            self.chosen[layer] = choices = self.router.choose(logits)
            self._skipped = choices == SKIP
            return ffn.dispatch(x, choices)
        share = dict(zip(self.router.choices, self.router.weights(logits).to(x.dtype).unbind(-1)))
        mixed = torch.zeros_like(x)
        if BIG in share:
            mixed = mixed + share[BIG][..., None] * ffn.big(x)
        if SMALL in share:
            mixed = mixed + share[SMALL][..., None] * ffn.narrow(x)
        self._mixed, self._skipped, self._factor = mixed, share.get(SKIP), ffn.residual_factor
        return mixed

    def at_layer_end(self, layer: int, before: Tensor, after: Tensor) -> Tensor:
        self.logits[layer] = self.logits[layer].reshape(*before.shape[:-1], -1)  # some families flatten the tokens
        if layer in self.chosen:
            self.chosen[layer] = self.chosen[layer].reshape(before.shape[:-1])
        if self.skip_scope == "ffn" or self._skipped is None:
            return after
        skipped = self._skipped.reshape(*before.shape[:-1], 1)
        if not self.soft:
            return torch.where(skipped, before, after)
        assert self._mixed is not None, "the FFN has run"
        attended = torch.sub(after - before, self._mixed.reshape(before.shape), alpha=self._factor)
        return after - skipped * attended

    def stacked_logits(self) -> Tensor:
        """Logits of all layers: float `[batch, token, layer, choice]`."""
        return torch.stack([self.logits[layer] for layer in sorted(self.logits)], dim=-2)

    def taken(self) -> Int[Tensor, "batch token layer"]:
        """The choices, once all layers have run."""
        return torch.stack([self.chosen[layer] for layer in sorted(self.chosen)], dim=-1)
