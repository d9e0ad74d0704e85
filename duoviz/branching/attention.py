"""Attention of branches: each to a shared prefix and to itself, merged by log-sum-exp."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from transformers import AttentionInterface

from ..model.routing import ATTENTION, holding

NAME = "duo_branches"
Rows = Float[Tensor, "batch kv_head group branch width"]
Sums = Float[Tensor, "batch kv_head group branch"]


@runtime_checkable
class Prefix(Protocol):
    """What the branches of one layer attend to besides themselves."""

    def take(self, key: Float[Tensor, "batch kv_head branch width"], value: Tensor) -> None:
        """Is shown the branches' own keys and values."""

    def over(
        self, query: Rows, scaling: float, window: int | None = None, softcap: float | None = None
    ) -> tuple[Rows, Sums]:
        """Attention to the prefix alone, and the log-sum-exp of its scores; -inf where it is empty.

        Args:
            query: of the branches.
            scaling: factor of the scores.
            window: tokens that a branch sees at most, itself included; None is all.
            softcap: see `capped`.
        """


@dataclass(frozen=True)
class Lockstep:
    """Texts beside each other, all their branches at one position.

    Attributes:
        keys, values: of the layer.
        length: tokens of the prefix.
        write: keep the own key and value of the (single) branch as those of the next token.
    """

    keys: Float[Tensor, "text kv_head token width"]
    values: Float[Tensor, "text kv_head token width"]
    length: int
    write: bool = False

    def take(self, key: Tensor, value: Tensor) -> None:
        if self.write:
            self.keys[:, :, self.length], self.values[:, :, self.length] = key[:, :, 0], value[:, :, 0]

    def over(
        self, query: Rows, scaling: float, window: int | None = None, softcap: float | None = None
    ) -> tuple[Rows, Sums]:
        seen = slice(max(0, self.length + 1 - window) if window else 0, self.length)
        if seen.start == seen.stop:
            return torch.zeros_like(query), query.new_full(query.shape[:-1], -torch.inf, dtype=torch.float32)
        rows = query.flatten(2, 3)
        out, lse = over_prefix(rows, self.keys[:, :, seen], self.values[:, :, seen], scaling, softcap=softcap)
        return out.view(query.shape), lse.view(query.shape[:-1])


class Scattered:
    """Branches in one row, each at its own text and position.

    Args:
        keys, values: of the layer.
        texts: the text of each branch, ascending.
        lengths: tokens of each branch's prefix.
    """

    def __init__(
        self,
        keys: Float[Tensor, "text kv_head token width"],
        values: Float[Tensor, "text kv_head token width"],
        texts: Int64[Tensor, " branch"],
        lengths: Int64[Tensor, " branch"],
    ) -> None:
        texts, lengths = texts.to(keys.device), lengths.to(keys.device)
        used, which, counts = texts.unique_consecutive(return_inverse=True, return_counts=True)
        longest, most = max(1, int(lengths.max())), int(counts.max())
        self.keys, self.values = keys[used, :, :longest], values[used, :, :longest]
        first = counts.cumsum(0) - counts
        self.place = which, torch.arange(len(texts), device=texts.device) - first[which]  # in a grid [text, branch]
        self.empty = lengths == 0
        self.lengths = lengths.new_ones(len(used), most, 1).index_put(
            self.place, lengths.clamp(min=1)[:, None]
        )  # a row may not be empty
        self.tokens = torch.arange(longest, device=texts.device)

    def take(self, key: Tensor, value: Tensor) -> None:
        pass

    def over(
        self, query: Rows, scaling: float, window: int | None = None, softcap: float | None = None
    ) -> tuple[Rows, Sums]:
        _, heads, groups, _, width = query.shape
        seen = self.tokens < self.lengths
        if window:
            seen &= self.tokens >= self.lengths + 1 - max(2, window)
        grid = query.new_zeros(*seen.shape[:2], heads, groups, width)
        grid[self.place] = query[0].permute(2, 0, 1, 3)
        rows = grid.permute(0, 2, 3, 1, 4).flatten(2, 3)
        out, lse = over_prefix(rows, self.keys, self.values, scaling, seen.repeat(1, groups, 1), softcap)
        back = out.view(len(rows), heads, groups, -1, width).permute(0, 3, 1, 2, 4)[self.place]
        sums = lse.view(len(rows), heads, groups, -1).permute(0, 3, 1, 2)[self.place].permute(1, 2, 0)
        return back.permute(1, 2, 0, 3)[None], sums.masked_fill(self.empty | (window == 1), -torch.inf)[None]


def attend(
    module: nn.Module,
    query: Float[Tensor, "batch head branch width"],
    key: Float[Tensor, "batch kv_head branch width"],
    value: Float[Tensor, "batch kv_head branch width"],
    attention_mask: Prefix,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "batch branch head width"], None]:
    """Attention of branches to a prefix and each to itself.

    Args:
        module: the family's attention module; not used.
        query, key, value: of the branches; grouped-query heads are folded into query rows.
        attention_mask: the prefix, which says what a branch sees. It comes in the mask's place since that is what the layers of
            every family hand on; those of StableLM and Nemotron drop arguments they do not know.
        scaling: factor of the scores.
        sliding_window: tokens that a branch sees at most, itself included.
        softcap: see `capped`.
    """
    attention_mask.take(key, value)
    batch, heads, branches, width = query.shape
    rows = query.reshape(batch, key.shape[1], -1, branches, width)
    own = capped(torch.einsum("tkgbw,tkbw->tkgb", rows.float(), key.float()) * scaling, softcap)
    shared, lse = attention_mask.over(rows, scaling, sliding_window, softcap)
    share = torch.sigmoid(own - lse)[..., None].to(query.dtype)
    out = torch.lerp(shared, value[:, :, None].expand_as(shared), share)
    return out.reshape(batch, heads, branches, width).transpose(1, 2), None


def capped(scores: Float[Tensor, "*any"], softcap: float | None) -> Float[Tensor, "*any"]:
    """Scores that come no nearer to infinity than `softcap`; as they are without one."""
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


def over_prefix(
    rows: Float[Tensor, "text kv_head row width"],
    keys: Float[Tensor, "text kv_head token width"],
    values: Float[Tensor, "text kv_head token width"],
    scaling: float,
    seen: Bool[Tensor, "text row token"] | None = None,
    softcap: float | None = None,
) -> tuple[Float[Tensor, "text kv_head row width"], Float[Tensor, "text kv_head row"]]:
    """Attention of query rows to a prefix, or to what each row may see of it, with the log-sum-exp of the scores: the fused
    kernel on the CPU in float32, `portable_over_prefix` elsewhere, and for scores that are capped, which the kernel cannot."""
    if rows.device.type == "cpu" and rows.dtype == torch.float32 and softcap is None:
        mask = None if seen is None else torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)[:, None]
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            rows, keys, values, attn_mask=mask, scale=scaling
        )
    return portable_over_prefix(rows, keys, values, scaling, seen, softcap)


def portable_over_prefix(
    rows: Float[Tensor, "text kv_head row width"],
    keys: Float[Tensor, "text kv_head token width"],
    values: Float[Tensor, "text kv_head token width"],
    scaling: float,
    seen: Bool[Tensor, "text row token"] | None = None,
    softcap: float | None = None,
) -> tuple[Float[Tensor, "text kv_head row width"], Float[Tensor, "text kv_head row"]]:
    """The same from matrix products: what `over_prefix` is tested against. Scores are float32, whose rounding does not grow with
    them as that of narrower numbers does."""
    scores = capped((rows.float() @ keys.float().transpose(2, 3)) * scaling, softcap)
    if seen is not None:
        scores = scores.masked_fill(~seen[:, None], -torch.inf)
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp().to(values.dtype) @ values, lse


AttentionInterface.register(NAME, attend)


def branch_attention() -> AbstractContextManager[None]:
    """Attention modules of Duo models call `attend`, in this thread."""
    return holding(ATTENTION, NAME)
