"""How a search is carried out: which passes it takes, batch by batch, each a part that can be kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product

import numpy as np
from jaxtyping import Float32, Float64, Int8

from ..branching import Trie
from ..model import LanguageModel
from ..progress import bar
from ..progress import part as part_of
from ..records import Effort, Tokens
from ..routes import Space
from .cost import flops
from .guided import guided
from .methods import METHODS
from .objectives import Objective, sample_targets
from .passes import Best, Group, Setting, Way, left_to_right, uniform

Part = dict[str, np.ndarray]
Keep = Callable[[str, Callable[[], Part]], Part]
"""Given a part's name and how to compute it, returns it: computed, or as it was kept by an earlier run."""


FIELDS = ("routes", "loss_nats", "margin_nats", "minimised")
"""What a part keeps of `Best`."""
PART = "d"
"""Begins the name of a part; another letter when what a part holds changes, so that parts of an earlier version are not taken."""


def compute_all(name: str, compute: Callable[[], Part]) -> Part:
    """Keeps nothing."""
    return compute()


def execute(
    lm: LanguageModel,
    tokens: Tokens,
    spaces_at: Sequence[Sequence[Space]],
    objectives: Sequence[Objective],
    way: Way,
    keep: Keep,
) -> tuple[Best, Float64[np.ndarray, "goal group"], Effort]:
    """The best route in every space at every position for every objective; for each objective and space the largest gap to an
    ordinary forward pass, in nats; and what it took.

    A part, named by its texts, is a batch of them; under `committed`, where each space and objective has its own history, also
    one of these.

    Args:
        lm, tokens: as in `duoviz.oracle.search`.
        spaces_at: each position's spaces, as many for all.
        objectives: what to minimise.
        way: how.
        keep: see `Keep`.
    """
    committed, guides = way.context == "committed", way.method[0] in METHODS
    goals, groups = range(len(objectives)), range(len(spaces_at[0]))
    best, total = Best.empty(len(goals), len(groups), tokens, lm.layers), np.zeros(3)
    replay = np.zeros((len(goals), len(groups)))
    parts = list(
        product(
            lm.batches(tokens, way.setting.batch_size),
            [[o] for o in goals] if committed else [list(goals)],
            [[g] for g in groups] if committed and not guides else [list(groups)],
        )
    )
    with bar(f"{' and '.join(o.name for o in objectives)} by {way.method[0]}", quiet=way.setting.quiet) as shown:

        def watch(share: float) -> None:
            way.setting.watch(share)
            shown(share)

        for number, (rows, some_goals, some) in enumerate(parts):
            wanted = [[spaces[g] for g in some] for spaces in spaces_at]
            own = replace(way, setting=replace(way.setting, watch=part_of(watch, number, len(parts))))
            compute = partial(_part, lm, tokens[rows], wanted, [objectives[o] for o in some_goals], own)
            made = keep(f"{PART}-{tokens[rows].fingerprint}-{some_goals[0]}-{some[0]}", compute)
            watch((number + 1) / len(parts))
            at = np.ix_(some_goals, some, range(len(tokens))[rows])
            for field in FIELDS:
                getattr(best, field)[at] = made[field]
            replay[np.ix_(some_goals, some)] = np.maximum(replay[np.ix_(some_goals, some)], made["replay"])
            total += made["effort"]
    return best, replay, Effort(total[0] / max(1, tokens.scored.sum()), total[1], total[2])


def _part(
    lm: LanguageModel,
    tokens: Tokens,
    spaces_at: Sequence[Sequence[Space]],
    objectives: Sequence[Objective],
    way: Way,
) -> Part:
    """One batch of texts: the fields of `Best`, the replay errors, and routes tried, FLOPs and seconds."""
    began = time.monotonic()
    if way.method[0] in METHODS:
        best = guided(lm, tokens, spaces_at, objectives, way)
    else:
        groups = {row: _groups(row, way) for row in set(map(tuple, spaces_at))}
        groups_at = [groups[tuple(row)] for row in spaces_at]
        if way.context == "uniform":
            best = uniform(lm, tokens, groups_at[0], way.setting)
        else:
            best = left_to_right(lm, tokens, groups_at, objectives, context=way.context, setting=way.setting)
    effort = np.array([best.tried, flops(lm, best.work, float(best.tried)), time.monotonic() - began])
    pairs = zip(objectives, best.routes, best.loss_nats)
    replay = np.stack([_replay_errors(lm, tokens, routes, loss, goal, way.setting) for goal, routes, loss in pairs])
    return {"effort": effort, "replay": replay, **{field: getattr(best, field) for field in FIELDS}}


def _replay_errors(
    lm: LanguageModel,
    tokens: Tokens,
    routes: Int8[np.ndarray, "k seq position layer"],
    loss_nats: Float32[np.ndarray, "k seq position"],
    objective: Objective,
    setting: Setting,
) -> Float64[np.ndarray, " k"]:
    """For each entry, the largest gap between the search's losses and an ordinary forward pass on the chosen routes."""
    if not tokens.scored.any():
        return np.zeros(len(routes))
    targets = sample_targets(lm, tokens, seed=objective.seed) if objective.name == "null" else None
    together, found = max(1, setting.batch_size // len(tokens)), []  # routes of all texts that fill a batch
    for start in range(0, len(routes), together):
        few = routes[start : start + together]
        tiled = None if targets is None else np.tile(targets, (len(few), 1))
        every = Tokens.joined([tokens] * len(few))
        replayed = lm.score(every, np.concatenate(few), targets=tiled, batch_size=setting.batch_size)
        differs = np.abs(replayed.reshape(few.shape[:3]) - loss_nats[start : start + together])
        found.append(np.nanmax(differs, axis=(1, 2)))
    return np.concatenate(found).astype(float)


def _groups(spaces: Sequence[Space], way: Way) -> list[Group]:
    """The candidates in every space, as leaves of one trie."""
    name, number = way.method
    if name == "random":
        groups = [Group.whole(Trie(space.sample(min(number, space.count()), seed=way.seed))) for space in spaces]
    else:
        groups = [_space_group(space) for space in spaces]
    return groups if len(groups) == 1 else _joined(groups)


@lru_cache(maxsize=32)
def space_trie(space: Space) -> Trie:
    """The trie of all routes of a space."""
    return Trie(space.enumerate())


@lru_cache(maxsize=32)
def _space_group(space: Space) -> Group:
    return Group.whole(space_trie(space))


def _joined(groups: Sequence[Group]) -> list[Group]:
    """The same groups as leaves of one trie."""
    routes = np.concatenate([group.trie.routes for group in groups])
    routes, inverse = np.unique(routes, axis=0, return_inverse=True)
    trie, stops = Trie(routes), np.cumsum([len(group.trie.routes) for group in groups])
    return [Group.of(trie, np.sort(leaves)) for leaves in np.split(inverse.reshape(-1), stops[:-1])]
