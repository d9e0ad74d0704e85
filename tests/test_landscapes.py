import numpy as np
import pytest
import torch

from duoviz import oracle
from duoviz.records import Tokens
from duoviz.routes import Space, by_big


def test_landscapes_are_landscape_at_every_position_of_every_text(lm, ids):
    scored = np.ones((3, 11), bool)
    scored[2, 4:] = False
    made = Tokens.of(ids)
    tokens = Tokens(made.ids, scored, made.text, made.offsets, made.documents)
    space, setting = Space(4, "-SB"), oracle.Setting(batch_size=2)
    names = ("nll", "null:1", "entropy")
    found = oracle.landscapes(lm, tokens, space, [0, 7], objectives=names, setting=setting)
    assert found.shape == (3, 3, 2, 81)
    assert np.isnan(found[:, 2, 1]).all()
    for row, name in enumerate(names):
        one = oracle.landscape(lm, tokens, space, seq=1, position=7, objective=name)
        np.testing.assert_allclose(found[row, 1, 1], one, atol=1e-5)
    best = oracle.search(lm, tokens, space, context="reference:big")
    np.testing.assert_allclose(found[0].min(-1), best.loss_nats[:, [0, 7]], atol=1e-5)
    with pytest.raises(ValueError, match=r"positions \[11\]: not among"):
        oracle.landscapes(lm, tokens, space, [0, 11])
    with pytest.raises(ValueError, match="a landscape takes reference"):
        oracle.landscapes(lm, tokens, space, [0], context="committed")


@pytest.mark.parametrize("choices", ["SB", "-SB"])
def test_a_sum_over_layers_is_additive_and_one_of_pairs_is_pairwise(choices):
    space, draw = Space(5, choices), np.random.default_rng(0)
    routes = space.enumerate()
    single = draw.normal(size=(5, 3))[np.arange(5), routes].sum(1)
    pair = draw.normal(size=(3, 3))[routes[:, 1], routes[:, 3]]
    noise = draw.normal(size=len(routes))
    additive, pairwise = oracle.additivity(space, np.stack([single, single + pair, noise]))
    assert additive[0] == pytest.approx(1)
    assert additive[1] < 0.999
    np.testing.assert_allclose(pairwise[:2], 1)
    assert pairwise[2] < 0.9


def test_methods_on_landscapes_do_what_they_do_on_the_model(lm, ids):
    whole = Space(4, "-SB")
    losses = oracle.landscapes(lm, ids, whole, range(11))[0]
    losses[2, 10] = np.nan
    for spaces in ([whole], by_big(4, "-SB")):
        regret, tried = oracle.retraced(whole, losses, spaces, "descent")
        assert np.nanmin(regret) >= 0
        assert np.isnan(regret[:, 2, 10]).all()
        found = [oracle.search(lm, ids, space, context="reference:big", method="descent").loss_nats for space in spaces]
        least = [losses[..., space.contains(whole.enumerate())].min(-1) for space in spaces]
        np.testing.assert_allclose(regret, np.array(found) - least, atol=2e-5)
        assert np.nanmax(tried) < whole.count()
    for method in ("surrogate-20", "mcts-10"):
        regret, _ = oracle.retraced(whole, losses[:2], [whole], method, seed=3)
        found = oracle.search(lm, ids[:2], whole, context="reference:big", method=method, seed=3).loss_nats
        np.testing.assert_allclose(regret[0], found - losses[:2].min(-1), atol=2e-5)
    regret, tried = oracle.retraced(whole, losses[:2], [whole], "beam-81")
    assert (tried == 81).all()
    assert (regret == 0).all()
    with pytest.raises(ValueError, match="give one of descent"):
        oracle.retraced(whole, losses, [whole], "random-5")


@pytest.mark.parametrize("context", ["reference:small", "own"])
def test_predictions_are_those_of_one_forward_pass(lm, ids, context):
    """Loss, rank and likeliest tokens; a route may be asked for twice, and one space's losses are its landscape."""
    draw, position = np.random.default_rng(1), 6
    taken = np.full((11, 4), 1, np.int8) if context != "own" else draw.integers(0, 3, (11, 4)).astype(np.int8)
    space = Space(4, "-SB")
    routes = np.concatenate([space.enumerate()[[70, 3]], space.sample(5, seed=0), space.enumerate()[[3]]])
    at = {"seq": 1, "position": position, "context": taken if context == "own" else context}
    found = oracle.predict(lm, ids, routes, top=3, **at)
    for row, route in enumerate(routes):
        whole = taken.copy()
        whole[position] = route
        logits = lm.head.logits(lm.hidden(Tokens.of(ids[1:2]), duo_routes=_routes(lm, whole, ids[1:2])))[0, position]
        shares = logits.softmax(-1).numpy()
        assert found.loss_nats[row] == pytest.approx(lm.score(ids[1:2], whole[None])[0, position], abs=1e-5)
        assert found.rank[row] == 1 + (shares > shares[ids[1, position + 1]]).sum()
        np.testing.assert_array_equal(found.top_ids[row], np.argsort(-shares)[:3])
        np.testing.assert_allclose(found.top_shares[row], np.sort(shares)[::-1][:3], atol=1e-5)
    every = oracle.predict(lm, ids, space.enumerate(), **at).loss_nats
    np.testing.assert_allclose(every, oracle.landscape(lm, ids, space, **at), atol=1e-5)
    with pytest.raises(ValueError, match="routes hold -1"):
        oracle.predict(lm, ids, np.full((1, 4), -1, np.int8), **at)
    with pytest.raises(ValueError, match="position 11: not a scored position"):
        oracle.predict(lm, ids, routes, seq=1, position=11)


def _routes(lm, routes, ids):
    return torch.from_numpy(lm.spread(routes[None], Tokens.of(ids)))


def test_a_search_that_is_watched_can_be_ended(lm, ids):
    seen = []
    watched = oracle.Setting(watch=seen.append, batch_size=2)
    for method in ("exhaustive", "descent", "random-3"):
        for context in ("committed", "reference:big"):
            oracle.by_budget(lm, ids, context=context, method=method, setting=watched)
            assert seen == sorted(seen)
            assert 0 < seen[0] < 0.6
            assert seen[-1] == 1
            seen.clear()
    oracle.search(lm, ids, Space(4, "SB", big=2), context="uniform", setting=watched)
    assert len(seen) > 6
    assert seen[-1] == 1

    def stop(share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        oracle.search(lm, ids, Space(4, "SB", big=2), setting=oracle.Setting(watch=stop))


@pytest.mark.parametrize("tie", [{"groups": 2}, {"groups": [[0, 3], [1], [2]]}, {"free": (0, 2), "held": "SS-S"}])
@pytest.mark.parametrize("method", ["exhaustive", "paths-9", "auto"])
def test_searches_over_tied_and_held_layers_find_the_least_of_their_routes(lm, ids, tie, method):
    whole, space = Space(4, "-SB"), Space(4, "-SB", **tie)
    every = oracle.landscapes(lm, ids, whole, range(11))[0]
    curve = oracle.by_budget(lm, ids, choices=space, context="reference:big", method=method)
    spaces = by_big(4, space)
    assert curve.budgets.tolist() == [each.big for each in spaces]
    for budget, each in zip(curve.budgets, spaces):
        losses, routes = curve.at(int(budget))
        assert each.contains(routes).all()
        least = every[..., each.contains(whole.enumerate())].min(-1)
        np.testing.assert_allclose(losses, least, atol=2e-5)
    if method == "exhaustive":
        assert curve.effort.routes == space.count()
        estimated = oracle.estimate_curve(lm, ids, choices=space, context="reference:big", method=method)
        assert estimated == pytest.approx(curve.effort.flops, rel=0.05)
    committed = oracle.by_budget(lm, ids[:, :5], choices=space, method=method)
    for place, each in enumerate(spaces):
        alone = oracle.search(lm, ids[:, :5], each, method=method)
        np.testing.assert_allclose(committed.loss_nats[place], alone.loss_nats, atol=2e-5)
    fixed = oracle.fixed(lm, ids, choices=space)
    assert [each.contains(route) for each, route in zip(spaces, fixed)] == [True] * len(spaces)
    regret, _ = oracle.retraced(space, every[..., space.contains(whole.enumerate())], spaces, "paths-9")
    assert np.abs(regret).max() < 1e-6
    assert (oracle.additivity(space, every[..., space.contains(whole.enumerate())])[1] <= 1 + 1e-9).all()
