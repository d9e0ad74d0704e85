"""A dense model becomes a Duo model: how its small FFNs begin.

Paper: arXiv 2410.10846, section 2: a trained big model is frozen and the small modules alone are trained (figure 8c). Differs:
the paper's small modules begin at random; here they can also begin as the part of the big FFN that does most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from . import progress
from .families import family
from .model import Checkpoint, DuoCausalLM, DuoConfig, DuoFFN, add_small, configuration
from .model.routing import in_this_thread
from .records import above_zero, whole

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


@dataclass(frozen=True)
class Imitation:
    """How each small FFN learns by itself.

    Attributes:
        tokens: of training.
        rows: sequences of a step.
        learning_rate: its peak; it rises over the first steps, then falls to 0 as a cosine.
        save_every: steps.

    Raises:
        ValueError: a number that is not above 0.
    """

    tokens: int
    rows: int = 4
    learning_rate: float = 1e-3
    save_every: int = 50

    def __post_init__(self) -> None:
        whole(tokens=self.tokens, rows=self.rows, save_every=self.save_every)
        above_zero(learning_rate=self.learning_rate)


def imitate(
    model: DuoCausalLM, rows: Integer[np.ndarray, "row token"], plan: Imitation, *, checkpoint: Path | None = None
) -> pd.DataFrame:
    """Train each small FFN by itself to do what the big one does in the dense model's forward passes.

    A layer's loss is the mean over tokens of `|small - big|^2 / |h|^2`, h what the layer was given: the next norm divides by
    that length, and the few tokens of enormous length that language models have would outweigh all others.

    Args:
        model: its small FFNs are trained, and nothing else.
        rows: training rows, taken in order from the first, and again.
        plan: how long and how fast.
        checkpoint: a file that training resumes from, if it is there; it stays.

    Returns:
        A table: step, tokens and, by the same mean, `error`: the part of the big FFNs' outputs that is not reproduced, over all
        layers, and `error_<layer>`.

    Raises:
        ValueError: a checkpoint that is damaged or of another training; an error that is NaN.
    """
    ffns: list[Any] = [layer.duo_ffn for layer in model.decoder_layers]
    small = nn.ModuleList([ffn.small for ffn in ffns])
    steps = max(1, plan.tokens // (plan.rows * rows.shape[1]))
    optimizer = torch.optim.AdamW(small.parameters(), lr=plan.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    asked = {**{k: v for k, v in asdict(plan).items() if k != "save_every"}, "rows_given": list(rows.shape)}
    state = Checkpoint(checkpoint, asked, {"small": small})
    log, warm = state.read(optimizer), max(1, steps // 20)
    with _imitating(model, ffns) as errors, progress.bar("each small FFN by itself", begun=len(log) / steps) as watch:
        for step in range(len(log), steps):
            rate = min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate * rate
            places = np.arange(step * plan.rows, (step + 1) * plan.rows) % len(rows)
            ids = torch.from_numpy(rows[places].astype(np.int64)).to(model.device)
            optimizer.zero_grad()
            with torch.no_grad():
                model(ids, use_cache=False, logits_to_keep=1)
            if not all(map(math.isfinite, errors)):
                raise ValueError(f"an error is not finite at step {step}: lower the learning rate")
            optimizer.step()
            each = {f"error_{layer}": error for layer, error in enumerate(errors)}
            log.append({"step": step + 1, "tokens": (step + 1) * ids.numel(), "error": float(np.mean(errors)), **each})
            if (step + 1) % plan.save_every == 0 or step + 1 == steps:
                state.write(optimizer, log)
            watch((step + 1) / steps)
    return pd.DataFrame(log)


@contextmanager
def _imitating(model: DuoCausalLM, ffns: list[DuoFFN]) -> Iterator[list[float]]:
    """Inside, a dense forward pass adds to the gradients of the small FFNs, and says each layer's error."""
    errors, lengths = [math.nan] * len(ffns), [torch.empty(0)] * len(ffns)

    def begin(layer: int, given: Tensor) -> None:
        lengths[layer] = given.detach().float().square().sum(-1).flatten()

    def end(layer: int, x: Tensor, big: Tensor) -> None:
        weight = 1 / lengths[layer].clamp(min=torch.finfo(torch.float32).tiny)
        with torch.enable_grad():
            missed = (ffns[layer].narrow(x.detach()) - big.detach()).flatten(0, -2).float().square().sum(-1)
            loss = (missed * weight).mean()
            loss.backward()
        whole = big.detach().flatten(0, -2).float().square().sum(-1)
        errors[layer] = float(loss.detach() / (whole * weight).mean())

    needed = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    hooks = []
    for parameter, _ in needed:
        parameter.requires_grad_(False)
    for index, (layer, ffn) in enumerate(zip(model.decoder_layers, ffns)):
        ffn.small.requires_grad_(True)
        first = in_this_thread(lambda _, args, kwargs, at=index: begin(at, (*args, *kwargs.values())[0]))
        last = in_this_thread(lambda _, args, made, at=index: end(at, args[0], made))
        hooks += [layer.register_forward_pre_hook(first, with_kwargs=True), ffn.register_forward_hook(last)]
    try:
        yield errors
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, before in needed:
            parameter.requires_grad_(before)
