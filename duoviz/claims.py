"""Claims about means: whether each holds, with Holm's correction over all claims of a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from .metrics import Interval, mean_interval

HOLDS, OPEN, FAILS = "holds", "open", "does not hold"
LEVEL = 0.05
"""The chance that any claim of a page is decided wrongly."""


@dataclass(frozen=True)
class Claim:
    """The claim that a mean is above zero.

    Attributes:
        text: what is claimed, in words.
        interval: the mean with its 95 % interval.
        unit: of the mean.
        source: the text that it was measured on; empty if it is about several.
        paper: whether the paper says so (arXiv 2410.10846).
    """

    text: str
    interval: Interval
    unit: str = "nats"
    source: str = ""
    paper: bool = False

    def __str__(self) -> str:
        """One line, judged by itself alone."""
        counted = f"{self.interval.documents} documents, {self.interval.positions:,} positions"
        return f"{verdict(self.interval)}: {self.text} ({self.interval} {self.unit}; {counted})"


def claim(
    text: str, values: Float[np.ndarray, "seq position"], documents: Sequence[str] | None = None, **about: str | bool
) -> Claim:
    """The claim that the mean of some values is above zero.

    Args:
        text: what is claimed, if it is.
        values, documents: as in `metrics.mean_interval`.
        **about: unit, source and paper, as in `Claim`.

    Raises:
        ValueError: as `metrics.mean_interval`.
    """
    return Claim(text, mean_interval(values, documents), **about)  # type: ignore[arg-type]


def verdict(interval: Interval) -> str:
    """Whether a mean is above zero: "holds" if its whole interval is, "does not hold" if its whole interval is not, else
    "open".

    Without an interval: "cannot be said".
    """
    if np.isnan(interval.low):
        return f"cannot be said ({'one document' if interval.documents == 1 else 'no interval'})"
    return HOLDS if interval.low > 0 else OPEN if interval.high > 0 else FAILS


def verdicts(intervals: Sequence[Interval]) -> list[str]:
    """`verdict` of several claims that are read together, with Holm's correction: a claim stays open unless it can be decided
    with a chance of at most 5 % that any of them is decided wrongly. What has no standard error cannot be said, and does not
    count.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    order = sorted(range(len(intervals)), key=lambda i: np.nan_to_num(intervals[i].p, nan=2.0))
    left = sum(not np.isnan(one.p) for one in intervals)
    found, decided = [""] * len(intervals), True
    for rank, i in enumerate(order):
        one = intervals[i]
        decided = decided and one.p <= LEVEL / max(1, left - rank)
        alone = verdict(one)
        found[i] = alone if decided or alone.startswith("cannot") else OPEN
    return found


def table(said: Sequence[Claim]) -> pd.DataFrame:
    """All claims of a page, a row each: claim, source, paper, state (`verdicts` of all of them together), mean, low, high, unit,
    p (two-sided, of this claim alone), documents, positions; a claim that is made of several sources stands in rows below one
    another, where the first was."""
    order = list(dict.fromkeys(one.text for one in said))
    said = sorted(said, key=lambda one: order.index(one.text))
    rows = [
        {
            "claim": one.text,
            "source": one.source,
            "paper": one.paper,
            "state": state,
            "mean": one.interval.mean,
            "low": one.interval.low,
            "high": one.interval.high,
            "unit": one.unit,
            "p": one.interval.p,
            "documents": one.interval.documents,
            "positions": one.interval.positions,
        }
        for one, state in zip(said, verdicts([one.interval for one in said]))
    ]
    return pd.DataFrame(rows)


def of(table: pd.DataFrame) -> list[Claim]:
    """The claims of a table as of `table`, to be read together with others."""
    return [
        Claim(
            text=row["claim"],
            interval=Interval(row["mean"], row["low"], row["high"], int(row["positions"]), int(row["documents"])),
            **{name: row[name] for name in ("unit", "source", "paper")},
        )
        for row in table.to_dict("records")
    ]
