"""What must hold on every kind of device: run with DUOVIZ_DEVICE=cuda on a machine with a GPU.

The model's weights and the texts are random; losses are compared with those of the same model on the CPU.
"""

import copy
import os

import numpy as np
import pytest
import torch
from conftest import tiny_model

from duoviz import oracle
from duoviz.bench import accelerator, table
from duoviz.model import LanguageModel, RandomPolicy
from duoviz.routes import BIG, Space
from duoviz.training.muon import Muon

DEVICE = os.environ.get("DUOVIZ_DEVICE", "cpu")
IDS = np.random.default_rng(0).integers(0, 60, (3, 10))


@pytest.fixture(scope="module")
def pair():
    """A model on the CPU, and the same on the device."""
    here = tiny_model()
    model = copy.deepcopy(here.model).to(DEVICE)
    return here, LanguageModel(model, None, path="tiny")


def test_losses_are_those_of_the_cpu(pair):
    here, there = pair
    assert there.device.type == torch.device(DEVICE).type
    for routes in ("all-big", "all-small", "BS-B", RandomPolicy(0.4, 0.3, 0.3).routes(3, 9, 4).numpy()):
        np.testing.assert_allclose(there.score(IDS, routes), here.score(IDS, routes), atol=1e-4)


@pytest.mark.parametrize("context", ["committed", "reference:big", "uniform"])
def test_the_oracle_finds_what_brute_force_finds(pair, context):
    _, there = pair
    found = oracle.by_budget(there, IDS, choices="-SB" if context != "uniform" else "SB", context=context)
    assert found.replay_error.max() < 1e-3 or context != "committed"
    if context == "uniform":
        every = Space(4, "SB", big=2).enumerate()
        best = np.stack([there.score(IDS, route) for route in every]).min(0)
        np.testing.assert_allclose(found.at(2)[0], best, atol=1e-4)
    if context == "reference:big":
        every = Space(4, "-SB", big=2).enumerate()
        losses = oracle.landscape(there, IDS, Space(4, "-SB", big=2), seq=1, position=5, context=context)
        given = np.full((3, 9, 4), BIG, np.int8)
        for route, loss in list(zip(every, np.asarray(losses)))[::7]:
            given[1, 5] = route
            assert there.score(IDS, given)[1, 5] == pytest.approx(float(loss), abs=1e-4)


def test_every_objective_and_method_agrees_with_the_cpu(pair):
    here, there = pair
    for objectives in (oracle.OBJECTIVES, oracle.WITHOUT_LABEL):
        both = [oracle.survey(lm, IDS, context="reference:big", objectives=objectives) for lm in pair]
        for name in objectives:
            one, other = (found[name].minimised for found in both)
            if name != "null":  # whose targets are drawn from rounded probabilities
                np.testing.assert_allclose(one, other, atol=2e-3 if name != "agree_big" else 1.0, equal_nan=True)
    for method in ("paths", "descent", "beam", "random-9"):
        one, other = (oracle.by_budget(lm, IDS, context="reference:big", method=method) for lm in pair)
        assert abs(np.nanmean(one.loss_nats) - np.nanmean(other.loss_nats)) < 1e-3
    lucky = [oracle.luck(lm, IDS, Space(4, "SB"), [2, 7]) for lm in pair]
    np.testing.assert_allclose(lucky[0].null_best, lucky[1].null_best, atol=1e-3)
    assert here.layers == there.layers


def test_decoding_takes_the_routes_it_is_given(pair):
    _, there = pair
    prompt = torch.from_numpy(IDS[:2, :4]).to(there.device)
    way = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    for routes in ("all-big", "BS-B"):
        made = there.model.generate(prompt, duo_routes=routes, **way)
        logits = there.model(made[:, :-1], duo_routes=routes).logits
        assert torch.equal(logits.argmax(-1)[:, 3:], made[:, 4:])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_training_step_is_that_of_the_cpu(optimizer):
    losses = []
    for device in ("cpu", DEVICE):
        model = tiny_model().model.to(device).train()
        matrices = [p for p in model.parameters() if p.ndim == 2]
        rest = [p for p in model.parameters() if p.ndim != 2]
        made = torch.optim.AdamW(model.parameters(), lr=1e-2) if optimizer == "adamw" else Muon(matrices, rest, lr=1e-2)
        ids, found = torch.from_numpy(IDS).to(device), []
        for step in range(4):
            loss = model(ids, labels=ids, duo_policy=RandomPolicy(seed=step)).loss
            loss.backward()
            made.step()
            made.zero_grad()
            found.append(float(loss.detach()))
        losses.append(found)
    np.testing.assert_allclose(*losses, atol=5e-3)
    assert losses[0][-1] < losses[0][0]


def test_bfloat16_takes_mostly_the_routes_of_float32(pair):
    _, there = pair
    narrow = LanguageModel(copy.deepcopy(there.model).to(torch.bfloat16), None, path="tiny")
    one, other = (oracle.by_budget(lm, IDS, context="reference:big") for lm in (there, narrow))
    assert np.nanmean(np.abs(one.loss_nats - other.loss_nats)) < 0.05
    assert (one.routes == other.routes).all(-1).mean() > 0.5


def test_the_measurements_of_a_gpu_run_at_toy_sizes(tmp_path):
    """So that nothing fails on the first line on the day a GPU is there; all sizes are read, every number is finite."""
    rows = accelerator.run(tmp_path / "gpu.json", device=DEVICE, sizes=accelerator.TOY, say=lambda _: None)
    assert all(np.isfinite(row.value) and row.value >= 0 for row in rows)
    named = " ".join(row.measure for row in rows)
    for part in ("product", "oracle, 4 layers", "bfloat16: routes", "paths-1, 6 layers", "stage 1"):
        assert part in named
    shown = table.table(tmp_path / "gpu.json")
    assert all(row.measure in shown for row in rows)
    assert "| a step, texts side by side | 1 | 2 |" in shown
