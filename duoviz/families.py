"""Where each model family keeps the parts that a Duo model needs: the one table that a new family enters.

An entry names classes of transformers and attribute paths; what it leaves out is where Llama keeps it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import transformers
from jaxtyping import Float
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.mistral.modeling_mistral import MistralMLP
from transformers.models.olmoe.modeling_olmoe import OlmoeMLP
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeMLP

WRITTEN_OUT = ("fc1", "activation_fn", "fc2")


class InlineFFN(nn.Module):
    """An FFN that its decoder layer writes out as `fc1`, activation and `fc2`.

    The big one has no weights of its own: it calls the three that the layer has, whatever wraps or replaces them. The small one
    holds them as its children.

    Args:
        config: with the FFN's width as `ffn_dim`.
    """

    layer: nn.Module | None = None

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.ffn_dim, bias=config.enable_bias)
        self.fc2 = nn.Linear(config.ffn_dim, config.hidden_size, bias=config.enable_bias)
        self.activation_fn = ACT2FN[config.activation_function]

    @classmethod
    def of(cls, layer: nn.Module) -> InlineFFN:
        """The FFN of a layer that writes it out."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        object.__setattr__(made, "layer", layer)  # no child of its
        return made

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if self.layer is None or name not in WRITTEN_OUT else getattr(self.layer, name)

    def forward(self, x: Float[Tensor, "*token hidden"]) -> Float[Tensor, "*token hidden"]:
        return self.fc2(self.activation_fn(self.fc1(x)))


def _inline(layer: Any) -> nn.Module:
    """The FFN of a decoder layer that has no module for it: made once, and then the layer's `ffn`."""
    if not hasattr(layer, "ffn"):
        layer.ffn = InlineFFN.of(layer)
    return layer.ffn


def _gpt2_ffn(config: GPT2Config) -> nn.Module:
    return GPT2MLP(config.n_inner, config)


def _qwen3_moe_ffn(config: Any) -> nn.Module:
    return Qwen3MoeMLP(config, config.moe_intermediate_size)


def _nothing(config: Any) -> str:
    return ""


def _one(config: Any) -> float:
    return 1.0


def _granite_scale(config: Any) -> float:
    return 1 / config.logits_scaling


def _opt_lacks(config: OPTConfig) -> str:
    if not config.do_layer_norm_before or config._remove_final_layer_norm:
        return "it normalises after each layer, so that a skipped layer would not be the identity"
    return "" if config.word_embed_proj_dim == config.hidden_size else "its embeddings are narrower than its layers"


def _gpt2_lacks(config: GPT2Config) -> str:
    return "it attends to an encoder" if config.add_cross_attention else ""


def _gemma_lacks(config: Any) -> str:
    return "its tokens attend to later ones" if getattr(config, "use_bidirectional_attention", None) else ""


def _qwen3_moe_lacks(config: Any) -> str:
    mixed = config.mlp_only_layers or config.decoder_sparse_step != 1 or not config.num_experts
    return "some of its layers have no experts" if mixed else ""


@dataclass(frozen=True)
class Family:
    """One family of decoders.

    Attributes:
        config: configuration class of the dense model.
        causal_lm: the dense model with its language-model head.
        build_ffn: a fresh FFN of the family, from a configuration whose `width` is already set; beside experts, the small one.
        layers: path from the causal LM to its list of decoder layers.
        final_norm: path from the causal LM to the norm before the head.
        find_ffn: the FFN of a decoder layer.
        written_out: the layer's modules that are its FFN, in order, where it has none; `find_ffn` then gives it one.
        post_norm: path from a decoder layer to the norm of the FFN's output; nothing where it is added as it is.
        residual_factor: path from a decoder layer to what the FFN's output is multiplied by before it is added.
        width: name of the FFN width in the configuration, where None stands for four times the hidden size.
        into, out: linear maps of an FFN into its inner neurons (two when gated) and out of them.
        fused: maps that one of `into` holds, one below the other: 2 where the gate and the other are one matrix.
        experts: the big FFN is a mixture of experts, a few of which (`num_experts_per_tok`) each token takes.
        logit_scale: what the head's output is multiplied by.
        lacks: why a dense model of the family cannot be a Duo model; nothing where it can.
    """

    config: type[PretrainedConfig]
    causal_lm: type[PreTrainedModel]
    build_ffn: Callable[[Any], nn.Module]
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    find_ffn: Callable[[Any], nn.Module] = attrgetter("mlp")
    written_out: tuple[str, ...] = ()
    post_norm: str = ""
    residual_factor: str = ""
    width: str = "intermediate_size"
    into: tuple[str, ...] = ("gate_proj", "up_proj")
    out: str = "down_proj"
    fused: int = 1
    experts: bool = False
    logit_scale: Callable[[Any], float] = _one
    lacks: Callable[[Any], str] = _nothing

    @classmethod
    def named(cls, stem: str, **differs: Any) -> Family:
        """The entry of a family whose classes are named as Llama's are: `<stem>ForCausalLM`, `<stem>MLP`."""
        causal_lm = getattr(transformers, f"{stem}ForCausalLM")
        if "build_ffn" not in differs:
            differs["build_ffn"] = getattr(sys.modules[causal_lm.__module__], f"{stem}MLP")
        return cls(causal_lm.config_class, causal_lm, **differs)

    @property
    def name(self) -> str:
        """`model_type` of the dense configuration."""
        return self.config.model_type

    def ffn_width(self, config: Any) -> int:
        """Inner neurons of the dense (big) FFN; of experts, those of the few that a token takes."""
        width = getattr(config, self.width) or 4 * config.hidden_size
        return width * config.num_experts_per_tok if self.experts else width

    def flops(self, config: Any, *, big: int | float, small: int | float) -> int | float:
        """FLOPs of so many big and small FFNs, each for one token: `2 m d f` for m matrices of width f, and `2 d E` where E
        experts are chosen from."""
        neurons = big * self.ffn_width(config) + small * config.small_intermediate_size
        chosen_from = big * config.num_experts if self.experts else 0
        return 2 * config.hidden_size * (self.ffn_matrices * neurons + chosen_from)

    @property
    def ffn_matrices(self) -> int:
        """Weight matrices of `hidden x width` in one FFN."""
        return len(self.into) * self.fused + 1


_GELU_FFN: dict[str, Any] = {"into": ("fc1",), "out": "fc2"}
_FUSED_FFN: dict[str, Any] = {"into": ("gate_up_proj",), "fused": 2}
_UNGATED_FFN: dict[str, Any] = {"into": ("up_proj",)}

FAMILIES = {
    family.name: family
    for family in (
        Family.named("Llama"),
        Family.named("Mistral"),
        Family.named("Qwen2"),
        Family.named("Qwen3"),
        Family.named("SmolLM3"),
        Family(
            OPTConfig,
            OPTForCausalLM,
            InlineFFN,
            layers="model.decoder.layers",
            final_norm="model.decoder.final_layer_norm",
            find_ffn=_inline,
            written_out=WRITTEN_OUT,
            width="ffn_dim",
            **_GELU_FFN,
            lacks=_opt_lacks,
        ),
        Family(
            GPT2Config,
            GPT2LMHeadModel,
            _gpt2_ffn,
            layers="transformer.h",
            final_norm="transformer.ln_f",
            width="n_inner",
            into=("c_fc",),
            out="c_proj",
            lacks=_gpt2_lacks,
        ),
        Family.named(
            "GPTNeoX",
            layers="gpt_neox.layers",
            final_norm="gpt_neox.final_layer_norm",
            into=("dense_h_to_4h",),
            out="dense_4h_to_h",
        ),
        Family.named("Phi", final_norm="model.final_layernorm", **_GELU_FFN),
        Family.named("Gemma", lacks=_gemma_lacks),
        Family.named("Gemma2", post_norm="post_feedforward_layernorm", lacks=_gemma_lacks),
        Family.named("Gemma3", post_norm="post_feedforward_layernorm", lacks=_gemma_lacks),
        Family.named("Olmo"),
        Family.named("Olmo2", post_norm="post_feedforward_layernorm"),
        Family.named("Olmo3", post_norm="post_feedforward_layernorm"),
        Family.named("Phi3", **_FUSED_FFN),
        Family.named("Granite", residual_factor="residual_multiplier", logit_scale=_granite_scale),
        Family.named("StableLm"),
        Family.named("Starcoder2", into=("c_fc",), out="c_proj"),
        Family.named("Cohere", logit_scale=attrgetter("logit_scale")),
        Family.named("Cohere2", logit_scale=attrgetter("logit_scale")),
        Family.named("Glm", **_FUSED_FFN),
        Family.named("Glm4", post_norm="post_mlp_layernorm", **_FUSED_FFN),
        Family.named("Nemotron", **_UNGATED_FFN),
        Family.named("Ernie4_5"),
        Family.named("Helium"),
        Family.named("Arcee", **_UNGATED_FFN),
        Family.named("SeedOss"),
        Family.named("Exaone4", post_norm="post_feedforward_layernorm"),
        Family.named("HunYuanDenseV1"),
        Family.named("Apertus", **_UNGATED_FFN),
        Family.named("Mixtral", build_ffn=MistralMLP, experts=True),
        Family.named(
            "Qwen3Moe", build_ffn=_qwen3_moe_ffn, width="moe_intermediate_size", experts=True, lacks=_qwen3_moe_lacks
        ),
        Family.named("Olmoe", build_ffn=OlmoeMLP, experts=True),
    )
}

_OWN_ATTENTION = "its attention is written out in its layers, where the search's own attention cannot take its place"
REFUSED = {
    **dict.fromkeys(("bloom", "codegen", "falcon", "gpt_neo", "gptj", "mpt", "xglm"), _OWN_ATTENTION),
    "gpt_oss": "its attention has sinks, which the search's own attention does not know",
    "gemma3": "it reads images too; its text model alone (gemma3_text) is supported",
}
"""Families that are often asked for, and why they are not in the table."""


def family(model_type: str) -> Family:
    """The entry of a dense or Duo `model_type`.

    Raises:
        ValueError: a family that is not in the table.
    """
    name = model_type.removeprefix("duo_")
    if name not in FAMILIES:
        why = f": {REFUSED[name]}" if name in REFUSED else ""
        raise ValueError(
            f"model family {model_type!r} is not supported{why}; supported are {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[name]
