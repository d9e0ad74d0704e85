"""Duo models of transformers: one configuration and one causal LM class for every family in the table.

The classes are made from the family's own, so `save_pretrained`, `from_pretrained`, `generate`, gradient checkpointing
and `Trainer` work as they do there; a Duo folder also opens as the dense model, equal to all-big.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..families import FAMILIES, Family, family
from ..routes import BIG, SKIP, SMALL
from .routing import DuoFFN, DuoLayer, GivenRoutes, LearnedRoutes, PostNorm, Routing

SKIP_SCOPES = ("ffn", "block")


@dataclass(frozen=True)
class RandomPolicy:
    """Independent random choices for every token and layer: stage 1.

    Attributes:
        big, small, skip: probabilities of the three choices; they sum to 1.
        seed: the draw; the same seed and shape give the same routes.

    Paper: arXiv 2410.10846, section 2, stage 1 (0.5, 0.5, 0).

    Raises:
        ValueError: probabilities that are negative or NaN, or do not sum to 1.
    """

    big: float = 0.5
    small: float = 0.5
    skip: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        shares = (self.big, self.small, self.skip)
        if not (min(shares) >= 0 and abs(sum(shares) - 1) <= 1e-6):  # so that NaN fails too
            raise ValueError(f"random policy big, small, skip = {shares}: give probabilities that sum to 1")

    def routes(self, batch: int, tokens: int, layers: int) -> Int[Tensor, "batch token layer"]:
        """Drawn routes, int8 `[batch, token, layer]`, on the CPU."""
        draw = torch.rand(batch, tokens, layers, generator=torch.Generator().manual_seed(self.seed))
        routes = torch.full(draw.shape, BIG, dtype=torch.int8)
        routes[draw >= self.big] = SMALL
        routes[draw >= self.big + self.small] = SKIP
        return routes


@dataclass
class DuoOutput(CausalLMOutputWithPast):
    """What a Duo model returns: the dense model's output and the router's logits.

    `router_logits`: float `[batch, token, layer, choice]`, None without a router.
    """

    router_logits: Tensor | None = None


class DuoConfig(PretrainedConfig):
    """What a Duo configuration adds to its family's.

    Attributes:
        small_intermediate_size: width of the small FFN.
        skip_scope: `"ffn"`: a skipped layer still attends; `"block"`: it is bypassed, but its keys and values are
            still projected from the untouched residual, so that later tokens can attend to it.
    """

    small_intermediate_size: int = 32
    skip_scope: str = "ffn"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.skip_scope not in SKIP_SCOPES:
            raise ValueError(f"skip_scope {self.skip_scope!r}: allowed are {SKIP_SCOPES}")
        if self.small_intermediate_size < 1:
            raise ValueError(f"small_intermediate_size {self.small_intermediate_size}: at least 1 is needed")


class DuoCausalLM(PreTrainedModel if TYPE_CHECKING else nn.Module):  # type: ignore[misc]
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
        own = ("small_intermediate_size", "skip_scope", "model_type", "architectures")
        fields = {name: value for name, value in self.config.to_dict().items() if name not in own}
        head, embeddings = self.get_output_embeddings(), self.get_input_embeddings()
        # a checkpoint may know better than its configuration
        fields["tie_word_embeddings"] = head.weight is embeddings.weight
        dense = self.family.causal_lm(self.family.config(**fields)).to(self.dtype)
        dense.load_state_dict({k: v for k, v in self.state_dict().items() if ".small." not in k})
        dense.generation_config = copy.deepcopy(self.generation_config)
        return dense.eval()

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """`save_pretrained` of transformers; a dense model whose layers can be skipped is written as the dense model."""
        saved: Any = super() if self.has_small else self.dense()
        return saved.save_pretrained(*args, **kwargs)

    def forward(
        self,
        input_ids: Int[Tensor, "batch token"] | None = None,
        attention_mask: Tensor | None = None,
        labels: Int[Tensor, "batch token"] | None = None,
        *,
        position_ids: Int[Tensor, "batch token"] | None = None,
        logits_to_keep: int | Int[Tensor, " kept"] = 0,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        return_dict: bool | None = None,
        duo_routes: Int[Tensor, ...] | None = None,
        duo_policy: RandomPolicy | None = None,
        duo_router: nn.Module | None = None,
        **kwargs: Any,
    ) -> DuoOutput | tuple:
        """The dense model's forward, with at most one of the three ways to choose routes; with none, all big.

        Args:
            input_ids: int64 `[batch, token]`.
            attention_mask: as in the dense model.
            labels: as in the dense model.
            position_ids, logits_to_keep, inputs_embeds, past_key_values, return_dict: as in the dense model; `generate` gives
                them to models that name them.
            duo_routes: int `[layer]` for all tokens, or `[batch or 1, token or 1, layer]`.
            duo_policy: random choices.
            duo_router: a router of `duoviz.router`; soft while it is in training mode.
            **kwargs: what the dense model takes.

        Raises:
            ValueError: more than one way to choose, routes of a wrong shape, or values that are no choice.
        """
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        assert tokens is not None, "a forward pass reads something"
        routing = self._routing(tokens, duo_routes, duo_policy, duo_router)
        kwargs |= {"attention_mask": attention_mask, "labels": labels, "logits_to_keep": logits_to_keep}
        kwargs |= {"inputs_embeds": inputs_embeds, "past_key_values": past_key_values, "return_dict": True}
        if self.family.experts:  # of some tokens only, where others take no expert: no measure of the experts' balance
            kwargs["output_router_logits"] = False
        out = super().forward(input_ids=input_ids, position_ids=position_ids, duo_routing=routing, **kwargs)
        logits = routing.stacked_logits() if isinstance(routing, LearnedRoutes) else None
        found = DuoOutput(**out, router_logits=logits)
        return found.to_tuple() if return_dict is False else found

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """`generate` of transformers, with `duo_routes`, `duo_policy` or `duo_router`.

        Routes per token must cover the prompt and every new token. A random policy draws routes for the whole context
        once, so the same seed gives the same text with and without the K/V cache.

        Raises:
            ValueError: routes with values that are no choice, or that end before the text does.
        """
        given = (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        prompt = next((text for text in given if text is not None), torch.zeros(1, 0, dtype=torch.long))
        policy = kwargs.pop("duo_policy", None)
        if policy is not None:
            shape = len(prompt), self.config.max_position_embeddings, self.config.num_hidden_layers
            kwargs["duo_routes"] = policy.routes(*shape).to(prompt.device)
        elif kwargs.get("duo_routes") is not None:
            routes = _checked(torch.as_tensor(kwargs["duo_routes"], device=prompt.device))
            routes = routes[None, None] if routes.ndim == 1 else routes
            kwargs["duo_routes"] = routes.expand(len(prompt), -1, -1)  # beams repeat every row
        return super().generate(inputs, *args, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        *args: Any,
        inputs_embeds: Tensor | None = None,
        duo_routes: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        made = super().prepare_inputs_for_generation(input_ids, *args, inputs_embeds=inputs_embeds, **kwargs)
        if duo_routes is not None and duo_routes.shape[1] > 1:
            ids, cache = made.get("input_ids"), made.get("past_key_values")
            new = (made["inputs_embeds"] if ids is None else ids).shape[1]
            stop = new + (0 if cache is None else cache.get_seq_length())
            if duo_routes.shape[1] < stop:
                raise ValueError(
                    f"duo_routes cover {duo_routes.shape[1]} tokens, generation has reached token {stop}:"
                    " give a route for every token, or one route for all"
                )
            duo_routes = duo_routes[:, stop - new : stop]
        return {**made, "duo_routes": duo_routes}

    def _routing(
        self, tokens: Tensor, routes: Tensor | None, policy: RandomPolicy | None, router: nn.Module | None
    ) -> Routing | None:
        if sum(way is not None for way in (routes, policy, router)) > 1:
            raise ValueError("give one of duo_routes, duo_policy and duo_router, not several")
        scope = self.config.skip_scope
        if router is not None:
            return LearnedRoutes(router, skip_scope=scope, soft=router.training)
        batch, length, layers = *tokens.shape[:2], self.config.num_hidden_layers
        if policy is not None:
            routes = policy.routes(batch, length, layers)
        if routes is None:
            return None
        routes = routes[None, None] if routes.ndim == 1 else routes
        if routes.ndim != 3 or routes.shape[0] not in (1, batch) or routes.shape[1] not in (1, length):
            raise ValueError(
                f"duo_routes of shape {tuple(routes.shape)}: give [{batch}, {length}, {layers}] or [layer]"
            )
        if routes.shape[2] != layers:
            raise ValueError(f"duo_routes with {routes.shape[2]} layers: the model has {layers}")
        return GivenRoutes(_checked(routes.to(tokens.device)), skip_scope=scope)


def _checked(routes: Tensor) -> Tensor:
    """The routes, every value of which is a choice: any other would act as a skip.

    Raises:
        ValueError: if not.
    """
    if not bool(torch.isin(routes, torch.tensor((SKIP, SMALL, BIG), device=routes.device)).all()):
        raise ValueError(
            f"duo_routes hold values {routes.min().item()}..{routes.max().item()}: give one of 0 (skip), 1 (small),"
            " 2 (big) for every layer; a token that is not scored needs a choice too"
        )
    return routes


def _make_duo(layer: nn.Module, index: int, family: Family, config: DuoConfig) -> None:
    """Give a decoder layer its small FFN, and both modules their Duo behaviour."""
    narrow = copy.copy(config)
    setattr(narrow, family.width, config.small_intermediate_size)
    ffn: Any = family.find_ffn(layer)
    ffn.small = family.build_ffn(narrow)
    ffn.__class__ = _mixed(DuoFFN, type(ffn))
    ffn.family, ffn.layer_index = family, index
    layer.__class__ = _mixed(DuoLayer, type(layer))
    object.__setattr__(layer, "duo_ffn", ffn)
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


def _classes(family: Family) -> tuple[type[DuoConfig], type[DuoCausalLM]]:
    """The Duo configuration and causal LM of one family."""
    name = family.causal_lm.__name__
    config = type("Duo" + family.config.__name__, (DuoConfig, family.config), {"model_type": f"duo_{family.name}"})
    no_split = ["Duo" + layer for layer in family.causal_lm._no_split_modules or ()]
    members = {"config_class": config, "family": family, "_no_split_modules": no_split}
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
    fields = {
        k: v for k, v in dense.to_dict().items() if k not in ("model_type", "architectures", "transformers_version")
    }
    return duo_config(**fields, small_intermediate_size=small_width, skip_scope=skip_scope)
