"""What searches have tried: each route of a question is evaluated once, whichever search asks for it.

A *question* is one position of one text. A search is a generator: it yields the routes that it wants to know, each with its
question, and is sent their losses: all columns, where several objectives are searched side by side (`reading` picks one).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress

import numpy as np
from jaxtyping import Float, Int8, Int64

from ..routes import BIG, Space
from .leaves import TIE_NATS

Request = tuple[Int64[np.ndarray, " row"], Int8[np.ndarray, "row layer"]]
"""Questions and routes, row by row."""
Search = Generator[Request, Float[np.ndarray, "*row"], None]
Score = Callable[[Int64[np.ndarray, " row"], Int8[np.ndarray, "row layer"]], Float[np.ndarray, "row column"]]
"""Losses of routes; rows come in ascending order and without repetition."""


class Tried:
    """The routes tried for each question, with their losses; each is scored once.

    Attributes:
        questions, routes, losses: of all that was tried, ascending by question, then by route; losses `[row, column]`.
    """

    def __init__(self, score: Score, layers: int, columns: int = 1) -> None:
        self.score = score
        self.questions, self.losses = np.zeros(0, np.int64), np.zeros((0, columns))
        self.routes = np.zeros((0, layers), np.int8)
        self._keys = _keys(self.questions, self.routes)

    def __call__(
        self, questions: Int64[np.ndarray, " row"], routes: Int8[np.ndarray, "row layer"]
    ) -> Float[np.ndarray, "row column"]:
        """Losses of some routes."""
        keys, first, inverse = np.unique(_keys(questions, routes), return_index=True, return_inverse=True)
        places = np.searchsorted(self._keys, keys)
        known = np.zeros(len(keys), bool)
        inside = places < len(self._keys)
        known[inside] = self._keys[places[inside]] == keys[inside]
        new = first[~known]
        if len(new):
            at = places[~known]
            self.losses = np.insert(self.losses, at, self.score(questions[new], routes[new]), axis=0)
            self.questions = np.insert(self.questions, at, questions[new])
            self.routes = np.insert(self.routes, at, routes[new], axis=0)
            self._keys = np.insert(self._keys, at, keys[~known])
        return self.losses[np.searchsorted(self._keys, keys)][inverse]

    def best(
        self, space: Space, questions: Int64[np.ndarray, " question"], column: int = 0
    ) -> tuple[Int8[np.ndarray, "question layer"], Float[np.ndarray, " question"]]:
        """The best route by one column, tried in a space, for each of some (ascending) questions, ties as `TIE_NATS` says, and
        how much worse the second best is; inf where there is none.

        Raises:
            ValueError: a question for which no route of the space was tried.
        """
        inside = space.contains(self.routes) & np.isin(self.questions, questions)
        of, routes, losses = self.questions[inside], self.routes[inside], self.losses[inside, column]
        found, begins = np.unique(of, return_index=True)
        if len(found) < len(questions):
            raise ValueError(f"no route of {space} was tried for {len(questions) - len(found)} positions")
        order = np.lexsort((losses, of))
        lowest = losses[order[begins]]
        alone = np.diff(np.append(begins, len(of))) == 1
        second = np.where(alone, np.inf, losses[order[np.minimum(begins + 1, len(of) - 1)]])
        tied = losses <= lowest[np.searchsorted(found, of)] + TIE_NATS
        rank = np.lexsort(((routes == BIG).sum(1), ~tied, of))  # rows ascend by route, which lexsort keeps
        return routes[rank[begins]], second - lowest


def _keys(questions: np.ndarray, routes: np.ndarray) -> np.ndarray:
    """Bytes that order as question, then route do, and do not end in a zero byte, which numpy would drop."""
    rows = np.concatenate([questions.astype(">u8")[:, None].view(np.uint8), (routes + 1).astype(np.uint8)], axis=1)
    return np.ascontiguousarray(rows).view(f"S{rows.shape[1]}").reshape(-1)


def answer(searches: Sequence[Search], tried: Tried) -> None:
    """Run searches side by side until all are done; what they found is in `tried`."""
    together = side_by_side(searches)
    with suppress(StopIteration):
        request = next(together)
        while True:
            request = together.send(tried(*request))


def reading(search: Search, column: int, spread: Callable[[np.ndarray], np.ndarray] = lambda chosen: chosen) -> Search:
    """A search that reads one column of the losses, and whose choices become routes."""
    with suppress(StopIteration):
        of, chosen = next(search)
        while True:
            losses = yield of, spread(chosen)
            of, chosen = search.send(losses[:, column])


def side_by_side(searches: Sequence[Search]) -> Search:
    """Several searches as one, which asks what they ask at the same time."""
    asking = [(search, request) for search in searches if (request := next(search, None)) is not None]
    while asking:
        losses = yield joined([request for _, request in asking])
        sizes = np.cumsum([len(questions) for _, (questions, _) in asking])[:-1]
        going = []
        for (search, _), part in zip(asking, np.split(losses, sizes)):
            with suppress(StopIteration):
                going.append((search, search.send(part)))
        asking = going


def joined(requests: Sequence[tuple[np.ndarray, np.ndarray]]) -> Request:
    """Several requests as one."""
    return np.concatenate([of for of, _ in requests]), np.concatenate([routes for _, routes in requests])


def distinct(of: Int64[np.ndarray, " row"], routes: Int8[np.ndarray, "row layer"]) -> tuple[np.ndarray, np.ndarray]:
    """The same rows without repetition."""
    first = np.unique(_keys(of, routes), return_index=True)[1]
    return of[first], routes[first]
