"""How large a Duo model is and what a forward pass costs."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int8
from torch import nn

from ..routes import BIG, SMALL
from .duo import DuoCausalLM


def parameter_groups(model: DuoCausalLM) -> dict[str, int]:
    """Parameters of the small FFNs, the big FFNs, attention, embeddings (a tied head once) and norms."""
    groups = dict.fromkeys(("small", "big", "attention", "embedding", "norm"), 0)
    ffns: list[Any] = [layer.duo_ffn for layer in model.decoder_layers]
    kinds: dict[Any, str] = {module: "big" for ffn in ffns for module in ffn.modules()}
    if not model.family.experts:  # the parts of an FFN need not be its children
        kinds |= {linear: "big" for ffn in ffns for linear in ffn.linears()}
    kinds |= {module: "small" for ffn in ffns for module in ffn.small.modules()}
    kinds[model.get_output_embeddings()] = "embedding"
    counted: set[nn.Parameter] = set()
    for module in model.modules():
        kind = kinds.get(module, "attention")
        if isinstance(module, nn.Embedding):
            kind = "embedding"
        elif "Norm" in type(module).__name__:
            kind = "norm"
        own = set(module.parameters(recurse=False)) - counted
        groups[kind] += sum(parameter.numel() for parameter in own)
        counted |= own
    assert sum(groups.values()) == sum(p.numel() for p in model.parameters()), "the groups make the whole"
    return groups


def attention_widths(config: Any) -> tuple[int, int]:
    """Width of all heads together: of their queries, and of their keys (as of their values)."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads * width, (getattr(config, "num_key_value_heads", None) or heads) * width


def forward_flops(model: DuoCausalLM, routes: Int8[np.ndarray, "seq token layer"]) -> int:
    """FLOPs of one forward pass without cache over texts that take these routes, logits of every token included.

    Per token and layer: query and output projections `4 d h`, keys and values `4 d g` (h and g: width of all heads and of
    the key and value heads), scores and mixture `4 T h` for texts of T tokens, and `2 m d f` for the m matrices of the
    chosen FFN of width f (none for a skip; of E experts, their choice `2 d E` and f of those that are chosen). The head: `2 d V`.

    Source: counting multiply-adds twice, as `torch.utils.flop_counter` does, which it equals for eager attention.
    Deviation: the causal half of the scores is counted although kernels may skip it; norms, rotations and softmax are
    not counted. A block-skipped token still runs attention here: only its result is dropped.

    Raises:
        ValueError: routes of another number of layers, or unscored ones (-1).
    """
    config, family = model.config, model.family
    seqs, tokens, layers = routes.shape
    if layers != config.num_hidden_layers or (routes < 0).any():
        raise ValueError(
            f"routes of shape {routes.shape}, lowest {routes.min()}: give a choice of 0..2 for every token"
            f" and each of {config.num_hidden_layers} layers"
        )
    d, (h, g) = config.hidden_size, attention_widths(config)
    attention = 4 * d * (h + g) + 4 * tokens * h
    ffn = family.flops(config, big=int((routes == BIG).sum()), small=int((routes == SMALL).sum()))
    return seqs * tokens * (layers * attention + 2 * d * config.vocab_size) + int(ffn)
