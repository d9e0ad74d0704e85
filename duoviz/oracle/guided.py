"""Passes over texts for the methods that do not enumerate (`duoviz.oracle.methods`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int8, Int64

from ..branching import Branches
from ..model import LanguageModel
from ..progress import Watch
from ..progress import part as part_of
from ..records import Tokens
from ..routes import Space
from .leaves import exact, refuse_nan
from .methods import METHODS
from .objectives import Columns, Objective, columns
from .passes import Best, Way, branches_in, commit
from .tried import Tried, answer


def guided(
    lm: LanguageModel,
    tokens: Tokens,
    spaces_at: Sequence[Sequence[Space]],
    objectives: Sequence[Objective],
    way: Way,
) -> Best:
    """The best route found in every space at every position for every objective. `spaces_at` lists each position's spaces.

    Under a `reference` context all positions are searched in lockstep, and what is tried for one objective is known for all;
    under `committed` they follow each other, there is one objective, and every space has its own history: a copy of the texts.
    """
    best = Best.empty(len(objectives), len(spaces_at[0]), tokens, lm.layers)
    committed = way.context == "committed"
    copies = len(spaces_at[0]) if committed else 1
    branches = branches_in(lm, np.tile(tokens.ids, (copies, 1)), way.context, way.setting)
    losses = Losses(branches, columns(lm, tokens, objectives), objectives)
    seqs, positions = (np.tile(each, copies) for each in tokens.scored.nonzero())
    copy = np.arange(copies).repeat(int(tokens.scored.sum()))
    for step in range(tokens.scored.shape[1]) if committed else [None]:
        now = slice(None) if step is None else positions == step
        asked = Questions(copy[now], seqs[now], positions[now], len(tokens), copies)
        watch = part_of(way.setting.watch, step or 0, tokens.scored.shape[1] if committed else 1)
        best.tried += _search(losses, asked, spaces_at, way, best, watch)
        if step is not None:
            commit(branches, step, best.routes[0, :, :, step].reshape(-1, lm.layers))
        watch(1.0)
    best.work = branches.work
    return best


@dataclass(frozen=True)
class Questions:
    """Positions of texts of which there may be several copies; ascending by copy, text and position.

    Attributes:
        copies, seqs, positions: of each question.
        texts: in one copy.
        number: of copies.
    """

    copies: Int64[np.ndarray, " question"]
    seqs: Int64[np.ndarray, " question"]
    positions: Int64[np.ndarray, " question"]
    texts: int
    number: int


class Losses:
    """Losses of routes that are each at their own text and position.

    Args:
        branches: the texts, or copies of them one after the other.
        wanted: what is minimised and what is reported.
        objectives: which is which.
    """

    def __init__(self, branches: Branches, wanted: Columns, objectives: Sequence[Objective]) -> None:
        self.branches, self.wanted = branches, wanted
        self.columns = [(wanted.index(goal.minimises), wanted.index(goal.scored_on)) for goal in objectives]

    @torch.no_grad()
    def __call__(
        self, asked: Questions, rows: Int64[np.ndarray, " row"], routes: Int8[np.ndarray, "row layer"]
    ) -> Float32[np.ndarray, "row column"]:
        """Every column's loss of each route, for the questions in these rows."""
        head, made = self.branches.lm.head, []
        seqs, positions = asked.seqs[rows], asked.positions[rows]
        texts = asked.copies[rows] * asked.texts + seqs
        for part, hidden in self.branches.scattered(texts, positions, routes):
            normed = head.norm(hidden.float())
            seq, position = (torch.from_numpy(each[part]).to(normed.device) for each in (seqs, positions))
            at = seq, position
            linear = torch.einsum("rh,rhc->rc", normed, self.wanted.vectors[at]) + self.wanted.bias[at]
            made.append(exact(head, normed, linear, self.wanted, at))
        return refuse_nan(torch.cat(made)).cpu().numpy()


def _search(
    losses: Losses,
    asked: Questions,
    spaces_at: Sequence[Sequence[Space]],
    way: Way,
    best: Best,
    watch: Watch,
) -> int:
    """Search the questions in all their spaces and write what is best; returns how many routes were tried."""
    name, number = way.method
    searched = spaces_at[0][:1] if METHODS[name].together and asked.number == 1 else spaces_at[0]
    each = sum(METHODS[name].tries(space, number) for space in searched) * len(losses.columns)
    most = each * max(1, len(asked.seqs)) / asked.number

    def evaluate(rows: np.ndarray, routes: np.ndarray) -> np.ndarray:
        found = losses(asked, rows, routes)
        watch(min(1.0, (len(tried.losses) + len(rows)) / most))  # about: questions differ, and the spaces share routes
        return found

    tried = Tried(evaluate, best.routes.shape[-1], len(losses.wanted.linear) + len(losses.wanted.full))
    tasks = []
    for group in range(len(spaces_at[0])):
        own = np.flatnonzero(asked.copies == group) if asked.number > 1 else np.arange(len(asked.seqs))
        for space in {spaces_at[p][group] for p in asked.positions[own].tolist()}:
            inside = [spaces_at[p][group] == space for p in asked.positions[own].tolist()]
            tasks.append((group, space, own[inside]))
    alike: dict[tuple[tuple[object, ...], bytes], list[tuple[int, Space]]] = {}
    for group, space, rows in tasks:
        alike.setdefault((space.kind, rows.tobytes()), []).append((group, space))
    searches = []
    for (_, same), asked_of in alike.items():  # spaces of one kind, with the same questions
        spaces = [space for _, space in asked_of]
        for minimised, _ in losses.columns:
            draws = [np.random.default_rng([way.seed, group]) for group, _ in asked_of]
            searches += METHODS[name].searches(spaces, draws, np.frombuffer(same, np.int64), number, minimised)
    answer(searches, tried)
    for group, space, rows in tasks:
        for o, (minimised, reported) in enumerate(losses.columns):
            routes, margin = tried.best(space, rows, minimised)
            values = tried(rows, routes)
            at = o, group, asked.seqs[rows], asked.positions[rows]
            best.put(at, routes, values[:, reported], margin, values[:, minimised])
    return len(tried.losses)
