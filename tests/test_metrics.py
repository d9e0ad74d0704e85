from itertools import combinations

import numpy as np
import pytest

from duoviz import metrics
from duoviz.routes import BIG, SKIP


def test_mean_is_over_positions_and_the_interval_over_documents():
    values = np.array([[1.0, 1.0], [3.0, np.nan], [5.0, 5.0]])
    found = metrics.mean_interval(values, ["a", "b", "b"])
    assert found.mean == pytest.approx(15 / 5)
    assert (found.positions, found.documents) == (5, 2)
    # by hand: residuals -4 and 4 of the documents' sums, standard error sqrt(2 * 32) / 5, one degree of freedom
    assert (found.low, found.high) == pytest.approx((3 - 12.7062 * 1.6, 3 + 12.7062 * 1.6), abs=1e-3)
    assert np.isnan(metrics.mean_interval(values, ["a"] * 3).low)
    with pytest.raises(ValueError, match="nothing to average"):
        metrics.mean_interval(np.full((2, 2), np.nan))


@pytest.mark.parametrize("documents", [4, 8, 24])
@pytest.mark.parametrize(("effect", "least"), [("normal", 0.935), ("skewed", 0.87)])
def test_the_interval_covers_the_truth_as_often_as_it_says(documents, effect, least):
    """Also of few documents, and of documents that are not equally long; a little less often where documents are skewed."""
    draw, covered, runs = np.random.default_rng(documents), 0, 2000
    for _ in range(runs):
        offset = draw.normal(size=(documents, 1)) if effect == "normal" else draw.exponential(size=(documents, 1)) - 1
        values = draw.normal(offset, 1, (documents, 6))
        values[:, 4:][draw.random((documents, 2)) < 0.5] = np.nan
        found = metrics.mean_interval(values)
        covered += found.low <= 0 <= found.high
    assert least < covered / runs < 0.965


def test_difficulty_regret_perplexity():
    small, best = np.array([[2.0, 3.0]]), np.array([[1.0, 3.5]])
    np.testing.assert_array_equal(metrics.difficulty(small, best), [[1.0, -0.5]])
    np.testing.assert_array_equal(metrics.regret(small, best), [[1.0, -0.5]])
    with pytest.raises(ValueError, match="same positions"):
        metrics.regret(small, np.array([[1.0, np.nan]]))
    assert metrics.perplexity(np.array([0.0, np.nan, 2.0])) == pytest.approx(np.e)
    assert metrics.perplexity(2.0) == pytest.approx(np.e**2)
    assert np.isnan(metrics.perplexity(np.nan))  # the bound of a single document


def test_enough_is_the_first_budget_near_the_best():
    losses = np.array([[[3.0, 1.0, np.nan]], [[2.02, 1.1, np.nan]], [[2.0, 1.2, np.nan]]])
    np.testing.assert_array_equal(metrics.enough(losses, np.array([0, 3, 6])), [[3.0, 0.0, np.nan]])


def test_gap_closed_by_hand():
    budgets = np.array([0, 2])
    fixed = np.array([[[4.0], [4.2], [4.1]], [[2.0], [2.2], [2.1]]])
    at = metrics.at_budget(budgets, fixed, 0.5)
    np.testing.assert_allclose(at, [[3.5], [3.7], [3.6]])
    best = at - 1.0
    assert metrics.gap_closed(at - 0.25, at, best) == pytest.approx(0.25)
    assert np.isnan(metrics.gap_closed(at, at, at + np.array([[0.5], [-0.5], [0.1]])))
    np.testing.assert_allclose(metrics.at_budget(budgets, fixed, 2.0), fixed[1])
    with pytest.raises(ValueError, match="the curve runs from 0 to 2"):
        metrics.at_budget(budgets, fixed, 2.5)


def test_shares_and_agreement():
    routes = np.array([[[2, 1], [0, 2]], [[2, 2], [-1, -1]]], np.int8)
    assert metrics.share(routes) == pytest.approx(4 / 6)
    assert metrics.share(routes, SKIP) == pytest.approx(1 / 6)
    np.testing.assert_allclose(metrics.share_by_layer(routes), [[1.0, 0.5], [0.0, 1.0]])
    other = routes.copy()
    other[0, 0, 0] = 1
    assert metrics.agreement(routes, other) == pytest.approx(5 / 6)


def test_a_paired_difference_is_tighter_than_its_parts():
    draw = np.random.default_rng(1)
    one = draw.normal(size=(12, 1)) * 3 + draw.normal(size=(12, 6))
    other = one - 0.2 + 0.01 * draw.normal(size=one.shape)
    found, alone = metrics.difference_interval(one, other), metrics.mean_interval(one)
    assert found.mean == pytest.approx((one - other).mean())
    assert found.low > 0
    assert found.high - found.low < 0.05 * (alone.high - alone.low)
    hole = other.copy()
    hole[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"72 scored.*71.*same positions"):
        metrics.difference_interval(one, hole)


def test_the_interval_of_a_gap_holds_its_ratio():
    draw = np.random.default_rng(2)
    fixed = draw.normal(4, 1, (20, 5))
    fixed[3, 2:] = np.nan
    best, learned = fixed - draw.uniform(0.5, 1.5, fixed.shape), fixed - draw.uniform(0, 0.4, fixed.shape)
    found = metrics.gap_interval(learned, fixed, best)
    assert found.mean == pytest.approx(np.nansum(fixed - learned) / np.nansum(fixed - best))
    assert found.low < found.mean < found.high
    assert (found.positions, found.documents) == (97, 20)
    assert metrics.gap_closed(learned, fixed, best) == found.mean
    assert metrics.gap_interval(best, fixed, best).low == pytest.approx(1)
    assert metrics.gap_interval(fixed, fixed, best).high == pytest.approx(0)
    assert np.isnan(metrics.gap_closed(learned, fixed, best, ["one"] * 20))
    learned[0, 0] = np.inf
    with pytest.raises(ValueError, match="1 infinite values"):
        metrics.gap_interval(learned, fixed, best)
    learned[0, 0] = np.nan
    with pytest.raises(ValueError, match="same positions"):
        metrics.gap_interval(learned, fixed, best)


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="1 infinite values"):
        metrics.mean_interval(np.array([[1.0, np.inf]]))
    with pytest.raises(ValueError, match="1 document ids for 2 sequences"):
        metrics.mean_interval(np.zeros((2, 2)), ["a"])
    losses = np.zeros((2, 1, 1))
    with pytest.raises(ValueError, match="they must ascend"):
        metrics.at_budget(np.array([2, 0]), losses, 1.0)
    np.testing.assert_array_equal(metrics.at_budget(np.array([2]), losses[:1] + 3, 2.0), [[3.0]])


def test_later_less_earlier_is_a_difference_of_halves():
    chosen = np.full((2, 4, 5), SKIP, np.int8)
    chosen[:, :, 3:] = BIG  # later half: layers 2, 3, 4
    chosen[1, 3] = -1
    values = metrics.later_less_earlier(chosen)
    assert np.isnan(values[1, 3])
    assert np.nanmean(values) == pytest.approx(2 / 3 - 0)
    chosen = np.full((1, 4, 5), SKIP, np.int8)
    chosen[:, 0] = BIG
    assert metrics.later_less_earlier(chosen, of="position").mean() == pytest.approx(0 - 1 / 2)
    with pytest.raises(ValueError, match="allowed are layer and position"):
        metrics.later_less_earlier(chosen, of="text")


def test_profiles_that_agree_correlate_and_those_that_oppose_do_not():
    draw = np.random.default_rng(0)
    shares = np.linspace(0.1, 0.9, 6)
    one, other, against = (
        np.where(draw.random((5, 200, 6)) < level, BIG, 1).astype(np.int8) for level in (shares, shares, shares[::-1])
    )
    same, opposite = metrics.profile_correlation(one, other), metrics.profile_correlation(one, against)
    assert same.mean > 0.98
    assert same.low > 0.95
    assert (same.documents, same.positions) == (10, 2000)
    assert opposite.high < -0.95
    assert np.isnan(metrics.profile_correlation(one[:1], other[:1]).low)


def test_the_least_of_some_routes_is_the_mean_over_all_ways_to_draw_them():
    losses = np.random.default_rng(4).normal(size=(2, 6))
    for number in range(1, 7):
        drawn = [losses[:, list(few)].min(1) for few in combinations(range(6), number)]
        np.testing.assert_allclose(metrics.least_of(losses, number), np.mean(drawn, axis=0))
    with pytest.raises(ValueError, match="7 candidates of 6 routes"):
        metrics.least_of(losses, 7)
    many = np.arange(4096.0)[None]
    assert metrics.least_of(many, 4096)[0] == pytest.approx(0)
    assert metrics.least_of(many, 64)[0] == pytest.approx((4096 - 64) / 65)  # the mean of the least of a sample
