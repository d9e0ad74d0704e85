import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import dense_model, every, tiny_model

from duoviz import oracle, routes
from duoviz.branching import Branches, Trie
from duoviz.model import CLASSES, LanguageModel, RandomPolicy, config_for, forward_flops, load
from duoviz.oracle import Setting, leaves, objectives, uniform
from duoviz.oracle.objectives import Objective, columns
from duoviz.records import Tokens
from duoviz.routes import BIG, Space

SHAPES = [{}, {"layers": 3, "heads": 4, "kv_heads": 4}, {"layers": 3, "skip_scope": "block", "hidden": 64, "heads": 8}]


def brute(lm, ids, history, position, candidates, targets=None):
    """Loss of every candidate at one position, each in a text of its own in one ordinary forward pass: `[route, seq]`."""
    many = None if targets is None else np.tile(targets, (len(candidates), 1))
    given = every(history, position, candidates)
    return lm.score(np.tile(ids, (len(candidates), 1)), given, targets=many)[:, position].reshape(-1, len(ids))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("choices", ["SB", "-B", "-SB"])
@pytest.mark.parametrize("context", ["committed", "reference:small"])
def test_search_equals_brute_force(shape, choices, context):
    lm = tiny_model(**shape)
    ids = np.random.default_rng(2).integers(0, 61, (2, 6))
    space = Space(lm.layers, choices, big="<=2")
    found = oracle.search(lm, ids, space, context=context)
    history = np.full((2, 5, lm.layers), 2 if context == "committed" else 1, np.int8)
    for position in range(5):
        losses = brute(lm, ids, history, position, space.enumerate())
        np.testing.assert_allclose(found.loss_nats[:, position], losses.min(0), atol=1e-5)
        chosen = space.enumerate()[losses.argmin(0)]
        clear = np.diff(np.sort(losses, 0)[:2], axis=0)[0] > 1e-5
        np.testing.assert_array_equal(found.routes[clear, position], chosen[clear])
        np.testing.assert_allclose(
            found.margin_nats[:, position], np.diff(np.sort(losses, 0)[:2], axis=0)[0], atol=2e-5
        )
        if context == "committed":
            history[:, position] = found.routes[:, position]
    if context == "committed":
        assert found.replay_error < 1e-4
        np.testing.assert_allclose(lm.score(ids, found.routes), found.loss_nats, atol=1e-5)


@pytest.mark.parametrize("width", [8, 16_384])
@pytest.mark.parametrize(
    ("context", "names"), [("committed", ("nll", "expected", "null")), ("reference:small", ("nll",))]
)
def test_bounds_by_tangent_planes_change_nothing(monkeypatch, width, context, names):
    """A few leaves bound the others, few are finished, and best, margin and loss are those of the whole head."""
    lm, finished = tiny_model(vocab=199), []
    torch.nn.init.constant_(lm.model.final_norm.weight, 4.0)  # a sure model, as trained ones are
    ids, setting = np.random.default_rng(4).integers(0, 199, (2, 7)), Setting(width=width)
    asked = {"choices": "-SB", "context": context, "objectives": names, "setting": setting}
    monkeypatch.setattr(leaves, "HEAD_COLUMNS", 64)
    monkeypatch.setattr(leaves, "ANCHORS", 1_000_000)
    exact = oracle.survey(lm, ids, **asked)
    monkeypatch.setattr(leaves, "ANCHORS", 3)
    blocks = leaves.blocks
    monkeypatch.setattr(leaves, "blocks", lambda head, normed: (finished.append(len(normed)), blocks(head, normed))[1])
    bounded = oracle.survey(lm, ids, **asked)
    everything = 2 * 6 * 81 * len(names)
    assert sum(finished) < (0.7 * everything if width > 81 else everything + 1)
    for name, curve in exact.items():
        np.testing.assert_allclose(bounded[name].loss_nats, curve.loss_nats, atol=1e-5)
        np.testing.assert_allclose(bounded[name].margin_nats, curve.margin_nats, atol=1e-5)
        clear = curve.margin_nats > 1e-5
        np.testing.assert_array_equal(bounded[name].routes[clear], curve.routes[clear])


@pytest.mark.parametrize("sureness", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("trained", [False, True])
def test_a_bounded_leaf_is_exact_or_lies_between_the_second_best_and_its_value(trained, sureness):
    lm = load("data/duo-tiny", device="cpu") if trained else tiny_model(layers=8, vocab=199)
    with torch.no_grad():
        lm.model.final_norm.weight *= sureness  # all alike, as trained, and close to one-hot
    ids = np.random.default_rng(0).integers(0, 199, (2, 12))
    trie = Trie(Space(lm.layers, "SB").enumerate())
    wanted = columns(lm, Tokens.of(ids), [Objective.of("nll"), Objective.of("expected")])
    bigs = (trie.routes == BIG).sum(1)
    contests = [(c, np.flatnonzero(bigs == k)) for c in (0, 1) for k in range(lm.layers + 1)]
    branches = Branches(lm, ids, np.full((*ids.shape, lm.layers), BIG, np.int8), width=512)
    every = leaves.leaf_losses(branches, 10, trie, wanted).numpy()
    found = leaves.leaf_losses(branches, 10, trie, wanted, contests).numpy()
    off = 1e-5 * (1 + np.abs(every).max())
    assert (found <= every + off).all()
    assert (found < every - off).any() or sureness < 1  # some are bounds
    for column, inside in contests:
        least, bounded = np.sort(every[:, inside, column]), np.sort(found[:, inside, column])
        np.testing.assert_allclose(bounded[:, :2], least[:, :2], atol=off)


@pytest.mark.parametrize("objective", ["nll", "expected", "expected:mean", "sampled:1", "entropy", "agree_big"])
def test_capped_logits_are_those_of_the_model(objective, monkeypatch):
    """Gemma 2's: the best routes too, although their log-sum-exp has no bound."""
    monkeypatch.setattr(objectives, "RANDOM_PASSES", 3)
    monkeypatch.setattr(leaves, "HEAD_COLUMNS", 25)
    torch.manual_seed(0)
    config = config_for(dense_model("gemma2", layers=5, final_logit_softcapping=1.0).config, small_width=8)
    lm = LanguageModel(CLASSES["gemma2"][1](config).requires_grad_(False))
    ids, position, space = np.random.default_rng(0).integers(0, 61, (2, 8)), 5, Space(5, "-SB")
    tokens = Tokens.of(ids)

    def logs(routes):
        texts = torch.from_numpy(np.tile(ids, (len(routes) // 2, 1)))
        return lm.model(texts, duo_routes=torch.from_numpy(routes)).logits[:, position].log_softmax(-1)

    big = np.full((2, 8, 5), BIG, np.int8)
    allbig = logs(big)
    policies = [RandomPolicy(0.5, 0.5, 0.0, seed).routes(1, 8, 5).numpy().repeat(2, 0) for seed in range(3)]
    teacher = {
        "nll": torch.nn.functional.one_hot(torch.from_numpy(ids[:, position + 1]), 61).float(),
        "expected": allbig.exp(),
        "expected:mean": torch.stack([logs(routes).exp() for routes in policies]).mean(0),
        "sampled:1": torch.nn.functional.one_hot(
            torch.from_numpy(objectives.sample_targets(lm, tokens, seed=1)[:, position]), 61
        ).float(),
    }
    found = logs(every(big, position, space.enumerate())).unflatten(0, (-1, 2)).transpose(0, 1)
    if objective == "entropy":
        wanted = -(found.exp() * found).sum(-1).numpy()
    elif objective == "agree_big":
        wanted = (found.argmax(-1) != allbig.argmax(-1)[:, None]).float().numpy()
    else:
        wanted = -(teacher[objective][:, None] * found).sum(-1).numpy()
    land = oracle.landscapes(lm, ids, space, [position], objectives=(objective,))[0, :, 0]
    np.testing.assert_allclose(land, wanted, atol=1e-4)
    curve = oracle.by_budget(lm, ids, choices="-SB", context="reference:big", objective=objective)
    bigs = (space.enumerate() == BIG).sum(1)
    for k in range(6):
        for seq, route in enumerate(curve.at(k)[1][:, position]):
            place = (space.enumerate() == route).all(1).argmax()
            assert wanted[seq, place] <= wanted[seq, bigs == k].min() + 1e-4
        if objective == "nll":
            np.testing.assert_allclose(curve.at(k)[0][:, position], wanted[:, bigs == k].min(1), atol=1e-4)
    asked = {"context": "reference:big", "objective": objective}
    exact, guided = (oracle.search(lm, ids, Space(5, "SB"), method=way, **asked) for way in ("exhaustive", "beam-32"))
    np.testing.assert_allclose(guided.loss_nats, exact.loss_nats, atol=1e-4)


def test_uniform_context_equals_whole_forwards(lm, ids):
    space = Space(4, "SB", big=2)
    found = oracle.search(lm, ids, space, context="uniform")
    losses = np.stack([lm.score(ids, route) for route in space.enumerate()])
    np.testing.assert_allclose(found.loss_nats, losses.min(0), atol=1e-6)
    curve = oracle.by_budget(lm, ids, context="uniform")
    np.testing.assert_allclose(curve.at(2)[0], losses.min(0), atol=1e-6)


@pytest.mark.parametrize("context", ["committed", "reference:big"])
def test_by_budget_equals_one_search_per_budget(lm, ids, context):
    curve = oracle.by_budget(lm, ids, context=context)
    assert curve.budgets.tolist() == [0, 1, 2, 3, 4]
    for k in curve.budgets:
        one = oracle.search(lm, ids, Space(4, "SB", big=int(k)), context=context)
        np.testing.assert_allclose(curve.loss_nats[k], one.loss_nats, atol=1e-5)
        clear = one.margin_nats > 1e-5
        np.testing.assert_array_equal(curve.routes[k][clear], one.routes[clear])
        assert ((curve.routes[k] == BIG).sum(-1) == k).all()
    if context == "committed":
        assert curve.replay_error.max() < 1e-4


def test_at_most_never_rises_and_no_single_route_is_better_under_a_reference_context(lm, ids):
    losses = [oracle.search(lm, ids, Space(4, "SB", big=f"<={k}"), context="reference:big").loss_nats for k in range(5)]
    assert all((b <= a + 1e-5).all() for a, b in zip(losses, losses[1:]))
    free = oracle.search(lm, ids, Space(4), context="reference:big").loss_nats
    assert (free <= lm.score(ids, "BBBB") + 1e-5).all()


def test_budgets_that_change_along_the_text(lm, ids):
    budgets = routes.ramp(4, 0, positions=11)
    found = oracle.search(lm, ids, [Space(4, "SB", big=int(k)) for k in budgets])
    np.testing.assert_array_equal((found.routes == BIG).sum(-1), np.tile(budgets, (3, 1)))
    assert found.replay_error < 1e-4
    with pytest.raises(ValueError, match="2 spaces for 11 positions"):
        oracle.search(lm, ids, [Space(4)] * 2)


@pytest.mark.parametrize("context", ["committed", "reference:big"])
def test_batch_size_and_width_change_nothing(lm, context):
    ids = np.random.default_rng(5).integers(0, 61, (8, 9))
    found = [
        oracle.search(lm, ids, Space(4, "-SB"), context=context, setting=Setting(batch_size=b, width=w))
        for b, w in ((1, 10_000), (8, 10_000), (8, 3))
    ]
    for other in found[1:]:
        np.testing.assert_allclose(found[0].loss_nats, other.loss_nats, atol=1e-5)
        clear = found[0].margin_nats > 1e-5
        np.testing.assert_array_equal(found[0].routes[clear], other.routes[clear])


def test_ties_go_to_fewer_big_layers_then_to_the_first(lm, ids):
    for layer in lm.model.decoder_layers[2:]:
        layer.mlp.down_proj.weight.data.zero_()
        layer.mlp.small.down_proj.weight.data.zero_()
    try:
        found = oracle.search(lm, ids, Space(4, "SB"), context="reference:big")
    finally:
        lm.model.load_state_dict(tiny_model().model.state_dict())
    assert (found.routes[..., 2:] == 1).all()


def test_expected_objective_minimises_the_mean_over_all_big(lm, ids):
    space = Space(4, "SB", big=1)
    found = oracle.search(lm, ids, space, context="reference:big", objective="expected")
    tokens = Tokens.of(ids)
    big = torch.full((3, 12, 4), BIG, dtype=torch.int8)
    teacher = lm.head.logits(lm.hidden(tokens, duo_routes=big)).softmax(-1)[:, :-1]
    for position in (0, 4, 10):
        given = torch.from_numpy(every(big.numpy(), position, space.enumerate()))
        texts = Tokens.of(np.tile(ids, (space.count(), 1)))
        logs = lm.head.logits(lm.hidden(texts, duo_routes=given)[:, position]).log_softmax(-1).unflatten(0, (-1, 3))
        best = (teacher[:, position] * logs).sum(-1).argmax(0)
        np.testing.assert_array_equal(found.routes[:, position], space.enumerate()[best])
        want = -logs[best, torch.arange(3), torch.from_numpy(ids[:, position + 1])].numpy()
        np.testing.assert_allclose(found.loss_nats[:, position], want, atol=1e-5)


@pytest.mark.parametrize("context", ["committed", "reference:small"])
@pytest.mark.parametrize("objective", ["expected:mean", "agree_big", "entropy"])
def test_objectives_without_a_label_equal_brute_force(lm, ids, objective, context, monkeypatch):
    monkeypatch.setattr(objectives, "RANDOM_PASSES", 3)
    monkeypatch.setattr(leaves, "HEAD_ROWS", 7)
    monkeypatch.setattr(leaves, "HEAD_COLUMNS", 9)
    space = Space(4, "-SB")
    candidates = space.enumerate()[np.argsort((space.enumerate() == BIG).sum(1), kind="stable")]
    free = oracle.search(lm, ids, space, context=context, objective=objective)
    history = np.full((3, 11, 4), 2 if context == "committed" else 1, np.int8)

    def predictions(given):
        routes_ = torch.from_numpy(np.concatenate([given, given[:, -1:]], 1))
        texts = Tokens.of(np.tile(ids, (len(given) // 3, 1)))
        return lm.head.logits(lm.hidden(texts, duo_routes=routes_)).double().log_softmax(-1)[:, :-1]

    draws = [RandomPolicy(seed=seed).routes(1, 12, 4).numpy()[:, :-1].repeat(3, 0) for seed in range(3)]
    teacher = torch.stack([predictions(draw).exp() for draw in draws]).mean(0)
    favourite = predictions(np.full_like(history, 2)).argmax(-1)
    for position in (0, 1, 2):
        log = predictions(every(history, position, candidates))[:, position].unflatten(0, (-1, 3))
        values = {
            "expected:mean": -(teacher[:, position] * log).sum(-1),
            "agree_big": (log.argmax(-1) != favourite[:, position]).double(),
            "entropy": -(log.exp() * log).sum(-1),
        }[objective].numpy()
        losses = -log[:, torch.arange(3), torch.from_numpy(ids[:, position + 1])].numpy()
        for seq in range(3):
            best = np.flatnonzero(values[:, seq] <= values[:, seq].min() + 1e-6)[0]
            second = np.sort(values[:, seq])[1] - values[best, seq]
            if second > 1e-5 or objective == "agree_big":
                np.testing.assert_array_equal(free.routes[seq, position], candidates[best])
                np.testing.assert_allclose(free.loss_nats[seq, position], losses[best, seq], atol=1e-5)
        history[:, position] = free.routes[:, position] if context == "committed" else 1
        if context != "committed":
            found = oracle.by_budget(lm, ids, choices="-SB", context=context, objective=objective)
            for k in range(5):
                least = values[(candidates == BIG).sum(1) == k].min(0)
                np.testing.assert_allclose(found.minimised[k, :, position], least, atol=1e-5)
    guided = oracle.search(lm, ids, space, context=context, objective=objective, method="beam-81")
    np.testing.assert_allclose(guided.loss_nats, free.loss_nats, atol=1e-5)


def test_null_control_searches_and_scores_on_sampled_targets(lm, ids):
    targets = oracle.sample_targets(lm, ids, seed=3)
    assert (targets == oracle.sample_targets(lm, ids, seed=3)).all()
    assert (targets != oracle.sample_targets(lm, ids, seed=4)).any()
    space = Space(4, "SB", big=2)
    null = oracle.search(lm, ids, space, context="reference:big", objective="null:3")
    carried = oracle.search(lm, ids, space, context="reference:big", objective="sampled:3")
    history = np.full((3, 11, 4), BIG, np.int8)
    for position in (0, 5):
        losses = brute(lm, ids, history, position, space.enumerate(), targets)
        np.testing.assert_allclose(null.loss_nats[:, position], losses.min(0), atol=1e-5)
    np.testing.assert_array_equal(null.routes, carried.routes)
    committed = oracle.search(lm, ids, space, objective="null:3")
    assert committed.replay_error < 1e-4
    np.testing.assert_allclose(lm.score(ids, committed.routes, targets=targets), committed.loss_nats, atol=1e-4)


def test_sampled_targets_follow_the_models_distribution(lm):
    ids = np.array([[5, 9, last] for last in range(lm.vocab)])  # the draws of other texts differ
    probabilities = lm.head.logits(lm.hidden(Tokens.of(ids)))[0, 0].softmax(-1).numpy()
    draws = np.concatenate([oracle.sample_targets(lm, ids, seed=s)[:, 0] for s in range(2000 // lm.vocab)])
    counted = np.bincount(draws, minlength=lm.vocab) / len(draws)
    assert np.abs(counted - probabilities).max() < 0.04


def test_survey_equals_separate_curves(lm, ids):
    ids = ids[:, :6]
    for context in ("committed", "reference:big"):
        together = oracle.survey(lm, ids, context=context, objectives=("nll", "expected", "null:1"))
        for objective, curve in together.items():
            alone = oracle.by_budget(lm, ids, context=context, objective=objective)
            np.testing.assert_array_equal(curve.routes, alone.routes)


def test_random_k_is_the_best_of_a_sample(lm, ids):
    space = Space(4, "SB", big=2)
    found = oracle.search(lm, ids, space, context="reference:big", method="random-3", seed=7)
    sample = space.sample(3, seed=7)
    losses = brute(lm, ids, np.full((3, 11, 4), BIG, np.int8), 6, sample)
    np.testing.assert_allclose(found.loss_nats[:, 6], losses.min(0), atol=1e-5)
    assert found.effort.routes == 3
    curve = oracle.by_budget(lm, ids, context="reference:big", method="random-3", seed=7)
    np.testing.assert_allclose(curve.at(2)[0], found.loss_nats, atol=1e-6)
    assert curve.name == "random-3"


def test_landscape_is_every_routes_loss(lm, ids):
    space = Space(4, "-SB", big=2)
    land = oracle.landscape(lm, ids, space, seq=1, position=5, context="reference:small")
    want = brute(lm, ids, np.full((3, 11, 4), 1, np.int8), 5, space.enumerate())[:, 1]
    np.testing.assert_allclose(land, want, atol=1e-5)
    taken = np.random.default_rng(0).integers(0, 3, (11, 4)).astype(np.int8)
    land = oracle.landscape(lm, ids, space, seq=1, position=5, context=taken)
    want = brute(lm, ids, np.tile(taken, (3, 1, 1)), 5, space.enumerate())[:, 1]
    np.testing.assert_allclose(land, want, atol=1e-5)


def test_fixed_is_the_best_uniform_route(lm, ids):
    chosen = oracle.fixed(lm, ids)
    for k, route in enumerate(chosen):
        space = Space(4, "SB", big=k)
        means = [lm.score(ids, r).mean() for r in space.enumerate()]
        np.testing.assert_array_equal(route, space.enumerate()[int(np.argmin(means))])


def test_fixed_routes_are_searched_without_trying_all(monkeypatch):
    """Of ten layers `paths` tries fewer routes, and comes near the best of all; wide enough, it is the best."""
    lm, counted = tiny_model(layers=10), []
    ids = np.random.default_rng(2).integers(0, 61, (2, 12))
    best = oracle.fixed(lm, ids, choices=Space(10, "SB", groups=5))
    np.testing.assert_array_equal(oracle.fixed(lm, ids, choices=Space(10, "SB", groups=5), method="paths-16"), best)
    every = [lm.score(ids, route).mean() for route in oracle.fixed(lm, ids)]
    tried = uniform.uniform_losses
    monkeypatch.setattr(uniform, "uniform_losses", lambda *a, **k: (counted.append(len(a[2])), tried(*a, **k))[1])
    some = [lm.score(ids, route).mean() for route in oracle.fixed(lm, ids, method="paths-2")]
    assert sum(counted) < 300
    assert np.mean(np.subtract(some, every)) < 0.05 * (max(every) - min(every))
    assert np.subtract(some, every).min() > -1e-6
    with pytest.raises(ValueError, match="a fixed route is searched by exhaustive"):
        oracle.fixed(lm, ids, method="random-5")


def test_a_dear_search_is_timed_at_few_positions(lm, ids, monkeypatch):
    module, searched = sys.modules["duoviz.oracle.search"], []
    monkeypatch.setattr(module, "search", lambda lm, part, *args, **ways: searched.append(int(part.scored.sum())))
    assert oracle.measured_rate(lm, ids, context="reference:big") > 0
    each = oracle.estimate(lm, ids[:1, :2], Space(4), context="reference:big")
    for most in (4 * each, each):
        monkeypatch.setattr(module, "PROBE_FLOPS", most)
        assert oracle.measured_rate(lm, ids, context="reference:big") > 0
    assert searched == [1, 3 * len(ids), 1, 3, 1, 1]


def test_unscored_positions_are_marked(lm):
    tokens = Tokens.of(np.random.default_rng(0).integers(0, 61, (2, 6)))
    scored = tokens.scored.copy()
    scored[1, 3:] = False
    tokens = Tokens(tokens.ids, scored, tokens.text, tokens.offsets, tokens.documents)
    found = oracle.search(lm, tokens, Space(4))
    assert np.isnan(found.loss_nats[1, 3:]).all()
    assert (found.routes[1, 3:] == -1).all()
    assert np.isfinite(found.loss_nats[scored]).all()


def test_committed_replay_holds_across_positions_that_are_not_scored(lm):
    """The first token of a second document in a block: one text's history there is not searched, another's is."""
    tokens = Tokens.of(np.random.default_rng(3).integers(0, 61, (2, 9)))
    scored = tokens.scored.copy()
    scored[0, 3] = scored[0, 5] = scored[1, 5] = False
    tokens = replace(tokens, scored=scored)
    found = oracle.search(lm, tokens, Space(4, "-SB", big="<=1"))
    assert found.replay_error < 1e-4
    np.testing.assert_allclose(lm.score(tokens, found.routes), found.loss_nats, atol=1e-5)


def test_estimate_grows_with_the_space_and_is_a_limit(lm, ids):
    small = oracle.estimate(lm, ids, Space(4, "SB", big=1))
    large = oracle.estimate(lm, ids, Space(4, "-SB"))
    assert 0 < small < large
    with pytest.raises(ValueError, match=r"above the limit of 1e\+03 .* raise max_flops"):
        oracle.search(lm, ids, Space(4), setting=Setting(max_flops=1e3))


def test_estimate_of_a_single_route_is_a_forward_pass():
    """Of grouped queries too; but for the scores over tokens that are not there yet."""
    config = config_for(dense_model("qwen2").config, small_width=8)
    assert config.num_key_value_heads < config.num_attention_heads
    lm = LanguageModel(CLASSES["qwen2"][1](config).requires_grad_(False))
    found = oracle.estimate(lm, np.zeros((1, 12), np.int64), Space(3, "B"), context="uniform") / 11
    whole = forward_flops(lm.model, np.full((1, 12, 3), BIG, np.int8)) / 12
    assert whole - found == 3 * 4 * 32 * (12 - 12 / 2)


def test_estimate_of_the_papers_shape():
    """1.59 TFLOP a token for all 4,096 routes behind 512 tokens, as the sum over the trie gives."""
    from duoviz.model import CLASSES, LanguageModel
    from duoviz.training import PRESETS

    with torch.device("meta"):
        lm = LanguageModel(CLASSES["llama"][1](PRESETS["paper"].config()))
    tokens = Tokens.of(np.zeros((1, 1024), np.int64))
    per_token = oracle.estimate(lm, tokens, Space(12)) / 1023
    assert per_token == pytest.approx(1.59e12, rel=0.02)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"context": "sideways"}, "context 'sideways': allowed are committed, uniform, reference:big"),
        ({"context": "reference:SS"}, "has 2 letters: the model has 4 layers"),
        ({"method": "magic"}, "method 'magic': allowed are auto, exhaustive and random-K"),
        ({"objective": "luck"}, "objective 'luck': allowed are nll, expected"),
    ],
)
def test_bad_requests_are_refused_before_any_work(lm, ids, kwargs, message):
    with pytest.raises(ValueError, match=message):
        oracle.search(lm, ids, Space(4), **kwargs)


def test_a_space_of_another_model_is_refused(lm, ids):
    with pytest.raises(ValueError, match="a space of 5 layers: the model has 4"):
        oracle.search(lm, ids, Space(5))


def test_nan_weights_are_reported(ids):
    lm = tiny_model(seed=9)
    lm.model.decoder_layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="loss is NaN"):
        oracle.search(lm, ids, Space(4))
