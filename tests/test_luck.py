"""The null control over every possible next token equals a loop over routes and tokens."""

import numpy as np
import pytest
import torch
from conftest import dense_model, tiny_model

from duoviz import corpus, oracle
from duoviz.model import CLASSES, LanguageModel, config_for, load
from duoviz.oracle import leaves, null
from duoviz.records import Tokens
from duoviz.routes import BIG, Space


def by_forward_passes(lm, tokens, space, position, likely):
    """Losses by budget, from one forward pass for each route and a sum over every next token."""
    every = space.enumerate()
    bigs = (every == BIG).sum(1)
    given = torch.full((len(tokens), tokens.ids.shape[1], lm.layers), BIG, dtype=torch.int8)
    tables = []
    for route in every:
        given[:, position] = torch.from_numpy(route)
        logits = lm.head.logits(lm.hidden(tokens, duo_routes=given))[:, position]
        tables.append(-logits.double().log_softmax(-1))
    losses = torch.stack(tables, 1)  # [seq, route, token]
    true = losses[torch.arange(len(tokens)), :, torch.from_numpy(tokens.ids[:, position + 1])]
    expected = (losses * likely[0][:, position, None]).sum(-1)
    rows = {name: [] for name in null.NAMES}
    for k in np.unique(bigs):
        some, inside = losses[:, bigs == k], true[:, bigs == k]
        rows["true_mean"].append(inside.mean(1))
        rows["true_best"].append(inside.amin(1))
        rows["free"].append(inside.gather(1, expected[:, bigs == k].argmin(1, keepdim=True))[:, 0])
        for name, q in zip(("null", "matched"), likely):
            rows[f"{name}_mean"].append((some.mean(1) * q[:, position]).sum(-1))
            rows[f"{name}_best"].append((some.amin(1) * q[:, position]).sum(-1))
    return {name: torch.stack(each).numpy() for name, each in rows.items()}


@pytest.mark.parametrize("kind", ["plain", "tied", "capped", "block"])
def test_luck_equals_brute_force_on_twenty_positions(kind, monkeypatch):
    monkeypatch.setattr(null, "CELLS", 100)
    monkeypatch.setattr(leaves, "HEAD_COLUMNS", 25)
    if kind == "capped":
        torch.manual_seed(0)
        config = config_for(dense_model("gemma2", layers=4, final_logit_softcapping=1.0).config, small_width=8)
        lm = LanguageModel(CLASSES["gemma2"][1](config).requires_grad_(False))
    else:
        lm = tiny_model(skip_scope="block" if kind == "block" else "ffn")
    with torch.no_grad():
        lm.model.final_norm.weight *= 2.0  # surer than at random, so that temperatures differ
    space = Space(4, "-SB", groups=2) if kind == "tied" else Space(4, "-B" if kind == "block" else "SB")
    tokens, positions = Tokens.of(np.random.default_rng(5).integers(0, 61, (4, 9))), (0, 2, 3, 5, 7)
    found = oracle.luck(lm, tokens, space, positions)
    logits = lm.head.logits(lm.hidden(tokens)).double()
    likely = [logits.softmax(-1), (logits / found.temperature).softmax(-1)]
    for place, position in enumerate(positions):
        for name, wanted in by_forward_passes(lm, tokens, space, position, likely).items():
            np.testing.assert_allclose(getattr(found, name)[..., place], wanted, atol=1e-5, err_msg=name)
    assert found.budgets.tolist() == sorted(set((space.enumerate() == BIG).sum(1)))


def test_the_matched_temperature_makes_predictions_as_unsure_as_they_are_wrong():
    lm = load("data/duo-tiny", device="cpu")
    with torch.no_grad():
        lm.model.final_norm.weight *= 1.3  # over-confident
    tokens, positions = corpus.blocks(lm.tokenizer, "shipped-code", documents=3, length=24), (5, 11, 22)
    found = oracle.luck(lm, tokens, Space(12, groups=3), positions)
    assert 1.1 < found.temperature < 5.0
    logits = lm.head.logits(lm.hidden(tokens))[:, list(positions)] / found.temperature
    entropy = float(torch.distributions.Categorical(logits=logits[..., : lm.known]).entropy().mean())
    assert entropy == pytest.approx(
        found.true_best[-1].mean(), abs=0.01
    )  # of all big, which is the only one of its budget
    assert found.null_best[-1].mean() < found.matched_best[-1].mean()
    assert (found.true_best <= found.free + 1e-6).all()
    assert (found.free[1:-1] > found.true_best[1:-1] + 0.01).any()


def test_luck_refuses_what_is_not_there():
    lm, tokens = tiny_model(), Tokens.of(np.zeros((1, 5), np.int64))
    with pytest.raises(ValueError, match="positions"):
        oracle.luck(lm, tokens, Space(4), [4])
    with pytest.raises(ValueError, match="layers"):
        oracle.luck(lm, tokens, Space(5), [0])
    with pytest.raises(ValueError, match="raise max_flops"):
        oracle.luck(lm, tokens, Space(4), [0], setting=oracle.Setting(max_flops=1.0))
    with pytest.raises(ValueError, match="context"):
        oracle.luck(lm, tokens, Space(4), [0], context="committed")
