"""Exhaustive search of every token's best route: what can be asked.

Paper: arXiv 2410.10846, section 2, stage 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from functools import cache

import numpy as np
from jaxtyping import Float32, Int8

from ..branching import Branches, Trie
from ..model import LanguageModel
from ..records import Curve, Found, Tokens
from ..routes import Space, by_big
from .cost import candidates, check_cost, estimate, estimate_curve
from .leaves import leaf_losses
from .objectives import Objective, columns, sample_targets
from .passes import Best, Group, Setting, left_to_right, reference_routes, uniform


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
        seed: of `random-K`, and of `null` and `sampled` where they name none.

    Returns:
        `Found`: routes int8 `[seq, position, layer]`, losses in nats `[seq, position]`.

    Raises:
        ValueError: a context, method, objective or space that does not fit, or a search above `max_flops`.
    """
    tokens, goal = lm.check(tokens), Objective.of(objective, seed=seed)
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
        best = uniform(lm, tokens, [groups[spaces[0]]], setting)
    else:
        best = left_to_right(lm, tokens, [[groups[each]] for each in spaces], [goal], context=context, setting=setting)
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
    """`by_budget` for several objectives, which share one pass under a `reference` context.

    Arguments and errors are those of `search`.

    Args:
        objectives: see `duoviz.oracle.objectives`.

    Returns:
        A `Curve` for each objective, by the text that asked for it.
    """
    tokens = lm.check(tokens)
    goals, positions = [Objective.of(text, seed=seed) for text in objectives], tokens.scored.shape[1]
    reference_routes(lm, context)
    spaces = by_big(lm.layers, choices)
    for space in spaces:
        _check_space(lm, space)
    flops = estimate_curve(lm, tokens, choices=choices, context=context, method=method)
    check_cost(flops * (len(goals) if context == "committed" else 1), setting.max_flops)
    groups = [_group(space, method, seed) for space in spaces]
    if context == "committed":
        passes = [
            [left_to_right(lm, tokens, [[g]] * positions, [goal], context=context, setting=setting) for g in groups]
            for goal in goals
        ]
        bests = [Best(*(np.concatenate(part, axis=1) for part in zip(*map(astuple, row)))) for row in passes]
        best = Best(*(np.concatenate(part) for part in zip(*map(astuple, bests))))
    else:
        joined = _joined(groups)
        if context == "uniform":
            if any(goal.name != "nll" for goal in goals):
                raise ValueError("context 'uniform' takes objective 'nll'")
            best = uniform(lm, tokens, joined, setting)
        else:
            best = left_to_right(lm, tokens, [joined] * positions, goals, context=context, setting=setting)
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


@cache
def _space_trie(space: Space) -> Trie:
    return Trie(space.enumerate())


@cache
def _space_group(space: Space) -> Group:
    trie = _space_trie(space)
    return Group.of(trie, np.arange(len(trie.routes)))


def _group(space: Space, method: str, seed: int) -> Group:
    """The candidates of a method.

    Raises:
        ValueError: an unknown method.
    """
    number = candidates(space, method)
    if method == "exhaustive":
        return _space_group(space)
    trie = Trie(space.sample(number, seed=seed))
    return Group.of(trie, np.arange(len(trie.routes)))


def _joined(groups: Sequence[Group]) -> list[Group]:
    """The same groups as leaves of one trie."""
    routes = np.concatenate([group.trie.routes for group in groups])
    routes, inverse = np.unique(routes, axis=0, return_inverse=True)
    trie, stops = Trie(routes), np.cumsum([len(group.trie.routes) for group in groups])
    return [Group.of(trie, np.sort(leaves)) for leaves in np.split(inverse.reshape(-1), stops[:-1])]


def _check_space(lm: LanguageModel, space: Space) -> None:
    if space.layers != lm.layers:
        raise ValueError(f"a space of {space.layers} layers: the model has {lm.layers}")
    missing = set(space.choices) - set(lm.choices)
    if missing:
        raise ValueError(
            f"choices {space.choices!r}: this model has only {lm.choices!r} (a dense model has no small FFN)"
        )


def _replay_error(
    lm: LanguageModel, tokens: Tokens, routes: np.ndarray, loss_nats: np.ndarray, objective: Objective
) -> float:
    """Largest difference to one ordinary forward pass with the chosen routes."""
    targets = sample_targets(lm, tokens, seed=objective.seed) if objective.name == "null" else None
    replayed = lm.score(tokens, routes, targets=targets)
    return float(np.nanmax(np.abs(replayed - loss_nats))) if tokens.scored.any() else 0.0
