"""The head at the leaves: every route's value at one position, exact wherever it can decide.

The head is the dearest part of a search, so a leaf's log-sum-exp over the vocabulary is first bounded from below: exactly
over the tokens that all-big finds likeliest, and over the others in bundles of tokens of like rank, by Jensen's inequality
`sum of exp(z) >= n exp(mean of z)`, where the mean logit is one product with the mean of the bundle's weights. The most
promising leaves are finished on the whole vocabulary, and then all whose bound does not pass the second best. Best, second
best and ties are exact; the others stay bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..branching import CACHED, Branches, Trie, product
from ..model import Head
from .objectives import Columns

TIE_NATS = 1e-6
"""Routes whose losses differ by less are equal: the one with fewer big layers, then the first in order, is taken."""
HEAD_ROWS = 512
"""Leaves whose logits exist at one time: 8 MB at a vocabulary of 4,096, which stays in cache; half the time of 2,048."""
SUBSET = 128
"""Tokens that a bound counts one by one."""
BUNDLE = 32
"""Tokens that a bound counts together."""
PROMISING = 2
"""Leaves of a contest that are finished before any bound is compared; two at least, for the margin."""

Contest = tuple[int, Int64[np.ndarray, " _"]]
"""Leaves that compete with each other, and the column in which they do."""


@torch.no_grad()
def leaf_losses(
    branches: Branches, position: int, trie: Trie, wanted: Columns, contests: Sequence[Contest] = ()
) -> Float[Tensor, "seq route column"]:
    """Every route's value of every column at one position, float32; the leaves' logits are never all in memory.

    Args:
        branches: the texts.
        position: which prediction.
        trie: the routes.
        wanted: the columns.
        contests: where only the best of some leaves are wanted: their best two and their ties are exact then, all other
            values may be lower bounds that lie above them. Without contests everything is exact.
    """
    head, vectors, bias = branches.lm.head, wanted.vectors[:, position], wanted.bias[:, position]
    bound = None
    if len(trie.routes) > 4 * PROMISING * len(contests) > 0 and len(head.weight) >= 4 * SUBSET and not wanted.full:
        bound = _Bound(head, wanted.big[:, position], contests)
    made = vectors.new_empty(len(vectors), len(trie.routes), len(wanted.linear) + len(wanted.full))
    for rows, hidden in branches.leaves(position, trie):
        parts = hidden.split(max(1, CACHED // (len(hidden) * hidden.shape[-1])), 1)
        normed = torch.cat([head.norm(part.float()) for part in parts], 1)
        linear = normed @ vectors + bias[:, None]
        if bound is None:
            flat, favourite = normed.flatten(0, 1), wanted.favourite[:, position].repeat_interleave(normed.shape[1])
            made[:, rows] = exact(head, flat, linear.flatten(0, 1), wanted.full, favourite).view(*normed.shape[:2], -1)
        else:
            made[:, rows] = bound.lse(rows, normed, linear)[..., None] - linear
    return made


def exact(
    head: Head,
    normed: Float[Tensor, "leaf hidden"],
    linear: Float[Tensor, "leaf column"],
    full: tuple[str, ...],
    favourite: Int64[Tensor, " leaf"],
) -> Float[Tensor, "leaf _"]:
    """Every column's value from the whole vocabulary: the linear ones, then those that need every logit (see `Columns`)."""
    parts = []
    for some, less, liked in zip(*(each.split(HEAD_ROWS) for each in (normed, linear, favourite))):
        logits = product(some, head.weight, head.bias)
        lse = logits.logsumexp(-1, keepdim=True)
        columns = [lse - less]
        if "agree_big" in full:
            columns.append((logits.argmax(-1) != liked).to(lse.dtype)[:, None])
        if "entropy" in full:
            columns.append(lse - ((logits - lse).exp() * logits).sum(-1, keepdim=True))
        parts.append(torch.cat(columns, 1))
    return torch.cat(parts)


def whole(head: Head, normed: Float[Tensor, "leaf hidden"]) -> Float[Tensor, " leaf"]:
    """Log-sum-exp of the logits over the whole vocabulary."""
    parts = [product(part, head.weight, head.bias).logsumexp(-1) for part in normed.split(HEAD_ROWS)]
    return torch.cat(parts) if parts else normed.new_zeros(0)


def refuse_nan(values: Tensor) -> Tensor:
    """The values, none of which is NaN.

    Raises:
        ValueError: if one is.
    """
    if bool(values.isnan().any()):
        raise ValueError(
            "a route's loss is NaN: the weights are damaged, or the dtype overflows; try dtype=torch.float32"
        )
    return values


class _Bound:
    """Log-sum-exps of the leaves of one position, chunk by chunk, finished only where a contest is not decided.

    Args:
        head: the model's head.
        big: the position's output under all-big, which ranks the vocabulary.
        contests: see `leaf_losses`.
    """

    def __init__(self, head: Head, big: Float[Tensor, "seq hidden"], contests: Sequence[Contest]) -> None:
        self.head, self.contests = head, contests
        logits, ranked = head.logits(big).sort(-1, descending=True)
        bundles = ranked[:, SUBSET:].unfold(1, BUNDLE, BUNDLE)  # a few of the unlikeliest are left out: still a bound
        bias = head.weight.new_zeros(len(head.weight)) if head.bias is None else head.bias
        few, many = ranked[:, :SUBSET], math.log(BUNDLE)
        together = torch.nn.functional.embedding_bag(bundles.flatten(0, 1), head.weight, mode="mean")
        self.top = logits[:, :1]  # taken off, so that exponentials neither overflow nor vanish
        self.weight = torch.cat([head.weight[few], together.view(*bundles.shape[:2], -1)], 1)
        self.bias = torch.cat([bias[few], bias[bundles].mean(2) + many], 1) - self.top
        self.best_two = [head.weight.new_full((len(big), 2), torch.inf) for _ in contests]

    def lse(
        self, rows: slice, normed: Float[Tensor, "seq leaf hidden"], linear: Float[Tensor, "seq leaf column"]
    ) -> Float[Tensor, "seq leaf"]:
        """Exact for the leaves that can decide a contest, a lower bound for the others."""
        lse = self._below(normed)
        known = torch.zeros_like(lse, dtype=torch.bool)
        inside = [
            torch.from_numpy(leaves[(leaves >= rows.start) & (leaves < rows.stop)] - rows.start).to(lse.device)
            for _, leaves in self.contests
        ]
        before = self.best_two
        for first in (True, False):
            self._finish(lse, known, self._undecided(lse, linear, inside, first=first), normed)
            self.best_two = [
                torch.cat([two, (lse - linear[..., column]).where(known, torch.inf)[:, leaves]], 1)
                .topk(2, largest=False)
                .values
                for two, (column, _), leaves in zip(before, self.contests, inside)
            ]
        return lse

    def _undecided(self, lse: Tensor, linear: Tensor, inside: list[Tensor], *, first: bool) -> Bool[Tensor, "seq leaf"]:
        """The most promising leaves of every contest, or those that may be among the best two or tie with them."""
        marked = torch.zeros_like(lse, dtype=torch.bool)
        for (column, _), leaves, two in zip(self.contests, inside, self.best_two):
            values = lse[:, leaves] - linear[:, leaves, column]
            if first:
                promising = values.topk(min(PROMISING, len(leaves)), largest=False).indices
                marked.scatter_(1, leaves[promising], True)
            else:
                marked[:, leaves] |= values <= two[:, 1:] + TIE_NATS
        return marked

    def _finish(self, lse: Tensor, known: Tensor, marked: Tensor, normed: Tensor) -> None:
        """Make the marked leaves exact, in place."""
        marked = marked & ~known
        lse[marked] = whole(self.head, normed[marked])
        known |= marked

    def _below(self, normed: Float[Tensor, "seq leaf hidden"]) -> Float[Tensor, "seq leaf"]:
        """The bound of every leaf; minus infinity should an exponential overflow."""
        size, found = max(1, CACHED // self.weight.shape[1]), []
        for leaves, weight, bias in zip(normed, self.weight, self.bias):
            found.append(torch.cat([product(part, weight, bias).exp_().sum(-1) for part in leaves.split(size)]))
        sums = torch.stack(found)
        return sums.where(sums < torch.inf, 0.0).log_() + self.top
