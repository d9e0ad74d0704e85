"""Where each model family keeps the parts that a Duo model needs: the one table that a new family enters.

An entry names classes of transformers and attribute paths; what it leaves out is where Llama keeps it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)
from transformers.activations import ACT2FN
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXMLP
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.mistral.modeling_mistral import MistralMLP
from transformers.models.phi.modeling_phi import PhiMLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP
from transformers.models.smollm3.modeling_smollm3 import SmolLM3MLP


class InlineFFN(nn.Linear):
    """An FFN that its decoder layer writes out as `fc1`, activation and `fc2`: its first linear map does the work of all
    three, so that the weights keep their names.

    Args:
        config: with the FFN's width as `ffn_dim`.
    """

    fc2: _Second
    activation_fn: nn.Module

    def __init__(self, config: Any) -> None:
        super().__init__(config.hidden_size, config.ffn_dim, bias=config.enable_bias)
        self.fc2 = _Second(config.ffn_dim, config.hidden_size, bias=config.enable_bias)
        self.activation_fn = ACT2FN[config.activation_function]

    @property
    def fc1(self) -> nn.Linear:
        """The first linear map."""
        return self

    def forward(self, x: Float[Tensor, "*token hidden"]) -> Float[Tensor, "*token hidden"]:
        return self.fc2(self.activation_fn(super().forward(x)), inner=True)


class _Second(nn.Linear):
    """The second linear map of an `InlineFFN`; where the layer comes to it, it has been done."""

    def forward(self, x: Tensor, *, inner: bool = False) -> Tensor:
        return super().forward(x) if inner else x


def _inline(layer: Any) -> nn.Module:
    """The FFN of a decoder layer that has no module for it; from now on its `fc1` does what all three did."""
    ffn, fc2, activation = layer.fc1, layer.fc2, layer.activation_fn
    ffn.__class__, fc2.__class__, layer.activation_fn = InlineFFN, _Second, nn.Identity()
    for name, part in (("fc2", fc2), ("activation_fn", activation)):
        object.__setattr__(ffn, name, part)  # no child of its: the layer has it
    return ffn


def _gpt2_ffn(config: GPT2Config) -> nn.Module:
    return GPT2MLP(config.n_inner, config)


def _nothing(config: Any) -> str:
    return ""


def _opt_lacks(config: OPTConfig) -> str:
    if not config.do_layer_norm_before or config._remove_final_layer_norm:
        return "it normalises after each layer, so that a skipped layer would not be the identity"
    return "" if config.word_embed_proj_dim == config.hidden_size else "its embeddings are narrower than its layers"


def _gpt2_lacks(config: GPT2Config) -> str:
    return "it attends to an encoder" if config.add_cross_attention else ""


@dataclass(frozen=True)
class Family:
    """One family of decoders.

    Attributes:
        config: configuration class of the dense model.
        causal_lm: the dense model with its language-model head.
        build_ffn: a fresh FFN of the family, from a configuration whose `width` is already set.
        layers: path from the causal LM to its list of decoder layers.
        final_norm: path from the causal LM to the norm before the head.
        find_ffn: the FFN of a decoder layer.
        width: name of the FFN width in the configuration, where None stands for four times the hidden size.
        into, out: linear maps of an FFN into its inner neurons (two when gated) and out of them.
        lacks: why a dense model of the family cannot be a Duo model; nothing where it can.
    """

    config: type[PretrainedConfig]
    causal_lm: type[PreTrainedModel]
    build_ffn: Callable[[Any], nn.Module]
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    find_ffn: Callable[[Any], nn.Module] = attrgetter("mlp")
    width: str = "intermediate_size"
    into: tuple[str, ...] = ("gate_proj", "up_proj")
    out: str = "down_proj"
    lacks: Callable[[Any], str] = _nothing

    @property
    def name(self) -> str:
        """`model_type` of the dense configuration."""
        return self.config.model_type

    def ffn_width(self, config: Any) -> int:
        """Inner neurons of the dense (big) FFN."""
        return getattr(config, self.width) or 4 * config.hidden_size

    @property
    def ffn_matrices(self) -> int:
        """Weight matrices of `hidden x width` in one FFN."""
        return len(self.into) + 1


FAMILIES = {
    family.name: family
    for family in (
        Family(LlamaConfig, LlamaForCausalLM, LlamaMLP),
        Family(MistralConfig, MistralForCausalLM, MistralMLP),
        Family(Qwen2Config, Qwen2ForCausalLM, Qwen2MLP),
        Family(Qwen3Config, Qwen3ForCausalLM, Qwen3MLP),
        Family(SmolLM3Config, SmolLM3ForCausalLM, SmolLM3MLP),
        Family(
            OPTConfig,
            OPTForCausalLM,
            InlineFFN,
            layers="model.decoder.layers",
            final_norm="model.decoder.final_layer_norm",
            find_ffn=_inline,
            width="ffn_dim",
            into=("fc1",),
            out="fc2",
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
        Family(
            GPTNeoXConfig,
            GPTNeoXForCausalLM,
            GPTNeoXMLP,
            layers="gpt_neox.layers",
            final_norm="gpt_neox.final_layer_norm",
            into=("dense_h_to_4h",),
            out="dense_4h_to_h",
        ),
        Family(PhiConfig, PhiForCausalLM, PhiMLP, final_norm="model.final_layernorm", into=("fc1",), out="fc2"),
    )
}


def family(model_type: str) -> Family:
    """The entry of a dense or Duo `model_type`.

    Raises:
        ValueError: a family that is not in the table.
    """
    name = model_type.removeprefix("duo_")
    if name not in FAMILIES:
        raise ValueError(f"model family {model_type!r} is not supported: supported are {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]
