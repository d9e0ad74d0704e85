"""What a search costs, before it starts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..model import LanguageModel
from ..records import Tokens
from ..routes import BIG, SMALL, Space, by_big


def estimate(
    lm: LanguageModel,
    tokens: Tokens | np.ndarray,
    space: Space | Sequence[Space],
    *,
    context: str = "committed",
    method: str = "exhaustive",
) -> float:
    """FLOPs of searching each of the spaces at every position.

    A node of the trie costs its attention once, `8 d^2 + 4 P d` (P earlier tokens; fewer key and value heads are not
    deducted), a child its FFN, `2 m d f` for m matrices of width f, and a leaf the head, `2 d V`. Under `uniform` every
    route is a forward pass of its own.

    Source: the sum over the nodes of the trie, which are counted exactly. Deviation: norms, softmax and other
    elementwise work are not counted; `random-K` is counted as K routes without common beginnings.
    """
    tokens = lm.check(tokens)
    spaces = [space] if isinstance(space, Space) else list(space)
    return sum(_per_position(lm, tokens, each, context, method) for each in spaces) * float(tokens.scored.sum())


def estimate_curve(
    lm: LanguageModel, tokens: Tokens | np.ndarray, *, choices: str = "SB", context: str, method: str
) -> float:
    """FLOPs of a whole curve over the number of big layers for one objective: one pass for each budget under `committed`,
    one for all of them otherwise."""
    spaces = by_big(lm.layers, choices)
    if context == "committed" or method != "exhaustive":
        return estimate(lm, tokens, spaces, context=context, method=method)
    return estimate(lm, tokens, Space(lm.layers, choices), context=context, method=method)


def candidates(space: Space, method: str) -> int:
    """How many routes of a space a method evaluates.

    Raises:
        ValueError: an unknown method.
    """
    if method == "exhaustive":
        return space.count()
    name, _, number = method.partition("-")
    if name != "random" or not number.isdigit() or int(number) < 1:
        raise ValueError(f"method {method!r}: allowed are exhaustive and random-K, for example random-100")
    return min(int(number), space.count())


def _per_position(lm: LanguageModel, tokens: Tokens, space: Space, context: str, method: str) -> float:
    config, family = lm.model.config, lm.model.family
    d, per_width = config.hidden_size, 2 * family.ffn_matrices * config.hidden_size
    earlier = tokens.ids.shape[1] / 2
    leaves = candidates(space, method)
    alone = context == "uniform"
    nodes = np.array([leaves if alone else min(n, leaves) for n in space.prefixes()], float)
    parents = nodes if alone else np.append(1.0, nodes[:-1])
    widths = np.zeros(len(nodes))
    for choice, width in ((BIG, getattr(config, family.width)), (SMALL, config.small_intermediate_size)):
        share = np.array(space.prefixes(ending_in=choice), float) / np.array(space.prefixes(), float)
        widths += nodes * share * width
    attention = (8 * d**2 + 4 * earlier * d) * parents.sum()
    return float(attention + per_width * widths.sum() + leaves * 2 * d * lm.vocab)


def check_cost(flops: float, limit: float) -> None:
    """Refuse a search above the limit.

    Raises:
        ValueError: with the estimate, the limit and what to change.
    """
    if flops > limit:
        raise ValueError(
            f"this search would take {flops:.2g} FLOPs, above the limit of {limit:.2g} (max_flops): give fewer or shorter"
            " texts, a narrower budget or method='random-K', or raise max_flops"
        )
