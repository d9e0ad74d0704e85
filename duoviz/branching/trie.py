"""The prefix tree of a set of routes, and the work that expanding it takes."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Int8, Int64


@dataclass
class Work:
    """What was computed for the nodes of tries.

    Attributes:
        attentions: nodes whose attention was computed.
        seen: earlier tokens they attended to, in all.
        big, small: FFNs computed.
    """

    attentions: float = 0.0
    seen: float = 0.0
    big: float = 0.0
    small: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class Trie:
    """The prefix tree of a set of routes; with several roots, one tree for each.

    Args:
        routes: the leaves: of each root different from each other and in lexicographic order.
        roots: the root of each route, ascending; all have the same one if not given.

    Attributes:
        routes: the leaves.
        choices: per layer, the choice that leads to each node.
        parents: per layer, each node's parent among the nodes of the layer before (at layer 0, its root).
        children: per layer, where each node's children begin in the next layer; one more entry closes the last.

    Raises:
        ValueError: routes that are not sorted, or repeat.
    """

    def __init__(
        self, routes: Int8[np.ndarray, "route layer"], roots: Int64[np.ndarray, " route"] | None = None
    ) -> None:
        roots = np.zeros(len(routes), np.int64) if roots is None else roots
        differs = routes[1:] != routes[:-1]
        first, rows = differs.argmax(1), np.arange(len(routes) - 1)
        ascends = differs.any(1) & (routes[1:][rows, first] > routes[:-1][rows, first])
        other = roots[1:] != roots[:-1]
        if not np.where(other, roots[1:] > roots[:-1], ascends).all():
            raise ValueError("the routes of a trie must be different and in lexicographic order")
        begins = np.ones((len(routes), routes.shape[1] + 1), bool)
        begins[1:, 0], begins[1:, 1:] = other, differs
        np.logical_or.accumulate(begins, axis=1, out=begins)
        starts = [np.flatnonzero(column) for column in begins.T]
        self.routes = routes
        self.choices = [routes[start, layer] for layer, start in enumerate(starts[1:])]
        self.parents = [
            np.searchsorted(above, below, side="right") - 1 for above, below in zip(starts[:-1], starts[1:])
        ]
        self.children = [
            np.append(np.searchsorted(below, above), len(below)) for above, below in zip(starts[:-1], starts[1:])
        ]
