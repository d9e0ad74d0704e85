"""Where each model family keeps the parts that a Duo model needs: the one table that a new family enters.

An entry names classes of transformers and attribute paths, never code of our own for one family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP


@dataclass(frozen=True)
class Family:
    """One family of decoders.

    Attributes:
        name: `model_type` of the dense configuration.
        config: configuration class of the dense model.
        causal_lm: the dense model with its language-model head.
        layers: path from the causal LM to its list of decoder layers.
        final_norm: path from the causal LM to the norm before the head.
        ffn: path from a decoder layer to its FFN.
        width: name of the FFN width in the configuration.
        build_ffn: a fresh FFN of the family, from a configuration whose `width` is already set.
        ffn_matrices: weight matrices of `hidden x width` in one FFN (3 when gated).
    """

    name: str
    config: type[PretrainedConfig]
    causal_lm: type[PreTrainedModel]
    layers: str
    final_norm: str
    ffn: str
    width: str
    build_ffn: Callable[[PretrainedConfig], nn.Module]
    ffn_matrices: int


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="llama",
            config=LlamaConfig,
            causal_lm=LlamaForCausalLM,
            layers="model.layers",
            final_norm="model.norm",
            ffn="mlp",
            width="intermediate_size",
            build_ffn=LlamaMLP,
            ffn_matrices=3,
        ),
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
