from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from duoviz import oracle
from duoviz.oracle.allocation import allocated
from duoviz.routes import BIG


@pytest.mark.parametrize("mean", [0, 0.6, 1, 1.7, 2])
@pytest.mark.parametrize("budgets", [(0, 1, 2), (4, 7, 10), (0, 3, 5)])
def test_a_mean_budget_is_spent_as_brute_force_would(mean, budgets):
    mean = budgets[0] + mean / 2 * (budgets[-1] - budgets[0])
    values = np.random.default_rng(3).normal(size=(3, 2, 5))
    values[:, 1, 2] = np.nan
    (found,) = allocated(values, budgets, [mean])
    for seq, places in ((0, [0, 1, 2, 3, 4]), (1, [0, 1, 3, 4])):
        most = budgets[0] * len(places) + round((mean - budgets[0]) * len(places))
        spent = {way: sum(budgets[k] for k in way) for way in product(range(3), repeat=len(places))}
        nearest = max(total for total in spent.values() if total <= most)
        ways = [way for way, total in spent.items() if total == nearest]
        costs = [sum(values[k, seq, place] for k, place in zip(way, places)) for way in ways]
        assert found[seq, places].tolist() == list(ways[int(np.argmin(costs))])
    assert found[1, 2] == -1
    with pytest.raises(ValueError, match="mean budgets"):
        allocated(values, budgets, [budgets[-1] + 0.1])


def test_mean_budgets_gain_and_are_what_the_routes_realise(lm, ids):
    found = oracle.survey(lm, ids, context="reference:big", objectives=("nll", "expected"))
    for curve in found.values():
        spread = oracle.sequence_mean(curve)
        assert spread.name == f"{curve.name}, mean budget"
        np.testing.assert_array_equal((spread.routes == BIG).sum((-1, -2)), curve.budgets[:, None].repeat(3, 1) * 11)
        for k, seq, position in ((1, 0, 3), (2, 2, 10)):
            own = int((spread.routes[k, seq, position] == BIG).sum())
            np.testing.assert_array_equal(spread.routes[k, seq, position], curve.routes[own, seq, position])
            assert spread.loss_nats[k, seq, position] == curve.loss_nats[own, seq, position]
    oracle_, free = found["nll"], found["expected"]
    np.testing.assert_array_equal(oracle_.minimised, oracle_.loss_nats)
    assert (oracle.sequence_mean(oracle_).loss_nats.sum((1, 2)) <= oracle_.loss_nats.sum((1, 2)) + 1e-4).all()
    assert not np.array_equal(free.minimised, free.loss_nats)


def test_curves_that_cannot_be_spread_are_refused(lm, ids):
    curve = oracle.by_budget(lm, ids, context="reference:big")
    with pytest.raises(ValueError, match="reference context"):
        oracle.sequence_mean(replace(curve, context="committed"))
    with pytest.raises(ValueError, match="minimised values"):
        oracle.sequence_mean(replace(curve, minimised=None))
