"""What a search costs, before it starts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..model import LanguageModel
from ..records import Tokens
from ..routes import BIG, SMALL, Space


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


def _per_position(lm: LanguageModel, tokens: Tokens, space: Space, context: str, method: str) -> float:
    config, family = lm.model.config, lm.model.family
    d, per_width = config.hidden_size, 2 * family.ffn_matrices * config.hidden_size
    earlier = tokens.ids.shape[1] / 2
    most = int(method.partition("-")[2]) if method.startswith("random-") else space.count()
    leaves = min(most, space.count())
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
