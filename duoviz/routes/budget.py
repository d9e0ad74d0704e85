"""Budgets: how many layers may make a choice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64


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

    def left(self, taken: int, *, of: int, size: int = 1) -> range:
        """How many further groups may make the choice.

        Args:
            taken: layers that have made it.
            of: groups that are left.
            size: layers of each of them.
        """
        return range(max(0, -((taken - self.low) // size)), min(of, (self.high - taken) // size) + 1)


def ramp(first: int, last: int, *, positions: int) -> Int64[np.ndarray, " position"]:
    """Budgets that change linearly along a sequence, from `first` to `last`, rounded (half to even).

    A ramp has the mean of its ends, so 6 to 2 compares with a constant 4.

    Paper: arXiv 2410.10846, figure 4c.
    """
    return np.rint(np.linspace(first, last, positions)).astype(np.int64)


def rest(one: float, other: float) -> float:
    """The share that two choices leave to the third; rounded, because 1 - 0.9 - 0.1 is -2.8e-17, a share below zero."""
    return round(1 - one - other, 12) + 0.0  # + 0.0: no -0.0 in what is saved
