"""What one changed layer costs: the targets of routers that learn from the oracle's losses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from .. import routes as routes_
from ..branching import Branches
from ..model import LanguageModel, undisturbed
from ..records import Tokens
from .guided import Losses, Questions
from .objectives import Objective, columns
from .passes import Setting
from .tried import Tried


@undisturbed
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
        lm: the model.
        tokens: `Tokens` or int64 `[seq, token]`.
        routes: `[layer]` or `[seq, position, layer]`, in any form of `duoviz.routes.parse`.
        objectives: what is minimised by them is given (see `duoviz.oracle.objectives`).
        choices: letters of the choices, ascending.
        setting: batch and memory.

    Raises:
        ValueError: bad ids, routes, objectives, or choices that the model does not have.
    """
    tokens, goals = lm.check(tokens), [Objective.of(name) for name in objectives]
    given, tried = lm.spread(routes, tokens), [routes_.LETTERS.index(letter) for letter in choices]
    if missing := set(choices) - set(lm.choices):
        raise ValueError(f"choices {choices!r}: this model has only {lm.choices!r}, not {sorted(missing)}")
    found = np.full((len(goals), *tokens.scored.shape, lm.layers, len(choices)), np.nan, np.float32)
    for rows in lm.batches(tokens, setting.batch_size):
        part = tokens[rows]
        branches = Branches(lm, part.ids, given[rows], width=setting.width)
        wanted = columns(lm, part, goals)
        seqs, positions = part.scored.nonzero()
        asked = Questions(np.zeros_like(seqs), seqs, positions, len(part), 1)
        losses = Losses(branches, wanted, goals)
        known = Tried(lambda q, r: losses(asked, q, r), lm.layers, len(wanted.linear) + len(wanted.full))  # noqa: B023 - called below
        changed = np.broadcast_to(
            given[rows][seqs, positions][:, None, None], (len(seqs), lm.layers, len(tried), lm.layers)
        ).copy()
        for layer in range(lm.layers):
            changed[:, layer, :, layer] = tried
        numbers = np.arange(len(seqs)).repeat(lm.layers * len(tried))
        values = known(numbers, changed.reshape(-1, lm.layers)).reshape(len(seqs), lm.layers, len(tried), -1)
        for number, goal in enumerate(goals):
            own = found[number, rows]
            own[seqs, positions] = values[..., wanted.index(goal.minimises)]
    return found
