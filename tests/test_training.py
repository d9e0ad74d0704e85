import json

import numpy as np
import pandas as pd
import pytest
import torch

from duoviz import corpus, training
from duoviz.model import RandomPolicy, load
from duoviz.training import Preset, Rows, Stage1

TINY = Preset(16, 2, 2, 32, 4, 300, 32, 32 * 4 * 12, 4, 1e-2, 1e-3, warmup=2)


@pytest.fixture(scope="module", autouse=True)
def short_sources():
    """The python sources cut to a few documents, so that a whole run takes seconds."""
    read = corpus.documents

    def few(source, *, split="holdout", limit=None):
        return read("shipped-prose" if source == "python-prose" else "shipped-code")[:: 2 if split == "train" else 5]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.corpus, "documents", few)
        yield


def weights(folder):
    return load(folder).model.state_dict()


def test_a_run_cut_off_at_any_step_ends_with_the_same_weights(tmp_path):
    whole = training.train(Stage1(tmp_path / "whole", TINY, micro_rows=2, evaluate_every=4, save_every=5))
    plan = Stage1(tmp_path / "cut", TINY, micro_rows=2, evaluate_every=4, save_every=5)
    training.train(plan, max_steps=7)
    half_written = tmp_path / "cut" / "checkpoint-9"
    half_written.mkdir()
    (half_written / "model.safetensors").write_bytes(b"cut off here")
    resumed = training.train(plan)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(tensor, weights(resumed)[name], atol=1e-6, rtol=1e-6)
    assert not half_written.exists()
    log = pd.read_parquet(resumed / "training-log.parquet")
    held = log.dropna(subset=["eval_python-prose_big"])
    assert held["step"].tolist() == [4, 8, 12]
    assert held["tokens"].tolist() == [4 * 128, 8 * 128, 12 * 128]
    assert {f"eval_{s}_{p}" for s in corpus.sources.PYTHON for p in ("big", "small", "random")} <= set(log)
    facts = json.loads((resumed / "training.json").read_text())
    assert facts["tokens"] == 12 * 128
    assert f"{facts['tokens']:,} tokens" in (resumed / "README.md").read_text()


def test_holdout_losses_are_those_of_scoring(tmp_path):
    lm = load(training.train(Stage1(tmp_path, TINY, micro_rows=4)))
    rows = np.random.default_rng(0).integers(0, 300, (5, 32))
    found = training.holdout_losses(lm.model, {"x": torch.from_numpy(rows)}, RandomPolicy())
    assert found["eval_x_big"] == pytest.approx(lm.score(rows, "BB").mean(), abs=1e-5)
    assert found["eval_x_small"] == pytest.approx(lm.score(rows, "SS").mean(), abs=1e-5)


def test_rows_take_turns_and_every_epoch_has_its_own_order():
    parts = [np.arange(4)[:, None] * 10, np.arange(3)[:, None] * 10 + 1]
    rows = [int(Rows(parts, length=24, seed=0)[i]["input_ids"][0]) for i in range(24)]
    assert all(value % 10 == place % 2 for place, value in enumerate(rows))
    first, second = rows[0:8:2], rows[8:16:2]
    assert sorted(first) == sorted(second) == [0, 10, 20, 30]
    assert first != second
    again = Rows(parts, length=24, seed=0)
    assert [int(again[i]["input_ids"][0]) for i in (23, 0, 9)] == [rows[23], rows[0], rows[9]]


def test_bad_plans_are_refused(tmp_path):
    with pytest.raises(ValueError, match="corpus source 'novels' is unknown"):
        Stage1(tmp_path, sources=("novels",))
    with pytest.raises(ValueError, match="micro_rows 5 must divide the 32 rows"):
        Stage1(tmp_path, micro_rows=5)
