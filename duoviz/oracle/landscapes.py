"""Landscapes: the values of all routes of a position, and what they say of search.

A landscape knows every answer, so that methods which do not enumerate can be judged on it at no cost.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int8

from .. import routes as routes_
from ..branching import Branches, Trie
from ..model import LanguageModel, undisturbed
from ..progress import bar
from ..records import Predictions, Tokens
from ..routes import Space
from .cost import check_cost, estimate
from .execute import space_trie
from .leaves import HEAD_ROWS, leaf_losses, refuse_nan
from .methods import METHODS, features, parse
from .objectives import Objective, columns
from .passes import WIDTH, Setting, check_space, reference_routes
from .tried import Tried, answer


@undisturbed
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
    one, taken = _at(lm, tokens, seq, position, context)
    return landscapes(lm, one, space, [position], context=taken, objectives=[objective], setting=setting)[0, 0, 0]


@undisturbed
def predict(
    lm: LanguageModel,
    tokens: Tokens | np.ndarray,
    routes: routes_.Routes,
    *,
    seq: int,
    position: int,
    context: str | Int8[np.ndarray, "position layer"] = "reference:big",
    top: int = 5,
) -> Predictions:
    """What the model predicts at one position when its input token takes each of some routes.

    Args:
        lm, tokens, seq, position, context: as in `landscape`.
        routes: `[route, layer]` in any form of `duoviz.routes.parse`; one may stand there several times.
        top: how many of the likeliest next tokens are named.

    Raises:
        ValueError: as `landscape`, and routes that are not the model's.
    """
    one, taken = _at(lm, tokens, seq, position, context)
    one = one.cut(position + 2)
    routes = routes_.parse(routes, layers=lm.layers).reshape(-1, lm.layers)
    lm.spread(
        routes[:, None], Tokens.of(np.zeros((len(routes), 2), np.int64))
    )  # refuses routes that are not the model's
    unique, places = np.unique(routes, axis=0, return_inverse=True)
    branches = Branches(lm, one.ids, np.ascontiguousarray(taken[:, : position + 2]), width=WIDTH)
    parts = []
    for _, hidden in branches.leaves(position, Trie(unique)):
        for some in hidden[0].split(HEAD_ROWS):
            logs = refuse_nan(lm.head.logits(some).log_softmax(-1))
            true = logs[:, int(one.ids[0, -1]), None]
            best = logs[:, : lm.known].topk(min(top, lm.known), dim=-1)
            parts.append((-true[:, 0], 1 + (logs > true).sum(-1), best.indices, best.values.exp()))
    loss, rank, ids, shares = (torch.cat(each).cpu().numpy()[places.reshape(-1)] for each in zip(*parts))
    return Predictions(routes, loss, rank, ids, shares)


def _at(
    lm: LanguageModel, tokens: Tokens | np.ndarray, seq: int, position: int, context: str | np.ndarray
) -> tuple[Tokens, Int8[np.ndarray, "seq token layer"]]:
    """The text of a position, and the routes its tokens take.

    Raises:
        ValueError: a position that is not there or not scored, or a context that is neither a reference nor routes.
    """
    tokens = lm.check(tokens)
    if not (0 <= seq < len(tokens) and 0 <= position < tokens.scored.shape[1]) or not tokens.scored[seq, position]:
        raise ValueError(
            f"seq {seq}, position {position}: not a scored position of {tokens.scored.shape} (seq, position)"
        )
    one = tokens[seq : seq + 1]
    given = taken(lm, one, context) if isinstance(context, str) else lm.spread(np.asarray(context)[None], one)
    return one, given


def taken(lm: LanguageModel, tokens: Tokens, context: str) -> Int8[np.ndarray, "seq token layer"]:
    """The routes that a reference context names, for every token."""
    if not context.startswith("reference:"):
        raise ValueError(f"context {context!r}: a landscape takes reference:<route>, or the routes taken so far")
    return np.broadcast_to(reference_routes(lm, context), (*tokens.ids.shape, lm.layers))


def check_positions(
    lm: LanguageModel, tokens: Tokens, space: Space, positions: Sequence[int], setting: Setting
) -> None:
    """Check that all routes of some positions of all texts can be looked at.

    Raises:
        ValueError: a space of another model, a position that is not there, more FLOPs than the setting allows.
    """
    check_space(lm, space)
    outside = [position for position in positions if not 0 <= position < tokens.scored.shape[1]]
    if outside or not tokens.scored.any():
        raise ValueError(
            f"positions {outside or list(positions)}: not among the scored of {tokens.scored.shape} (seq, position)"
        )
    check_cost(estimate(lm, tokens, space) / tokens.scored.sum() * len(tokens) * len(positions), setting.max_flops)


@undisturbed
def landscapes(
    lm: LanguageModel,
    tokens: Tokens | np.ndarray,
    space: Space,
    positions: Sequence[int],
    *,
    context: str | Int8[np.ndarray, "seq token layer"] = "reference:big",
    objectives: Sequence[str] = ("nll",),
    setting: Setting = Setting(),
) -> Float32[np.ndarray, "objective seq position route"]:
    """Every route's value of some objectives at some positions of all texts, in `space.enumerate()` order; NaN where a
    position is not scored.

    Args:
        lm, tokens, space, objectives, setting: as in `survey`.
        positions: which.
        context: a `reference` context, or the routes of all tokens.

    Raises:
        ValueError: a context that is neither, a position that is not there, NaN among the losses; what `search` refuses.
    """
    tokens = lm.check(tokens)
    check_positions(lm, tokens, space, positions, setting)
    if isinstance(context, str):
        context = taken(lm, tokens, context)
    goals = [Objective.of(text) for text in objectives]
    found = np.full((len(goals), len(tokens), len(positions), space.count()), np.nan, np.float32)
    batches = lm.batches(tokens, setting.batch_size)
    with bar(f"landscapes of {len(tokens) * len(positions):,} positions", quiet=setting.quiet) as shown:
        for batch, rows in enumerate(batches):
            few = tokens[rows]
            branches = Branches(lm, few.ids, np.ascontiguousarray(context[rows]), width=setting.width)
            wanted = columns(lm, few, goals)
            places = [wanted.index(goal.minimises) for goal in goals]
            for number, position in enumerate(positions):
                values = leaf_losses(branches, position, space_trie(space), wanted)[..., places]
                scored = few.scored[:, position]
                found[:, rows, number][:, scored] = refuse_nan(values[scored]).permute(2, 0, 1).cpu().numpy()
                shown((batch + (number + 1) / len(positions)) / len(batches))
    return found


def additivity(space: Space, losses: Float[np.ndarray, "*any route"]) -> Float64[np.ndarray, 2 * any]:
    """How much of the variance over all routes is a sum over layers (groups, where layers are tied), and how much a sum over
    pairs of them: R squared of the two least-squares fits to each landscape of the whole space; NaN where there is none."""
    matrix = features(space, space.chosen(space.enumerate()))
    values = losses - losses.mean(-1, keepdims=True)
    found = []
    for part in (matrix[:, : 1 + len(space.sizes) * (len(space.allowed) - 1)], matrix):
        base, _ = np.linalg.qr(part)
        left = values - (values @ base) @ base.T
        found.append(1 - (left**2).sum(-1) / (values**2).sum(-1))
    return np.stack(found)


def retraced(
    whole: Space, losses: Float[np.ndarray, "*any route"], spaces: Sequence[Space], method: str, *, seed: int = 0
) -> tuple[Float64[np.ndarray, space * any], Float64[np.ndarray, "*any"]]:
    """What a method that does not enumerate would have found on known landscapes, each a question of its own.

    Args:
        whole: the space of the landscapes, all routes of some choices.
        losses: of its routes; NaN where there is no landscape.
        spaces: the spaces searched, side by side: what is tried for one serves all.
        method: as in `search`.
        seed: of the method's random draws.

    Returns:
        Regret against the best route of each space, and how many routes were tried in all, for each landscape.

    Raises:
        ValueError: a method that enumerates or draws at random: its regret is 0, or as `metrics.least_of` says.
    """
    name, number = parse(method, whole)
    if name not in METHODS:
        raise ValueError(f"method {method!r}: give one of {', '.join(METHODS)}")
    known = ~np.isnan(losses[..., 0])
    flat, rows = losses[known].astype(float), np.arange(known.sum())
    powers = len(whole.allowed) ** np.arange(len(whole.sizes))[::-1]

    def place_of(routes: np.ndarray) -> np.ndarray:
        return np.searchsorted(whole.allowed, whole.chosen(routes)) @ powers

    tried = Tried(lambda q, r: flat[q, place_of(r)][:, None], whole.layers)
    draws = [np.random.default_rng([seed, place]) for place in range(len(spaces))]
    answer(METHODS[name].searches(spaces, draws, rows, number), tried)
    every, regret, count = whole.enumerate(), np.full((len(spaces), *known.shape), np.nan), np.full(known.shape, np.nan)
    for place, space in enumerate(spaces):
        best, _ = tried.best(space, rows)
        reached = flat[rows, place_of(best)]
        regret[place, known] = reached - flat[:, space.contains(every)].min(1)
    count[known] = np.bincount(tried.questions, minlength=len(flat))
    return regret, count
