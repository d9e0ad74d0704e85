"""Search that does not enumerate, against brute force."""

import numpy as np
import pytest
from conftest import tiny_model

from duoviz import oracle
from duoviz.oracle import methods
from duoviz.oracle.cost import estimate_curve
from duoviz.oracle.methods import METHODS
from duoviz.oracle.tried import Tried, answer
from duoviz.routes import BIG, SKIP, Space, by_big

SPACES = [
    Space(6),
    Space(6, "SB", big=2),
    Space(6, "-SB", big="<=2", skip=1),
    Space(6, "-B", skip="<=3"),
    Space(6, "SB", groups=3, big=4),
    Space(6, "-SB", free=(0, 2, 3, 5), held="SSBBSS", big="<=2"),
    Space(6, "-B", groups=[[0, 3], [1], [2], [4, 5]], skip="<=3"),
]


def landscape(space, questions=5, seed=0, pairs=1.0):
    """Losses that any route of the choices has, of layers and pairs of layers, and the least of each question in the space."""
    draw = np.random.default_rng(seed)
    alone, pairs = draw.normal(size=(questions, 6, 3)), draw.normal(size=(questions, 6, 3, 6, 3)) * pairs / 6

    def score(asked, routes):
        layers = np.arange(6)
        single = alone[asked[:, None], layers, routes].sum(1)
        one, other = routes[:, :, None], routes[:, None]
        return single + pairs[asked[:, None, None], layers[:, None], one, layers, other].sum((1, 2))

    every = space.enumerate()
    least = [score(np.full(len(every), q), every).min() for q in range(questions)]
    return score, np.array(least)


def run(name, number, space, score, questions=5):
    tried = Tried(lambda q, r: score(q, r)[:, None], space.layers)
    answer(METHODS[name].searches([space], [np.random.default_rng(0)], np.arange(questions), number), tried)
    routes, margin = tried.best(space, np.arange(questions))
    assert space.contains(routes).all()
    assert (margin >= 0).all()
    return score(np.arange(questions), routes), tried


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize(
    ("name", "number"), [("descent", 0), ("beam", 4), ("mcts", 30), ("surrogate", 20), ("paths", 1)]
)
def test_no_method_is_better_than_exact_or_leaves_the_space(space, name, number):
    score, least = landscape(space)
    found, tried = run(name, number, space, score)
    assert (found >= least - 1e-12).all()
    assert len(tried.losses) <= 5 * 3**6
    worst = [score(np.full(space.count(), q), space.enumerate()).mean() for q in range(5)]
    assert found.mean() < np.mean(worst)


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize(("name", "number"), [("beam", 3**6), ("descent", 200), ("mcts", 600), ("paths", 3**6)])
def test_with_enough_effort_every_method_is_exact(space, name, number):
    score, least = landscape(space)
    np.testing.assert_allclose(run(name, number, space, score)[0], least)


@pytest.mark.parametrize("choices", ["SB", "-B", "-SB", Space(6, groups=3), Space(6, "-SB", free=(0, 2, 3, 5))])
@pytest.mark.parametrize("pairs", [0.0, 3.0])
def test_paths_answer_every_budget_of_an_additive_landscape_at_once(choices, pairs):
    """Exactly, by about as many routes as said beforehand; with pairs of layers, keeping more routes of a step helps."""
    spaces, questions = by_big(6, choices), np.arange(20)
    score, _ = landscape(spaces[0], questions=20, pairs=pairs)
    least = np.array([[score(np.full(s.count(), q), s.enumerate()).min() for q in questions] for s in spaces])
    regrets = []
    for number in (1, 4):
        tried = Tried(lambda q, r: score(q, r)[:, None], 6)
        answer(METHODS["paths"].searches(spaces, [np.random.default_rng(0)] * 7, questions, number), tried)
        found = np.array([score(questions, tried.best(space, questions)[0]) for space in spaces])
        regrets.append((found - least).mean())
        assert len(tried.losses) < 1.5 * 20 * METHODS["paths"].tries(spaces[0], number)
    if pairs == 0:
        assert max(regrets) < 1e-12
    else:
        assert -1e-12 < regrets[1] <= regrets[0] < 0.05 * (least.max() - least.min())


def test_the_surrogate_finds_the_least_of_a_quadratic():
    score, least = landscape(Space(6), questions=20)
    found, tried = run("surrogate", 40, Space(6), score, questions=20)
    assert (found - least < 1e-9).mean() > 0.9
    assert len(tried.losses) < 20 * 55 < 20 * 64


def test_no_route_is_scored_twice_and_rows_come_in_order():
    calls = []

    def score(asked, routes):
        calls.append([(int(q), *r.tolist()) for q, r in zip(asked, routes)])
        return np.stack([asked + routes @ [1.0, 10.0], asked], 1)

    tried = Tried(score, 2, 2)
    first = tried(np.array([3, 0, 3]), np.array([[1, 2], [0, 0], [1, 2]], np.int8))
    np.testing.assert_array_equal(first, [[24, 3], [0, 0], [24, 3]])
    second = tried(np.array([0, 3, 1]), np.array([[2, 0], [1, 2], [0, 1]], np.int8))
    np.testing.assert_array_equal(second[:, 0], [2, 24, 11])
    assert calls == [[(0, 0, 0), (3, 1, 2)], [(0, 2, 0), (1, 0, 1)]]
    assert tried.questions.tolist() == [0, 0, 1, 3]


def test_best_breaks_ties_as_the_exact_search_does():
    tried = Tried(lambda _, routes: ((routes == BIG).sum(1) * -1e-7 + (routes[:, 0] == SKIP))[:, None], 2)
    tried(np.zeros(4, int), np.array([[2, 2], [1, 2], [2, 1], [0, 1]], np.int8))
    routes, margin = tried.best(Space(2, "-SB"), np.array([0]))
    assert routes.tolist() == [[1, 2]]
    assert margin == pytest.approx(1e-7)
    with pytest.raises(ValueError, match="no route of 2 layers of SB, big 0 was tried for 1 positions"):
        tried.best(Space(2, "SB", big=0), np.array([0]))


def test_neighbours_stay_in_the_space_or_come_nearer():
    space = Space(4, "SB", big=2)
    made, open_ = methods.neighbours(space, np.array([[1, 1, 2, 2], [2, 2, 2, 2]], np.int8))
    assert (space.excess(made[0][open_[0]]) == 0).all()
    assert open_.sum(1).tolist() == [4, 4]
    assert ((made[1][open_[1]] == BIG).sum(1) == 3).all()


@pytest.mark.parametrize("context", ["committed", "reference:small"])
@pytest.mark.parametrize("choices", ["SB", "-SB"])
def test_a_beam_as_wide_as_the_space_equals_the_exhaustive_search(context, choices):
    lm, ids = tiny_model(layers=3), np.random.default_rng(1).integers(0, 61, (3, 7))
    exact = oracle.by_budget(lm, ids, choices=choices, context=context)
    for setting in (oracle.Setting(), oracle.Setting(batch_size=2, width=7)):
        wide = oracle.by_budget(lm, ids, choices=choices, context=context, method="beam-27", setting=setting)
        np.testing.assert_allclose(wide.loss_nats, exact.loss_nats, atol=1e-5)
        clear = exact.margin_nats > 1e-5
        np.testing.assert_array_equal(wide.routes[clear], exact.routes[clear])
    if context == "committed":
        assert wide.replay_error.max() < 1e-4


@pytest.mark.parametrize("method", ["descent", "beam-2", "mcts-5", "surrogate-8", "paths"])
@pytest.mark.parametrize("objective", ["nll", "expected", "null:1"])
def test_methods_on_a_model_are_never_better_than_exact_and_replay(lm, ids, method, objective):
    space = Space(4, "-SB", big=2)
    reference = {"context": "reference:big", "objective": objective}
    exact, found = (oracle.search(lm, ids, space, method=m, **reference) for m in ("exhaustive", method))
    if objective != "expected":  # scored on what it minimises
        assert (found.loss_nats >= exact.loss_nats - 1e-5).all()
    assert space.contains(found.routes).all()
    assert 0 < found.effort.routes < exact.effort.routes or method in ("descent", "paths")
    assert found.effort.flops > 0 < exact.effort.flops
    committed = oracle.search(lm, ids, space, method=method, objective=objective)
    assert committed.replay_error < 1e-4


@pytest.mark.parametrize("method", ["mcts-9", "descent-3", "surrogate-6"])
def test_batches_do_not_change_what_is_drawn(lm, ids, method):
    found = [
        oracle.search(lm, ids, Space(4), method=method, seed=3, setting=oracle.Setting(batch_size=size))
        for size in (1, 8)
    ]
    np.testing.assert_array_equal(found[0].routes, found[1].routes)


def test_budgets_that_change_along_the_text_by_descent(lm, ids):
    spaces = [Space(4, "SB", big=k) for k in (4, 3, 3, 2, 2, 1, 1, 0, 0, 2, 4)]
    found = oracle.search(lm, ids, spaces, method="descent", context="reference:big")
    np.testing.assert_array_equal((found.routes == BIG).sum(-1), np.tile([4, 3, 3, 2, 2, 1, 1, 0, 0, 2, 4], (3, 1)))


@pytest.mark.parametrize("context", ["committed", "reference:big"])
def test_paths_answer_the_budgets_of_a_deep_model(context):
    """As well as descent to 0.002 nats, by fewer FLOPs where one search answers all budgets, and replayed."""
    lm, ids = tiny_model(layers=10), np.random.default_rng(1).integers(0, 61, (1, 4))
    found, other = (
        oracle.by_budget(lm, ids, context=context, method=method, setting=oracle.Setting(quiet=True))
        for method in ("paths-1", "descent")
    )
    assert np.array_equal((found.routes == BIG).sum(-1), np.broadcast_to(np.arange(11)[:, None, None], (11, 1, 3)))
    if context == "committed":
        assert found.replay_error.max() < 1e-4
    else:
        assert found.loss_nats.mean() < other.loss_nats.mean() + 2e-3
        assert found.effort.flops < 0.7 * other.effort.flops


@pytest.mark.parametrize("context", ["committed", "reference:big"])
def test_the_share_that_is_done_is_about_right_for_a_search_of_all_budgets(context):
    lm, ids, shares = tiny_model(layers=10), np.random.default_rng(1).integers(0, 61, (1, 4)), []
    setting = oracle.Setting(quiet=True, watch=shares.append)
    oracle.by_budget(lm, ids, context=context, method="paths-1", setting=setting)
    assert shares == sorted(shares)
    assert 0.4 < shares[-3] <= shares[-1] == 1  # before what is said when all is done


@pytest.mark.parametrize("method", ["paths-2", "descent-1", "surrogate-6"])
def test_objectives_share_what_is_tried(lm, ids, method):
    names, way = ("nll", "expected", "null:2", "entropy"), {"context": "reference:big", "method": method}
    together = oracle.survey(lm, ids, objectives=names, **way)
    alone = {name: oracle.by_budget(lm, ids, objective=name, **way) for name in names}
    for name, curve in alone.items():
        assert (together[name].minimised <= curve.minimised + 1e-5).all()
        same = np.abs(together[name].minimised - curve.minimised) < 1e-5
        assert same.mean() > 0.8
        clear = same & (curve.margin_nats > 1e-4)
        np.testing.assert_array_equal(together[name].routes[clear], curve.routes[clear])
        np.testing.assert_allclose(together[name].loss_nats[clear], curve.loss_nats[clear], atol=1e-5)
    assert together["nll"].effort.routes <= 16 < sum(curve.effort.routes for curve in alone.values())
    assert together["nll"].effort.flops < 0.7 * sum(curve.effort.flops for curve in alone.values())


def test_auto_enumerates_what_is_small_and_says_so(lm, ids, monkeypatch):
    assert oracle.search(lm, ids, Space(4), method="auto").method == "exhaustive"
    monkeypatch.setattr(methods, "AUTO_EXHAUSTIVE", 15)
    assert oracle.search(lm, ids, Space(4), method="auto").method == "descent"
    assert oracle.by_budget(lm, ids, method="auto", context="reference:big").name == "oracle"  # at most 6 routes each
    monkeypatch.setattr(methods, "AUTO_EXHAUSTIVE", 5)
    assert oracle.by_budget(lm, ids, method="auto", context="reference:big").name == "paths"
    assert oracle.by_budget(lm, ids, method="auto").name == "descent"  # each budget has its own history


def test_the_cost_of_a_curve_is_that_of_the_search_which_answers_it(ids, monkeypatch):
    lm = tiny_model(layers=10)
    monkeypatch.setattr(methods, "AUTO_EXHAUSTIVE", 300)  # 1,024 routes in all, at most 252 of a budget
    auto, exact, paths, descent = (
        estimate_curve(lm, ids, context="reference:big", method=method)
        for method in ("auto", "exhaustive", "paths-1", "descent")
    )
    assert auto == exact
    assert paths == oracle.estimate(lm, ids, Space(10), context="reference:big", method="paths-1") < descent
    committed = {"context": "committed", "method": "paths"}
    by_each = sum(oracle.estimate(lm, ids, space, **committed) for space in by_big(10, "SB"))
    assert estimate_curve(lm, ids, **committed) == by_each


@pytest.mark.parametrize(
    ("method", "message"),
    [("beam-0", "method 'beam-0'"), ("mcts-x", "method 'mcts-x'"), ("random", "method 'random'"), ("beam-", "'beam-'")],
)
def test_bad_numbers_are_refused(lm, ids, method, message):
    with pytest.raises(ValueError, match=message):
        oracle.search(lm, ids, Space(4), method=method)
    with pytest.raises(ValueError, match="context 'uniform' takes objective 'nll', and method 'exhaustive'"):
        oracle.search(lm, ids, Space(4), context="uniform", method="beam")


def test_ways_and_completions_are_those_of_the_space():
    space = Space(5, "-SB", big="<=2", skip=1)
    every = space.enumerate()
    for length in range(5):
        taken = np.unique(every[:, :length], axis=0)
        ways = space.ways(taken)
        for row, start in enumerate(taken):
            inside = every[(every[:, :length] == start).all(1)]
            assert ways[row].tolist() == [(inside[:, length] == c).sum() for c in space.allowed]
            np.testing.assert_array_equal(space.completed(start[None])[0], inside[-1])
    drawn = space.completed(np.zeros((20_000, 0), np.int8), np.random.default_rng(0))
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    assert len(counts) == len(every)
    assert np.abs(counts / len(drawn) * len(every) - 1).max() < 0.25
    with pytest.raises(ValueError, match="1 of the beginnings lead to no route"):
        space.completed(np.array([[0, 0]], np.int8))


def test_excess_counts_the_layers_that_must_change():
    assert Space(3, "SB", big=2).excess(np.array([[2, 2, 2], [2, 2, 1], [1, 1, 1]], np.int8)).tolist() == [1, 0, 2]
    assert [s.excess(np.full(3, BIG, np.int8)).item() for s in by_big(3, "SB")] == [3, 2, 1, 0]
