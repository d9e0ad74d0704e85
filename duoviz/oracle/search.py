"""The public search functions: `search` for one budget, `by_budget` for all, `survey` for several objectives.

Paper: arXiv 2410.10846, section 2, stage 2.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from ..model import LanguageModel, undisturbed
from ..progress import unwatched
from ..records import Curve, Found, Tokens
from ..routes import Space, by_big
from .cost import check_cost, estimate, estimate_curve
from .execute import Keep, compute_all, execute
from .methods import METHODS, parse
from .objectives import Objective
from .passes import Setting, Way, check_space, reference_routes

PROBE_TOKENS = 4
"""Of each text, in the run that measures how fast a search is."""
PROBE_FLOPS = 4e12
"""What that run may cost, some twenty seconds of two cores; where it would be more, one text is searched, or one position."""
MOST_REPLAY_ERROR = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.5}
"""Nats between a search and an ordinary forward pass, by the dtype of the weights. The shipped model's differ by up to 5e-6 in
float32, 0.08 in bfloat16 and 0.013 in float16 (4 texts of 32 tokens); an adapter that the search overlooked made 2.5."""


@undisturbed
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
    keep: Keep = compute_all,
) -> Found:
    """The best route of every token.

    Args:
        lm: the model.
        tokens: `Tokens` or int64 `[seq, token]`.
        space: the routes to search; or one space per position, for budgets that change along the text.
        context: `committed`, `reference:big`, `reference:small`, `reference:<route>` or `uniform`.
        method: `exhaustive`; `random-K`: the best of K routes drawn without replacement, the same for all positions; one
            that does not enumerate (`duoviz.oracle.methods`); or `auto`: exhaustive up to 20,000 routes, else descent (of a
            curve that one search can answer, paths).
        objective: see `duoviz.oracle.objectives`.
        setting: batch, memory and cost bounds.
        seed: of the method's random draws, and of `null` or `sampled` if written without one.
        keep: keeps finished parts, so that a search that was cut off goes on from there (see `duoviz.oracle.execute`).

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
    kinds = set(spaces)
    named = _check(lm, kinds, context, method, (goal,))
    check_cost(max(estimate(lm, tokens, each, context=context, method=method) for each in kinds), setting.max_flops)
    if context == "uniform" and len(kinds) > 1:
        raise ValueError("context 'uniform' takes one space for all positions")
    way = Way(context, named, setting, seed)
    best, replay, effort = execute(lm, tokens, [[each] for each in spaces], [goal], way, keep)
    return Found(
        routes=best.routes[0, 0],
        loss_nats=best.loss_nats[0, 0],
        margin_nats=best.margin_nats[0, 0],
        replay_error=float(_explained(lm, replay, context)[0, 0]),
        space=str(spaces[0]) if len(kinds) == 1 else "one space per position",
        context=context,
        objective=objective,
        method=named[0] if method == "auto" else method,
        effort=effort,
    )


def by_budget(
    lm: LanguageModel,
    tokens: Tokens | np.ndarray,
    *,
    choices: str | Space = "SB",
    context: str = "committed",
    method: str = "exhaustive",
    objective: str = "nll",
    setting: Setting = Setting(),
    seed: int = 0,
    keep: Keep = compute_all,
) -> Curve:
    """The best route of every token with exactly k big layers, for every k from 0 to all.

    Other arguments and errors are those of `search`.

    Args:
        choices: the allowed choices as letters; or a space, in which layers may be tied or held. Then `k` are the numbers of
            big layers that its routes have.

    Returns:
        `Curve`: `.budgets` 0..layers, `.loss_nats` `[k, seq, position]`, `.routes` `[k, seq, position, layer]`.
    """
    found = survey(
        lm,
        tokens,
        choices=choices,
        context=context,
        method=method,
        objectives=(objective,),
        setting=setting,
        seed=seed,
        keep=keep,
    )
    return found[objective]


@undisturbed
def survey(
    lm: LanguageModel,
    tokens: Tokens | np.ndarray,
    *,
    choices: str | Space = "SB",
    context: str = "committed",
    method: str = "exhaustive",
    objectives: Sequence[str] = ("nll", "expected", "null"),
    setting: Setting = Setting(),
    seed: int = 0,
    keep: Keep = compute_all,
) -> dict[str, Curve]:
    """`by_budget` for several objectives, which share one pass under a `reference` context; where routes are not enumerated,
    what is tried for one is known for all.

    Arguments and errors are those of `search`.

    Args:
        objectives: see `duoviz.oracle.objectives`.

    Returns:
        A `Curve` for each objective, by the text that asked for it.
    """
    tokens = lm.check(tokens)
    goals, spaces = [Objective.of(text, seed=seed) for text in objectives], by_big(lm.layers, choices)
    named = _check(lm, set(spaces), context, method, goals, curve=True)
    flops = estimate_curve(lm, tokens, choices=choices, context=context, method=method)
    one_pass = context != "committed" and named[0] not in METHODS
    check_cost(flops if one_pass else flops * len(goals), setting.max_flops)
    spaces_at = [spaces] * tokens.scored.shape[1]
    best, replay, effort = execute(lm, tokens, spaces_at, goals, Way(context, named, setting, seed), keep)
    replay = _explained(lm, replay, context)
    names = {
        "nll": "oracle" if named[0] == "exhaustive" else named[0] if method == "auto" else method,
        "expected": "label-free",
        "expected:mean": "label-free, mean teacher",
    }
    made = {}
    for o, (text, goal) in enumerate(zip(objectives, goals)):
        made[text] = Curve(
            name=names.get(goal.name, goal.name),
            context=context,
            budgets=np.array([space.big for space in spaces]),
            routes=best.routes[o],
            loss_nats=best.loss_nats[o],
            margin_nats=best.margin_nats[o],
            minimised=best.minimised[o],
            replay_error=replay[o],
            effort=effort,
        )
    return made


def measured_rate(
    lm: LanguageModel,
    tokens: Tokens | np.ndarray,
    *,
    choices: str | Space = "SB",
    context: str = "committed",
    method: str = "exhaustive",
    objective: str = "nll",
    setting: Setting = Setting(),
) -> float:
    """FLOPs a second on this machine, from a search over a few tokens that is thrown away: over fewer where it is dear.

    With `estimate_curve` it says how long a search will take. The first run only warms up: it lays out weights and memory.
    """
    tokens = lm.check(tokens)[: setting.batch_size].cut(PROBE_TOKENS)
    ways: dict[str, Any] = {"context": context, "method": method}
    if context == "committed":  # one pass for each budget: the one with the most routes stands for all
        tokens, space = tokens.cut(2), max(by_big(lm.layers, choices), key=Space.count)
    else:
        space = choices if isinstance(choices, Space) else Space(lm.layers, choices)
    setting = replace(setting, quiet=True, watch=unwatched)
    one, sizes = tokens[:1].cut(2), (tokens, tokens[:1])
    tokens = next((part for part in sizes if estimate(lm, part, space, **ways) <= PROBE_FLOPS), one)
    for part in (one, tokens):
        began = time.perf_counter()
        search(lm, part, space, objective=objective, setting=setting, **ways)
        seconds = time.perf_counter() - began
    return estimate(lm, tokens, space, **ways) / seconds


def _check(
    lm: LanguageModel,
    spaces: set[Space],
    context: str,
    method: str,
    goals: Sequence[Objective],
    *,
    curve: bool = False,
) -> tuple[str, int]:
    """Check that the model supports this search; returns the method's name and number.

    Raises:
        ValueError: if it cannot.
    """
    reference_routes(lm, context)
    for each in spaces:
        check_space(lm, each)
    named = parse(method, max(spaces, key=Space.count), curve=curve and context != "committed")
    if context == "uniform" and (named[0] in METHODS or any(goal.name != "nll" for goal in goals)):
        raise ValueError("context 'uniform' takes objective 'nll', and method 'exhaustive' or 'random-K'")
    return named


def _explained(lm: LanguageModel, replay: Float64[np.ndarray, "*any"], context: str) -> Float64[np.ndarray, "*any"]:
    """The replay errors of a search, if rounding explains them.

    Raises:
        ValueError: under `committed`, where both see the same keys and values, a gap that no rounding explains.
    """
    most = MOST_REPLAY_ERROR.get(lm.model.dtype, MOST_REPLAY_ERROR[torch.float32])
    if context == "committed" and replay.max() > most:
        raise ValueError(
            f"the search's losses are up to {replay.max():.2g} nats from an ordinary forward pass on the same routes, more than"
            f" the {most:g} that rounding explains in {lm.model.dtype}: something that the search does not know changes the"
            " model's layers (an adapter, a hook, dropout, a patched attention); merge or remove it"
        )
    return replay
