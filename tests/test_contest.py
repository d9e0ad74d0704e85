"""Routers of several kinds and seeds for one model: trained, judged, and the best of each kept. All of it very short."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import own_folder
from typer.testing import CliRunner

from duoviz import router
from duoviz.cli import app
from duoviz.study import Study
from duoviz.study import routers as contest

KINDS = {
    "distil": {"kind": "distil"},
    "threshold": {"kind": "threshold", "reads": "entropy"},
    "shuffled labels": {"kind": "distil", "shuffled": True},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contest")
    text = folder / "words.txt"
    text.write_text(" ".join(f"word {i % 97} and {i % 13} more, {i % 7} times" for i in range(3000)))
    said = []
    ways = {"budgets": (2,), "kinds": KINDS, "seeds": 2, "tokens": 4096, "sources": [f"file:{text}"]}
    contest.train(str(own_folder(folder / "own", context=256)), folder / "out", **ways, say=said.append)
    return folder / "out", said, ways


@pytest.fixture
def study(trained, tmp_path):
    return Study(
        model=str(trained[0].parent / "own"), documents=3, length=24, results=tmp_path, sources=("shipped-prose",)
    )


def test_what_was_trained_is_not_trained_again(trained):
    out, said, ways = trained
    # thresholds and controls have one seed
    runs = [("distil", 0), ("distil", 1), ("threshold", 0), ("shuffled labels", 0)]
    assert said == [f"{name}, 2 big, seed {seed}" for name, seed in runs]
    (out / "distil-2" / "1" / "router.json").rename(out / "router.json")
    again = []
    contest.train(str(out.parent / "own"), out, **ways, say=again.append)
    assert again == ["distil, 2 big, seed 1"]
    assert (out / "distil-2" / "1" / "router.json").read_bytes() == (out / "router.json").read_bytes()


def test_a_router_that_was_trained_in_another_way_is_not_taken_for_it(trained):
    out, _, ways = trained
    for changed in ({"tokens": 40_000}, {"kinds": {"distil": {"kind": "distil", "units": 3}}}):
        with pytest.raises(ValueError, match="holds another router"):
            contest.train(str(out.parent / "own"), out, **(ways | changed), say=lambda line: None)


def test_they_are_judged_together_and_the_best_are_kept(trained, study, tmp_path, monkeypatch):
    out, *_ = trained
    monkeypatch.setattr("duoviz.study.study.CALIBRATION", 8)
    made = contest.trained(out, layers=study.lm.layers, budgets=(2, 3))
    tables = contest.judged(study, made, searched=2)
    judged, policies = tables["judged"], tables["policies"]
    assert set(judged["name"]) == set(KINDS)
    own = judged[judged["control"] == ""]
    # each is judged at a budget that it was not trained for, too
    assert own.groupby("name").size().to_dict() == {"distil": 4, "shuffled labels": 2, "threshold": 2}
    assert own["trained_big"].eq(2).all()
    assert own.groupby("name")["asked_big"].unique().map(sorted).map(list).eq([[2, 3]] * 3).all()
    assert (judged[judged["control"] != ""]["seed"] == 0).all()  # their own controls are run once
    assert (own["realised_big"] - own["asked_big"]).abs().max() < 2 / 3
    assert own["documents"].eq(3).all()
    few = replace(study, documents=2)
    fixed, curve = few.fixed("shipped-prose"), few.survey("shipped-prose", ("nll", "expected"))
    for row in policies.to_dict("records"):
        loss = curve[{"oracle": "nll", "label-free": "expected"}[row["policy"]]].at(row["asked"])[0]
        assert row["gain_nats"] == pytest.approx(np.nanmean(fixed.at(row["asked"])[0] - loss), abs=1e-6)
        assert row["documents"] == 2
    assert policies["asked"].tolist() == [2, 2, 3, 3]
    kept = contest.keep(study, out, tables, tmp_path / "kept")
    assert [folder.name for folder in kept] == ["distil-2", "threshold-2"]
    for name, table in contest.read(tmp_path / "kept").items():
        pd.testing.assert_frame_equal(table, tables[name])
    losses = [np.nanmean(router.load(out / "distil-2" / seed).losses(study.lm, study.calibration())) for seed in "01"]
    assert router.load(kept[0]).facts["seed"] == int(np.argmin(losses))


def test_what_was_judged_is_kept_for_the_same_question_only(trained, study, monkeypatch):
    monkeypatch.setattr("duoviz.study.study.CALIBRATION", 8)
    made = {"distil": contest.trained(trained[0], layers=4, budgets=(2,))["distil"]}
    ways = {"context": "reference:big", "searched": 2}
    first = contest.judged(study, made, **ways)["judged"]
    monkeypatch.setattr("duoviz.evaluation.routers", None)  # what is kept is not judged again
    pd.testing.assert_frame_equal(contest.judged(study, made, **ways)["judged"], first)
    for other in (replace(study, groups=2), replace(study, seed=1)):
        with pytest.raises(TypeError, match="not callable"):
            contest.judged(other, made, **ways)


def test_bad_input_is_refused(study, tmp_path):
    with pytest.raises(ValueError, match="holds no routers"):
        contest.trained(tmp_path, layers=4)
    done = CliRunner().invoke(app, ["routers", "--kinds", "distil,luck", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "kinds ['luck']: allowed are budget, straight-through" in done.output.replace("\n", " ")
    wrong = CliRunner().invoke(app, ["routers", "--budgets", "two", "--out", str(tmp_path)])
    assert "budgets 'two': give the numbers of big layers" in wrong.output
    for given, said in (
        (["--at", "1,12"], "budget 12 of 12 layers leaves nothing to choose"),
        (["--searched", "0"], "searched 0"),
        (["--judge", "shipped-poetry"], "shipped-poetry"),
        (["--tokens", "0"], "tokens 0"),
    ):
        refused = CliRunner().invoke(app, ["routers", *given, "--out", str(tmp_path / "none")])
        assert refused.exit_code == 2
        assert said in refused.output.replace("\n", " ")
        assert not list((tmp_path / "none").glob("*/*/*"))  # before anything is trained


def test_targets_are_claims_about_the_best_learned_kind():
    rows = [
        {"source": source, "name": name, "asked_big": k, "over_fixed_nats": gain, "label_free_gap_closed": gain * 10}
        for k, gains in {1: (0.06, 0.07, 0.5), 2: (0.05, 0.01, 0.5), 6: (0.01, 0.02, 0.5)}.items()
        for name, gain in zip(("distil", "budget", "shuffled labels"), gains)
        for source in ("a", "b")
    ]
    judged = pd.DataFrame(rows).assign(
        over_big_nats=-0.02, positions=100, documents=10, gap_positions=50, gap_documents=5
    )
    for name in contest.MEASURED:
        judged = judged.assign(**{f"{name}_low": judged[name] - 0.004, f"{name}_high": judged[name] + 0.004})
    judged.loc[judged["source"] == "b", "label_free_gap_closed"] = np.nan
    best = contest.leading(judged)
    assert best.groupby("asked_big")["name"].unique().map(list).to_dict() == {
        1: ["budget"],
        2: ["distil"],
        6: ["budget"],
    }
    said = {(one.text, one.source): one.interval for one in contest.targets(best)}
    gained = said["1 big: budget gains 0.055 nats over fixed", "b"]
    assert (gained.mean, gained.low) == (pytest.approx(0.015), pytest.approx(0.011))
    assert said["2 big: distil gains 0.055 nats over fixed", "a"].high == pytest.approx(-0.001)
    closed = said["1 big: budget closes 80% of the label-free gap", "a"]
    assert (closed.mean, closed.documents, closed.positions) == (pytest.approx(-0.1), 5, 50)
    assert said["6 big: budget is within 0.01 nats of all big", "a"].mean == pytest.approx(-0.01)
    # two gains of two sources, two gaps of the one where there is a gap, and all big of two
    assert len(said) == 4 + 2 + 2
