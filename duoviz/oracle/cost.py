"""What a search costs, before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..branching import Work
from ..model import LanguageModel, attention_widths
from ..records import Tokens
from ..routes import BIG, SMALL, Space, by_big
from .methods import METHODS, parse


def estimate(
    lm: LanguageModel,
    tokens: Tokens | np.ndarray,
    space: Space | Sequence[Space],
    *,
    context: str = "committed",
    method: str = "exhaustive",
) -> float:
    """FLOPs of searching each of the spaces at every position.

    A node of the trie costs its attention once, `4 d (h + g) + 4 P h` (h and g: width of all heads and of the key and value
    heads; P earlier tokens), a child its FFN, `2 m d f` for m matrices of width f, and a leaf the head, `2 d V`. Under `uniform`
    every route is a forward pass of its own.

    Source: the sum over the nodes of the trie, which are counted exactly. Deviation: norms, softmax and other
    elementwise work are not counted; methods that do not enumerate are counted as so many routes without
    common beginnings below the levels that hold fewer.
    """
    tokens = lm.check(tokens)
    spaces = [space] if isinstance(space, Space) else list(space)
    return sum(_per_position(lm, tokens, each, context, method) for each in spaces) * float(tokens.scored.sum())


def estimate_curve(
    lm: LanguageModel, tokens: Tokens | np.ndarray, *, choices: str | Space = "SB", context: str, method: str
) -> float:
    """FLOPs of a whole curve over the number of big layers for one objective: one pass for each budget under `committed`,
    one for all of them otherwise."""
    spaces = by_big(lm.layers, choices)
    name, number = parse(method, max(spaces, key=Space.count), curve=context != "committed")
    whole = replace(spaces[0], big=None)
    if context != "committed" and name == "exhaustive":
        return estimate(lm, tokens, whole, context=context)
    if context != "committed" and name in METHODS and METHODS[name].together:
        return estimate(lm, tokens, whole, context=context, method=f"{name}-{number}")
    return estimate(lm, tokens, spaces, context=context, method=method)


def candidates(space: Space, method: str) -> int:
    """How many routes of a space a method tries for one position; for `descent`, about how many at most.

    Raises:
        ValueError: an unknown method.
    """
    name, number = parse(method, space)
    if name == "exhaustive":
        return space.count()
    tries = number if name == "random" else METHODS[name].tries(space, number)
    return min(tries, space.count())


def flops(lm: LanguageModel, work: Work, leaves: float) -> float:
    """FLOPs of the work on some tries and of the head at their leaves; see `estimate`."""
    config, family = lm.model.config, lm.model.family
    d, (h, g) = config.hidden_size, attention_widths(config)
    attention = 4 * d * (h + g) * work.attentions + 4 * h * work.seen
    ffns = family.flops(config, big=work.big, small=work.small)
    return float(attention + ffns + leaves * 2 * d * lm.vocab)


def _per_position(lm: LanguageModel, tokens: Tokens, space: Space, context: str, method: str) -> float:
    leaves = candidates(space, method)
    alone = context == "uniform"
    every = np.array(space.prefixes(), float)
    nodes = np.full(len(every), float(leaves)) if alone else np.minimum(every, leaves)
    attentions = nodes.sum() if alone else 1.0 + nodes[:-1].sum()
    big, small = (float((nodes * space.prefixes(ending_in=c) / every).sum()) for c in (BIG, SMALL))
    return flops(lm, Work(attentions, attentions * tokens.ids.shape[1] / 2, big, small), float(leaves))


def check_cost(flops: float, limit: float) -> None:
    """Refuse a search above the limit.

    Raises:
        ValueError: with the estimate, the limit and what to change.
    """
    if flops > limit:
        raise ValueError(
            f"this search would take {flops:.2g} FLOPs, above the limit of {limit:.2g} (max_flops): give fewer or shorter"
            " texts, a narrower budget or method='descent', or raise max_flops"
        )
