"""Search that does not enumerate: which routes to try next, given the losses of those tried so far.

A search is over what each group of layers chooses (see `duoviz.routes.Space`): one layer where none are tied.

Many questions (positions of texts) are searched in lockstep, and several searches side by side (one for each budget); see
`duoviz.oracle.tried`. A method is a search over a space and some questions.

| method | tries | its number |
|---|---|---|
| `descent-R` | greedily from all big and all small into the space, then the best neighbour while it is better | random starts |
| `beam-W` | the W best beginnings, each completed by the last route in order (as big as the budget allows) | width |
| `mcts-N` | Monte-Carlo tree search over the layers, random completions (Dr.LLM, arXiv 2510.12773) | simulations |
| `surrogate-N` | the best routes of a quadratic function fitted to random ones | random routes; a quarter as many follow |
| `paths-W` | the best single change from all big to none, and back, until nothing is gained | routes kept at each step |

`paths` answers all budgets of big layers at once, by some n (n + 1) W routes of n layers. Neighbours differ in one layer, or,
under a budget, also by two layers that exchange their choices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int8, Int64

from ..routes import BIG, SKIP, Space
from .tried import Search, Tried, answer, distinct, joined, reading, side_by_side


def neighbours(space: Space, chosen: Int8[np.ndarray, "row group"]) -> tuple[np.ndarray, np.ndarray]:
    """Choices that differ in one group, or by an exchange of two; int8 `[row, neighbour, group]`, and which of them are in
    the space or nearer to it, bool `[row, neighbour]`."""
    rows, groups = chosen.shape
    found, allowed = [], np.array(space.allowed, np.int8)
    for group in range(groups):
        for step in range(1, len(allowed)):
            flipped = chosen.copy()
            flipped[:, group] = allowed[(np.searchsorted(allowed, chosen[:, group]) + step) % len(allowed)]
            found.append(flipped)
    if space.big is not None or space.skip is not None:
        for one in range(groups):
            for other in range(one):
                swapped = chosen.copy()
                swapped[:, [one, other]] = chosen[:, [other, one]]
                found.append(swapped)
    made = np.stack(found, 1) if found else np.zeros((rows, 0, groups), np.int8)
    excess = space.excess(made)
    return made, ((excess == 0) | (excess < space.excess(chosen)[:, None])) & (made != chosen[:, None]).any(-1)


def descent(
    space: Space, questions: Int64[np.ndarray, " question"], restarts: int, draw: np.random.Generator
) -> Search:
    """See the module. Under a free budget this is one-flip descent."""
    whole = np.array(space.allowed[::-1][:2], np.int8)[:, None].repeat(len(space.sizes), 1)
    starts = np.concatenate([whole, space.completed(np.zeros((restarts, 0), np.int8), draw)])
    yield from _descend(space, questions.repeat(len(starts)), np.tile(starts, (len(questions), 1)))


def _descend(space: Space, of: Int64[np.ndarray, " row"], routes: Int8[np.ndarray, "row group"]) -> Search:
    """From each route to the best neighbour, into the space and in it while that is better."""
    inside = space.excess(routes) == 0
    losses = np.full(len(of), np.inf)
    losses[inside] = yield of[inside], routes[inside]
    while len(of):
        near, open_ = neighbours(space, routes)
        row, column = open_.nonzero()
        around = np.full(open_.shape, np.inf)
        around[row, column] = yield of[row], near[row, column]
        best = around.argmin(1)
        lowest = around[np.arange(len(of)), best]
        moves = (lowest < losses) & np.isfinite(lowest)
        of, routes = of[moves], near[moves, best[moves]]
        losses = np.where(space.excess(routes) == 0, lowest[moves], np.inf)


def beam(space: Space, questions: Int64[np.ndarray, " question"], width: int, draw: np.random.Generator) -> Search:
    """See the module; as wide as the space it is exact."""
    of, taken = questions, np.zeros((len(questions), 0), np.int8)
    allowed = np.array(space.allowed, np.int8)
    for _ in range(len(space.sizes)):
        row, choice = space.ways(taken).nonzero()
        of, taken = of[row], np.concatenate([taken[row], allowed[choice][:, None]], axis=1)
        losses = yield of, space.completed(taken)
        kept = _least(of, losses, width)
        of, taken = of[kept], taken[kept]


def _least(of: Int64[np.ndarray, " row"], losses: Float[np.ndarray, " row"], width: int) -> Int64[np.ndarray, " kept"]:
    """The rows of the least losses of each question, as many as `width`; ascending by question, then by loss."""
    order = np.lexsort((losses, of))
    return order[np.arange(len(of)) - np.searchsorted(of[order], of[order]) < width]


def paths(
    spaces: Sequence[Space], questions: Int64[np.ndarray, " question"], width: int, draw: np.random.Generator
) -> Search:
    """See the module; `spaces` have the same choices. Down from all big, then up from routes without a big layer, again and
    again until a way there and back has found nothing better: a step there and one back exchange two layers, or change a
    layer that is not big. Only numbers of big layers that the spaces allow, and one beyond, are gone through again. Spaces
    that bound skipped layers beside small ones are entered by descent."""
    layers, (*lesser, most) = len(spaces[0].sizes), spaces[0].allowed
    whole = np.array(lesser, np.int8)[:, None].repeat(layers, 1)
    kept: dict[int, tuple[np.ndarray, np.ndarray]] = dict.fromkeys(range(layers + 1), (questions[:0], whole[:0]))
    kept[0] = questions.repeat(len(whole)), np.tile(whole, (len(questions), 1))
    kept[layers] = questions, np.full((len(questions), layers), most, np.int8)
    fewest, largest = zip(*map(_number_big, spaces))
    low, high, ends = max(0, min(fewest) - 1), min(layers, max(largest) + 1), (0, layers)
    going, lowest = questions, np.full((layers + 1, len(questions)), np.inf)
    while len(going):
        before = lowest.copy()
        for given, ways in ((lesser, range(ends[1], low - 1, -1)), ([most], range(ends[0], high + 1))):
            changed = questions[:0], whole[:0]
            for many in ways:
                of, routes = distinct(*joined([changed, kept[many]]))
                losses = yield of, routes
                best = _least(of, losses, width)
                kept[many] = of, routes = of[best], routes[best]
                np.minimum.at(lowest[many], np.searchsorted(questions, of), losses[best])
                here = np.isin(of, going)
                changed = _one_changed(of[here], routes[here], given)
        ends, going = (low, high), questions[(lowest < before).any(0)]
    of, routes = joined(list(kept.values()))
    outside = []
    for space in spaces:
        excess = space.excess(routes)
        rank = np.lexsort((excess, of))
        nearest = rank[np.searchsorted(of[rank], questions)]
        nearest = nearest[excess[nearest] > 0]
        outside.append(_descend(space, of[nearest], routes[nearest]))
    yield from side_by_side(outside)


def _one_changed(
    of: Int64[np.ndarray, " row"], routes: Int8[np.ndarray, "row group"], given: Sequence[int]
) -> tuple[Int64[np.ndarray, " changed"], Int8[np.ndarray, "changed group"]]:
    """Every way in which one layer gets one of the choices `given`, if it has none of them."""
    row, layer = (~np.isin(routes, given)).nonzero()
    row, layer = row.repeat(len(given)), layer.repeat(len(given))
    changed = routes[row]
    changed[np.arange(len(row)), layer] = np.tile(np.array(given, np.int8), len(row) // max(1, len(given)))
    return of[row], changed


def _number_big(space: Space) -> tuple[int, int]:
    """The least and the largest number of groups that make a space's last choice: big, if that is allowed."""
    if BIG not in space.allowed:
        return 0, len(space.sizes)
    big, skip = space.budgets
    ascending, held = sorted(space.sizes), space.held_layers
    low, high = big.low - held[BIG], big.high - held[BIG]
    if space.allowed == (SKIP, BIG):
        choosing = sum(ascending)
        low, high = max(low, choosing + held[SKIP] - skip.high), min(high, choosing + held[SKIP] - skip.low)
    fewest = np.searchsorted(np.cumsum([0, *ascending[::-1]]), low)
    return int(fewest), int(np.searchsorted(np.cumsum([0, *ascending]), high, side="right")) - 1


def mcts(
    space: Space, questions: Int64[np.ndarray, " question"], simulations: int, draw: np.random.Generator
) -> Search:
    """See the module: selection by upper confidence bound (constant sqrt 2, losses scaled to the range seen so far), one
    new node and one random completion a simulation (the same draws for all questions), the mean of losses passed up."""
    many, choices, layers = len(questions), len(space.allowed), len(space.sizes)
    allowed, every = np.array(space.allowed, np.int8), np.arange(many)
    child = np.zeros((many, simulations + 1, choices), np.int64)  # 0: not there yet; node 0 is the root
    visits, sums = np.zeros((many, simulations + 1)), np.zeros((many, simulations + 1))
    low, high = np.full(many, np.inf), np.full(many, -np.inf)
    for number in range(1, simulations + 1):
        node, path = np.zeros(many, np.int64), [np.zeros(many, np.int64)]
        taken, growing = np.zeros((many, 0), np.int8), np.ones(many, bool)
        for _ in range(layers):
            ways = space.ways(taken)
            below = child[every, node]
            seen, count = visits[every[:, None], below] * (below > 0), visits[every, node][:, None]
            mean = sums[every[:, None], below] / np.maximum(seen, 1)
            gain = (high[:, None] - mean) / np.maximum(high - low, 1e-9)[:, None]
            bound = np.where(seen > 0, gain + np.sqrt(2 * np.log(np.maximum(count, 1)) / np.maximum(seen, 1)), 1e9)
            bound = np.where(growing[:, None], bound + draw.random(choices) * 1e-9, draw.random(choices) * ways)
            picked = np.where(ways > 0, bound, -np.inf).argmax(1)
            fresh = growing & (child[every, node, picked] == 0)
            child[every[fresh], node[fresh], picked[fresh]] = number
            node = np.where(growing, child[every, node, picked], node)
            path.append(np.where(growing, node, -1))
            growing &= ~fresh
            taken = np.concatenate([taken, allowed[picked][:, None]], axis=1)
        losses = yield questions, taken
        low, high = np.minimum(low, losses), np.maximum(high, losses)
        for nodes in path:
            on = nodes >= 0
            visits[every[on], nodes[on]] += 1
            sums[every[on], nodes[on]] += losses[on]


def surrogate(
    space: Space, questions: Int64[np.ndarray, " question"], samples: int, draw: np.random.Generator
) -> Search:
    """See the module: ridge regression on the choices and their pairs; its minimum is looked for by descent with
    four random starts."""
    routes = space.completed(np.zeros((samples, 0), np.int8), draw)
    losses = yield questions.repeat(samples), np.tile(routes, (len(questions), 1))
    weights = fitted(space, routes, losses.reshape(len(questions), samples))
    place = np.zeros(int(questions.max()) + 1, np.int64)
    place[questions] = np.arange(len(questions))
    guess = Tried(lambda q, r: np.einsum("rf,rf->r", features(space, r), weights[place[q]])[:, None], len(space.sizes))
    answer([reading(descent(space, questions, 4, draw), 0)], guess)
    inside = space.excess(guess.routes) == 0
    of, routes, losses = guess.questions[inside], guess.routes[inside], guess.losses[inside, 0]
    order = np.lexsort((losses, of))
    of, routes = of[order], routes[order]
    kept = np.arange(len(of)) - np.searchsorted(of, of) < max(1, samples // 4)
    yield of[kept], routes[kept]


def features(space: Space, chosen: Int8[np.ndarray, "route group"]) -> Float[np.ndarray, "route feature"]:
    """A constant, each group's choice (one column for each allowed choice but the first, centred), and their products over
    pairs of groups."""
    of = (chosen[..., None] == np.array(space.allowed[1:])).astype(float) - 1 / len(space.allowed)
    pairs = [
        (of[:, one, :, None] * of[:, other, None]).reshape(len(chosen), -1)
        for one in range(chosen.shape[1])
        for other in range(one)
    ]
    return np.concatenate([np.ones((len(chosen), 1)), of.reshape(len(chosen), -1), *pairs], axis=1)


def fitted(
    space: Space, chosen: Int8[np.ndarray, "route group"], losses: Float[np.ndarray, "question route"]
) -> Float[np.ndarray, "question feature"]:
    """Weights of the features that fit some losses best (ridge: 1e-3 of the number of routes for pairs)."""
    matrix = features(space, chosen)
    single = 1 + len(space.sizes) * (len(space.allowed) - 1)
    penalty = np.full(matrix.shape[1], 1e-3 * len(chosen))
    penalty[:single] = 1e-6 * len(chosen)
    return np.linalg.solve(matrix.T @ matrix + np.diag(penalty), matrix.T @ losses.T).T


@dataclass(frozen=True)
class Method:
    """An entry of the table above.

    Attributes:
        search: the generator, over one space; over several where `together`.
        number: the method's number if none is given.
        least: the least that it may be.
        tries: about how many routes a question takes, from the space and the number.
        together: whether one search answers all spaces of a question.
    """

    search: Callable[..., Search]
    number: int
    least: int
    tries: Callable[[Space, int], int]
    together: bool = False

    def searches(
        self,
        spaces: Sequence[Space],
        draws: Sequence[np.random.Generator],
        questions: Int64[np.ndarray, " question"],
        number: int,
        column: int = 0,
    ) -> list[Search]:
        """The searches that answer all of some spaces of one kind for the same questions, by one column; each has its own
        draws."""
        if self.together:
            searches = [self.search(spaces, questions, number, draws[0])]
        else:
            searches = [self.search(space, questions, number, draw) for space, draw in zip(spaces, draws)]
        return [reading(search, column, spaces[0].spread) for search in searches]


METHODS = {
    "descent": Method(descent, 0, 0, lambda space, n: (2 + n) * len(space.sizes) ** 2 * (len(space.allowed) - 1)),
    "beam": Method(beam, 32, 1, lambda space, n: n * len(space.sizes) * len(space.allowed)),
    "mcts": Method(mcts, 200, 1, lambda space, n: n),
    "surrogate": Method(surrogate, 160, 4, lambda space, n: n + n // 4),
    "paths": Method(paths, 4, 1, lambda space, n: n * len(space.sizes) ** 2 * len(space.allowed) // 2, together=True),
}
AUTO_EXHAUSTIVE = 20_000
"""Routes up to which `auto` enumerates."""


def parse(text: str, space: Space, *, curve: bool = False) -> tuple[str, int]:
    """Name and number of a method, for example `("random", 100)` of `"random-100"`; `auto` becomes the one it stands for.

    Args:
        text: the method.
        space: what it searches.
        curve: whether it searches all budgets of the space at once.

    Raises:
        ValueError: an unknown method, or a number that it cannot have.
    """
    if text == "auto":
        text = "exhaustive" if space.count() <= AUTO_EXHAUSTIVE else "paths" if curve else "descent"
    name, dash, number = text.partition("-")
    least = {"random": 1, **{known: method.least for known, method in METHODS.items()}}.get(name)
    if text == "exhaustive":
        return name, 0
    wrong = (dash or name == "random") and not (number.isdigit() and int(number) >= (least or 0))
    if least is None or wrong:
        raise ValueError(
            f"method {text!r}: allowed are auto, exhaustive and random-K, for example random-100; descent, beam, mcts,"
            " surrogate and paths, each with or without a number, for example beam-32"
        )
    return name, int(number) if dash else METHODS[name].number
