"""The language-model head at the leaves of the trie: every route's value at one position, exact wherever it can decide.

The head is the dearest part of a search, so a leaf's log-sum-exp over the vocabulary is first bounded from below. It is a
convex function of the normed output, so it lies above each of its tangent planes: the plane at a leaf whose whole
distribution p is known costs the others one product with the mean of the head's weights under p, and lies below by the KL
from p to their own distribution. A few leaves of each chunk are such anchors. The most promising leaves are finished on the
whole vocabulary, and then all whose bound does not pass the second best. Best, second best and ties are exact; the others
stay bounds. The log-sum-exp of logits that are capped (Gemma 2) is not convex in the normed output: there every leaf takes
the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..branching import Branches, Trie
from ..model import Head
from ..model.products import product
from .objectives import Columns

TIE_NATS = 1e-6
"""Routes whose losses differ by less are equal: the one with fewer big layers, then the first in order, is taken."""
HEAD_ROWS = 512
HEAD_COLUMNS = 4096
"""Leaves and tokens of the vocabulary whose logits exist at one time: 8 MB, which stays in cache."""
ANCHORS = 15
"""Leaves of a chunk whose tangent planes bound the others; with an objective's own column they fill a vector register."""
ROUNDING = 16 * torch.finfo(torch.float32).eps
"""What a product may be off by, as a share of its factors' lengths."""
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
    bounded = contests and not wanted.full and head.cap is None
    if bounded and len(trie.routes) > 4 * (ANCHORS + PROMISING * len(contests)):
        bound = _Bound(head, contests, vectors, bias)
    made = vectors.new_empty(len(vectors), len(trie.routes), len(wanted.linear) + len(wanted.full))
    for rows, normed in branches.leaves(position, trie, lambda hidden: head.norm(hidden.float())):
        if bound is None:
            seqs = torch.arange(len(normed), device=normed.device).repeat_interleave(normed.shape[1])
            linear = (normed @ vectors + bias[:, None]).flatten(0, 1)
            values = exact(head, normed.flatten(0, 1), linear, wanted, (seqs, torch.full_like(seqs, position)))
            made[:, rows] = values.view(*normed.shape[:2], -1)
        else:
            made[:, rows] = bound.values(rows, normed)
    return made


def exact(
    head: Head,
    normed: Float[Tensor, "leaf hidden"],
    linear: Float[Tensor, "leaf column"],
    wanted: Columns,
    at: tuple[Int64[Tensor, " leaf"], Int64[Tensor, " leaf"]],
) -> Float[Tensor, "leaf _"]:
    """Every column's value from the whole vocabulary: the linear ones, then those that need every logit (see `Columns`).

    Args:
        head: the model's head.
        normed: of the leaves.
        linear: what their linear columns subtract, before any cap.
        wanted: the columns.
        at: text and position of each leaf.
    """
    parts = []
    for some, less, seqs, positions in zip(*(each.split(HEAD_ROWS) for each in (normed, linear, *at))):
        # as wide as the vocabulary, so made anew for each part, and once where leaves share a place
        (seq, position), back = torch.stack([seqs, positions]).unique(dim=1, return_inverse=True)
        taught = [_mean_prediction(head, outputs[:, seq, position]) for outputs in wanted.teachers.values()]
        lses, tops, means, learnt = [], [], [], []
        for block, logits in blocks(head, some):
            lse, likely = _softmax(logits)
            lses.append(lse)
            if "agree_big" in wanted.full:
                top, place = logits.max(-1)
                tops.append((top, place + block.start))
            if "entropy" in wanted.full:
                means.append((likely * logits).sum(-1))
            learnt.append([(each[back, block] * logits).sum(-1) for each in taught])
        shares, lse = torch.stack(lses).softmax(0), torch.stack(lses).logsumexp(0)
        columns = [lse[:, None] - head.capped(less)]
        if tops:
            values, places = (torch.stack(each) for each in zip(*tops))
            liked = places.gather(0, values.argmax(0, keepdim=True))[0]
            columns.append((liked != wanted.favourite[seqs, positions]).to(lse.dtype)[:, None])
        if means:
            columns.append((lse - (shares * torch.stack(means)).sum(0))[:, None])
        columns += [(lse - torch.stack(each).sum(0))[:, None] for each in zip(*learnt)]
        parts.append(torch.cat(columns, 1))
    return torch.cat(parts)


def whole(head: Head, normed: Float[Tensor, "leaf hidden"]) -> Float[Tensor, " leaf"]:
    """Log-sum-exp of the logits over the whole vocabulary."""
    parts = [
        torch.stack([_softmax(logits)[0] for _, logits in blocks(head, part)]).logsumexp(0)
        for part in normed.split(HEAD_ROWS)
    ]
    return torch.cat(parts) if parts else normed.new_zeros(0)


def blocks(
    head: Head, normed: Float[Tensor, "leaf hidden"], tokens: int | None = None
) -> Iterator[tuple[slice, Float[Tensor, "leaf token"]]]:
    """The logits of so many tokens of the vocabulary (`HEAD_COLUMNS` if not given) after the others."""
    tokens = tokens or HEAD_COLUMNS
    for start in range(0, len(head.weight), tokens):
        block = slice(start, start + tokens)
        bias = None if head.bias is None else head.bias[block]
        yield block, head.capped(product(normed, head.weight[block], bias))


def _softmax(logits: Float[Tensor, "leaf token"]) -> tuple[Float[Tensor, " leaf"], Float[Tensor, "leaf token"]]:
    """Log-sum-exp of logits, and their softmax."""
    likely = logits.softmax(-1)  # in one pass over the logits, where log-sum-exp takes several
    return logits.amax(-1) - likely.amax(-1).log(), likely


def _likely(
    head: Head, normed: Float[Tensor, "leaf hidden"]
) -> tuple[Float[Tensor, " leaf"], Float[Tensor, "leaf vocab"]]:
    """Log-sum-exp of the logits, and the next token's distribution, of few leaves."""
    return _softmax(torch.cat([logits for _, logits in blocks(head, normed)], -1))


def _mean_prediction(head: Head, outputs: Float[Tensor, "pass place hidden"]) -> Float[Tensor, "place vocab"]:
    """The next token's distribution at some places, averaged over passes whose last layer's outputs are given."""
    mean = outputs.new_zeros(outputs.shape[1], len(head.weight), dtype=head.weight.dtype)
    for each in outputs:
        mean += _likely(head, head.norm(each.to(head.weight)))[1] / len(outputs)
    return mean


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
    """Values of the leaves of one position, chunk by chunk, finished only where a contest is not decided.

    Args:
        head: the model's head.
        contests: see `leaf_losses`.
        vectors, bias: of the position (see `Columns`).
    """

    def __init__(
        self,
        head: Head,
        contests: Sequence[Contest],
        vectors: Float[Tensor, "seq hidden column"],
        bias: Float[Tensor, "seq column"],
    ) -> None:
        self.head, self.contests = head, contests
        self.vectors, self.bias = vectors.transpose(1, 2), bias
        self.best_two = vectors.new_full((len(vectors), len(contests), 2), torch.inf)

    def values(self, rows: slice, normed: Float[Tensor, "seq leaf hidden"]) -> Float[Tensor, "seq leaf column"]:
        """Exact for the leaves that can decide a contest, a lower bound for the others."""
        anchors = _spread(normed.shape[1]).to(normed.device)
        lse, linear = self._below(normed, anchors)
        known = torch.zeros_like(lse, dtype=torch.bool)
        known[:, anchors] = True
        column, leaves, padding = (each.to(lse.device) for each in self._inside(rows))
        minus = linear[:, leaves, column[:, None]].masked_fill_(padding, -torch.inf)
        values, before = lse[:, leaves] - minus, self.best_two
        for most in (PROMISING, values.shape[-1]):
            undecided = values <= self.best_two[..., 1:] + TIE_NATS
            if most < values.shape[-1]:
                undecided &= values <= values.topk(most, largest=False).values[..., -1:]
            # padding stands for leaf 0, which is finished for nothing at worst
            seq, contest, place = undecided.nonzero(as_tuple=True)
            marked = torch.zeros_like(known).index_put_((seq, leaves[contest, place]), torch.tensor(True)) & ~known
            lse[marked] = whole(self.head, normed[marked])
            known |= marked
            values = lse[:, leaves] - minus
            sure = values.masked_fill(~known[:, leaves], torch.inf)
            self.best_two = torch.cat([before, sure], -1).topk(2, largest=False).values
        return lse[..., None] - linear

    def _inside(self, rows: slice) -> tuple[Int64[Tensor, " contest"], Int64[Tensor, "contest leaf"], Tensor]:
        """Column and leaves of every contest in these rows, and which of the leaves are padding."""
        each = [leaves[(leaves >= rows.start) & (leaves < rows.stop)] - rows.start for _, leaves in self.contests]
        padded = pad_sequence([torch.from_numpy(leaves) for leaves in each], batch_first=True)
        sizes, columns = torch.tensor([len(leaves) for leaves in each]), [column for column, _ in self.contests]
        return torch.tensor(columns), padded, torch.arange(padded.shape[1]) >= sizes[:, None]

    def _below(
        self, normed: Float[Tensor, "seq leaf hidden"], anchors: Int64[Tensor, " anchor"]
    ) -> tuple[Float[Tensor, "seq leaf"], Float[Tensor, "seq leaf column"]]:
        """For every leaf, the highest of the anchors' tangent planes, less a bound on the rounding error, so that it stays below
        the true value; exact at the anchors. And what the leaf's columns subtract."""
        at, lse, slopes = normed[:, anchors], [], []
        for part in at.flatten(0, 1).split(HEAD_ROWS):
            found, likely = _likely(self.head, part)
            lse.append(found)
            slopes.append(product(likely, self.head.weight.T, None))
        tops, planes = torch.cat(lse).view(at.shape[:2]), torch.cat(slopes).view(at.shape)
        weight = torch.cat([planes, self.vectors], 1)
        bias = torch.cat([tops - (planes * at).sum(-1), self.bias], 1)
        both = torch.stack([product(*each) for each in zip(normed, weight, bias)])
        below = both[..., : len(anchors)].amax(-1)
        below -= ROUNDING * planes.norm(dim=-1).amax() * normed.norm(dim=-1).amax()
        below[:, anchors] = tops
        return below, both[..., len(anchors) :]


def _spread(leaves: int) -> Int64[Tensor, " anchor"]:
    """Some of so many leaves that differ in early and late layers: multiples of the golden ratio fill an interval evenly."""
    multiples = torch.arange(1, ANCHORS + 1, dtype=torch.float64) * ((5**0.5 - 1) / 2)
    return (multiples % 1 * leaves).long().unique()
