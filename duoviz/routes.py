"""Routes: which FFN each layer runs for one token, and the sets of routes that a search looks through.

A *choice* is `SKIP`, `SMALL` or `BIG`; a *route* is one choice per layer, int8 `[layer]`, layer 0 first. As text a route
is a string over `-SB`, which is also its id in tables. A `Space` is a set of routes: it is counted exactly before it is
enumerated, and enumerated in lexicographic order (`-` before `S` before `B`, layer 0 most significant).

Paper: arXiv 2410.10846, section 2.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache, cached_property
from math import comb
from typing import Any

import numpy as np
from jaxtyping import Int8, Int64
from numpy.typing import ArrayLike

SKIP, SMALL, BIG = 0, 1, 2
LETTERS = "-SB"
NAMES = ("skip", "small", "big")
Routes = Any
"""Routes in any form that `parse` reads."""

MAX_ENUMERATED = 20_000_000
"""Routes that `Space.enumerate` will list: 12 bytes each at 12 layers, so 240 MB."""


def from_text(text: str, *, layers: int | None = None) -> Int8[np.ndarray, " layer"]:
    """The route that a text such as `"SSB-BSSSBBSS"` names.

    Raises:
        ValueError: an unknown letter, or a length other than `layers`.
    """
    unknown = sorted(set(text) - set(LETTERS))
    if unknown:
        raise ValueError(
            f"route {text!r} holds {unknown}: each letter must be one of '-' (skip), 'S' (small), 'B' (big)"
        )
    if layers is not None and len(text) != layers:
        raise ValueError(f"route {text!r} has {len(text)} letters: the model has {layers} layers, give one letter each")
    return np.array([LETTERS.index(letter) for letter in text], np.int8)


def to_text(route: ArrayLike) -> str:
    """The text of a route `[layer]`: its id in tables. `from_text(to_text(r))` is `r`.

    Raises:
        ValueError: a value that is no choice, such as the -1 of an unscored position.
    """
    return "".join(LETTERS[choice] for choice in _one(route))


def to_texts(routes: Int8[np.ndarray, "*any layer"]) -> np.ndarray:
    """Texts of many routes: str `[*any]`; a route that holds -1 (an unscored position) becomes `""`."""
    routes = np.asarray(routes, np.int8)
    letters = np.array(["", *LETTERS])[routes + 1]
    flat = ["".join(row) for row in letters.reshape(-1, routes.shape[-1])]
    return np.array(flat, dtype=object).reshape(routes.shape[:-1])


def parse(routes: Routes, *, layers: int) -> Int8[np.ndarray, "*any layer"]:
    """Routes in any form that people write them, as int8 with the last axis of length `layers`.

    Args:
        routes: a text such as `"BBSS"` or a name (`"all-big"`, `"all-small"`, `"all-skip"`): `[layer]`; a list of texts:
            `[text, layer]`; or integers `[..., layer]` as nested lists, an array or a tensor.
        layers: of the model.

    Raises:
        ValueError: a letter or value that is no choice, values that are no integers, or a wrong length.
    """
    if isinstance(routes, str):
        name = routes.removeprefix("all-")
        return np.full(layers, NAMES.index(name), np.int8) if name in NAMES else from_text(routes, layers=layers)
    if isinstance(routes, list | tuple) and routes and all(isinstance(one, str) for one in routes):
        return np.stack([parse(one, layers=layers) for one in routes])
    if hasattr(routes, "detach"):  # a tensor, maybe on another device
        routes = routes.detach().cpu()
    try:
        array = np.asarray(routes)
    except ValueError as error:
        raise ValueError(f"routes {routes!r:.80}: their rows differ in length ({error})") from None
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"routes of dtype {array.dtype}: give integers, 0 (skip), 1 (small), 2 (big)")
    if array.ndim == 0 or array.shape[-1] != layers:
        raise ValueError(f"routes of shape {array.shape}: the last axis must hold {layers} layers")
    if array.size and (array.min() < -1 or array.max() > BIG):
        raise ValueError(
            f"routes hold values {array.min()}..{array.max()}: allowed are 0 (skip), 1 (small), 2 (big), -1 (not scored)"
        )
    return array.astype(np.int8)


def _one(route: ArrayLike) -> Int8[np.ndarray, " layer"]:
    """A single route, every layer of which makes a choice."""
    array = np.asarray(route)
    if array.ndim != 1 or not np.isin(array, (SKIP, SMALL, BIG)).all():
        raise ValueError(f"route {array.tolist()}: give one of 0 (skip), 1 (small), 2 (big) for each layer")
    return array.astype(np.int8)


@dataclass(frozen=True)
class Budget:
    """How many layers may make one choice: between `low` and `high`, both included."""

    low: int
    high: int

    @classmethod
    def of(cls, asked: int | str | None, *, name: str, layers: int) -> Budget:
        """`4` is exactly four, `"<=4"` at most four, `None` any number.

        Raises:
            ValueError: anything else, or a number outside 0..layers.
        """
        if asked is None:
            return cls(0, layers)
        digits = str(asked).removeprefix("<=").strip()
        if not digits.isdecimal():
            raise ValueError(f"budget {name}={asked!r}: give a number (exactly), '<=number' (at most) or None (free)")
        count = int(digits)
        if count > layers:
            raise ValueError(f"budget {name}={asked!r}: the model has {layers} layers, ask for 0..{layers}")
        return cls(0 if str(asked).startswith("<=") else count, count)

    def left(self, taken: int, *, of: int) -> range:
        """How many of so many more layers may make the choice, after those that have."""
        return range(max(0, self.low - taken), min(of, self.high - taken) + 1)


@dataclass(frozen=True)
class Space:
    """The routes searched for one token.

    Attributes:
        layers: number of layers.
        choices: the allowed choices as letters, for example `"SB"`, `"-B"` or `"-SB"`.
        big: budget of big layers: `4` exactly, `"<=4"` at most, None free.
        skip: budget of skipped layers, likewise.

    Raises:
        ValueError: unknown or repeated letters, or budgets that no route meets.
    """

    layers: int
    choices: str = "SB"
    big: int | str | None = None
    skip: int | str | None = None

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"a space of {self.layers} layers: at least 1 is needed")
        if not self.choices or set(self.choices) - set(LETTERS) or len(set(self.choices)) < len(self.choices):
            raise ValueError(f"choices {self.choices!r}: name each allowed letter of '-SB' once, for example 'SB'")
        if not self.count():
            raise ValueError(
                f"no route of {self.layers} layers over {self.choices!r} has big={self.big!r} and skip={self.skip!r}:"
                " allow more choices or change the budget"
            )

    @property
    def allowed(self) -> tuple[int, ...]:
        """The allowed choices as numbers, ascending: the order of enumeration."""
        return tuple(sorted(LETTERS.index(letter) for letter in self.choices))

    @cached_property
    def budgets(self) -> tuple[Budget, Budget]:
        """The budgets of big and of skip."""
        return (
            Budget.of(self.big, name="big", layers=self.layers),
            Budget.of(self.skip, name="skip", layers=self.layers),
        )

    def __str__(self) -> str:
        parts = [f"{self.layers} layers of {''.join(LETTERS[c] for c in self.allowed)}"]
        parts += [f"{name} {asked}" for name, asked in (("big", self.big), ("skip", self.skip)) if asked is not None]
        return ", ".join(parts)

    def count(self) -> int:
        """How many routes there are, exactly, without listing them."""
        return _ways(self, self.layers, 0, 0)

    def enumerate(self) -> Int8[np.ndarray, "route layer"]:
        """All routes in lexicographic order, layer 0 most significant.

        Raises:
            ValueError: more than `MAX_ENUMERATED` routes.
        """
        if self.count() > MAX_ENUMERATED:
            raise ValueError(
                f"{self.count():,} routes in a space of {self}: at most {MAX_ENUMERATED:,} are listed;"
                " narrow the budget, sample, or use a search that does not enumerate"
            )
        found = np.zeros((1, 0), np.int8)
        big, skip = self.budgets
        allowed = np.array(self.allowed, np.int8)
        for left in reversed(range(self.layers)):
            repeated = np.repeat(found, len(allowed), axis=0)
            found = np.concatenate([repeated, np.tile(allowed, len(found))[:, None]], axis=1)
            bigs, skips = (found == BIG).sum(1), (found == SKIP).sum(1)
            table = np.array([[_ways(self, left, b, s) > 0 for s in range(skip.high + 1)] for b in range(big.high + 1)])
            inside = (bigs <= big.high) & (skips <= skip.high)
            inside[inside] = table[bigs[inside], skips[inside]]
            found = found[inside]
        return found

    def prefixes(self, *, ending_in: int | None = None) -> list[int]:
        """How many different beginnings the routes have, of 1, 2, ... layers: the nodes of their trie, level by level.

        Args:
            ending_in: count only those whose last layer makes this choice.
        """
        reached, counts = {(0, 0): 1}, []
        for left in reversed(range(self.layers)):
            below: dict[tuple[int, int], int] = {}
            counted = 0
            for (bigs, skips), ways in reached.items():
                for choice in self.allowed:
                    key = bigs + (choice == BIG), skips + (choice == SKIP)
                    if _ways(self, left, *key):
                        below[key] = below.get(key, 0) + ways
                        counted += ways * (ending_in in (None, choice))
            counts.append(counted)
            reached = below
        return counts

    def sample(self, number: int, *, seed: int) -> Int8[np.ndarray, "route layer"]:
        """`number` different routes, uniformly at random, in lexicographic order.

        Raises:
            ValueError: more routes asked for than there are.
        """
        count = self.count()
        if not 0 < number <= count:
            raise ValueError(f"a sample of {number} routes: the space of {self} holds {count:,}, ask for 1..{count}")
        draw = random.Random(seed)
        ranks: set[int] = set(range(count)) if number == count else set()
        while len(ranks) < number:
            ranks.add(draw.randrange(count))
        return np.stack([self._unrank(rank) for rank in sorted(ranks)])

    def contains(self, routes: Int8[np.ndarray, "*any layer"]) -> np.ndarray:
        """Whether each route belongs to the space: bool `[*any]`."""
        routes = parse(routes, layers=self.layers)
        return np.isin(routes, self.allowed).all(-1) & (self.excess(routes) == 0)

    def excess(self, routes: Int8[np.ndarray, "*any layer"]) -> Int64[np.ndarray, " *any"]:
        """How far the numbers of big and of skipped layers are from their budgets, added up; 0 where both are met."""
        total = np.zeros(routes.shape[:-1], np.int64)
        for budget, choice in zip(self.budgets, (BIG, SKIP)):
            counts = (routes == choice).sum(-1)
            total += np.maximum(budget.low - counts, 0) + np.maximum(counts - budget.high, 0)
        return total

    def ways(self, taken: Int8[np.ndarray, "row taken"]) -> np.ndarray:
        """How many routes begin as each row does and go on with each allowed choice: float64 `[row, choice]`, columns as in
        `allowed`; exact up to 2^53."""
        left = self.layers - taken.shape[1] - 1
        counts = np.stack([(taken == BIG).sum(1), (taken == SKIP).sum(1)], 1)
        unique, inverse = np.unique(counts, axis=0, return_inverse=True)
        table = [[_ways(self, left, b + (c == BIG), s + (c == SKIP)) for c in self.allowed] for b, s in unique.tolist()]
        return np.array(table, float).reshape(-1, len(self.allowed))[inverse.reshape(-1)]

    def completed(
        self, taken: Int8[np.ndarray, "row taken"], draw: np.random.Generator | None = None
    ) -> Int8[np.ndarray, "row layer"]:
        """Whole routes that begin as each row does: with the last in order, or, given a generator, uniformly at random.

        Raises:
            ValueError: a beginning that no route of the space has.
        """
        routes = taken
        while routes.shape[1] < self.layers:
            ways = self.ways(routes)
            if not ways.any(1).all():
                raise ValueError(f"{int((~ways.any(1)).sum())} of the beginnings lead to no route of {self}")
            if draw is None:
                column = ways.shape[1] - 1 - (ways[:, ::-1] > 0).argmax(1)
            else:
                summed = ways.cumsum(1)
                column = (draw.random(len(ways))[:, None] * summed[:, -1:] >= summed).sum(1)
            routes = np.concatenate([routes, np.array(self.allowed, np.int8)[column][:, None]], axis=1)
        return routes

    def _unrank(self, rank: int) -> Int8[np.ndarray, " layer"]:
        route: list[int] = []
        for left in reversed(range(self.layers)):
            for choice in self.allowed:
                taken = [*route, choice]
                ways = _ways(self, left, taken.count(BIG), taken.count(SKIP))
                if rank < ways:
                    route = taken
                    break
                rank -= ways
        return np.array(route, np.int8)


def by_big(layers: int, choices: str) -> list[Space]:
    """The spaces with exactly 0, 1, ... big layers: a curve over the number of big layers.

    Raises:
        ValueError: choices without B.
    """
    if LETTERS[BIG] not in choices:
        raise ValueError(f"choices {choices!r}: a curve over the number of big layers needs B")
    return [Space(layers, choices, big=k) for k in range(layers + 1)]


@cache
def _ways(space: Space, left: int, bigs: int, skips: int) -> int:
    """How many ways there are to fill `left` more layers when `bigs` and `skips` are taken: a sum of binomial coefficients, as
    a recursion over layers would be too deep for some hundred of them."""

    big, skip = (
        budget.left(taken, of=left if choice in space.allowed else 0)
        for budget, taken, choice in zip(space.budgets, (bigs, skips), (BIG, SKIP))
    )
    if space.budgets[0].high < bigs or space.budgets[1].high < skips:
        return 0
    small, anything = SMALL in space.allowed, range(left + 1)
    if big == anything and skip == anything:
        return len(space.allowed) ** left
    total = 0
    for b in big:
        others = left - b
        if skip.start == 0 and skip.stop > others:  # no budget for the rest
            total += comb(left, b) * ((SKIP in space.allowed) + small) ** others
        else:
            total += comb(left, b) * sum(comb(others, s) for s in skip if small or s == others)
    return total


def ramp(first: int, last: int, *, positions: int) -> Int64[np.ndarray, " position"]:
    """Budgets that change linearly along a sequence, from `first` to `last`, rounded (half to even).

    A ramp has the mean of its ends, so 6 to 2 compares with a constant 4.

    Paper: arXiv 2410.10846, figure 4c.
    """
    return np.rint(np.linspace(first, last, positions)).astype(np.int64)


def rest(one: float, other: float) -> float:
    """The share that two choices leave to the third; rounded, because 1 - 0.9 - 0.1 is -2.8e-17, a share below zero."""
    return round(1 - one - other, 12) + 0.0  # + 0.0: no -0.0 in what is saved
