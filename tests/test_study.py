from dataclasses import replace

import numpy as np
import pytest

from duoviz import oracle
from duoviz.routes import to_text
from duoviz.study import OBJECTIVES, Study


@pytest.fixture
def study(tmp_path):
    """Two short texts, and nothing stored."""
    return Study(documents=2, length=5, results=tmp_path, sources=("shipped-prose",))


def test_what_was_found_before_an_interruption_is_kept(study, monkeypatch):
    asked, survey = [], oracle.survey

    def interrupted(lm, tokens, *, objectives, **ways):
        asked.append(objectives)
        if asked == [("nll",), ("expected",)]:
            raise KeyboardInterrupt
        return survey(lm, tokens, objectives=objectives, **ways)

    monkeypatch.setattr(oracle, "survey", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study.survey("shipped-prose")
    found = replace(study).survey("shipped-prose")
    assert asked == [("nll",), ("expected",), ("expected",), ("null",)]
    whole = survey(study.lm, study.tokens("shipped-prose"), objectives=OBJECTIVES)
    for name, curve in whole.items():
        np.testing.assert_array_equal(found[name].loss_nats, curve.loss_nats)
        np.testing.assert_array_equal(found[name].routes, curve.routes)


def test_the_seed_draws_the_null_and_nothing_else(study):
    way = {"context": "reference:big"}
    one, other = (replace(study, seed=seed).survey("shipped-prose", **way) for seed in (0, 1))
    assert not np.array_equal(one["null"].loss_nats, other["null"].loss_nats)
    np.testing.assert_array_equal(one["nll"].loss_nats, other["nll"].loss_nats)
    for seed in (0, 1):
        replace(study, seed=seed).survey("shipped-prose", ("nll",))
    assert len(list(study.results.glob("survey-*"))) == 3  # two with a null, one without


def test_calibration_texts_are_never_scored(study):
    chosen_on = set(study.calibration().documents)
    for source in ("python-prose", "python-code"):
        assert chosen_on.isdisjoint(replace(study, documents=40, length=128).tokens(source).documents)


def test_replayed_routes_are_worth_what_one_forward_pass_says(study):
    curve = study.survey("shipped-prose", ("nll",), context="reference:big")["nll"]
    again = study.replayed("shipped-prose", curve)
    differs = np.abs(again.loss_nats - curve.loss_nats).max((1, 2))
    np.testing.assert_allclose(differs, curve.replay_error, atol=1e-6)
    assert differs[-1] < 1e-4 < differs[:-1].max()  # all big is its own context
    assert to_text(again.routes[-1, 0, 0]) == "B" * 12


def test_a_model_without_routers_has_no_router_curve(study, tmp_path):
    study.lm.model.save_pretrained(tmp_path / "bare")
    study.lm.tokenizer.save_pretrained(tmp_path / "bare")
    bare = replace(study, model=str(tmp_path / "bare"))
    assert bare.routers() == {}
    assert bare.router_curve("shipped-prose") is None
    assert list(study.routers())[:2] == ["budget-2", "budget-4"]
