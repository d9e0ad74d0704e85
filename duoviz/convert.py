"""A dense model becomes a Duo model: how its small FFNs begin.

Paper: arXiv 2410.10846, section 2: a trained big model is frozen and the small modules alone are trained (figure 8c). Differs:
the paper's small modules begin at random; here they can also begin as the part of the big FFN that does most.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from .families import family
from .model import DuoCausalLM, DuoConfig, DuoFFN, add_small, configuration
from .model.routing import in_this_thread

BEGINNINGS = ("neurons", "random")
NARROWER = 16
"""Times that a small FFN is narrower than the big one, as in the paper."""


def convert(
    path: Path | str,
    ids: Int64[Tensor, "seq token"],
    *,
    small: int | None = None,
    begin: str = "neurons",
    seed: int = 0,
) -> DuoCausalLM:
    """A dense model with small FFNs beside its own, in float32 on the CPU; all big, it is the dense model.

    Args:
        path: folder or Hub id of a dense model.
        ids: text on which the use of neurons is measured; 16 texts of 256 tokens are plenty.
        small: width of the small FFNs; a sixteenth of the big ones' if not given.
        begin: `"neurons"`: the big FFN's most used neurons, rescaled (see `begin_with_neurons`); `"random"`: as the family
            initialises its weights.
        seed: of random weights.

    Raises:
        ValueError: a Duo model, an unknown beginning, neurons of a mixture of experts, a small FFN that is not narrower than the
            big one, ids outside the vocabulary; and as `duoviz.model.load`.
    """
    if begin not in BEGINNINGS:
        raise ValueError(f"begin {begin!r}: allowed are {', '.join(BEGINNINGS)}")
    config = dense(path)
    if begin == "neurons" and family(config.model_type).experts:
        raise ValueError(
            f"begin 'neurons': the big FFNs of {config.model_type} are mixtures of experts, which have no neurons in common:"
            " give begin='random'"
        )
    width = small_width(config, small)
    if int(ids.min()) < 0 or int(ids.max()) >= config.vocab_size:
        raise ValueError(f"token ids {int(ids.min())}..{int(ids.max())}: the vocabulary has 0..{config.vocab_size - 1}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = add_small(path, config, width=width).eval()
    if begin == "neurons":
        _begin_all(model, ids)
    return model


def dense(path: Path | str) -> PretrainedConfig:
    """The configuration of a dense model.

    Raises:
        ValueError: a Duo model; and as `duoviz.model.load`.
    """
    config = configuration(path)
    if isinstance(config, DuoConfig):
        raise ValueError(f"{path} is a Duo model already: give a dense one, or go on training it with --start")
    return config


def small_width(config: PretrainedConfig, small: int | None) -> int:
    """Width of the small FFNs beside those of a dense model, a sixteenth if none is given.

    Raises:
        ValueError: one that is not narrower than the big ones, or below 1.
    """
    big = family(config.model_type).ffn_width(config)
    small = max(1, big // NARROWER) if small is None else small
    if not 0 < small < big:
        raise ValueError(f"small {small}: give a width of 1..{big - 1}, narrower than the big FFNs' {big}")
    return small


@torch.no_grad()
def _begin_all(model: DuoCausalLM, ids: Int64[Tensor, "seq token"]) -> None:
    """Begin every layer's small FFN from what its big one does in the dense model's forward pass."""
    ffns: list[Any] = [layer.duo_ffn for layer in model.decoder_layers]
    hooks = [
        ffn.register_forward_hook(in_this_thread(lambda ffn, args, _: begin_with_neurons(ffn, args[0]))) for ffn in ffns
    ]
    try:
        model(ids, use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def begin_with_neurons(ffn: DuoFFN, x: Float[Tensor, "*token hidden"]) -> None:
    """Make the small FFN the most used neurons of the big one, rescaled.

    A neuron's use is the mean size of what it adds to the output, `mean |a_j| * |w_j|` for activations a and output weights
    w. The output weights of those that are kept are multiplied by the one factor that brings their sum closest to the sum
    of all, in squares over the tokens; biases are kept.

    Args:
        ffn: of a Duo layer; its small FFN is overwritten.
        x: what the FFN is given.
    """
    inner, full = _with_inner(ffn, x)
    *into, out = ffn.linears()
    *small_into, small_out = ffn.linears(ffn.small)
    weights = out.weight if isinstance(out, Conv1D) else out.weight.T  # [neuron, hidden]
    width = small_out.weight.shape[0 if isinstance(out, Conv1D) else 1]
    use = inner.flatten(0, -2).abs().mean(0) * weights.norm(dim=1)
    kept = use.topk(width).indices.sort().values
    # a neuron's gate and its other weights may stand in one matrix, a whole width apart
    rows = torch.cat([kept + part * len(use) for part in range(ffn.family.fused)])
    for big, small in zip(into, small_into):
        small.weight.copy_(big.weight[:, rows] if isinstance(big, Conv1D) else big.weight[rows])
        if big.bias is not None:
            small.bias.copy_(big.bias[rows])
    bias = 0.0 if out.bias is None else out.bias
    part, whole = inner[..., kept] @ weights[kept], full - bias
    factor = (part * whole).sum() / (part * part).sum().clamp(min=torch.finfo(part.dtype).tiny)
    rescaled = weights[kept] * factor
    small_out.weight.copy_(rescaled if isinstance(out, Conv1D) else rescaled.T)
    if out.bias is not None:
        small_out.bias.copy_(out.bias)


def _with_inner(
    ffn: DuoFFN, x: Float[Tensor, "*token hidden"]
) -> tuple[Float[Tensor, "*token neuron"], Float[Tensor, "*token hidden"]]:
    """Activations of the big FFN's inner neurons, and its output, before any norm of it."""
    kept: list[tuple[Tensor, Tensor]] = []
    out: nn.Module = ffn.linears()[-1]
    hook = out.register_forward_hook(in_this_thread(lambda _, args, full: kept.append((args[0], full))))
    try:
        ffn.big(x)
    finally:
        hook.remove()
    return kept[0]
