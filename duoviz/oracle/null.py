"""The exact null control: what the best of many routes gains on any next token, not just on the true one.

The best of many routes fits whatever token comes, by luck. The null control asks what it gains where the model's own
distribution q says how often each token comes: `E_q[min_r loss(r, y)]`, over the whole vocabulary, so that nothing is drawn.
A gain over all big is the smaller for it: all big is what q is. A gain over the mean route of the same budget is not, and an
over-confident q can be put at the temperature at which its entropy is the model's loss on the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import brentq
from torch import Tensor

from ..branching import Branches
from ..model import Head, LanguageModel, undisturbed
from ..progress import bar
from ..records import Luck, Tokens
from ..routes import BIG, Space
from .execute import space_trie
from .landscapes import check_positions, taken
from .leaves import blocks, exact, refuse_nan
from .objectives import Columns, Objective, all_big, columns
from .passes import Setting

CELLS = 2**21
"""Logits that exist at one time: 8 MB, which stay in cache."""
TEMPERATURES = (0.2, 5.0)
"""Between which the matched one is looked for."""

NAMES = tuple(field.name for field in fields(Luck) if field.name not in ("budgets", "temperature"))


@undisturbed
@torch.no_grad()
def luck(
    lm: LanguageModel,
    tokens: Tokens | np.ndarray,
    space: Space,
    positions: Sequence[int],
    *,
    context: str = "reference:big",
    setting: Setting = Setting(),
) -> Luck:
    """The losses of all routes of a space at some positions of all texts, for the true next token and for every other.

    Args:
        lm, tokens, space, setting: as in `search`.
        positions: which.
        context: a `reference` context.

    Raises:
        ValueError: what `landscapes` refuses.
    """
    tokens = lm.check(tokens)
    check_positions(lm, tokens, space, positions, setting)
    given, trie = taken(lm, tokens, context), space_trie(space)
    bigs = (trie.routes == BIG).sum(1)
    order = torch.from_numpy(np.argsort(bigs, kind="stable")).to(lm.head.weight.device)
    budgets, sizes = np.unique(bigs, return_counts=True)
    temperature = matched_temperature(lm, tokens, positions)

    def norm(hidden: Tensor) -> Tensor:
        return lm.head.norm(hidden.float())

    found = np.full((len(NAMES), len(budgets), len(tokens), len(positions)), np.nan, np.float32)
    batches = lm.batches(tokens, setting.batch_size)
    with bar(f"luck at {len(tokens) * len(positions):,} positions", quiet=setting.quiet) as shown:
        for batch, rows in enumerate(batches):
            few = tokens[rows]
            branches = Branches(lm, few.ids, np.ascontiguousarray(given[rows]), width=setting.width)
            wanted, teacher = columns(lm, few, [Objective("nll"), Objective("expected")]), all_big(lm, few)
            for number, position in enumerate(positions):
                normed = torch.cat([part for _, part in branches.leaves(position, trie, norm)], 1)[:, order]
                for seq in np.flatnonzero(few.scored[:, position]).tolist():
                    logits = lm.head.logits(teacher[seq, position])
                    likely = torch.stack([logits, logits / temperature])
                    likely[:, lm.known :] = -torch.inf  # rows without a token only fill the vocabulary up
                    one = _at_position(
                        lm.head, normed[seq], wanted, (seq, position), likely.softmax(-1), sizes.tolist()
                    )
                    found[:, :, rows.start + seq, number] = refuse_nan(one).cpu().numpy()
                shown((batch + (number + 1) / len(positions)) / len(batches))
    return Luck(budgets, **dict(zip(NAMES, found)), temperature=temperature)


def _at_position(
    head: Head,
    normed: Float[Tensor, "route hidden"],
    wanted: Columns,
    at: tuple[int, int],
    likely: Float[Tensor, "q vocab"],
    sizes: list[int],
) -> Float[Tensor, "name k"]:
    """What `Luck` says of one position, from the normed outputs of all routes, in order of their numbers of big layers."""
    seq, position = at
    linear = normed @ wanted.vectors[seq, position] + wanted.bias[seq, position]
    here, there = (torch.full((len(normed),), one, device=normed.device) for one in at)
    values = exact(head, normed, linear, wanted, (here, there))
    nll, expected = values[:, wanted.index("nll")], values[:, wanted.index("expected")]
    lse = nll + head.capped(linear[:, wanted.index("nll")])
    made = torch.zeros(2, len(likely), len(sizes), device=normed.device)
    for block, logits in blocks(head, normed, max(1, CELLS // len(normed))):
        parts = (lse[:, None] - logits).split(sizes)
        losses = torch.stack([torch.stack([part.mean(0), part.amin(0)]) for part in parts], -1)
        made += likely[:, block] @ losses
    groups = list(zip(nll.split(sizes), expected.split(sizes)))
    of_true = [(one.mean(), one.min(), one[free.argmin()]) for one, free in groups]
    (null_mean, matched_mean), (null_best, matched_best) = made
    return torch.stack([*map(torch.stack, zip(*of_true)), null_mean, null_best, matched_mean, matched_best])


def matched_temperature(lm: LanguageModel, tokens: Tokens, positions: Sequence[int]) -> float:
    """The temperature at which all big's predictions at these positions are as unsure as they are wrong: their mean entropy is
    their mean loss. The nearest bound of `TEMPERATURES` where it lies beyond."""
    hidden, scored = all_big(lm, tokens)[:, positions], torch.from_numpy(tokens.scored[:, positions])
    logits = torch.cat([lm.head.logits(row[keep])[:, : lm.known] for row, keep in zip(hidden, scored)])
    targets = torch.from_numpy(tokens.ids[:, 1:][:, positions])[scored].to(logits.device)
    loss = float(torch.nn.functional.cross_entropy(logits, targets))

    def missing(temperature: float) -> float:
        likely = ((part / temperature).softmax(-1) for part in logits.split(256))
        return float(sum(torch.special.entr(part).sum() for part in likely)) / len(logits) - loss

    low, high = TEMPERATURES
    if missing(low) > 0 or missing(high) < 0:
        return low if missing(low) > 0 else high
    return float(brentq(missing, low, high, xtol=1e-3))
