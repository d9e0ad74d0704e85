from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import own_folder

from duoviz import claims, figures, frames, oracle, router
from duoviz.oracle import OBJECTIVES
from duoviz.routes import BIG, Space, to_text
from duoviz.study import Study, specimen


@pytest.fixture
def study(tmp_path):
    """Two short texts, and nothing stored."""
    return Study(documents=2, length=5, results=tmp_path, sources=("shipped-prose",))


def test_what_was_found_before_an_interruption_is_kept(study, tmp_path, monkeypatch):
    study, asked, survey = replace(study, model=str(own_folder(tmp_path / "own"))), [], oracle.survey

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


def test_the_seed_draws_the_null_and_nothing_else(study, tmp_path):
    study = replace(study, model=str(own_folder(tmp_path / "own")))
    way = {"context": "reference:big"}
    one, other = (replace(study, seed=seed).survey("shipped-prose", **way) for seed in (0, 1))
    assert not np.array_equal(one["null"].loss_nats, other["null"].loss_nats)
    np.testing.assert_array_equal(one["nll"].loss_nats, other["nll"].loss_nats)
    for seed in (0, 1):
        replace(study, seed=seed).survey("shipped-prose", ("nll",))
    assert len(list(study.results.glob("survey-*"))) == 3  # two with a null, one without


def test_calibration_texts_are_never_scored(study):
    both = set(study.calibration().documents)
    for source in ("shipped-prose", "shipped-code", "python-code"):
        own = set(study.calibration(source).documents)
        assert len(own) == 16
        assert (len(own & both) == 8) == source.startswith("shipped")
        assert (own | both).isdisjoint(replace(study, documents=48, length=128).tokens(source).documents)


def test_fixed_routes_are_chosen_on_calibration_texts_of_the_source(study):
    one, other = (study.fixed_routes(source)[1] for source in ("shipped-prose", "shipped-code"))
    assert to_text(one) != to_text(other)
    for source, own, foreign in (("shipped-prose", one, other), ("shipped-code", other, one)):
        found, worse = (np.nanmean(study.lm.score(study.calibration(source), route)) for route in (own, foreign))
        assert found < worse


def test_replayed_routes_are_worth_what_one_forward_pass_says(study, monkeypatch, tmp_path):
    curve = study.survey("shipped-prose", ("nll",), context="reference:big")["nll"]
    again = study.replayed("shipped-prose", curve)
    differs = np.abs(again.loss_nats - curve.loss_nats).max((1, 2))
    np.testing.assert_allclose(differs, curve.replay_error, atol=1e-5)  # other batches round in another way
    assert differs[-1] < 1e-4 < differs[:-1].max()  # all big is its own context
    assert to_text(again.routes[-1, 0, 0]) == "B" * 12
    monkeypatch.setattr("duoviz.model.LanguageModel.score", None)
    monkeypatch.setenv("DUOVIZ_USED", str(tmp_path / "used"))
    kept = study.replayed("shipped-prose", curve)
    assert (kept.name, kept.context) == ("oracle, replayed", "from reference:big") == (again.name, again.context)
    np.testing.assert_array_equal(kept.loss_nats, again.loss_nats)
    assert not (tmp_path / "used").exists()  # a few forward passes are not shipped
    with pytest.raises(TypeError):
        study.replayed("shipped-prose", replace(curve, routes=curve.routes[::-1]))


def test_a_model_without_routers_has_no_router_curve(study, tmp_path):
    study.lm.model.save_pretrained(tmp_path / "bare")
    study.lm.tokenizer.save_pretrained(tmp_path / "bare")
    bare = replace(study, model=str(tmp_path / "bare"))
    assert bare.routers() == {}
    assert bare.router_curve("shipped-prose") is None
    assert list(study.routers())[:2] == ["budget-2", "budget-4"]
    own = router.Router(12, 128, router.Mixture(0.4, 0.6))
    for name in ("mine", "budget-2"):
        router.save(own, tmp_path / "bare" / "routers" / name)
    with pytest.raises(
        ValueError, match=r"budget-2 was trained for Mixture\(big=0.4.*, its name says Mixture\(big=0.16"
    ):
        bare.routers()
    two = router.Router(12, 128, router.Mixture.from_budget(2, 12))
    router.save(two, tmp_path / "bare" / "routers" / "budget-2")
    assert list(bare.routers()) == ["budget-2", "mine"]
    assert bare.routers()["mine"] == router.Mixture(0.4, 0.6)


def test_a_folder_here_goes_before_one_of_the_repository(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = replace(study, model="data/duo-tiny")
    assert Path(known.folder) == Path(__file__).resolve().parents[1] / "data" / "duo-tiny"
    (tmp_path / "data" / "duo-tiny").mkdir(parents=True)
    assert Path(replace(study, model="data/duo-tiny").folder).resolve() == tmp_path / "data" / "duo-tiny"


def test_landscapes_of_a_source_say_what_a_search_finds(study, monkeypatch):
    monkeypatch.setattr("duoviz.study.landscapes.RETRACED", ("descent-0", "surrogate-20"))
    tables, tokens = study.landscapes("shipped-prose", positions=2), study.tokens("shipped-prose")
    best = oracle.search(study.lm, tokens, Space(12), context="reference:big").loss_nats
    big = study.losses("shipped-prose", "B" * 12)
    every = tables["candidates"]
    assert sorted(set(every["position"])) == [0, 3]
    most = every[every["candidates"] == 4096].sort_values(["seq", "position"])
    np.testing.assert_allclose(most["true_nats"], (big - best)[:, [0, 3]].ravel(), atol=1e-5)
    assert (tables["additivity"]["pairwise"] > tables["additivity"]["additive"]).all()
    regrets = frames.regrets(tables["methods"], every, tokens)
    assert (regrets["regret_nats"] >= 0).all()
    of = regrets[regrets["space"] == "free"].set_index("method")
    assert of.loc["descent-0", "regret_nats"] < of.loc["random-128", "regret_nats"]
    lucky = study.luck("shipped-prose", positions=2)
    of_best = lucky.groupby(["seq", "position"])["true_best"].min().to_numpy()
    np.testing.assert_allclose(of_best, best[:, [0, 3]].ravel(), atol=1e-5)
    assert frames.luck_gains(lucky, tokens)["positions"].eq(2 * len(tokens)).all()
    rise = (most["true_nats"] - every.loc[every["candidates"] == 1, "true_nats"].to_numpy()).mean()
    assert of.loc["random-1", "regret_nats"] == pytest.approx(rise, abs=1e-6)
    for figure in (figures.candidates_curve(by_candidates(tables, tokens)), figures.regret_curve(regrets)):
        assert figure.layout.title.text
    drawn = {trace.name: trace for trace in figure.data if trace.xaxis == "x"}
    assert set(drawn) == {"descent", "surrogate", "random"}
    np.testing.assert_allclose(drawn["random"].customdata[:, 0], of.filter(like="random", axis=0)["regret_nats"])


def test_a_study_keeps_to_its_tied_layers(study, monkeypatch):
    monkeypatch.setattr("duoviz.study.landscapes.RETRACED", ("descent-0", "paths-1"))
    source, way = "shipped-prose", {"context": "reference:big"}
    tied = replace(study, groups=4, free=tuple(range(8)))
    curves = {curve.name: curve for curve in tied.curves(source, **way)}
    free = study.survey(source, **way)["nll"]
    assert set(curves) == {"oracle", "label-free", "null", "sampled", "random-100", "fixed"}
    for curve in curves.values():
        assert curve.budgets.tolist() == [4, 6, 8, 10, 12]
        scored = curve.routes[curve.routes[..., 0] >= 0]
        assert (scored[:, 8:] == BIG).all()
        assert (scored[:, 0:8:2] == scored[:, 1:8:2]).all()
    assert (curves["oracle"].loss_nats >= free.loss_nats[4::2] - 1e-5).all()
    assert (curves["oracle"].loss_nats <= curves["random-100"].loss_nats + 1e-5).all()
    assert len(list(study.results.glob("survey-*"))) == 3  # the two of the tied study, and the free one
    taken = (tied.schedule(source, 12, 5, **way).routes == BIG).sum(-1)
    assert taken.tolist() == [[12, 10, 6, 4]] * 2  # of a ramp 12, 10, 7, 5
    tables, tokens = tied.landscapes(source, positions=2), tied.tokens(source)
    assert set(frames.regrets(tables["methods"], tables["candidates"], tokens)["routes"]) <= set(range(17))
    allocated = oracle.sequence_mean(curves["oracle"])
    bigs = (allocated.routes == BIG).sum(-1).mean(-1)
    assert (bigs <= allocated.budgets[:, None]).all()
    assert (np.nanmean(allocated.loss_nats, (1, 2)) <= np.nanmean(curves["oracle"].loss_nats, (1, 2)) + 1e-6).all()


def by_candidates(tables, tokens):
    return frames.means(tables["candidates"], tokens, by=["candidates"], values=["true_nats", "null_nats"])


def test_findings_on_a_real_model_are_tables_that_need_no_model(study, tmp_path, monkeypatch):
    monkeypatch.setattr("duoviz.study.landscapes.RETRACED", ("descent-0", "paths-1"))
    monkeypatch.setenv("DUOVIZ_HOME", str(tmp_path))
    tables = specimen.measured("data/duo-tiny", groups=4, documents=2, positions=3, searched=3, length=8)
    specimen.write(tables, tmp_path)
    read = specimen.read(tmp_path)
    for name, table in tables.items():
        pd.testing.assert_frame_equal(read[name], table)
    assert read["luck"].groupby("source")["budget"].unique().map(list).tolist() == [[0, 3, 6, 9, 12]] * 2
    assert read["searches"]["measure"].tolist() == ["additive", "pairwise", "descent-0", "paths-1"] * 2
    three = Study("data/duo-tiny", groups=4, documents=3, length=8)
    curves = {source: three.survey(source, context="reference:big") for source in three.sources}
    assert (read["findings"]["documents"] == 3).all()
    assert read["findings"].groupby("source").size().tolist() == [4, 4]
    for (text, source), mean in read["findings"].set_index(["claim", "source"])["mean"].items():
        # of 0, 3, 6, 9 and 12 big layers
        loss = {name: np.nanmean(curve.loss_nats, (1, 2)) for name, curve in curves[source].items()}
        gain = loss["nll"][-1] - loss["nll"][1]
        expected = gain - (loss["null"][-1] - loss["null"][1]) if "made-up" in text else gain
        expected = loss["expected"][-1] - loss["expected"][1] if "without the answer" in text else expected
        assert mean == pytest.approx(expected, abs=1e-6)
    assert claims.table(claims.of(read["findings"])).equals(read["findings"])
    shipped = specimen.read()
    assert shipped["luck"]["documents"].min() >= 16
    assert figures.luck_curve(shipped["luck"]).data


def test_where_all_routes_are_dear_as_whole_texts_only_the_studys_own_method_changes(monkeypatch):
    study = Study(documents=2, length=8)
    assert study.asked("shipped-prose", ("nll",), context="uniform").method == "exhaustive"
    monkeypatch.setattr("duoviz.study.survey.UNIFORM_FLOPS", 1.0)
    assert study.asked("shipped-prose", ("nll",), context="uniform").method == "random-20"
    assert study.asked("shipped-prose", ("nll",), context="uniform", method="exhaustive").method == "exhaustive"
    assert study.asked("shipped-prose", ("nll",), context="reference:big").method == "exhaustive"
