import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_model

from duoviz import corpus, training
from duoviz.model import RandomPolicy, load
from duoviz.training import Preset, Rows, Stage1

TINY = Preset(16, 2, 2, 32, 4, 300, 32, 32 * 4 * 12, 4, 1e-2, 1e-3, warmup=2)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Two files of text of one's own."""
    folder = tmp_path_factory.mktemp("text")
    texts = {name: [d.text for d in corpus.documents(f"shipped-{name}", limit=20)] for name in ("prose", "code")}
    (folder / "prose.txt").write_text("\n\n".join(texts["prose"]))
    (folder / "code.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts["code"]))
    return f"file:{folder / 'prose.txt'}", f"file:{folder / 'code.jsonl'}"


def plan(out, sources, **changes):
    return Stage1(
        out, **{"preset": TINY, "sources": sources, "micro_rows": 2, "evaluate_every": 4, "save_every": 5} | changes
    )


@pytest.fixture(scope="module")
def whole(sources, tmp_path_factory):
    """The model of a run that nothing interrupted."""
    return training.train(plan(tmp_path_factory.mktemp("runs") / "whole", sources))


def weights(folder):
    return load(folder).model.state_dict()


def test_a_run_cut_off_at_any_step_ends_with_the_same_weights(tmp_path, sources, whole):
    cut = plan(tmp_path / "cut", sources)
    training.train(cut, max_steps=7)
    assert json.loads((tmp_path / "cut" / "model" / "training.json").read_text())["steps"] == 7
    assert "7 of 12 steps" in (tmp_path / "cut" / "model" / "README.md").read_text()
    half_written = tmp_path / "cut" / "checkpoint-9"
    half_written.mkdir()
    (half_written / "model.safetensors").write_bytes(b"cut off here")
    assert training.last_checkpoint(cut.out) == tmp_path / "cut" / "checkpoint-7"
    resumed = training.train(cut)
    want, got = weights(whole), weights(resumed)
    assert want.keys() == got.keys()
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, atol=1e-6, rtol=1e-6)
    logs = [pd.read_parquet(folder / "training-log.parquet") for folder in (whole, resumed)]
    held = [log.filter(like="eval_").dropna().iloc[-1] for log in logs]
    pd.testing.assert_series_equal(held[0], held[1][held[0].index], check_names=False)


def test_the_log_and_the_card_say_what_was_done(sources, whole):
    log = pd.read_parquet(whole / "training-log.parquet")
    assert {"step", "tokens", "loss", "learning_rate", "grad_norm"} <= set(log)
    assert {f"eval_{source}_{name}" for source in sources for name in ("big", "small", "random")} <= set(log)
    held = log.dropna(subset=[f"eval_{sources[0]}_big"])
    assert held["step"].tolist() == [4, 8, 12]
    assert held["tokens"].tolist() == [4 * 128, 8 * 128, 12 * 128]
    assert log["loss"].dropna().iloc[-1] < log["loss"].dropna().iloc[0]
    facts, card = json.loads((whole / "training.json").read_text()), (whole / "README.md").read_text()
    assert facts["tokens"] == 12 * 128
    assert f"{facts['tokens']:,} tokens" in card
    assert f"The last rows of {sources[0]} and {sources[1]} were held out." in card
    assert "near-duplicates" not in card
    assert "near-duplicates" in training.card(facts | {"sources": corpus.PYTHON})


def test_holdout_losses_are_those_of_scoring(whole):
    lm = load(whole)
    rows = np.random.default_rng(0).integers(0, 300, (5, 32))
    found = training.holdout_losses(lm.model, {"x": torch.from_numpy(rows)}, RandomPolicy())
    assert found["eval_x_big"] == pytest.approx(lm.score(rows, "BB").mean(), abs=1e-5)
    assert found["eval_x_small"] == pytest.approx(lm.score(rows, "SS").mean(), abs=1e-5)


def test_activation_checkpointing_changes_no_weight(tmp_path, sources, whole):
    again = training.train(plan(tmp_path / "again", sources, gradient_checkpointing=True))
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(again)[name], tensor, atol=1e-6, rtol=1e-6)


def test_the_last_rows_of_own_text_are_held_out(tmp_path, sources):
    run = plan(tmp_path, sources, preset=replace(TINY, tokens=10**7))
    tokenizer = training.tokenizer_of(run)
    rows = training.rows_of(run, tokenizer)
    for source in sources:
        train, held = rows["train"][source], rows["holdout"][source]
        assert len(held) == round((len(train) + len(held)) * corpus.HOLDOUT_SHARE) > 1
        everything = corpus.packed(tokenizer, corpus.documents(source), length=32)
        np.testing.assert_array_equal(np.concatenate([train, held]), everything)
    assert {len(some) for some in training.held_out(rows["holdout"]).values()} == {
        len(h) for h in rows["holdout"].values()
    }
    few = plan(tmp_path / "short", sources)
    few.claim()
    short = training.rows_of(few, tokenizer)  # 24 rows of each are read in its 12 steps
    for source in sources:
        total = len(rows["train"][source]) + len(rows["holdout"][source])
        assert len(short["train"][source]) + len(short["holdout"][source]) == min(24 + 64, total)
    again = training.rows_of(run, tokenizer)
    np.testing.assert_array_equal(again["train"][sources[0]], rows["train"][sources[0]])


def test_python_text_is_split_by_document(tmp_path, monkeypatch):
    texts = [d.text for d in corpus.documents("shipped-code")]
    frame = pd.DataFrame({"source": "python-code", "id": [f"m{i}" for i in range(len(texts))], "text": texts})
    frame["split"] = np.where(frame.index % 4 == 0, "holdout", "train")
    monkeypatch.setattr(corpus.python, "rows", lambda _: frame)
    run = plan(tmp_path, ("python-code",))
    tokenizer = training.tokenizer_of(run)
    rows = training.rows_of(run, tokenizer)
    for split, first in (("holdout", texts[0]), ("train", texts[1])):
        text = tokenizer.decode(rows[split]["python-code"].reshape(-1).astype(int))
        assert text.startswith(first)
        assert text.count(training.text.END_OF_TEXT) >= (frame["split"] == split).sum() - 1


def test_rows_take_turns_and_every_epoch_has_its_own_order():
    parts = [np.arange(4)[:, None] * 10, np.arange(3)[:, None] * 10 + 1]
    rows = [int(Rows(parts, length=24, seed=0)[i]["input_ids"][0]) for i in range(24)]
    assert all(value % 10 == place % 2 for place, value in enumerate(rows))
    first, second = rows[0:8:2], rows[8:16:2]
    assert sorted(first) == sorted(second) == [0, 10, 20, 30]
    assert first != second
    again = Rows(parts, length=24, seed=0)
    assert [int(again[i]["input_ids"][0]) for i in (23, 0, 9)] == [rows[23], rows[0], rows[9]]


def test_a_run_starts_from_a_model_and_keeps_its_tokenizer(tmp_path, sources, whole):
    run = plan(tmp_path / "on", sources, start=whole, preset=replace(TINY, tokens=128, learning_rate=1e-9))
    moved = weights(training.train(run))
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(moved[name], tensor, atol=1e-6, rtol=1e-6)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, sources):
    lm = tiny_model(vocab=300)
    lm.model.get_input_embeddings().weight.data *= 1e38
    lm.model.save_pretrained(tmp_path / "huge")
    tokenizer = training.new_tokenizer(sources, vocab=300, context=32)
    tokenizer.save_pretrained(tmp_path / "huge")
    with pytest.raises(ValueError, match="the training loss is nan in step 2: lower the learning rate"):
        training.train(plan(tmp_path / "run", sources, start=tmp_path / "huge"))


def test_a_folder_keeps_to_one_plan(tmp_path, sources):
    plan(tmp_path, sources).claim()
    plan(tmp_path, sources, save_every=3).claim()
    with pytest.raises(ValueError, match="holds a run with seed=0: repeat that, or give another folder"):
        training.train(plan(tmp_path, sources, seed=1))


def test_bad_plans_are_refused(tmp_path, sources):
    for changes, message in (
        ({"sources": ("novels",)}, "corpus source 'novels' is unknown"),
        ({"sources": ()}, "name at least one, and each once"),
        ({"sources": sources + sources}, "name at least one, and each once"),
        ({"sources": ("shipped-prose",)}, "shipped-prose is the evaluation text and never trained on"),
        ({"micro_rows": 3}, "micro_rows 3 must divide the 4 rows"),
        ({"micro_rows": 0}, "must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            plan(tmp_path, **{"sources": sources} | changes)
    for changes in ({"start": tmp_path / "nowhere"}, {"sources": ("file:nowhere.txt",)}):
        with pytest.raises(FileNotFoundError, match="there is no such f"):
            plan(tmp_path, **{"sources": sources} | changes)
    for changes, message in (
        ({"heads": 3}, "3 heads need a multiple of 6"),
        ({"rows": 0}, "every size must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(TINY, **changes)
    (tmp_path / "word.txt").write_text("few words")
    with pytest.raises(ValueError, match="tokens of text: one row needs 32"):
        training.train(plan(tmp_path / "few", (f"file:{tmp_path / 'word.txt'}",)))
