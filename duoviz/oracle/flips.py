"""Losses of a token under other routes while all earlier tokens keep theirs: the targets of routers that learn from losses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Float32, Int8

from .. import routes as routes_
from ..branching import Branches
from ..model import LanguageModel, undisturbed
from ..records import Tokens
from .guided import Losses, Questions
from .objectives import Objective, columns
from .passes import Setting
from .tried import Tried


@undisturbed
def alternatives(
    lm: LanguageModel,
    tokens: Tokens | np.ndarray,
    routes: routes_.Routes,
    candidates: Int8[np.ndarray, "seq position candidate layer"],
    *,
    objectives: Sequence[str] = ("expected",),
    setting: Setting = Setting(),
) -> Float32[np.ndarray, "objective seq position candidate"]:
    """The loss in nats of every token under each of its candidates, while all earlier tokens take the routes; NaN where not
    scored.

    Args:
        lm: the model.
        tokens: `Tokens` or int64 `[seq, token]`.
        routes: of the earlier tokens, `[layer]` or `[seq, position, layer]`, in any form of `duoviz.routes.parse`.
        candidates: routes of each token.
        objectives: what is minimised by them is given (see `duoviz.oracle.objectives`).
        setting: batch and memory.

    Raises:
        ValueError: bad ids, routes or objectives, candidates of other texts or with choices that the model does not have.
    """
    tokens, goals = lm.check(tokens), [Objective.of(name) for name in objectives]
    given = lm.spread(routes, tokens)
    if candidates.shape[:2] != tokens.scored.shape or candidates.shape[3] != lm.layers:
        raise ValueError(f"candidates {candidates.shape}: give {[*tokens.scored.shape, 'candidate', lm.layers]}")
    found = np.full((len(goals), *candidates.shape[:3]), np.nan, np.float32)
    for rows in lm.batches(tokens, setting.batch_size):
        part = tokens[rows]
        branches = Branches(lm, part.ids, given[rows], width=setting.width)
        wanted = columns(lm, part, goals)
        seqs, positions = part.scored.nonzero()
        asked = Questions(np.zeros_like(seqs), seqs, positions, len(part), 1)
        score = partial(Losses(branches, wanted, goals), asked)
        known = Tried(score, lm.layers, len(wanted.linear) + len(wanted.full))
        own = candidates[rows][seqs, positions]
        numbers = np.arange(len(seqs)).repeat(own.shape[1])
        values = known(numbers, own.reshape(-1, lm.layers)).reshape(*own.shape[:2], -1)
        for number, goal in enumerate(goals):
            of_batch = found[number, rows]
            of_batch[seqs, positions] = values[..., wanted.index(goal.minimises)]
    return found


def flips(
    lm: LanguageModel,
    tokens: Tokens | np.ndarray,
    routes: routes_.Routes,
    *,
    objectives: Sequence[str] = ("expected",),
    choices: str = "SB",
    setting: Setting = Setting(),
) -> Float32[np.ndarray, "objective seq position layer choice"]:
    """The loss in nats of every token for each choice of each layer, where the token's other layers and all earlier tokens keep
    their routes; NaN where not scored.

    Along the choice that a route has, it is the loss of that route. What a layer gains by being big is the difference along the
    last axis, in the context that the routes themselves make: what a router meets that takes them.

    Args:
        choices: letters of the choices, ascending. The others are those of `alternatives`.

    Raises:
        ValueError: as `alternatives`, or choices that the model does not have.
    """
    if missing := set(choices) - set(lm.choices):
        raise ValueError(f"choices {choices!r}: this model has only {lm.choices!r}, not {sorted(missing)}")
    tokens = lm.check(tokens)
    own = lm.spread(routes, tokens)[:, :-1, None, None]
    changed = np.broadcast_to(own, (*own.shape[:2], lm.layers, len(choices), lm.layers)).copy()
    for layer in range(lm.layers):
        changed[:, :, layer, :, layer] = [routes_.LETTERS.index(letter) for letter in choices]
    flat = changed.reshape(*own.shape[:2], -1, lm.layers)
    found = alternatives(lm, tokens, routes, flat, objectives=objectives, setting=setting)
    return found.reshape(*found.shape[:3], lm.layers, len(choices))
