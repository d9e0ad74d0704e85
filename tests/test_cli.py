import json
import re
import subprocess
import sys
import time
from errno import EPIPE
from functools import wraps
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import dense_model, files_of_at_most, own_folder
from safetensors.torch import load_file
from typer.testing import CliRunner

from duoviz import store
from duoviz.cli import app
from duoviz.router import Mixture
from duoviz.routes import rest

ROOT = Path(__file__).resolve().parents[1]


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_every_subcommand_explains_itself():
    names = (
        "train",
        "convert",
        "oracle",
        "router",
        "evaluate",
        "report",
        "score",
        "bench",
        "figure8",
        "init",
        "specimen",
    )
    assert set(names) <= set(run("--help").output.split())
    for name in names:
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
    assert second.stdout == first.stdout
    assert stored.stat().st_mtime_ns == stamp


def test_oracle_ties_layers_and_holds_others(tmp_path):
    words = ("oracle", "--documents", 1, "--length", 4, "--context", "reference:big", "--out", tmp_path)
    done = run(*words, "--groups", 2, "--free", "0,1, 4,5")
    assert done.exit_code == 0, done.output
    table = pd.read_parquet(tmp_path / "routes.parquet")
    assert sorted(table["budget"].unique()) == [8, 10, 12]
    assert {
        text[0] == text[1] and text[4] == text[5] and text[2:4] + text[6:] == "B" * 8 for text in table["route"]
    } == {True}
    for given, message in (
        (("--free", "0,x"), "free '0,x': give the numbers of layers"),
        (("--free", "12"), "free layers [12]: name some of 0..11"),
        (("--groups", 13), "13 groups of 12 layers: ask for 1..12"),
    ):
        assert f"error: {message}" in run(*words, *given).output


def test_oracle_and_router_take_a_dense_model_and_let_it_skip(tmp_path):
    own_folder(tmp_path / "own", dense_model("gpt2", vocab=4096, context=128))
    given = ("--model", tmp_path / "own", "--out", tmp_path / "out")
    done = run("oracle", "--documents", 1, "--length", 5, *given)
    assert done.exit_code == 0, done.output
    routes = pd.read_parquet(tmp_path / "out" / "routes.parquet")["route"]
    assert set("".join(routes)) == {"-", "B"}
    (tmp_path / "words.txt").write_text("some words of training text, and more of them. " * 400)
    text = ("--sources", f"file:{tmp_path / 'words.txt'}", "--tokens", 512)
    done = run("router", "--big", 0.5, "--skip", 0.5, *text, *given)
    assert done.exit_code == 0, done.output
    assert '"skip": 0.5' in done.output
    wrong = run("router", "--big", 0.5, *text, "--model", tmp_path / "own", "--out", tmp_path / "other")
    assert "error: a router that chooses ['S']: this model has only '-B'" in wrong.output


@pytest.mark.parametrize(("big", "skip", "letters"), [(0.9, 0.1, "-B"), (0.7, 0.3, "-B"), (0.5, 0.2, "-SB")])
def test_shares_that_sum_to_one_leave_nothing_to_small(big, skip, letters):
    mixture = Mixture(big=big, small=rest(big, skip), skip=skip)
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
        (("train", "--out", "x", "--preset", "huge"), "preset 'huge': allowed are tiny, tiny-opt, wide, paper"),
        (("train", "--out", "x", "--tokens", "0"), "tokens 0: give a whole number"),
        (("train", "--out", "x", "--big", "0.9", "--skip", "0.1", "--sources", "novels"), "'novels' is unknown"),
        (("train", "--out", "x", "--big", "0.7", "--skip", "0.6"), "give probabilities that sum to 1"),
        (("report", "--only", "99"), "notebook '99': there are 1-what-is-a-duo-model"),
        (("report", "-p", "budgget=5"), "parameter 'budgget': the notebooks have"),
        (("report", "-p", "nonsense"), "write name=value"),
    ],
)
def test_bad_input_ends_in_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*words)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert "Traceback" not in done.output


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A Duo folder of 13 layers, one more than the shipped model has."""
    return own_folder(tmp_path_factory.mktemp("deep"), layers=13, hidden=16)


@pytest.mark.parametrize("method", ["beam", "descent"])
def test_a_deep_model_is_searched_and_replays(deep, tmp_path, method):
    words = ("--method", method, "--width", 2, "--documents", 1, "--length", 3, "--model", deep, "--out", tmp_path)
    done = run("oracle", *words)
    assert done.exit_code == 0, done.output
    assert float(re.search(r"replay: at most (\S+) nats", done.output).group(1)) < 1e-4
    assert pd.read_parquet(tmp_path / "routes.parquet")["route"].str.len().eq(13).all()


def test_a_search_that_was_killed_goes_on_and_is_bit_equal(tmp_path):
    own_folder(tmp_path / "own", layers=4)
    words = [
        "oracle",
        "--model",
        str(tmp_path / "own"),
        *["--documents", "4", "--length", "8", "--batch-size", "1", "--out"],
    ]
    command = [sys.executable, "-m", "duoviz", *words, str(tmp_path / "killed")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while len(parts := list((tmp_path / "killed").glob("survey-*.parts/*.npz"))) < 5 and process.poll() is None:
            time.sleep(0.02)
        process.kill()
    assert 5 <= len(parts) < 20  # of five budgets and four texts
    stamps = {path: path.stat().st_mtime_ns for path in parts}
    computed = []
    store.Store.part = spied(store.Store.part, computed)
    try:
        assert run(*words, tmp_path / "killed").exit_code == 0
    finally:
        store.Store.part = store.Store.part.__wrapped__
    assert len(computed) <= 20 - len(stamps)
    assert run(*words, tmp_path / "whole").exit_code == 0
    resumed, whole = (pd.read_parquet(tmp_path / name / "routes.parquet") for name in ("killed", "whole"))
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)
    assert not list((tmp_path / "killed").glob("*.parts"))


@pytest.mark.parametrize("command", ["convert", "router"])
def test_a_full_disk_ends_in_one_line_and_nothing_is_lost(command, tmp_path):
    """Whatever it is that cannot be written, a repeated command ends where it would have ended."""
    own_folder(tmp_path / "own", dense_model("gpt2", vocab=4096, context=128))
    (tmp_path / "words.txt").write_text("some words of training text, and more of them. " * 400)
    words = [command, "--model", tmp_path / "own", "--sources", f"file:{tmp_path / 'words.txt'}", "--tokens", 1024]
    words += ["--micro-rows", 1] if command == "convert" else ["--big", 0.5, "--skip", 0.5]
    for size in (100, 1_000, 10_000, 300_000):
        with files_of_at_most(size):
            done = run(*words, "--out", tmp_path / "full")
        if done.exit_code == 0:
            break
        assert done.exit_code == 2
        *before, line = [line for line in done.output.splitlines() if line]
        assert all(said.startswith(("Writing model shards", "{")) for said in before), before
        assert re.match(rf"error: .*{tmp_path}.*(cannot be written|make room)", line), line
    assert size > 1_000, "nothing failed"
    for out in ("full", "whole"):
        done = run(*words, "--out", tmp_path / out)
        assert done.exit_code == 0, done.output
    made = "model/model.safetensors" if command == "convert" else "router.safetensors"
    full, whole = (load_file(tmp_path / out / made) for out in ("full", "whole"))
    assert full.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(full[name], tensor), name


def spied(method, computed):
    """`Store.part` that notes which parts it computes."""

    @wraps(method)
    def part(self, request, name, compute):
        return method(self, request, name, lambda: computed.append(name) or compute())

    return part


FAULTS = [
    (["score", "--text", "a\ud800b", "--route", "all-big"], r"half of a surrogate pair"),
    (["score", "--text", "", "--route", "all-big"], "has nothing to predict"),
    (["score", "--text", "import os", "--route", "bigg"], "each letter must be one of"),
    (["score", "--text", "import os", "--bos", "maybe"], "give auto, yes or no"),
    (["bench", "--device", "tpu"], r"device 'tpu' is not there"),
    (["convert", "--model", "data/opt-tiny", "--tokens", "-5"], r"tokens -5: give a whole number"),
    (["convert", "--model", "data/opt-tiny", "--learning-rate", "inf"], "learning_rate inf: give a finite number"),
    (["router", "--tokens", "-5"], "tokens -5: give a whole number"),
    (["oracle", "--documents", "-2"], "documents -2: give a whole number"),
    (["oracle", "--max-flops", "nan"], "max_flops nan: give a number above 0"),
]


@pytest.mark.parametrize(("given", "message"), FAULTS, ids=[" ".join(given)[:40] for given, _ in FAULTS])
def test_faults_end_in_one_line(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = [] if given[0] == "score" else ["--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*given, *out])
    assert result.exit_code == 2, result.output
    assert re.search(message, result.stderr)
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_no_text_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "half.jsonl").write_text(json.dumps({"text": "a \ud800 b"}) + "\n")
    (tmp_path / "deep.jsonl").write_text("[" * 100_000 + "]" * 100_000 + "\n")
    for name, message in (("half", "document half-0 holds '.ud800' at character 2"), ("deep", "line 1 is damaged")):
        result = CliRunner().invoke(app, ["oracle", "--source", f"file:{tmp_path / name}.jsonl", "--length", "8"])
        assert result.exit_code == 2, result.output
        assert re.search(message, result.stderr)


def test_ctrl_c_ends_in_one_line_that_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("duoviz.study.Study.survey", interrupted)
    result = CliRunner().invoke(app, ["oracle", "--documents", "1", "--length", "8", "--out", str(tmp_path / "x")])
    assert result.exit_code == 130
    assert f"stopped: finished batches of texts are kept in {tmp_path / 'x'}; repeat the command" in result.stderr


def test_a_reader_that_has_seen_enough_ends_a_command_in_silence(monkeypatch):
    """`head`, for example."""

    def unread(*args, **kwargs):
        raise BrokenPipeError(EPIPE, "Broken pipe")

    monkeypatch.setattr("duoviz.model.LanguageModel.score", unread)
    result = CliRunner().invoke(app, ["score", "--text", "seen enough"])
    assert (result.exit_code, result.output) == (1, "")


def test_a_dry_run_says_what_a_search_takes_and_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    asked = ["oracle", "--documents", "1", "--length", "8", "--context", "reference:big", "--out", str(tmp_path / "x")]
    result = CliRunner().invoke(app, [*asked, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert re.search(r"1 documents, 7 positions: 4\.\de\+10 FLOPs, about \d+ s on this machine", result.stderr)
    assert not (tmp_path / "x").exists()
    first, again = (CliRunner().invoke(app, asked) for _ in range(2))
    assert "about" in first.stderr
    assert "about" not in again.stderr
    assert f"found in {tmp_path / 'x'}" in again.stderr
    assert first.stdout == again.stdout
    assert CliRunner().invoke(app, [*asked, "--max-flops", "1"]).exit_code == 0
