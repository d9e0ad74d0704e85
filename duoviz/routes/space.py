"""Sets of routes that a search looks through.

A `Space` is counted exactly before it is enumerated, and enumerated in lexicographic order (`-` before `S` before `B`, layer 0
most significant). Layers that are tied make one choice together: a *group*, to which a layer that is not tied belongs alone.
Budgets always count layers.

Paper: arXiv 2410.10846, section 2.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from math import comb

import numpy as np
from jaxtyping import Int8, Int64

from .budget import Budget
from .route import BIG, LETTERS, SKIP, SMALL, parse
from .tied import Groups, said, tied

MAX_ENUMERATED = 20_000_000
"""Routes that `Space.enumerate` will list: 12 bytes each at 12 layers, so 240 MB."""


class NoRoute(ValueError):
    """A space without a route."""


@dataclass(frozen=True)
class Space:
    """The routes searched for one token.

    Attributes:
        layers: number of layers.
        choices: the allowed choices as letters, for example `"SB"`, `"-B"` or `"-SB"`.
        big: budget of big layers: `4` exactly, `"<=4"` at most, None free.
        skip: budget of skipped layers, likewise.
        groups: layers that choose together: a number of equal runs (their sizes differ by 1 at most), or the layers of each
            group. Kept as the latter; None where every layer chooses by itself.
        free: the layers that choose, the others are held; None for all.
        held: what the others take: a letter, or a route, of which their letters count.

    Raises:
        ValueError: unknown or repeated letters, groups or free layers that the model does not have or that overlap, or budgets
            that no route meets.
    """

    layers: int
    choices: str = "SB"
    big: int | str | None = None
    skip: int | str | None = None
    groups: int | Sequence[Sequence[int]] | None = None
    free: Sequence[int] | None = None
    held: str = "B"

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"a space of {self.layers} layers: at least 1 is needed")
        if not self.choices or set(self.choices) - set(LETTERS) or len(set(self.choices)) < len(self.choices):
            raise ValueError(f"choices {self.choices!r}: name each allowed letter of '-SB' once, for example 'SB'")
        if self.groups is not None or self.free is not None:
            groups, free, held = tied(self.layers, self.groups, self.free, self.held)
            for name, value in (("groups", groups), ("free", free), ("held", held)):
                object.__setattr__(self, name, value)
        if not self.count():
            raise NoRoute(
                f"no route of {self.layers} layers over {self.choices!r} has big={self.big!r} and skip={self.skip!r}:"
                " allow more choices or change the budget"
            )

    @cached_property
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

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many layers each group has, in the order of their first layers."""
        return (1,) * self.layers if self.groups is None else tuple(map(len, self._tied))

    @property
    def _tied(self) -> Groups:
        assert isinstance(self.groups, tuple), "the form in which they are kept"
        return self.groups

    @cached_property
    def group_of(self) -> Int64[np.ndarray, " layer"]:
        """The group of each layer; -1 where it is held."""
        if self.groups is None:
            return np.arange(self.layers)
        found = np.full(self.layers, -1)
        for number, group in enumerate(self._tied):
            found[list(group)] = number
        return found

    @cached_property
    def _held(self) -> Int8[np.ndarray, " layer"]:
        return parse(self.held if len(self.held) == self.layers else "all-big", layers=self.layers)

    @cached_property
    def held_layers(self) -> dict[int, int]:
        """How many of the held layers make each choice."""
        held = self._held[self.group_of < 0]
        return {choice: int((held == choice).sum()) for choice in (SKIP, SMALL, BIG)}

    @cached_property
    def _start(self) -> tuple[int, int]:
        """How many layers are big and how many skipped before a group has chosen."""
        return self.held_layers[BIG], self.held_layers[SKIP]

    @property
    def kind(self) -> tuple[object, ...]:
        """A key that is equal for spaces that differ only in their budgets."""
        return self.layers, self.allowed, self.groups, self.held

    def __str__(self) -> str:
        parts = [f"{self.layers} layers of {''.join(LETTERS[c] for c in self.allowed)}"]
        if self.groups is not None:
            parts += said(self.layers, self._tied, self.held)
        parts += [f"{name} {asked}" for name, asked in (("big", self.big), ("skip", self.skip)) if asked is not None]
        return ", ".join(parts)

    def count(self) -> int:
        """How many routes there are, exactly, without listing them."""
        return _ways(self, len(self.sizes), *self._start)

    def spread(self, chosen: Int8[np.ndarray, "*any group"]) -> Int8[np.ndarray, "*any layer"]:
        """Routes over layers, from the choice of each group."""
        if self.groups is None:
            return chosen
        return np.where(self.group_of >= 0, chosen[..., self.group_of], self._held)

    def chosen(self, routes: Int8[np.ndarray, "*any layer"]) -> Int8[np.ndarray, "*any group"]:
        """The choice of each group, from routes over layers."""
        return routes if self.groups is None else routes[..., [group[0] for group in self._tied]]

    def enumerate(self) -> Int8[np.ndarray, "route layer"]:
        """All routes in lexicographic order, layer 0 most significant.

        Raises:
            ValueError: more than `MAX_ENUMERATED` routes.
        """
        if self.count() > MAX_ENUMERATED:
            raise ValueError(
                f"{self.count():,} routes in a space of {self}: at most {MAX_ENUMERATED:,} are listed;"
                " narrow the budget, tie layers, sample, or use a search that does not enumerate"
            )
        found = np.zeros((1, 0), np.int8)
        big, skip = self.budgets
        allowed = np.array(self.allowed, np.int8)
        for left in reversed(range(len(self.sizes))):
            repeated = np.repeat(found, len(allowed), axis=0)
            found = np.concatenate([repeated, np.tile(allowed, len(found))[:, None]], axis=1)
            bigs, skips = self._counts(found).T
            table = np.array([[_ways(self, left, b, s) > 0 for s in range(skip.high + 1)] for b in range(big.high + 1)])
            inside = (bigs <= big.high) & (skips <= skip.high)
            inside[inside] = table[bigs[inside], skips[inside]]
            found = found[inside]
        return self.spread(found)

    def _counts(self, taken: Int8[np.ndarray, "*any taken"]) -> Int64[np.ndarray, "*any 2"]:
        """How many layers are big and how many skipped, once the first groups have chosen."""
        sizes = np.array(self.sizes[: taken.shape[-1]], np.int64)
        return np.stack([(taken == choice) @ sizes for choice in (BIG, SKIP)], -1) + self._start

    def prefixes(self, *, ending_in: int | None = None) -> list[int]:
        """How many different beginnings the routes have, of 1, 2, ... layers: the nodes of their trie, level by level.

        Args:
            ending_in: count only those whose last layer makes this choice.
        """
        counts, after = [], [{self._start: 1}]  # after 0, 1, ... groups: ways to have so many big and skipped layers
        for group, held in zip(self.group_of.tolist(), self._held):
            if group == len(after) - 1:
                after.append(self._with(after[group], group, self.allowed))
            reached = after[-1]
            if group < 0:
                counts.append(sum(reached.values()) if ending_in in (None, held) else 0)
                continue
            if ending_in is not None:
                reached = self._with(after[group], group, [c for c in self.allowed if c == ending_in])
                for later in range(group + 1, len(after) - 1):
                    reached = self._with(reached, later, self.allowed)
            counts.append(sum(reached.values()))
        return counts

    def _with(self, reached: dict[tuple[int, int], int], group: int, choices: Sequence[int]) -> dict:
        """The beginnings that go on with one of these choices of a group, and from which there is a way to the end."""
        size, left = self.sizes[group], len(self.sizes) - group - 1
        below: Counter[tuple[int, int]] = Counter()
        for (bigs, skips), ways in reached.items():
            for choice in choices:
                key = _more(bigs, skips, choice, size)
                if _ways(self, left, *key):
                    below[key] += ways
        return below

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
        return self.spread(np.stack([self._unrank(rank) for rank in sorted(ranks)]))

    def contains(self, routes: Int8[np.ndarray, "*any layer"]) -> np.ndarray:
        """Whether each route belongs to the space: bool `[*any]`."""
        routes = parse(routes, layers=self.layers)
        chosen = self.chosen(routes)
        own = np.isin(chosen, self.allowed).all(-1) & (self.spread(chosen) == routes).all(-1)
        return np.asarray(own & (self.excess(chosen) == 0))

    def excess(self, chosen: Int8[np.ndarray, "*any group"]) -> Int64[np.ndarray, " *any"]:
        """By how many layers the budgets of big and of skip are missed, in sum; 0 where both are met."""
        counts = self._counts(chosen)
        low, high = np.array([(budget.low, budget.high) for budget in self.budgets]).T
        return np.asarray((np.maximum(low - counts, 0) + np.maximum(counts - high, 0)).sum(-1))

    def ways(self, taken: Int8[np.ndarray, "row taken"]) -> np.ndarray:
        """How many routes begin with these choices of the first groups and go on with each allowed one: float64
        `[row, choice]`, columns as in `allowed`; exact up to 2^53."""
        size, left = self.sizes[taken.shape[1]], len(self.sizes) - taken.shape[1] - 1
        unique, inverse = np.unique(self._counts(taken), axis=0, return_inverse=True)
        table = [[_ways(self, left, *_more(b, s, c, size)) for c in self.allowed] for b, s in unique.tolist()]
        return np.array(table, float).reshape(-1, len(self.allowed))[inverse.reshape(-1)]

    def completed(
        self, taken: Int8[np.ndarray, "row taken"], draw: np.random.Generator | None = None
    ) -> Int8[np.ndarray, "row group"]:
        """The choices of all groups that begin as each row does: with the last in order, or, given a generator, uniformly at
        random.

        Raises:
            ValueError: a beginning that no route of the space has.
        """
        while taken.shape[1] < len(self.sizes):
            ways = self.ways(taken)
            if not ways.any(1).all():
                raise ValueError(f"{int((~ways.any(1)).sum())} of the beginnings lead to no route of {self}")
            if draw is None:
                column = ways.shape[1] - 1 - (ways[:, ::-1] > 0).argmax(1)
            else:
                summed = ways.cumsum(1)
                column = (draw.random(len(ways))[:, None] * summed[:, -1:] >= summed).sum(1)
            taken = np.concatenate([taken, np.array(self.allowed, np.int8)[column][:, None]], axis=1)
        return taken

    def _unrank(self, rank: int) -> Int8[np.ndarray, " group"]:
        taken: list[int] = []
        bigs, skips = self._start
        for left, size in zip(reversed(range(len(self.sizes))), self.sizes):
            for choice in self.allowed:
                key = _more(bigs, skips, choice, size)
                ways = _ways(self, left, *key)
                if rank < ways:
                    taken.append(choice)
                    bigs, skips = key
                    break
                rank -= ways
        return np.array(taken, np.int8)


def by_big(layers: int, choices: str | Space) -> list[Space]:
    """The spaces with exactly 0, 1, ... big layers: a curve over the number of big layers. Where layers are tied or held, only
    of the numbers that there are.

    Args:
        layers: of the model.
        choices: the allowed choices as letters; or a space, whose budget of big layers is replaced.

    Raises:
        ValueError: choices without B.
    """
    space = choices if isinstance(choices, Space) else Space(layers, choices)
    if LETTERS[BIG] not in space.choices:
        raise ValueError(f"choices {space.choices!r}: a curve over the number of big layers needs B")
    found = []
    for big in range(space.layers + 1):
        with suppress(NoRoute):
            found.append(replace(space, big=big))
    return found


def nearest_big(space: Space, big: int) -> int:
    """The number of big layers nearest to `big` that a route of the space can have, the largest number excepted; the smaller one
    of two that are as near."""
    there = [int(each.big or 0) for each in by_big(space.layers, space)[:-1]]
    return min(there, key=lambda number: abs(number - big))


def _more(bigs: int, skips: int, choice: int, size: int) -> tuple[int, int]:
    """How many layers are big and how many skipped after a group of this size has made this choice."""
    return bigs + size * (choice == BIG), skips + size * (choice == SKIP)


@cache
def _ways(space: Space, left: int, bigs: int, skips: int) -> int:
    """How many ways there are for the last `left` groups to choose when `bigs` and `skips` layers are taken: a sum of binomial
    coefficients where they are of one size, as a recursion over layers would be too deep for some hundred of them."""
    if space.budgets[0].high < bigs or space.budgets[1].high < skips:
        return 0
    size, *others = set(space.sizes[len(space.sizes) - left :]) or {1}
    if others:
        size = space.sizes[len(space.sizes) - left]
        return sum(_ways(space, left - 1, *_more(bigs, skips, choice, size)) for choice in space.allowed)
    big, skip = (
        budget.left(taken, of=left if choice in space.allowed else 0, size=size)
        for budget, taken, choice in zip(space.budgets, (bigs, skips), (BIG, SKIP))
    )
    small, anything = SMALL in space.allowed, range(left + 1)
    if big == anything and skip == anything:
        return len(space.allowed) ** left
    total = 0
    for b in big:
        rest = left - b
        if skip.start == 0 and skip.stop > rest:  # no budget for the rest
            total += comb(left, b) * ((SKIP in space.allowed) + small) ** rest
        else:
            total += comb(left, b) * sum(comb(rest, s) for s in skip if small or s == rest)
    return total
