import pandas as pd
import pytest
from typer.testing import CliRunner

from duoviz.cli import _rest, app
from duoviz.router import Mixture


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_every_subcommand_explains_itself():
    assert {"train", "oracle", "router", "report", "score"} <= set(run("--help").output.split())
    for name in ("train", "oracle", "router", "report", "score"):
        done = run(name, "--help")
        assert done.exit_code == 0
        assert f"Usage: root {name} [OPTIONS]" in done.output


def test_score_prints_and_writes_losses(tmp_path):
    done = run("score", "--text", "import os", "--route", "BBSSBBSSBBSS", "--out", tmp_path / "s.parquet")
    assert done.exit_code == 0, done.output
    table = pd.read_parquet(tmp_path / "s.parquet")
    assert f"mean loss {table['loss_nats'].mean():.4f} nats over {len(table)} tokens" in done.output


def test_oracle_writes_routes_and_answers_from_the_store(tmp_path):
    words = ("oracle", "--documents", 2, "--length", 4, "--context", "reference:big", "--out", tmp_path)
    first = run(*words)
    assert first.exit_code == 0, first.output
    assert "oracle" in first.output
    (stored,) = tmp_path.glob("survey-*/nll.parquet")
    table = pd.read_parquet(tmp_path / "routes.parquet")
    assert {"source", "document", "input", "target", "loss_nats", "margin_nats"} <= set(table)
    assert sorted(table["budget"].unique()) == list(range(13))
    assert all(text.count("B") == k for text, k in zip(table["route"], table["budget"]))
    stamp = stored.stat().st_mtime_ns
    second = run(*words)
    assert second.output == first.output
    assert stored.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(("big", "skip", "letters"), [(0.9, 0.1, "-B"), (0.7, 0.3, "-B"), (0.5, 0.2, "-SB")])
def test_shares_that_sum_to_one_leave_nothing_to_small(big, skip, letters):
    mixture = Mixture(big=big, small=_rest(big, skip), skip=skip)
    assert mixture.letters == letters
    assert str(mixture.small) == {"-B": "0.0", "-SB": "0.3"}[letters]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("score", "--text", "x y", "--route", "BB"), "has 2 letters: the model has 12 layers"),
        (("score", "--text", "", "--route", "B" * 12), "has nothing to predict"),
        (("score", "--text", "<script>", "--route", "Q" * 12), "each letter must be one of"),
        (("score", "--text", "x y", "--route", "B" * 12, "--model", "no/such/folder"), "there is no such folder"),
        (("oracle", "--source", "novels"), "corpus source 'novels' is unknown"),
        (("oracle", "--length", "300"), "a text of 300 tokens: the model's context is 256"),
        (("oracle", "--length", "3000"), "it has 0 so long"),
        (("oracle", "--context", "sideways"), "context 'sideways': allowed are"),
        (("oracle", "--documents", "3", "--max-flops", "10"), "above the limit of 10"),
        (("router", "--out", "x", "--big", "0.7", "--skip", "0.6"), "give shares that sum to 1"),
        (("router", "--out", "x", "--big", "nan"), "give shares that sum to 1"),
        (
            ("router", "--out", "x", "--big", "0.9", "--skip", "0.1", "--model", "no/such/folder"),
            "there is no such folder",
        ),
        (("train", "--out", "x", "--preset", "huge"), "preset 'huge': allowed are tiny, paper"),
        (("train", "--out", "x", "--tokens", "0"), "tokens=0"),
        (("train", "--out", "x", "--big", "0.9", "--skip", "0.1", "--sources", "novels"), "'novels' is unknown"),
        (("train", "--out", "x", "--big", "0.7", "--skip", "0.6"), "give probabilities that sum to 1"),
        (("report", "--only", "99"), "notebook '99': there are 1-what-is-a-duo-model"),
        (("report", "-p", "budgget=5"), "parameter 'budgget': the notebooks have"),
        (("report", "-p", "nonsense"), "write name=value"),
    ],
)
def test_bad_input_ends_in_one_line(words, message, tmp_path, monkeypatch):
    done = run(*words)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert "Traceback" not in done.output
