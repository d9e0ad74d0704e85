"""Exhaustive search of every token's best route.

Under a `reference` context one pass serves every budget and objective; under `committed` each has its own history, and the
positions of all texts are searched left to right in lockstep, each writing the keys and values of its chosen route.

Paper: arXiv 2410.10846, section 2, stage 2. Differs: the paper does not say how earlier tokens are routed; `context` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Float32, Int8, Int64
from torch import Tensor

from .. import routes as routes_
from ..branching import HEAD_ROWS, Branches, Trie
from ..model import LanguageModel
from ..records import Curve, Found, Tokens
from ..routes import BIG, Space
from .cost import check_cost, estimate
from .objectives import Columns, Objective, columns, sample_targets
from .uniform import uniform_losses

TIE_NATS = 1e-6
"""Routes whose losses differ by less are equal: the one with fewer big layers, then the first in order, is taken."""
WIDTH = 16_384
MAX_FLOPS = 1e15


@dataclass(frozen=True)
class Setting:
    """How a search runs; nothing here changes its result beyond rounding.

    Attributes:
        batch_size: texts in lockstep.
        width: nodes held at a time (see `Branches`): with the head it bounds the memory.
        max_flops: a search that would cost more is refused.
    """

    batch_size: int = 8
    width: int = WIDTH
    max_flops: float = MAX_FLOPS


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


@dataclass
class _Best:
    """Results of a pass: one entry per objective and group, for every position; filled as the pass goes on."""

    routes: Int8[np.ndarray, "objective group seq position layer"]
    loss_nats: Float32[np.ndarray, "objective group seq position"]
    margin_nats: Float32[np.ndarray, "objective group seq position"]

    @classmethod
    def empty(cls, objectives: int, groups: int, tokens: Tokens, layers: int) -> _Best:
        shape = (objectives, groups, *tokens.scored.shape)
        return cls(
            np.full((*shape, layers), -1, np.int8),
            np.full(shape, np.nan, np.float32),
            np.full(shape, np.nan, np.float32),
        )


@cache
def _space_trie(space: Space) -> Trie:
    return Trie(space.enumerate())


@cache
def _space_group(space: Space) -> Group:
    trie = _space_trie(space)
    return Group.of(trie, np.arange(len(trie.routes)))


def reference_routes(lm: LanguageModel, context: str) -> Int8[np.ndarray, " layer"]:
    """The route of earlier tokens that a context names; all big where none is named.

    Raises:
        ValueError: an unknown context.
    """
    name, _, route = context.partition(":")
    if context in ("committed", "uniform") or (name == "reference" and route == "big"):
        return np.full(lm.layers, BIG, np.int8)
    if name == "reference" and route == "small":
        return np.full(lm.layers, routes_.SMALL, np.int8)
    if name != "reference" or not route:
        raise ValueError(
            f"context {context!r}: allowed are committed, uniform, reference:big, reference:small, reference:<route>"
        )
    return routes_.from_text(route, layers=lm.layers)


@torch.no_grad()
def leaf_losses(branches: Branches, position: int, trie: Trie, wanted: Columns) -> Float[Tensor, "seq route column"]:
    """Every route's value of every column at one position, float32; the leaves' logits are never all in memory."""
    head = branches.lm.head
    vectors, bias = wanted.vectors[:, position], wanted.bias[:, position]
    made = vectors.new_empty(len(vectors), len(trie.routes), vectors.shape[-1])
    for rows, hidden in branches.leaves(position, trie):
        normed = head.norm(hidden.float())
        made[:, rows] = -(normed @ vectors) - bias[:, None]
        flat = normed.reshape(-1, normed.shape[-1])
        parts = [
            torch.nn.functional.linear(part, head.weight, head.bias).logsumexp(-1) for part in flat.split(HEAD_ROWS)
        ]
        made[:, rows] += torch.cat(parts).view(*normed.shape[:2], 1)
    return made


def _pass(
    lm: LanguageModel,
    tokens: Tokens,
    groups_at: Sequence[Sequence[Group]],
    objectives: Sequence[Objective],
    *,
    context: str,
    setting: Setting,
) -> _Best:
    """One left-to-right pass over all texts. `groups_at` lists each position's groups, which share one trie.

    Under `committed` there is one group and one objective, whose choice every position takes.
    """
    best = _Best.empty(len(objectives), len(groups_at[0]), tokens, lm.layers)
    names = tuple(dict.fromkeys(name for o in objectives for name in (o.minimises, o.scored_on)))
    for start in range(0, len(tokens), setting.batch_size):
        rows = slice(start, start + setting.batch_size)
        part = tokens[rows]
        given = np.broadcast_to(reference_routes(lm, context), (*part.ids.shape, lm.layers))
        branches = Branches(lm, part.ids, np.ascontiguousarray(given), width=setting.width)
        wanted = columns(lm, part, names)
        for position in range(part.scored.shape[1]):
            if not part.scored[:, position].any():
                continue
            groups = groups_at[position]
            values = leaf_losses(branches, position, groups[0].trie, wanted)
            for g, group in enumerate(groups):
                for o, objective in enumerate(objectives):
                    chosen, margin, loss = _choose(values, group, names, objective)
                    best.routes[o, g, rows, position] = group.trie.routes[chosen]
                    best.loss_nats[o, g, rows, position] = loss
                    best.margin_nats[o, g, rows, position] = margin
            if context == "committed":
                branches.commit(position, best.routes[0, 0, rows, position])
    unscored = ~tokens.scored
    best.routes[:, :, unscored] = -1
    best.loss_nats[:, :, unscored] = best.margin_nats[:, :, unscored] = np.nan
    return best


def _choose(
    values: Float[Tensor, "seq route column"], group: Group, names: tuple[str, ...], objective: Objective
) -> tuple[Int64[np.ndarray, " seq"], np.ndarray, np.ndarray]:
    """Leaf, margin and loss of the best route of a group for every text.

    Raises:
        ValueError: NaN among the values.
    """
    order = torch.from_numpy(group.order).to(values.device)
    minimised = values[:, order, names.index(objective.minimises)]
    if bool(minimised.isnan().any()):
        raise ValueError(
            "a route's loss is NaN: the weights are damaged, or the dtype overflows; try dtype=torch.float32"
        )
    lowest = minimised.topk(min(2, minimised.shape[1]), largest=False).values
    first = (minimised <= lowest[:, :1] + TIE_NATS).int().argmax(1)
    chosen = order[first]
    loss = values[torch.arange(len(values), device=values.device), chosen, names.index(objective.scored_on)]
    margin = lowest[:, -1] - lowest[:, 0] if lowest.shape[1] == 2 else torch.full_like(lowest[:, 0], torch.inf)
    return chosen.cpu().numpy(), margin.cpu().numpy(), loss.cpu().numpy()


def _replay_error(
    lm: LanguageModel, tokens: Tokens, routes: np.ndarray, loss_nats: np.ndarray, objective: Objective
) -> float:
    """Largest difference to one ordinary forward pass with the chosen routes."""
    targets = sample_targets(lm, tokens, seed=objective.seed) if objective.name == "null" else None
    replayed = lm.score(tokens, routes, targets=targets)
    return float(np.nanmax(np.abs(replayed - loss_nats))) if tokens.scored.any() else 0.0


def search(
    lm: LanguageModel,
    tokens: Tokens | np.ndarray,
    space: Space | Sequence[Space],
    *,
    context: str = "committed",
    method: str = "exhaustive",
    objective: str = "nll",
    setting: Setting = Setting(),
    seed: int = 0,
) -> Found:
    """The best route of every token.

    Args:
        lm: the model.
        tokens: `Tokens` or int64 `[seq, token]`.
        space: the routes to search; or one space per position, for budgets that change along the text.
        context: `committed`, `reference:big`, `reference:small`, `reference:<route>` or `uniform`.
        method: `exhaustive`, or `random-K`: the best of K routes drawn without replacement, the same for all positions.
        objective: see `duoviz.oracle.objectives`.
        setting: batch, memory and cost bounds.
        seed: of `random-K`.

    Returns:
        `Found`: routes int8 `[seq, position, layer]`, losses in nats `[seq, position]`.

    Raises:
        ValueError: a context, method, objective or space that does not fit, or a search above `max_flops`.
    """
    tokens, goal = lm.check(tokens), Objective.of(objective)
    positions = tokens.scored.shape[1]
    spaces = [space] * positions if isinstance(space, Space) else list(space)
    if len(spaces) != positions:
        raise ValueError(f"{len(spaces)} spaces for {positions} positions: give one space, or one for each position")
    reference_routes(lm, context)
    for each in set(spaces):
        _check_space(lm, each)
    flops = max(estimate(lm, tokens, each, context=context, method=method) for each in set(spaces))
    check_cost(flops, setting.max_flops)
    groups = {each: _group(each, method, seed) for each in set(spaces)}
    if context == "uniform":
        if len(groups) > 1 or goal.name != "nll":
            raise ValueError("context 'uniform' takes one space for all positions and objective 'nll'")
        best = _uniform(lm, tokens, [groups[spaces[0]]], setting)
    else:
        best = _pass(lm, tokens, [[groups[each]] for each in spaces], [goal], context=context, setting=setting)
    routes, loss = best.routes[0, 0], best.loss_nats[0, 0]
    return Found(
        routes=routes,
        loss_nats=loss,
        margin_nats=best.margin_nats[0, 0],
        replay_error=_replay_error(lm, tokens, routes, loss, goal),
        space=str(spaces[0]) if len(groups) == 1 else "one space per position",
        context=context,
        objective=objective,
        method=method,
        evaluated=float(np.mean([len(groups[each].order) for each in spaces])),
    )


def _group(space: Space, method: str, seed: int) -> Group:
    """The candidates of a method.

    Raises:
        ValueError: an unknown method.
    """
    if method == "exhaustive":
        return _space_group(space)
    name, _, number = method.partition("-")
    if name != "random" or not number.isdigit() or int(number) < 1:
        raise ValueError(f"method {method!r}: allowed are exhaustive and random-K, for example random-100")
    trie = Trie(space.sample(min(int(number), space.count()), seed=seed))
    return Group.of(trie, np.arange(len(trie.routes)))


def _check_space(lm: LanguageModel, space: Space) -> None:
    if space.layers != lm.layers:
        raise ValueError(f"a space of {space.layers} layers: the model has {lm.layers}")
    missing = set(space.choices) - set(lm.choices)
    if missing:
        raise ValueError(
            f"choices {space.choices!r}: this model has only {lm.choices!r} (a dense model has no small FFN)"
        )


def by_budget(
    lm: LanguageModel,
    tokens: Tokens | np.ndarray,
    *,
    choices: str = "SB",
    context: str = "committed",
    method: str = "exhaustive",
    objective: str = "nll",
    setting: Setting = Setting(),
    seed: int = 0,
) -> Curve:
    """The best route of every token with exactly k big layers, for every k from 0 to all.

    Arguments and errors are those of `search`.

    Returns:
        `Curve`: `.budgets` 0..layers, `.loss_nats` `[k, seq, position]`, `.routes` `[k, seq, position, layer]`.
    """
    found = survey(
        lm, tokens, choices=choices, context=context, method=method, objectives=(objective,), setting=setting, seed=seed
    )
    return found[objective]


def survey(
    lm: LanguageModel,
    tokens: Tokens | np.ndarray,
    *,
    choices: str = "SB",
    context: str = "committed",
    method: str = "exhaustive",
    objectives: Sequence[str] = ("nll", "expected", "null"),
    setting: Setting = Setting(),
    seed: int = 0,
) -> dict[str, Curve]:
    """`by_budget` for several objectives: one pass for all of them under a `reference` context."""
    tokens = lm.check(tokens)
    goals, positions = [Objective.of(text) for text in objectives], tokens.scored.shape[1]
    reference_routes(lm, context)
    spaces = [Space(lm.layers, choices, big=k) for k in range(lm.layers + 1)] if "B" in choices else []
    if not spaces:
        raise ValueError(f"choices {choices!r}: a curve over the number of big layers needs B")
    for space in spaces:
        _check_space(lm, space)
    flops = estimate(lm, tokens, spaces, context=context, method=method)
    check_cost(flops * (len(goals) if context == "committed" else 1), setting.max_flops)
    groups = [_group(space, method, seed) for space in spaces]
    if context == "committed":
        passes = [
            [_pass(lm, tokens, [[g]] * positions, [goal], context=context, setting=setting) for g in groups]
            for goal in goals
        ]
        bests = [_Best(*(np.concatenate(part, axis=1) for part in zip(*map(astuple, row)))) for row in passes]
        best = _Best(*(np.concatenate(part) for part in zip(*map(astuple, bests))))
    else:
        joined = _joined(groups)
        if context == "uniform":
            if any(goal.name != "nll" for goal in goals):
                raise ValueError("context 'uniform' takes objective 'nll'")
            best = _uniform(lm, tokens, joined, setting)
        else:
            best = _pass(lm, tokens, [joined] * positions, goals, context=context, setting=setting)
    names = {"nll": "oracle" if method == "exhaustive" else method, "expected": "label-free"}
    made = {}
    for o, (text, goal) in enumerate(zip(objectives, goals)):
        routes, loss = best.routes[o], best.loss_nats[o]
        made[text] = Curve(
            name=names.get(goal.name, goal.name),
            context=context,
            budgets=np.arange(lm.layers + 1),
            routes=routes,
            loss_nats=loss,
            margin_nats=best.margin_nats[o],
            replay_error=np.array([_replay_error(lm, tokens, r, x, goal) for r, x in zip(routes, loss)]),
        )
    return made


def _joined(groups: Sequence[Group]) -> list[Group]:
    """The same groups as leaves of one trie."""
    routes = np.concatenate([group.trie.routes for group in groups])
    routes, inverse = np.unique(routes, axis=0, return_inverse=True)
    trie, stops = Trie(routes), np.cumsum([len(group.trie.routes) for group in groups])
    return [Group.of(trie, np.sort(leaves)) for leaves in np.split(inverse.reshape(-1), stops[:-1])]


def _uniform(lm: LanguageModel, tokens: Tokens, groups: Sequence[Group], setting: Setting) -> _Best:
    """Groups of one trie under `uniform`: every route is run over the whole text."""
    best = _Best.empty(1, len(groups), tokens, lm.layers)
    losses = torch.from_numpy(uniform_losses(lm, tokens, groups[0].trie.routes, batch_size=setting.batch_size))
    for seq, position in np.argwhere(tokens.scored):
        values = losses[:, seq, position][None, :, None]
        for g, group in enumerate(groups):
            chosen, margin, loss = _choose(values, group, ("nll",), Objective("nll"))
            best.routes[0, g, seq, position] = group.trie.routes[chosen[0]]
            best.loss_nats[0, g, seq, position], best.margin_nats[0, g, seq, position] = loss[0], margin[0]
    return best


def landscape(
    lm: LanguageModel,
    tokens: Tokens | np.ndarray,
    space: Space,
    *,
    seq: int,
    position: int,
    context: str | Int8[np.ndarray, "position layer"] = "reference:big",
    objective: str = "nll",
    setting: Setting = Setting(),
) -> Float32[np.ndarray, " route"]:
    """Every route's loss at one position, in `space.enumerate()` order.

    Args:
        lm, tokens, space, objective, setting: as in `search`.
        seq, position: which prediction.
        context: a `reference` context, or the routes that the text's earlier positions took.

    Raises:
        ValueError: a position that is not there or not scored, or a context that is neither.
    """
    tokens = lm.check(tokens)
    _check_space(lm, space)
    if not (0 <= seq < len(tokens) and 0 <= position < tokens.scored.shape[1]) or not tokens.scored[seq, position]:
        raise ValueError(
            f"seq {seq}, position {position}: not a scored position of {tokens.scored.shape} (seq, position)"
        )
    one = tokens[seq : seq + 1]
    if isinstance(context, str):
        if not context.startswith("reference:"):
            raise ValueError(f"context {context!r}: a landscape takes reference:<route>, or the routes taken so far")
        given = np.broadcast_to(reference_routes(lm, context), (1, one.ids.shape[1], lm.layers))
    else:
        given = lm.spread(np.asarray(context)[None], one)
    check_cost(estimate(lm, one, space) / one.scored.sum(), setting.max_flops)
    goal = Objective.of(objective)
    branches = Branches(lm, one.ids, np.ascontiguousarray(given), width=setting.width)
    wanted = columns(lm, one, (goal.minimises,))
    return leaf_losses(branches, position, _space_trie(space), wanted)[0, :, 0].cpu().numpy()
