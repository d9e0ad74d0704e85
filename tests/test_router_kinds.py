"""Every kind of router finds a rule that was planted in a toy model, and is read back as it was."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import planted_plan, tiny_model

from duoviz import router
from duoviz.router import KINDS, Mixture, Stage3, past, training
from duoviz.routes import BIG, SMALL

SHARES = Mixture(0.5, 0.5)


RIGHT = {0: [BIG, SMALL], 1: [SMALL, BIG]}


def test_only_the_planted_rule_knows_what_comes(planted, planted_rows):
    best = np.array([RIGHT[token] for token in planted_rows[:, :-1].ravel()], np.int8).reshape(16, 15, 2)
    assert planted.score(planted_rows, best).mean() < 0.05
    assert planted.score(planted_rows, best[..., ::-1]).mean() == pytest.approx(
        np.log(8), abs=1e-3
    )  # eight tokens, all alike
    assert planted.score(planted_rows, "BS").mean() == pytest.approx(np.log(8) / 2, abs=0.05)


LEARNED = [kind for kind in KINDS if kind != "threshold"]


@pytest.mark.parametrize("units", [0, 8])
@pytest.mark.parametrize("kind", LEARNED)
def test_every_kind_finds_the_planted_rule_and_is_saved_whole(kind, units, planted, planted_rows, tmp_path):
    bf16 = units > 0 and kind not in ("distil", "pairwise")  # which learn from losses that are searched
    reads = "spent" if units else "ffn"
    made, log = router.train(planted, planted_rows, planted_plan(kind, units=units, reads=reads, bf16=bf16))
    router.calibrate(made, planted, planted_rows)
    routes, losses = made.run(planted, planted_rows)
    np.testing.assert_array_equal(routes, [[RIGHT[token] for token in text] for text in planted_rows[:, :-1]])
    assert losses.mean() < 0.05
    assert log["share_big"].iloc[-1] == pytest.approx(0.5, abs=0.02)
    router.save(made, tmp_path)
    read = router.load(tmp_path)
    assert (read.units, read.reads, read.facts["kind"]) == (units, reads, kind)
    np.testing.assert_array_equal(read.routes(planted, planted_rows), routes)


@pytest.mark.parametrize("kind", LEARNED)
def test_every_kind_meets_a_mixture_of_three_and_resumes_bit_equal(kind, ids, tmp_path, monkeypatch):
    mixture = Mixture(0.5, 0.5) if kind == "pairwise" else Mixture(0.5, 0.3, 0.2)  # which plans with two choices
    asked = planted_plan(kind, mixture, tokens=12 * 3 * 6, rows=3, save_every=2, epochs=2, units=3)
    whole, log = router.train(tiny_model(), ids, asked)
    assert log[["share_big", "share_small", "share_skip"]].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    step = training._step

    def killed(*args):
        if len(args[-1].log) == 4:
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_step", killed)
        with pytest.raises(KeyboardInterrupt):
            router.train(tiny_model(), ids, asked, checkpoint=tmp_path / "state.pt")
    resumed, relog = router.train(tiny_model(), ids, asked, checkpoint=tmp_path / "state.pt")
    pd.testing.assert_frame_equal(relog, log)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


@pytest.mark.parametrize("kind", ["budget", "distil"])
def test_controls_find_a_rule_of_tokens_or_not_as_they_should(kind, planted, planted_rows, tmp_path):
    """The planted rule is one of tokens; of positions only where all texts begin alike."""
    for reads, texts, finds in (
        ("token", planted_rows, True),
        ("position", planted_rows, False),
        ("position", planted_rows[::2], True),
    ):
        made, _ = router.train(planted, texts, planted_plan(kind, reads=reads, units=16))
        router.calibrate(made, planted, texts)
        assert (made.losses(planted, texts).mean() < 0.3) == finds, (reads, len(texts))
        assert finds or made.losses(planted, texts).mean() > 0.7
        router.save(made, tmp_path)
        np.testing.assert_array_equal(router.load(tmp_path).routes(planted, texts), made.routes(planted, texts))


@pytest.mark.parametrize("kind", ["distil", "pairwise"])
def test_a_router_that_learns_from_other_tokens_losses_finds_nothing(kind, planted, planted_rows):
    unexplained = []
    for shuffled in (False, True):
        _, log = router.train(planted, planted_rows, planted_plan(kind, shuffled=shuffled))
        unexplained.append(log["unexplained"].iloc[-1])
    assert unexplained[0] < 0.2
    assert unexplained[1] > 0.9
    with pytest.raises(ValueError, match="kind 'budget' learns from no labels that could be shuffled"):
        planted_plan("budget", shuffled=True)


def test_a_router_knows_what_a_token_has_spent(ids):
    lm, made = tiny_model(), router.Router(4, 32, Mixture(0.5, 0.5), reads="spent").eval()
    with torch.no_grad():
        made.weight.zero_()[:, 1, -1] = -1  # big, if the layers below were big less often than asked for
    np.testing.assert_array_equal(
        made.routes(lm, ids), np.broadcast_to([SMALL, BIG, SMALL, BIG], (*ids[:, 1:].shape, 4))
    )
    logits = lm.model(torch.from_numpy(ids), duo_router=made.train()).router_logits[0, 0, :, 1]
    spent, soft = 0.0, []
    for _ in range(4):
        soft.append(-spent)
        spent += torch.tensor([0.0, -spent]).softmax(-1)[1].item() - 0.5
    assert logits.tolist() == pytest.approx(soft, abs=1e-6)


@pytest.mark.parametrize("reads", [reads for reads in router.READS if reads != "frequency"])
def test_what_a_router_reads_is_the_same_with_a_cache_and_one_token_at_a_time(reads, ids):
    lm = tiny_model()
    made = router.Router(4, 32, SHARES, reads=reads).eval()
    with torch.no_grad():
        made.weight.mul_(50)
    x = torch.from_numpy(ids)
    whole = lm.model(x, duo_router=made, use_cache=False)
    first = lm.model(x[:, :5], duo_router=made, use_cache=True)
    rest = lm.model(x[:, 5:], duo_router=made, past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole.logits, atol=1e-4, rtol=1e-4)
    embedded = lm.model(inputs_embeds=lm.model.get_input_embeddings()(x), duo_router=made, use_cache=False)
    torch.testing.assert_close(embedded.logits, whole.logits, atol=1e-4, rtol=1e-4)


def test_pairwise_plans_meet_the_budget_at_every_token_and_are_the_best_by_its_terms(ids, monkeypatch):
    lm = tiny_model()
    asked = planted_plan("pairwise", Mixture(0.5, 0.5), tokens=12 * 3 * 4, rows=3, units=5)
    made, log = router.train(lm, ids, asked)
    routes = made.routes(lm, ids)
    assert ((routes == BIG).sum(-1) == 2).all()
    np.testing.assert_allclose(lm.score(ids, routes), made.losses(lm, ids), atol=1e-5)
    with monkeypatch.context() as patch:
        patch.setattr(router.calibration, "meet", None)  # its budget is met: there is nothing to search for
        assert router.calibrate(made, lm, ids).facts["calibrated"]["big"] == 0.5
    assert ((made.aimed(Mixture(0.25, 0.75)).routes(lm, ids) == BIG).sum(-1) == 1).all()
    with pytest.raises(ValueError, match="a router over 'SB': it has learned nothing of '-B'"):
        made.aimed(Mixture(0.5, 0.0, 0.5))
    seen = []
    hook = lm.model.decoder_layers[0].duo_ffn.register_forward_pre_hook(lambda ffn, args: seen.append(args[0].clone()))
    lm.model(torch.from_numpy(ids), duo_router=made)
    hook.remove()
    terms = made.network(0, seen[0]).detach()[:, :-1]
    single, pairs = terms[..., :4], iter(range(4, 10))
    together = {(a, b): terms[..., next(pairs)] for a in range(4) for b in range(a + 1, 4)}
    values = {(a, b): single[..., a] + single[..., b] + both for (a, b), both in together.items()}
    chosen = [tuple(np.flatnonzero(route == BIG)) for route in routes.reshape(-1, 4)]
    for place, pair in enumerate(chosen):
        of = {key: value.flatten()[place] for key, value in values.items()}
        assert of[pair] == pytest.approx(float(min(of.values())), abs=1e-5)
    assert {"unexplained", "share_big"} <= set(log)
    for wrong in (Mixture(0.3, 0.7), Mixture(0.5, 0.3, 0.2)):
        with pytest.raises(ValueError, match="kind 'pairwise' with"):
            router.train(lm, ids, planted_plan("pairwise", wrong))


@pytest.mark.parametrize("reads", router.NUMBERS)
def test_thresholds_take_the_tokens_with_the_larger_numbers(reads, ids, tmp_path):
    lm = tiny_model()
    made, log = router.train(lm, ids, Stage3(Mixture(0.25, 0.75), kind="threshold", reads=reads, rows=3))
    assert len(log) == 1
    router.calibrate(made, lm, ids)
    routes = made.routes(lm, ids)
    assert (routes == BIG).mean() == pytest.approx(0.25, abs=0.2 if reads == "frequency" else 0.03)  # many are as rare
    more = router.calibrate(made.aimed(Mixture(0.75, 0.25)), lm, ids).routes(lm, ids)
    assert ((more == BIG) >= (routes == BIG)).mean() > 0.9  # a lower threshold
    assert (more == BIG).mean() > (routes == BIG).mean()
    seen = {}
    hooks = [
        layer.duo_ffn.register_forward_pre_hook(lambda ffn, args: seen.update({ffn.layer_index: args[0].clone()}))
        for layer in lm.model.decoder_layers
    ]
    x = torch.from_numpy(ids)
    lm.model(x, duo_router=made)
    for hook in hooks:
        hook.remove()
    embedded = lm.model.get_input_embeddings()(x)
    for layer in range(4):
        if reads == "frequency":
            counts = np.bincount(ids.ravel(), minlength=lm.vocab) + 1
            numbers = -np.log(counts[ids] / counts.sum())
        elif reads == "change":
            numbers = 1 - torch.cosine_similarity(seen[layer], embedded, dim=-1)
        else:
            q = lm.model.lm_head(seen[layer]).softmax(-1)
            numbers = -(q * q.log()).sum(-1)
        numbers = np.asarray(torch.as_tensor(numbers).detach())[:, :-1]
        big = routes[..., layer] == BIG
        assert numbers[big].min(initial=np.inf) >= numbers[~big].max(initial=-np.inf) - 1e-5
    router.save(made, tmp_path)
    np.testing.assert_array_equal(router.load(tmp_path).routes(lm, ids), routes)
    if reads == "frequency":
        with pytest.raises(ValueError, match="needs input_ids, not inputs_embeds"):
            lm.model(inputs_embeds=embedded, duo_router=made)


def test_multipliers_hold_the_budget_where_the_loss_pulls_away_from_it(planted, planted_rows):
    """A quarter of big layers is half of what the planted rule needs."""
    for kind in ("straight-through", "policy"):
        _, log = router.train(
            planted, planted_rows, planted_plan(kind, Mixture(0.25, 0.75), tokens=16 * 16 * 300, alpha=30.0)
        )
        assert log["share_big"].tail(50).mean() == pytest.approx(0.25, abs=0.02), kind
        assert log["multiplier_big"].iloc[-1] > 0, kind
        assert log["loss_nats"].tail(50).mean() < 1.3, kind  # half of the tokens go where they should: 1.05


def test_draws_have_the_probabilities_of_the_logits_and_their_gradient():
    made = router.Router(1, 4, Mixture(0.5, 0.3, 0.2))
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(20_000, 3).clone().requires_grad_()
    want = logits[0].softmax(-1).detach()
    made.drawn = torch.Generator().manual_seed(0)
    drawn = made.choose(logits)
    for place, choice in enumerate(made.choices):
        assert float((drawn == choice).float().mean()) == pytest.approx(float(want[place]), abs=0.01)
    weights = made.weights(logits)
    assert set(weights.detach().round().unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(weights.detach().mean(0), want, atol=0.01, rtol=0)
    weights[:, 2].sum().backward()
    assert logits.grad[:, 2].mean() > 0 > logits.grad[:, 0].mean()
    made.drawn = None
    torch.testing.assert_close(made.weights(logits), logits.softmax(-1))


@pytest.mark.parametrize("kind", ["budget", "straight-through", "policy"])
def test_products_in_bfloat16_round_and_change_little_else(kind, ids):
    exact, rounded = (
        router.train(tiny_model(), ids, planted_plan(kind, tokens=1, bf16=way))[1] for way in (False, True)
    )
    assert rounded["loss_nats"].item() != exact["loss_nats"].item()
    assert rounded["loss_nats"].item() == pytest.approx(exact["loss_nats"].item(), rel=0.01)


def test_plans_that_make_no_sense_are_refused():
    for wrong, message in (
        ({"kind": "best"}, "kind 'best': allowed are budget, straight-through, policy, distil, pairwise, threshold"),
        ({"kind": "threshold"}, "kind 'threshold' with units 0, reads 'ffn': it has no network"),
        ({"kind": "distil", "train_backbone": True}, "trains the router alone"),
        ({"kind": "distil", "bf16": True}, "losses that are searched: not in bfloat16"),
        ({"samples": 1}, "samples 1: give"),
        ({"units": -1}, "units -1"),
        ({"reads": "mind"}, "reads 'mind': allowed are ffn, spent, token, position, frequency"),
        ({"kind": "distil", "objective": "best"}, "objective 'best': allowed are"),
    ):
        with pytest.raises(ValueError, match=message):
            Stage3(SHARES, **wrong)


def test_rounds_learn_from_all_that_is_remembered(monkeypatch):
    for steps, ends in ((6, [1, 2, 4, 5]), (3, [0, 1, 2]), (8, [1, 3, 5, 7])):
        now = past.Past(steps)
        found = []
        for step in range(steps):
            found += [step] if now.round_ends(4) else []
            now.log.append({})
        assert found == ends
    memory = now.memory
    memory.add(torch.arange(5.0), torch.arange(5))
    memory.add(torch.arange(5.0, 9.0), torch.arange(5, 9))
    done, parts = zip(*memory.again(2, 4, torch.Generator().manual_seed(0)))
    assert [len(one) for one, _ in parts] == [4, 4, 1] * 2
    assert list(done) == pytest.approx([0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6])
    for epoch in (parts[:3], parts[3:]):
        read, want = (torch.cat(same) for same in zip(*epoch))
        assert torch.equal(read, want.float())
        assert sorted(want.tolist()) == list(range(9))
    again = past.Memory()
    again.load_state_dict(memory.state_dict())
    assert [len(one) for one, _ in again.parts] == [5, 4]
    monkeypatch.setattr(past, "MOST_BYTES", 100)  # 12 bytes a position
    memory.add(torch.arange(3.0), torch.arange(3))
    assert [len(one) for one, _ in memory.parts] == [4, 3]
    memory.add(torch.arange(90.0), torch.arange(90))
    assert [len(one) for one, _ in memory.parts] == [90]
