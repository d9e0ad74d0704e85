"""One pass over texts, position by position: every route's loss, and the best of each group of routes.

Under a `reference` context one pass serves every budget and objective; under `committed` each has its own history, and the
positions of all texts are searched left to right in lockstep, each writing the keys and values of its chosen route.

Paper: arXiv 2410.10846, section 2, stage 2. Differs: the paper does not say how earlier tokens are routed; `context` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Float32, Int8, Int64
from torch import Tensor

from .. import routes as routes_
from ..branching import Branches, Trie, Work
from ..model import LanguageModel
from ..progress import Watch, unwatched
from ..records import Tokens, whole
from ..routes import BIG, Space
from .leaves import TIE_NATS, leaf_losses, refuse_nan
from .objectives import Objective, columns
from .uniform import uniform_losses, uniform_work

WIDTH = 32_768
MAX_FLOPS = 1e15


@dataclass(frozen=True)
class Setting:
    """How a search runs; nothing here changes its result beyond rounding.

    Attributes:
        batch_size: texts in lockstep.
        width: nodes held at a time (see `Branches`): with the head it bounds the memory.
        max_flops: a search that would cost more is refused.
        watch: told the share of the search that is done, after each position or round of candidates; what it raises ends the
            search.
        quiet: show no progress bar.

    Raises:
        ValueError: a number that is not above 0.
    """

    batch_size: int = 8
    width: int = WIDTH
    max_flops: float = MAX_FLOPS
    watch: Watch = unwatched
    quiet: bool = False

    def __post_init__(self) -> None:
        whole(batch_size=self.batch_size, width=self.width)
        if not self.max_flops > 0:
            raise ValueError(f"max_flops {self.max_flops}: give a number above 0, or inf for no limit")


@dataclass(frozen=True)
class Way:
    """How a search goes about it.

    Attributes:
        context, setting, seed: as in `duoviz.oracle.search`.
        method: name and number (see `duoviz.oracle.methods.parse`).
    """

    context: str
    method: tuple[str, int]
    setting: Setting
    seed: int


@dataclass(frozen=True)
class Group:
    """The routes that compete with each other at a position.

    Attributes:
        trie: the trie they are leaves of.
        order: their places among the leaves, by ascending number of big layers, then in lexicographic order.
    """

    trie: Trie
    order: Int64[np.ndarray, " route"]

    @classmethod
    def of(cls, trie: Trie, leaves: Int64[np.ndarray, " route"]) -> Group:
        """The group of some leaves of a trie."""
        bigs = (trie.routes[leaves] == BIG).sum(1)
        return cls(trie, leaves[np.lexsort((leaves, bigs))])

    @classmethod
    def whole(cls, trie: Trie) -> Group:
        """All leaves of a trie."""
        return cls.of(trie, np.arange(len(trie.routes)))


@dataclass
class Best:
    """Results of a pass: one entry per objective and group, for every position; filled as the pass goes on.

    `minimised` is the value of the objective, `tried` counts the routes evaluated, over all positions; `work` what that took.
    """

    routes: Int8[np.ndarray, "objective group seq position layer"]
    loss_nats: Float32[np.ndarray, "objective group seq position"]
    margin_nats: Float32[np.ndarray, "objective group seq position"]
    minimised: Float32[np.ndarray, "objective group seq position"]
    tried: int = 0
    work: Work = field(default_factory=Work)

    @classmethod
    def empty(cls, objectives: int, groups: int, tokens: Tokens, layers: int) -> Best:
        nothing = np.full((objectives, groups, *tokens.scored.shape), np.nan, np.float32)
        return cls(np.full((*nothing.shape, layers), -1, np.int8), nothing.copy(), nothing.copy(), nothing.copy())

    def put(self, at: tuple, routes: np.ndarray, loss: np.ndarray, margin: np.ndarray, minimised: np.ndarray) -> None:
        """Write the results of some positions; `at` indexes objective, group, seq and position."""
        self.routes[at], self.loss_nats[at] = routes, loss
        self.margin_nats[at], self.minimised[at] = margin, minimised


def reference_routes(lm: LanguageModel, context: str) -> Int8[np.ndarray, " layer"]:
    """The route of earlier tokens that a context names; all big where none is named.

    Raises:
        ValueError: an unknown context.
    """
    name, _, route = context.partition(":")
    if context in ("committed", "uniform"):
        return np.full(lm.layers, BIG, np.int8)
    if name != "reference" or not route:
        raise ValueError(
            f"context {context!r}: allowed are committed, uniform, reference:big, reference:small, reference:<route>"
        )
    return routes_.parse(route, layers=lm.layers)


def check_space(lm: LanguageModel, space: Space) -> None:
    """Check that a space is one of the model's.

    Raises:
        ValueError: another number of layers, or choices that the model does not have.
    """
    if space.layers != lm.layers:
        raise ValueError(f"a space of {space.layers} layers: the model has {lm.layers}")
    missing = {*space.choices, *space.held} - set(lm.choices)
    if missing:
        raise ValueError(
            f"choices {space.choices!r}: this model has only {lm.choices!r} (a dense model has no small FFN)"
        )


def left_to_right(
    lm: LanguageModel,
    tokens: Tokens,
    groups_at: Sequence[Sequence[Group]],
    objectives: Sequence[Objective],
    *,
    context: str,
    setting: Setting,
) -> Best:
    """One left-to-right pass over texts in lockstep. `groups_at` lists each position's groups, which share one trie.

    Under `committed` there is one group and one objective, whose choice every position takes.
    """
    best = Best.empty(len(objectives), len(groups_at[0]), tokens, lm.layers)
    branches = branches_in(lm, tokens.ids, context, setting)
    wanted = columns(lm, tokens, objectives)
    for position, groups in enumerate(groups_at):
        scored = np.flatnonzero(tokens.scored[:, position])
        if len(scored):
            contests = [(wanted.index(o.minimises), group.order) for group in groups for o in objectives]
            values = refuse_nan(leaf_losses(branches, position, groups[0].trie, wanted, contests)[scored])
            best.tried += len(scored) * len(groups[0].trie.routes)
            for g, group in enumerate(groups):
                for o, objective in enumerate(objectives):
                    places = wanted.index(objective.minimises), wanted.index(objective.scored_on)
                    best.put((o, g, scored, position), *_choose(values, group, *places))
        if context == "committed":
            commit(branches, position, best.routes[0, 0, :, position])
        setting.watch((position + 1) / len(groups_at))
    best.work = branches.work
    return best


def branches_in(lm: LanguageModel, ids: Int64[np.ndarray, "text token"], context: str, setting: Setting) -> Branches:
    """Texts whose tokens first take the route that the context names."""
    given = np.broadcast_to(reference_routes(lm, context), (*ids.shape, lm.layers))
    return Branches(lm, ids, np.ascontiguousarray(given), width=setting.width)


def commit(branches: Branches, position: int, taken: Int8[np.ndarray, "text layer"]) -> None:
    """Let a position take the routes chosen for it; unscored ones go big, as in `LanguageModel.spread`."""
    branches.commit(position, np.where(taken < 0, BIG, taken))


def _choose(
    values: Float[Tensor, "seq route column"], group: Group, minimised: int, scored: int
) -> tuple[Int8[np.ndarray, "seq layer"], np.ndarray, np.ndarray, np.ndarray]:
    """For each text the group's route with the lowest value in one column: the route, its value in another column, its margin and
    that lowest value."""
    order = torch.from_numpy(group.order).to(values.device)
    every = values[:, order, minimised]
    lowest = every.topk(min(2, every.shape[1]), largest=False).values
    first = (every <= lowest[:, :1] + TIE_NATS).int().argmax(1)
    row = torch.arange(len(values), device=values.device)
    margin = lowest[:, -1] - lowest[:, 0] if lowest.shape[1] == 2 else torch.full_like(lowest[:, 0], torch.inf)
    numbers = torch.stack([values[row, order[first], scored], margin, every[row, first]])
    return group.trie.routes[order[first].cpu().numpy()], *numbers.cpu().numpy()


def uniform(lm: LanguageModel, tokens: Tokens, groups: Sequence[Group], setting: Setting) -> Best:
    """Groups of one trie under `uniform`: every route is run over the whole text."""
    best, routes = Best.empty(1, len(groups), tokens, lm.layers), groups[0].trie.routes
    best.tried, best.work = int(tokens.scored.sum()) * len(routes), uniform_work(tokens, routes)
    losses = torch.from_numpy(uniform_losses(lm, tokens, routes, batch_size=setting.batch_size, watch=setting.watch))
    for seq, position in np.argwhere(tokens.scored):
        values = refuse_nan(losses[:, seq, position][None, :, None])
        for g, group in enumerate(groups):
            best.put(([0], g, seq, position), *_choose(values, group, 0, 0))
    return best
