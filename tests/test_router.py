import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model

from duoviz import model, router
from duoviz.model.routing import LearnedRoutes
from duoviz.router import Mixture, Router, Stage3
from duoviz.router import training as training_
from duoviz.routes import BIG, SKIP, SMALL

ROOT = Path(__file__).resolve().parents[1]
MIXTURES = [Mixture(0.25, 0.75), Mixture(0.5, 0.0, 0.5), Mixture(0.5, 0.3, 0.2)]


def made(lm, mixture=MIXTURES[2], seed=0):
    """A router whose choices differ from token to token."""
    made = Router(lm.layers, lm.model.config.hidden_size, mixture, seed=seed)
    with torch.no_grad():
        made.weight.mul_(50)
    return made.eval()


@pytest.mark.parametrize("scope", ["ffn", "block"])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_routes_taken_replay_to_the_same_losses(scope, mixture, ids):
    lm = tiny_model(skip_scope=scope)
    routes, losses = made(lm, mixture).run(lm, ids)
    assert len(np.unique(routes)) == len(mixture.choices)
    np.testing.assert_allclose(lm.score(ids, routes), losses, atol=1e-5)


def test_unscored_positions_have_no_route_and_no_loss(lm, ids):
    tokens = model.language_model.Tokens.of(ids)
    tokens.scored[1, 5:] = False
    learned = made(lm)
    routes, losses = learned.run(lm, tokens)
    np.testing.assert_array_equal((routes == -1).all(-1), ~tokens.scored)
    np.testing.assert_array_equal(np.isnan(losses), ~tokens.scored)
    np.testing.assert_array_equal(learned.routes(lm, tokens), routes)
    np.testing.assert_array_equal(learned.losses(lm, tokens), losses)
    with pytest.raises(ValueError, match="batch_size 0: at least 1 sequence"):
        learned.run(lm, tokens, batch_size=0)
    kept = routes[tokens.scored]
    shares = router.realised(routes)
    assert shares == pytest.approx(
        {"big": (kept == BIG).mean(), "small": (kept == SMALL).mean(), "skip": (kept == SKIP).mean()}
    )
    assert sum(shares.values()) == pytest.approx(1)


def test_logits_keep_batch_and_token_where_a_family_flattens_them():
    lm = tiny_model(layers=1)
    learned = Router(1, 32, MIXTURES[2]).eval()
    ffn, x = lm.model.decoder_layers[0].duo_ffn, torch.randn(2, 3, 32)
    routing = LearnedRoutes(learned, skip_scope="ffn", soft=False)
    routing.at_layer_end(0, x, routing.at_ffn(ffn, 0, x.reshape(6, 32)).reshape(2, 3, 32))
    torch.testing.assert_close(routing.stacked_logits()[:, :, 0], learned.logits(0, x))


@pytest.mark.parametrize("scope", ["ffn", "block"])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_very_sharp_soft_mixture_is_the_hard_choice(scope, mixture, ids):
    lm = tiny_model(skip_scope=scope)
    learned = made(lm, mixture)
    hard = lm.model(torch.from_numpy(ids), duo_router=learned).logits
    learned.train().beta.fill_(1e6)
    soft = lm.model(torch.from_numpy(ids), duo_router=learned).logits
    torch.testing.assert_close(soft, hard, atol=1e-3, rtol=1e-3)


def test_a_soft_mixture_weighs_outputs_by_probability():
    lm = tiny_model(layers=1)
    learned = Router(1, 32, Mixture(0.5, 0.5)).train()
    ffn = lm.model.decoder_layers[0].mlp
    x = torch.randn(2, 3, 32)
    seen = {}
    hook = lm.model.decoder_layers[0].mlp.register_forward_hook(lambda m, a, out: seen.update(x=a[0], out=out))
    lm.model(torch.tensor([[1, 2, 3]]), duo_router=learned)
    hook.remove()
    x = seen["x"]
    p = learned.logits(0, x).softmax(-1)
    torch.testing.assert_close(seen["out"], p[..., :1] * ffn.small(x) + p[..., 1:] * ffn.big(x))


def test_budget_loss_by_hand():
    two = torch.tensor([[[[0.2, 0.8]], [[0.6, 0.4]]], [[[1.0, 0.0]], [[1.0, 0.0]]]])
    loss, shares = router.budget_loss(two, Mixture(0.25, 0.75))
    assert float(loss) == pytest.approx(((0.6 - 0.25) ** 2 + 0.25**2) / 2)
    torch.testing.assert_close(shares, torch.tensor([0.7, 0.3]))
    three = torch.tensor([[[[0.2, 0.3, 0.5]]]])
    loss, _ = router.budget_loss(three, Mixture(0.4, 0.4, 0.2))
    assert float(loss) == pytest.approx(0.1**2 + 0.1**2)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_training_meets_the_budget_and_leaves_the_backbone_alone(mixture):
    lm = tiny_model()
    before = lm.fingerprint
    rows = np.random.default_rng(0).integers(0, 61, (16, 16))
    plan = Stage3(mixture, tokens=16 * 8 * 120, rows=8)
    learned, log = router.train(lm, rows, plan)
    assert model.LanguageModel(lm.model).fingerprint == before == learned.facts["model"]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in lm.model.parameters())
    assert not torch.equal(learned.weight, Router(4, 32, mixture).weight)
    for name in ("big", "small", "skip"):
        assert log[f"share_{name}"].iloc[-1] == pytest.approx(getattr(mixture, name), abs=0.02)
    assert log["beta"].iloc[[0, -1]].tolist() == pytest.approx([plan.beta_start, plan.beta_end])


def test_training_lowers_the_loss_it_is_given():
    """Without a budget to hold, the router must find routes of lower cross-entropy than where it started."""
    rows = np.random.default_rng(0).integers(0, 61, (8, 16))
    _, log = router.train(tiny_model(), rows, Stage3(MIXTURES[2], tokens=16 * 8 * 60, alpha=0.0))
    assert log["loss_nats"].iloc[-1] < log["loss_nats"].iloc[0] - 0.1


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("scope", ["ffn", "block"])
def test_calibration_meets_the_budget_to_a_few_decisions(mixture, scope):
    lm = tiny_model(skip_scope=scope)
    rows = np.random.default_rng(1).integers(0, 61, (16, 32))
    learned = router.calibrate(made(lm, mixture), lm, rows)
    routes = learned.routes(lm, rows)
    shares = router.realised(routes)
    decisions = 1 if len(mixture.choices) == 2 else 5  # two offsets meet jumps: one choice changes later inputs
    for name in ("big", "small", "skip"):
        assert shares[name] == pytest.approx(getattr(mixture, name), abs=1.01 * decisions / routes.size)
    assert learned.facts["calibrated"] == shares
    assert learned.offset[0] == 0


def test_a_backbone_that_trains_is_remembered_anew(ids):
    lm = tiny_model()
    before, losses = lm.fingerprint, lm.score(ids, "BBBB")
    learned, _ = router.train(lm, ids, Stage3(MIXTURES[0], tokens=12 * 3 * 5, rows=3, train_backbone=True))
    fresh = model.LanguageModel(lm.model)
    assert lm.fingerprint == fresh.fingerprint == learned.facts["model"] != before
    np.testing.assert_array_equal(lm.score(ids, "BBBB"), fresh.score(ids, "BBBB"))
    assert np.abs(lm.score(ids, "BBBB") - losses).max() > 1e-3


def interrupted(monkeypatch, path, plan, lm, rows):
    """Training that is killed in its ninth step."""
    step = training_._step

    def killed(*args):
        if len(args[-1].log) == 8:
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training_, "_step", killed)
        with pytest.raises(KeyboardInterrupt):
            router.train(lm, rows, plan, checkpoint=path)


@pytest.mark.parametrize("backbone", [False, True])
def test_training_interrupted_and_resumed_is_bit_equal(tmp_path, monkeypatch, backbone):
    rows = np.random.default_rng(0).integers(0, 61, (16, 16))
    plan = Stage3(MIXTURES[2], tokens=16 * 4 * 12, rows=4, save_every=5, train_backbone=backbone)
    first, second = tiny_model(), tiny_model()
    whole, log = router.train(first, rows, plan)
    interrupted(monkeypatch, tmp_path / "state.pt", plan, second, rows)
    assert (tmp_path / "state.pt").is_file()
    resumed, relog = router.train(second, rows, plan, checkpoint=tmp_path / "state.pt")
    assert torch.equal(whole.weight, resumed.weight)
    assert first.fingerprint == second.fingerprint
    assert log.equals(relog)
    monkeypatch.setattr(training_, "_step", None)  # a finished training takes no step
    again, _ = router.train(second, rows, plan, checkpoint=tmp_path / "state.pt")
    assert torch.equal(again.weight, resumed.weight)


KILLED = """
import os, pathlib, signal, sys
import numpy as np, torch
from conftest import tiny_model
from duoviz import router
from duoviz.router import Mixture, Stage3

torch.set_num_threads(1)
saves, save = [], torch.save

def killed(state, path):
    saves.append(1)
    if len(saves) == 2:
        path.write_bytes(b"cut off here")
        os.kill(os.getpid(), signal.SIGKILL)
    save(state, path)

torch.save = killed
rows = np.random.default_rng(0).integers(0, 61, (16, 16))
router.train(tiny_model(), rows, eval(sys.argv[1]), checkpoint=pathlib.Path(sys.argv[2]))
"""


def test_training_killed_while_it_saves_ends_bit_equal(tmp_path):
    """SIGKILL in the middle of the second checkpoint: the first is whole, and steps 6 to 10 are done again."""
    rows, threads = np.random.default_rng(0).integers(0, 61, (16, 16)), torch.get_num_threads()
    plan, path = Stage3(MIXTURES[2], tokens=16 * 4 * 12, rows=4, save_every=5), tmp_path / "state.pt"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, repr(plan), str(path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert len(torch.load(path, weights_only=True)["log"]) == 5
    torch.set_num_threads(1)
    try:
        resumed, relog = router.train(tiny_model(), rows, plan, checkpoint=path)
        whole, log = router.train(tiny_model(), rows, plan)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(whole.weight, resumed.weight)
    assert log.equals(relog)
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoints_that_do_not_fit_are_named(tmp_path, monkeypatch):
    lm, rows = tiny_model(), np.random.default_rng(0).integers(0, 61, (16, 16))
    plan, path = Stage3(MIXTURES[2], tokens=16 * 4 * 12, rows=4, save_every=5), tmp_path / "state.pt"
    interrupted(monkeypatch, path, plan, lm, rows)
    with pytest.raises(ValueError, match=r"of another training, \(kept, asked\) = \{'alpha': \(30.0, 3.0\)\}"):
        router.train(lm, rows, replace(plan, alpha=3.0), checkpoint=path)
    with pytest.raises(ValueError, match=r"of another training, .*'model'"):
        router.train(tiny_model(seed=3), rows, plan, checkpoint=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"state\.pt is damaged"):
        router.train(lm, rows, plan, checkpoint=path)


def test_bad_rows_and_plans_are_refused_before_training(lm, ids):
    plan = Stage3(MIXTURES[0])
    with pytest.raises(ValueError, match=r"the model's vocabulary has ids 0\.\.60"):
        router.train(lm, ids + 50, plan)
    with pytest.raises(ValueError, match="the model's context is 48"):
        router.train(lm, np.zeros((2, 49), np.int64), plan)
    with pytest.raises(ValueError, match="at least one sequence"):
        router.train(lm, ids[:0], plan)
    dense = model.LanguageModel(lm.model, choices="-B")
    with pytest.raises(ValueError, match=r"a router that chooses \['S'\]: this model has only '-B'"):
        router.train(dense, ids, plan)
    for wrong, said in (
        ({"tokens": 0}, "tokens 0"),
        ({"alpha": -1.0}, "alpha -1"),
        ({"beta_end": 0.5}, "must not fall"),
    ):
        with pytest.raises(ValueError, match=said):
            Stage3(MIXTURES[0], **wrong)


def test_gradient_checkpointing_gives_the_same_router_gradients(ids):
    found = []
    for checkpointed in (False, True):
        lm = tiny_model()
        if checkpointed:
            lm.model.activation_checkpointing_enable()
        learned = made(lm).train()
        lm.model.train()
        out = lm.model(torch.from_numpy(ids), labels=torch.from_numpy(ids), duo_router=learned)
        (out.loss + router.budget_loss(out.router_logits.softmax(-1), learned.mixture)[0]).backward()
        found.append(learned.weight.grad)
    torch.testing.assert_close(*found)
    assert found[0].abs().max() > 0


@pytest.mark.parametrize("scope", ["ffn", "block"])
def test_generate_with_a_router_is_the_same_with_and_without_cache(scope, ids):
    lm = tiny_model(skip_scope=scope)
    prompt, learned = torch.from_numpy(ids), made(lm)
    texts = [
        lm.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=8,
            do_sample=False,
            use_cache=cached,
            duo_router=learned,
            pad_token_id=0,
        )
        for cached in (True, False)
    ]
    assert torch.equal(*texts)


def test_save_and_load(lm, ids, tmp_path):
    learned = made(lm)
    learned.facts = {"model": lm.fingerprint}
    learned.offset[1] = 0.5
    router.save(learned, tmp_path / "r")
    again = router.load(tmp_path / "r")
    np.testing.assert_array_equal(again.routes(lm, ids), learned.routes(lm, ids))
    assert again.choices == (SKIP, SMALL, BIG)
    assert {name: again.facts[name] for name in ("choices", "layers", "hidden", "offset")} == {
        "choices": "-SB",
        "layers": 4,
        "hidden": 32,
        "offset": [0.0, 0.5, 0.0],
    }
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["router.json", "router.safetensors"]
    with pytest.raises(ValueError, match=f"a router of model {lm.fingerprint}: this model is"):
        again.routes(tiny_model(seed=5), ids)
    with pytest.raises(ValueError, match="a router for 4 layers of width 32: the model has 3"):
        again.routes(tiny_model(layers=3), ids)


def test_missing_and_damaged_routers_are_named(lm, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: there is no router\.json"):
        router.load(tmp_path / "nowhere")
    router.save(made(lm), tmp_path / "r")
    (tmp_path / "r" / "router.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="r is damaged"):
        router.load(tmp_path / "r")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"mixture": {"big": 0.5, "small": 0.3, "skip": 0.3}}, "give shares that sum to 1"),
        ({"mixture": {"big": 0.5, "small": 0.5}}, "size mismatch"),
        ({"choices": "?B"}, r"router.json says \{'choices': '\?B'\}"),
        ({"layers": 12}, r"router.json says \{'layers': 12\}"),
    ],
)
def test_facts_that_do_not_fit_the_weights_are_named(lm, tmp_path, facts, said):
    router.save(made(lm), tmp_path / "r")
    path = tmp_path / "r" / "router.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))
    with pytest.raises(ValueError, match=rf"(?s)r is damaged: .*{said}"):
        router.load(tmp_path / "r")


def test_weights_that_are_not_numbers_are_refused(lm, tmp_path):
    learned = made(lm)
    with torch.no_grad():
        learned.weight[0, 0, 0] = torch.nan
    router.save(learned, tmp_path / "r")
    with pytest.raises(ValueError, match=r"\['weight'\] hold NaN"):
        router.load(tmp_path / "r")


def test_mixture_of_a_budget():
    assert Mixture.from_budget(4, 12) == Mixture(4 / 12, 8 / 12)
    assert Mixture.from_budget(4, 12).letters == "SB"
    for big in (0, 12):
        with pytest.raises(ValueError, match=rf"budget {big} of 12 layers .* ask for 1\.\.11"):
            Mixture.from_budget(big, 12)


@pytest.mark.parametrize("shares", [(0.5, 0.6, 0.0), (1.2, -0.2, 0.0), (1.0, 0.0, 0.0), (float("nan"), 0.5, 0.5)])
def test_impossible_mixtures_are_refused(shares):
    with pytest.raises(ValueError, match="mixture big, small, skip"):
        Mixture(*shares)
