"""A Llama layer for many branches at one position, on the CPU, with its elementwise work inside the matrix products.

The family's own modules write every intermediate result to memory and read it again. Here oneDNN's products take SiLU, the
gate and the residual along, and the norms' weights are part of the projections that follow them. Branches that are all at
position p need no rotation: `(R_p q) . k = q . (R_p' k)`, so the few keys of the prefix are turned back instead, once.

Differs: from the family's own layer only by rounding, which the tests hold it to.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    rotate_half,
)

from ..model import DuoCausalLM, DuoFFN
from ..model.products import LARGEST, ROWS, available
from ..routes import BIG, SKIP, SMALL
from .attention import Lockstep


def applies(model: DuoCausalLM) -> bool:
    """Whether the layers of a model can be fused, on the machine where it is."""
    layers: list[Any] = list(model.decoder_layers)
    return (
        available()
        and model.device.type == "cpu"
        and model.dtype == torch.float32
        and all(isinstance(layer, LlamaDecoderLayer) and _plain(layer) for layer in layers)
        and model.config.hidden_act in ("silu", "swish")
        and all(rope.attention_scaling == 1 for rope in model.modules() if isinstance(rope, LlamaRotaryEmbedding))
        and sum(p.numel() for layer in layers for p in layer.parameters()) <= LARGEST
    )


PLAIN = (nn.Linear, nn.SiLU, nn.ModuleList, SiLUActivation, LlamaAttention, LlamaMLP, LlamaRMSNorm)
"""Modules of which a layer may consist."""


def _plain(layer: Any) -> bool:
    """Whether each part of a layer is just what `Fused` was written for: nothing wrapped (LoRA, quantised), parametrised,
    replaced, or with hooks."""
    own = (type(layer), type(layer.mlp)) if isinstance(layer.mlp, DuoFFN) and isinstance(layer.mlp, LlamaMLP) else ()
    return bool(own) and all(
        type(part) in (*PLAIN, *own) and not part._forward_hooks and not part._forward_pre_hooks
        for part in layer.modules()
    )


class _Product:
    """Linear maps of one input side by side, with what follows them."""

    def __init__(self, *linears: Any, norm: Any = None) -> None:
        weight = torch.cat([linear.weight.detach() for linear in linears])
        biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight if norm is None else weight * norm.weight, ROWS)
        self.bias = torch.cat(biases) if biases else None

    def __call__(self, x: Tensor, then: str = "none", other: Tensor | None = None) -> Tensor:
        if other is None:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, then, [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, then)


class _FFN:
    """A gated FFN after its norm, and its residual."""

    def __init__(self, ffn: Any, norm: nn.Module) -> None:
        self.gate, self.up = _Product(ffn.gate_proj, norm=norm), _Product(ffn.up_proj, norm=norm)
        self.down = _Product(ffn.down_proj)

    def __call__(self, x: Float[Tensor, "text row hidden"], residual: Float[Tensor, "text row hidden"]) -> Tensor:
        return self.down(self.up(x, "mul", self.gate(x, "swish")), "add", residual)

    def at(self, x: Tensor, residual: Tensor, rows: Any) -> Tensor:
        """The same for some rows."""
        return self(x[rows].contiguous(), residual[rows].contiguous())


class Fused:
    """A decoder layer.

    Args:
        layer: the family's own.
        skip_scope: what a skip leaves out.
    """

    def __init__(self, layer: Any, *, skip_scope: str) -> None:
        attention, norm = layer.self_attn, layer.post_attention_layernorm
        self.skip_scope, self.scaling, self.width = skip_scope, attention.scaling, attention.head_dim
        self.groups, self.eps = attention.num_key_value_groups, norm.variance_epsilon
        self.projections = _Product(attention.q_proj, attention.k_proj, attention.v_proj, norm=layer.input_layernorm)
        self.out = _Product(attention.o_proj)
        self.ffns = {SMALL: _FFN(layer.mlp.small, norm), BIG: _FFN(layer.mlp, norm)}

    def __call__(self, x: Float[Tensor, "text row hidden"], prefix: Lockstep) -> dict[int, Callable[[Any], Tensor]]:
        """The layer's output under each choice, as a function of the texts and rows it is wanted for.

        Args:
            x: the layer's input.
            prefix: with its keys turned back.
        """
        skipped = self.out(self._attend(self._norm(x), prefix), "add", x)
        normed = self._norm(skipped)

        untouched = x if self.skip_scope == "block" else skipped
        through = {choice: partial(ffn.at, normed, skipped) for choice, ffn in self.ffns.items()}
        return {SKIP: lambda at: untouched[at], **through}

    def _norm(self, x: Tensor) -> Tensor:
        """The norm without its weights; its own kernel on the CPU writes every square to memory."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * length.square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()

    def _attend(self, x: Float[Tensor, "text row hidden"], prefix: Lockstep) -> Float[Tensor, "text row out"]:
        """Attention to the prefix and each to itself, without rotations (see `attention.attend`)."""
        heads = self.projections(x).unflatten(-1, (-1, self.width))
        kv = heads.shape[2] // (self.groups + 2)
        query = heads[:, :, : kv * self.groups].unflatten(2, (kv, self.groups))
        key, value = heads[:, :, -2 * kv : -kv, None], heads[:, :, -kv:, None]
        own = (query * key).sum(-1) * self.scaling
        shared, lse = prefix.over(query.permute(0, 2, 3, 1, 4), self.scaling)
        share = torch.sigmoid_(own - lse.permute(0, 3, 1, 2))[..., None]
        return shared.permute(0, 3, 1, 2, 4).lerp_(value.expand_as(query), share).flatten(2)


def turned_back(prefix: Lockstep, cos: Float[Tensor, "_ token width"], sin: Float[Tensor, "_ token width"]) -> Lockstep:
    """A prefix as queries see it that are not rotated to its end.

    Args:
        prefix: as the family's own layer sees it.
        cos, sin: of all positions.
    """
    seen = slice(prefix.length)
    keys, cos, sin = prefix.keys[:, :, seen], cos[:, None, prefix.length, None], sin[:, None, prefix.length, None]
    return Lockstep(keys * cos - rotate_half(keys) * sin, prefix.values[:, :, seen], prefix.length)
