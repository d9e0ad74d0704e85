import numpy as np
import pytest
import torch
from conftest import tiny_model

from duoviz import router
from duoviz.router import Mixture, Router, Stage3
from duoviz.routes import BIG, SKIP, SMALL

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
    plan = Stage3(mixture, tokens=16 * 8 * 120, rows=8, learning_rate=1e-2)
    learned, log = router.train(lm, rows, plan)
    assert tiny_model().fingerprint == before
    assert {k: v for k, v in lm.model.named_parameters() if not v.requires_grad} == {}
    assert log["share_big"].iloc[-1] == pytest.approx(mixture.big, abs=0.04)
    assert log["beta"].iloc[-1] == pytest.approx(plan.beta_end)
    router.calibrate(learned, lm, rows)
    shares = router.realised(learned.routes(lm, rows))
    for name in ("big", "small", "skip"):
        assert shares[name] == pytest.approx(getattr(mixture, name), abs=0.01)
    assert learned.facts["calibrated"] == shares


def test_training_interrupted_and_resumed_is_bit_equal(tmp_path, monkeypatch):
    lm, rows = tiny_model(), np.random.default_rng(0).integers(0, 61, (16, 16))
    plan = Stage3(MIXTURES[2], tokens=16 * 4 * 12, rows=4, save_every=5)
    whole, log = router.train(lm, rows, plan)
    step = router._step

    def killed(*args):
        if args[-1] == 8:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(router, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        router.train(lm, rows, plan, checkpoint=tmp_path / "state.pt")
    monkeypatch.setattr(router, "_step", step)
    resumed, relog = router.train(lm, rows, plan, checkpoint=tmp_path / "state.pt")
    assert torch.equal(whole.weight, resumed.weight)
    assert log.equals(relog)
    assert not list(tmp_path.iterdir())


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


def test_generate_with_a_router_is_the_same_with_and_without_cache(lm, ids):
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


@pytest.mark.parametrize("shares", [(0.5, 0.6, 0.0), (1.2, -0.2, 0.0), (1.0, 0.0, 0.0)])
def test_impossible_mixtures_are_refused(shares):
    with pytest.raises(ValueError, match="mixture big, small, skip"):
        Mixture(*shares)
