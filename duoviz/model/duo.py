"""Duo models of transformers: one configuration and one causal LM class for every family in the table.

The classes are made from the family's own, so `save_pretrained`, `from_pretrained`, `generate`, gradient checkpointing
and `Trainer` work as they do there; a Duo folder also opens as the dense model, equal to all-big.
"""

from __future__ import annotations

import copy
import inspect
import sys
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

from .. import families
from .. import routes as routes_
from ..families import FAMILIES, Family, family
from ..routes import SMALL
from .config import OWN_FIELDS, DuoConfig
from .generation import RoutedGeneration, cached, only_one
from .policy import RandomPolicy
from .routing import NOTED, SCOPE, DuoFFN, DuoLayer, GivenRoutes, LearnedRoutes, PostNorm


@dataclass
class DuoOutput(CausalLMOutputWithPast):
    """What a Duo model returns: the dense model's output and the router's logits.

    `router_logits`: float `[batch, token, layer, choice]`, None without a router.
    """

    router_logits: Tensor | None = None


@cache
def _output_of(dense: Any) -> Any:
    """`DuoOutput` with the fields of a family's own output."""
    if dense is CausalLMOutputWithPast:
        return DuoOutput
    fields = {"__annotations__": {"router_logits": "Tensor | None"}, "router_logits": None}
    return _named(dataclass(type("Duo" + dense.__name__, (dense,), fields)))


class DuoCausalLM(RoutedGeneration, PreTrainedModel if TYPE_CHECKING else nn.Module):  # type: ignore[misc]
    """The part that is common to the Duo models of all families; mixed into the family's causal LM."""

    family: Family
    config: Any
    has_small = True
    """Whether the small FFNs are the model's own; if not, they only hold the place, and are not saved."""
    _can_compile_fullgraph = False

    def __init__(self, config: DuoConfig) -> None:
        super().__init__(config)
        self.loss_type = "ForCausalLM"  # else guessed from the class's name, which does not always say it
        for index, layer in enumerate(self.decoder_layers):
            _make_duo(layer, index, self.family, config)
        self.post_init()

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:  # found by reading the source of the class's module: the family's
        return cls.family.causal_lm._can_set_experts_implementation()

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """The decoder layers, in order."""
        return attrgetter(self.family.layers)(self)

    @property
    def final_norm(self) -> nn.Module:
        """The norm before the head."""
        return attrgetter(self.family.final_norm)(self)

    def dense(self) -> PreTrainedModel:
        """The dense model of the family with the big FFNs: equal to all big."""
        fields = {name: value for name, value in self.config.to_dict().items() if name not in OWN_FIELDS}
        head, embeddings = self.get_output_embeddings(), self.get_input_embeddings()
        # a checkpoint may know better than its configuration
        fields["tie_word_embeddings"] = head.weight is embeddings.weight
        dense = self.family.causal_lm(self.family.config(**fields)).to(self.dtype)
        dense.load_state_dict({k: v for k, v in self.state_dict().items() if ".small." not in k})
        dense.generation_config = copy.deepcopy(self.generation_config)
        return dense.eval()

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing, as for the configuration."""

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """`save_pretrained` of transformers; a dense model whose layers can be skipped is written as the dense model."""
        saved: Any = super() if self.has_small else self.dense()
        return saved.save_pretrained(*args, **kwargs)

    def forward(
        self,
        *args: Any,
        duo_routes: routes_.Routes | None = None,
        duo_policy: RandomPolicy | None = None,
        duo_router: nn.Module | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple:
        """The dense model's forward, with at most one of the three ways to choose routes; with none, all big.

        Args:
            *args, **kwargs: what the dense model takes, in its own order.
            duo_routes: a route `[layer]` for all tokens, or `[batch or 1, token or 1, layer]`, in any form that
                `duoviz.routes.parse` reads.
            duo_policy: random choices.
            duo_router: a router of `duoviz.router`; soft while it is in training mode.

        Raises:
            ValueError: more than one way to choose, routes of a wrong shape, values that are no choice, small where the model has
                no small FFNs, an unknown argument that begins with `duo_`.
        """
        if unknown := [name for name in kwargs if name.startswith("duo_")]:
            raise ValueError(f"{', '.join(unknown)}: known are duo_routes, duo_policy and duo_router")
        if args:
            named = inspect.signature(self.family.causal_lm.forward).bind_partial(self, *args).arguments
            kwargs |= {name: value for name, value in named.items() if name != "self"}
        ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        tokens = ids if embeds is None else embeds
        assert tokens is not None, "a forward pass reads something"
        begun = cached(kwargs.get("past_key_values"))
        routing = self._routing(tokens, begun, kwargs.get("attention_mask"), duo_routes, duo_policy, duo_router)
        if isinstance(routing, GivenRoutes):
            routing.attentions = bool(kwargs.get("output_attentions", self.config.output_attentions))
        as_tuple = kwargs.pop("return_dict", None) is False
        if self.family.experts:  # of some tokens only, where others take no expert: no measure of the experts' balance
            kwargs["output_router_logits"] = False
        out = super().forward(**kwargs, return_dict=True, duo_routing=routing)
        if (noted := NOTED.get()) is not None:
            noted(self, tokens.shape[1], routing)
        logits = routing.stacked_logits() if isinstance(routing, LearnedRoutes) else None
        kind: Any = type(out)
        found = _output_of(kind)(**{**out, "router_logits": logits})
        return found.to_tuple() if as_tuple else found

    def _routing(
        self,
        tokens: Tensor,
        begun: int,
        mask: Tensor | None,
        routes: routes_.Routes | None,
        policy: RandomPolicy | None,
        router: Any,
    ) -> GivenRoutes | LearnedRoutes | None:
        """What a forward pass does, over so many tokens after those that `begun` says are cached."""
        only_one(routes, policy, router)
        if router is not None:
            if SMALL in router.choices and not self.has_small:
                raise ValueError("a router that chooses small: this is a dense model, without small FFNs")
            if router.training and torch.is_grad_enabled() and _reentrant(self.decoder_layers[0]):
                raise ValueError(
                    "a router that trains under reentrant checkpointing would get a wrong gradient:"
                    " activation_checkpointing_enable({'use_reentrant': False})"
                )
            given = router.given(self, tokens, begun) if hasattr(router, "given") else None
            return LearnedRoutes(router, skip_scope=self.skip_scope, soft=router.training, given=given)
        if policy is None and routes is None:
            return None
        if policy is not None:
            given = self._drawn(policy, tokens, mask, begun=begun)
        else:
            given = self._read(routes, len(tokens), tokens.shape[1])
        return GivenRoutes(given, skip_scope=self.skip_scope)

    def _read(self, routes: routes_.Routes, batch: int, tokens: int | None = None) -> Int[Tensor, "batch token layer"]:
        """Routes in any form, for so many texts of so many tokens (None: of any number), as int8 with all three axes.

        Raises:
            ValueError: what `routes.parse` refuses; no choice, or one that the model does not have; another number of texts or
                tokens.
        """
        layers = len(self.decoder_layers)
        array = routes_.parse(routes, layers=layers)
        if (array < 0).any():
            raise ValueError(
                f"duo_routes hold values {array.min()}..{array.max()}: give one of 0 (skip), 1 (small), 2 (big) for every"
                " layer; a token that is not scored needs a choice too"
            )
        if not self.has_small and (array == SMALL).any():
            raise ValueError("duo_routes choose small: this is a dense model, without small FFNs")
        full = array.reshape((1,) * (3 - array.ndim) + array.shape)
        fits = full.ndim == 3 and full.shape[0] in (1, batch) and (tokens is None or full.shape[1] in (1, tokens))
        if not fits or (array.ndim == 2 and batch != 1):  # else [text, layer] and [token, layer] would be the same
            wanted = f"[{batch}, {'token' if tokens is None else tokens}, {layers}]"
            raise ValueError(
                f"duo_routes of shape {array.shape}: give {wanted} or [layer]; 1 for the texts or the tokens is for all of them"
            )
        return torch.from_numpy(full)

    def _drawn(
        self, policy: RandomPolicy, tokens: Tensor, mask: Tensor | None, *, begun: int = 0, more: int = 0
    ) -> Int[Tensor, "batch token layer"]:
        """A policy's routes of these tokens, and of so many that will follow: of the tokens of the text that the mask does not
        leave out, by their number in it."""
        if policy.small and not self.has_small:
            raise ValueError("a random policy with small: this is a dense model, without small FFNs")
        batch, stop = len(tokens), begun + tokens.shape[1] + more
        drawn = policy.routes(batch, stop, len(self.decoder_layers))
        if mask is not None and mask.ndim == 2 and not bool(mask.all()):
            kept = torch.nn.functional.pad(mask.long().cpu(), (0, stop - mask.shape[1]), value=1)
            place = (kept.cumsum(1) - 1).clamp(min=0)
            drawn = drawn.gather(1, place[..., None].expand_as(drawn))
        return drawn[:, begun:]

    @property
    def skip_scope(self) -> str:
        """What a skip leaves out: as the configuration says, unless somebody looks at it otherwise (see `routing.SCOPE`)."""
        return SCOPE.get() or self.config.skip_scope


def _reentrant(layer: Any) -> bool:
    """Whether a layer is recomputed in the backward pass in the way that loses what leaves it on the side."""
    how: Any = getattr(layer, "_gradient_checkpointing_func", None)
    return (
        layer.training and getattr(layer, "gradient_checkpointing", False) and how.keywords.get("use_reentrant", True)
    )


def _make_duo(layer: nn.Module, index: int, family: Family, config: DuoConfig) -> None:
    """Give a decoder layer its small FFN, and both modules their Duo behaviour."""
    narrow = copy.copy(config)
    setattr(narrow, family.width, config.small_intermediate_size)
    ffn: Any = family.find_ffn(layer)
    ffn.small = family.build_ffn(narrow)
    ffn.__class__ = _mixed(DuoFFN, type(ffn))
    ffn.family, ffn.layer_index = family, index
    made: Any = layer
    made.__class__ = _mixed(DuoLayer, type(layer))
    made.family, made.layer_index = family, index
    if family.residual_factor:
        ffn.residual_factor = attrgetter(family.residual_factor)(layer)
    if family.post_norm:
        norm: Any = attrgetter(family.post_norm)(layer)
        norm.__class__ = _mixed(PostNorm, type(norm))
        object.__setattr__(ffn, "post_norm", norm)  # no child of its: the layer has it


_MIXED: dict[tuple[type, type], type] = {}


def _mixed(duo: type, dense: type) -> type:
    """The class `duo` over `dense`, made once."""
    if (duo, dense) not in _MIXED:
        _MIXED[duo, dense] = _named(type("Duo" + dense.__name__, (duo, dense), {}))
    return _MIXED[duo, dense]


def _named(made: type) -> type:
    """The class, as an attribute of this module, where pickle looks for it."""
    made.__module__ = __name__
    globals()[made.__name__] = made
    return made


def __getattr__(name: str) -> type:
    """A class over one of a family's, which pickle asks for where no model of that family has been built yet."""
    for module in (families, *(sys.modules[entry.causal_lm.__module__] for entry in FAMILIES.values())):
        dense = getattr(module, name.removeprefix("Duo"), None) if name.startswith("Duo") else None
        if isinstance(dense, type) and issubclass(dense, ModelOutput):
            return _output_of(dense)
        if isinstance(dense, type) and issubclass(dense, nn.Module):
            layer = issubclass(dense, GradientCheckpointingLayer)
            return _mixed(DuoLayer if layer else PostNorm if "Norm" in name else DuoFFN, dense)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _classes(family: Family) -> tuple[type[DuoConfig], type[DuoCausalLM]]:
    """The Duo configuration and causal LM of one family."""
    name = family.causal_lm.__name__
    said = {"model_type": f"duo_{family.name}", "causal_lm": "Duo" + name}
    config = type("Duo" + family.config.__name__, (DuoConfig, family.config), said)
    no_split = ["Duo" + layer for layer in family.causal_lm._no_split_modules or ()]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return DuoCausalLM.forward(self, *args, **kwargs)

    # of the family, in its order, and with our arguments: `generate` and `Trainer` go by the names that they find
    own = inspect.signature(family.causal_lm.forward)
    *dense, rest = own.parameters.values()
    ours = [p for p in inspect.signature(DuoCausalLM.forward).parameters.values() if p.name.startswith("duo_")]
    forward.__signature__ = own.replace(parameters=[*dense, *ours, rest])  # type: ignore[attr-defined]
    forward.__doc__ = DuoCausalLM.forward.__doc__
    members = {"config_class": config, "family": family, "_no_split_modules": no_split, "forward": forward}
    return _named(config), _named(type("Duo" + name, (DuoCausalLM, family.causal_lm), members))


CLASSES = {name: _classes(entry) for name, entry in FAMILIES.items()}
"""Duo configuration and causal LM class of every family."""

for _config, _causal_lm in CLASSES.values():
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForCausalLM.register(_config, _causal_lm, exist_ok=True)
    # weights that are stored under other names than the model's: by class, or by model type, which is ours also where the
    # dense class reads a Duo folder
    for _dense, _duo in (
        (_causal_lm.family.causal_lm.__name__, _causal_lm.__name__),
        (_causal_lm.family.name, _config.model_type),
    ):
        if (_renamed := get_checkpoint_conversion_mapping(_dense)) is not None:
            register_checkpoint_conversion_mapping(_duo, _renamed, overwrite=True)


def config_for(dense: PretrainedConfig, *, small_width: int, skip_scope: str = "ffn") -> DuoConfig:
    """The Duo configuration over a dense one.

    Raises:
        ValueError: an unsupported family.
    """
    duo_config, _ = CLASSES[family(dense.model_type).name]
    fields = {k: v for k, v in dense.to_dict().items() if k not in (*OWN_FIELDS, "transformers_version")}
    return duo_config(**fields, small_intermediate_size=small_width, skip_scope=skip_scope)
