"""Every number after the losses. Losses are in nats, `[seq, position]`, NaN where a position is not scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int8, Int64
from scipy.special import gammaln
from scipy.stats import bootstrap, t

from .routes import BIG

RESAMPLES = 500
"""Draws of documents for what is no mean."""
Losses = Float[np.ndarray, "*seq position"]


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval over documents; the bounds are NaN for a single document.

    Attributes:
        mean, low, high: in the unit of what was averaged.
        positions, documents: how many.
    """

    mean: float
    low: float
    high: float
    positions: int
    documents: int

    @classmethod
    def of(cls, row: Mapping[Any, Any], name: str) -> Interval:
        """From a row of a table that holds it as `name`, `<name>_low`, `<name>_high`, beside positions and documents."""
        return cls(row[name], row[f"{name}_low"], row[f"{name}_high"], int(row["positions"]), int(row["documents"]))

    def columns(self, name: str) -> dict[str, float]:
        """The mean and its bounds as a table has them, for `of`."""
        return {name: self.mean, f"{name}_low": self.low, f"{name}_high": self.high}

    def below(self, limit: float) -> Interval:
        """How far it is below a limit, for a claim that it is."""
        return replace(self, mean=limit - self.mean, low=limit - self.high, high=limit - self.low)

    def above(self, limit: float) -> Interval:
        """How far it is above a limit, for a claim that it is."""
        return replace(self, mean=self.mean - limit, low=self.low - limit, high=self.high - limit)

    @property
    def p(self) -> float:
        """Two-sided p-value of a mean of zero, as the interval has it; NaN without one."""
        if self.low == self.high:
            return float(self.mean == 0)
        error = (self.high - self.low) / 2 / t.ppf(0.975, self.documents - 1)
        return float(2 * t.sf(abs(self.mean) / error, self.documents - 1))

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(values: Float[np.ndarray, "seq position"], documents: Sequence[str] | None = None) -> Interval:
    """Mean over scored positions, and how far it would move with other documents.

    A t interval: documents are the independent units, each with all its positions (a ratio of sums, so long documents weigh
    more), and their number less one is the degrees of freedom. With 4 to 12 documents a percentile bootstrap covers 80 to 90 %.

    Args:
        values: per position; NaN is left out.
        documents: id of each sequence's document; each sequence is its own if not given.

    Raises:
        ValueError: nothing scored, an infinite value, or another number of documents than of sequences.
    """
    values = np.asarray(values, float)
    return _ratio(values, np.isfinite(values).astype(float), documents)


def difference_interval(one: Losses, other: Losses, documents: Sequence[str] | None = None) -> Interval:
    """Mean of `one - other`, paired by position, so that what all documents share drops out; as `mean_interval`.

    Raises:
        ValueError: arrays of other shapes or scored at other positions; what `mean_interval` refuses.
    """
    return mean_interval(_paired(one, other), documents)


def _paired(one: Losses, other: Losses) -> Losses:
    """`one - other` in float64.

    Raises:
        ValueError: arrays of other shapes or scored at other positions.
    """
    one, other = np.asarray(one, float), np.asarray(other, float)
    if one.shape != other.shape or (np.isnan(one) != np.isnan(other)).any():
        raise ValueError(
            f"losses {one.shape} ({np.isfinite(one).sum():,} scored) and {other.shape} ({np.isfinite(other).sum():,}):"
            " a paired difference needs the same positions scored in both"
        )
    return one - other


def _ratio(
    numerator: Float[np.ndarray, "seq position"],
    denominator: Float[np.ndarray, "seq position"],
    documents: Sequence[str] | None,
) -> Interval:
    """Sum over sum, with its t interval over documents; positions with a NaN numerator do not count.

    The standard error is that of the ratio estimator: documents' sums less the ratio times their parts, over all parts.
    Source: Cochran, Sampling Techniques (1977), section 6.4.

    Raises:
        ValueError: as `mean_interval`.
    """
    if np.isinf(numerator).any():
        raise ValueError(f"{np.isinf(numerator).sum()} infinite values: losses must be finite, or NaN where not scored")
    if documents is not None and len(documents) != len(numerator):
        raise ValueError(f"{len(documents)} document ids for {len(numerator)} sequences: give one for each")
    names = np.arange(len(numerator)) if documents is None else np.unique(np.asarray(documents), return_inverse=True)[1]
    scored_here = np.isfinite(numerator)
    counts = np.bincount(names, scored_here.sum(axis=1))
    sums, parts = (np.bincount(names, np.where(scored_here, x, 0.0).sum(axis=1)) for x in (numerator, denominator))
    sums, parts = sums[counts > 0], parts[counts > 0]
    if not len(sums):
        raise ValueError("no scored position: there is nothing to average")
    mean, number = float(sums.sum() / parts.sum()), len(sums)
    half = np.nan
    if number > 1:
        error = np.sqrt(number / (number - 1) * ((sums - mean * parts) ** 2).sum()) / parts.sum()
        half = float(t.ppf(0.975, number - 1) * error)
    return Interval(mean, mean - half, mean + half, int(counts.sum()), number)


def perplexity(loss_nats: float | Losses) -> float:
    """exp of the mean loss over scored positions, or of a mean or its bound; NaN for the bound of a single document."""
    return float(np.exp(loss_nats if np.ndim(loss_nats) == 0 else np.nanmean(loss_nats)))


def difficulty(loss_small: Losses, loss_best: Losses) -> Losses:
    """How much a token could gain from compute: its loss with all layers small less its loss under the best routes.

    Paper: arXiv 2410.10846, section 2 (with the oracle's loss).
    """
    return loss_small - loss_best


def enough(
    loss_by_budget: Float[np.ndarray, "k seq position"], budgets: Int64[np.ndarray, " k"], *, epsilon: float = 0.05
) -> Float[np.ndarray, "seq position"]:
    """The fewest big layers whose best route is within epsilon nats of the best budget's; NaN where not scored."""
    best = np.where(np.isnan(loss_by_budget[0]), np.nan, np.nanmin(np.nan_to_num(loss_by_budget, nan=np.inf), axis=0))
    found = budgets[(loss_by_budget <= best + epsilon).argmax(0)]
    return np.where(np.isnan(best), np.nan, found)


def regret(loss_router: Losses, loss_oracle: Losses) -> Losses:
    """What a router loses against the oracle at the same budget and context.

    Raises:
        ValueError: arrays of other shapes or scored at other positions.
    """
    return _paired(loss_router, loss_oracle)


def at_budget(budgets: np.ndarray, losses: Float[np.ndarray, "k seq position"], budget: float) -> Losses:
    """Losses between two budgets of a curve, linearly in loss.

    Raises:
        ValueError: budgets that do not ascend, or a budget outside the curve.
    """
    if (np.diff(budgets) <= 0).any():
        raise ValueError(f"budgets {budgets.tolist()}: they must ascend")
    if not budgets[0] <= budget <= budgets[-1]:
        raise ValueError(f"budget {budget:.2f}: the curve runs from {budgets[0]} to {budgets[-1]}")
    if len(budgets) == 1:
        return losses[0]
    upper = min(int(np.searchsorted(budgets, budget, side="right")), len(budgets) - 1)
    part = (budget - budgets[upper - 1]) / (budgets[upper] - budgets[upper - 1])
    return ((1 - part) * losses[upper - 1] + part * losses[upper]).astype(losses.dtype)


def gap_closed(
    loss_router: Losses, loss_fixed: Losses, loss_best: Losses, documents: Sequence[str] | None = None
) -> float:
    """`(fixed - router) / (fixed - best)` of the mean losses: 0 is the best fixed route, 1 the oracle.

    All three at the router's realised budget (`at_budget`). With the label-free policy as best it is the label-free gap
    closed. NaN where the interval of the denominator contains 0.

    Raises:
        ValueError: as `difference_interval`.
    """
    return gap_interval(loss_router, loss_fixed, loss_best, documents).mean


def gap_interval(
    loss_router: Losses, loss_fixed: Losses, loss_best: Losses, documents: Sequence[str] | None = None
) -> Interval:
    """`gap_closed` with its interval: numerator and denominator are drawn together, document by document.

    Mean and bounds are NaN where the interval of the denominator contains 0, or there is one document.

    Raises:
        ValueError: as `difference_interval`.
    """
    closed, whole = _paired(loss_fixed, loss_router), _paired(loss_fixed, loss_best)
    gap = mean_interval(whole, documents)
    if not (gap.low > 0 or gap.high < 0):
        return Interval(np.nan, np.nan, np.nan, gap.positions, gap.documents)
    return _ratio(closed, np.nan_to_num(whole), documents)


def explained(
    predicted: Float[np.ndarray, "seq position"], true: Float[np.ndarray, "seq position"], documents: Sequence[str]
) -> Interval:
    """R squared of a prediction, with its interval over documents: 1 is exact, 0 that of the mean of the true values, which below
    0 would predict better. NaN is left out.

    Raises:
        ValueError: as `mean_interval`.
    """
    spread = (true - np.nanmean(true)) ** 2
    return _ratio(spread - (true - predicted) ** 2, np.nan_to_num(spread), documents)


def scored(routes: Int8[np.ndarray, "*any layer"]) -> Bool[np.ndarray, "*any"]:
    """Which positions hold a route."""
    return routes[..., 0] >= 0


def share(routes: Int8[np.ndarray, "*any layer"], choice: int = BIG) -> float:
    """The share of a choice over scored positions and layers."""
    return float((routes[scored(routes)] == choice).mean())


def share_by_layer(
    routes: Int8[np.ndarray, "seq position layer"], choice: int = BIG
) -> Float[np.ndarray, "position layer"]:
    """The share of a choice at each position and layer, over sequences; NaN where no sequence is scored.

    Paper: arXiv 2410.10846, figures 2 and 3.
    """
    counted = scored(routes).sum(0)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (routes == choice).sum(0) / np.where(counted > 0, counted, np.nan)


def later_less_earlier(
    routes: Int8[np.ndarray, "seq position layer"], choice: int = BIG, *, of: str = "layer"
) -> Float[np.ndarray, "seq position"]:
    """Values whose mean is the share of a choice in the later half of the layers, or of the positions, less its share in
    the earlier half; NaN where a position is not scored.

    Args:
        routes: the routes; an odd number of layers or positions has its middle in the later half.
        choice: which choice.
        of: `layer` or `position`.

    Raises:
        ValueError: another `of`.
    """
    if of not in ("layer", "position"):
        raise ValueError(f"of={of!r}: allowed are layer and position")
    axis = ("position", "layer").index(of) + 1
    size, half = routes.shape[axis], routes.shape[axis] // 2
    sign = np.where(np.arange(size) < half, -size / max(half, 1), size / (size - half))
    values = ((routes == choice) * (sign[:, None] if of == "position" else sign)).mean(-1)
    return np.where(scored(routes), values, np.nan)


def profile_correlation(
    one: Int8[np.ndarray, "seq position layer"], other: Int8[np.ndarray, "seq position layer"], choice: int = BIG
) -> Interval:
    """Do two collections of texts use their layers alike? Pearson correlation over layers of the share of a choice, with
    its interval over the documents (here: sequences) of both; NaN where all layers have one share."""
    profiles = [np.stack([(text[text[:, 0] >= 0] == choice).mean(0) for text in texts]) for texts in (one, other)]

    def correlation(first: np.ndarray, second: np.ndarray, axis: int = 0) -> float:
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(np.corrcoef(profiles[0][first].mean(0), profiles[1][second].mean(0))[0, 1])

    places = tuple(np.arange(len(texts)) for texts in profiles)
    low = high = np.nan
    if min(map(len, places)) > 1:
        found = bootstrap(
            places,
            correlation,
            vectorized=False,
            n_resamples=RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        low, high = float(found.low), float(found.high)
    count = int(scored(one).sum() + scored(other).sum())
    return Interval(correlation(places[0], places[1]), low, high, count, sum(map(len, places)))


def label_luck(
    loss_label_free: Float[np.ndarray, "*any"], loss_oracle: Float[np.ndarray, "*any"]
) -> Float[np.ndarray, "*any"]:
    """The oracle's gain less the label-free policy's, in nats: an upper estimate of what the label alone gives. The common
    baseline, the fixed route, drops out. Read it with the null control."""
    return loss_label_free - loss_oracle


def least_of(losses: Float[np.ndarray, "*any route"], candidates: int) -> Float[np.ndarray, "*any"]:
    """The expected least loss among so many routes drawn without replacement from all: exact, from the order statistics.

    Raises:
        ValueError: no candidate, or more than there are routes.
    """
    number = losses.shape[-1]
    if not 1 <= candidates <= number:
        raise ValueError(f"{candidates} candidates of {number} routes: ask for 1..{number}")
    after = np.arange(number - 1, candidates - 2, -1)  # how many are larger: the others are drawn from these
    log = gammaln(after + 1) - gammaln(after - candidates + 2) - gammaln(number + 1) + gammaln(number - candidates + 1)
    return np.sort(losses, axis=-1)[..., : len(after)] @ (candidates * np.exp(log))


def agreement(one: Int8[np.ndarray, "*any layer"], other: Int8[np.ndarray, "*any layer"]) -> float:
    """The share of layers in which two sets of routes make the same choice, over positions scored in both."""
    both = scored(one) & scored(other)
    return float((one[both] == other[both]).mean())
