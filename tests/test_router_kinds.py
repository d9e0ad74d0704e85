"""Every kind of router finds a rule that was planted in a toy model, and is read back as it was."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_model

from duoviz import router
from duoviz.router import KINDS, Mixture, Stage3, training
from duoviz.routes import BIG, SMALL

SHARES = Mixture(0.5, 0.5)


@pytest.fixture(scope="module")
def planted():
    """Two layers; tokens 0 and 1 follow each other. After a 0 only the big FFN of layer 0 knows what comes, after a 1 only that
    of layer 1; small FFNs know nothing, and attention adds nothing."""
    lm = tiny_model(layers=2, vocab=8)
    model = lm.model
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.zero_()
        width = model.config.hidden_size
        model.get_input_embeddings().weight[:2, :2] = torch.eye(2)
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))  # not that of the embeddings
        model.lm_head.weight[:2, 2:4] = torch.eye(2)
        for number, layer in enumerate(model.decoder_layers):
            ffn = layer.duo_ffn
            ffn.gate_proj.weight[0, number] = ffn.up_proj.weight[0, number] = 1.0
            ffn.down_proj.weight[3 - number, 0] = 1.0 / width**0.5
    return lm


@pytest.fixture(scope="module")
def rows():
    return np.stack([(np.arange(16) + start) % 2 for start in (0, 1) * 8]).astype(np.int64)


RIGHT = {0: [BIG, SMALL], 1: [SMALL, BIG]}


def plan(kind, mixture=SHARES, **changes):
    steps = 10 if kind == "distil" else 150
    ways = {"tokens": 16 * 16 * steps, "rows": 16, "learning_rate": 0.03, "alpha": 3.0}
    return Stage3(mixture, kind=kind, **(ways | changes))


def test_only_the_planted_rule_knows_what_comes(planted, rows):
    best = np.array([RIGHT[token] for token in rows[:, :-1].ravel()], np.int8).reshape(16, 15, 2)
    assert planted.score(rows, best).mean() < 0.05
    assert planted.score(rows, best[..., ::-1]).mean() == pytest.approx(np.log(8), abs=1e-3)  # eight tokens, all alike
    assert planted.score(rows, "BS").mean() == pytest.approx(np.log(8) / 2, abs=0.05)


@pytest.mark.parametrize("units", [0, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_finds_the_planted_rule_and_is_saved_whole(kind, units, planted, rows, tmp_path):
    made, log = router.train(planted, rows, plan(kind, units=units))
    router.calibrate(made, planted, rows)
    routes, losses = made.run(planted, rows)
    np.testing.assert_array_equal(routes, [[RIGHT[token] for token in text] for text in rows[:, :-1]])
    assert losses.mean() < 0.05
    assert log["share_big"].iloc[-1] == pytest.approx(0.5, abs=0.02)
    router.save(made, tmp_path)
    read = router.load(tmp_path)
    assert (read.units, read.facts["kind"]) == (units, kind)
    np.testing.assert_array_equal(read.routes(planted, rows), routes)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_meets_a_mixture_of_three_and_resumes_bit_equal(kind, ids, tmp_path, monkeypatch):
    asked = plan(kind, Mixture(0.5, 0.3, 0.2), tokens=12 * 3 * 6, rows=3, save_every=2, epochs=2, units=3)
    whole, log = router.train(tiny_model(), ids, asked)
    assert log[["share_big", "share_small", "share_skip"]].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    step = training._step

    def killed(*args):
        if len(args[-1]) == 4:
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


def test_multipliers_hold_the_budget_where_the_loss_pulls_away_from_it(planted, rows):
    """A quarter of big layers is half of what the planted rule needs."""
    for kind in ("straight-through", "policy"):
        _, log = router.train(planted, rows, plan(kind, Mixture(0.25, 0.75), tokens=16 * 16 * 300, alpha=30.0))
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


def test_plans_that_make_no_sense_are_refused():
    for wrong, message in (
        ({"kind": "best"}, "kind 'best': allowed are budget, straight-through, policy, distil"),
        ({"kind": "distil", "train_backbone": True}, "trains the router alone"),
        ({"samples": 1}, "samples 1: give"),
        ({"units": -1}, "units -1"),
        ({"kind": "distil", "objective": "best"}, "objective 'best': allowed are"),
    ):
        with pytest.raises(ValueError, match=message):
            Stage3(SHARES, **wrong)
