import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_model

from duoviz import corpus, figures, training
from duoviz.families import FAMILIES
from duoviz.model import DuoCausalLM, RandomPolicy, duo, load
from duoviz.study import training_rows
from duoviz.training import PRESETS, Preset, Rows, Stage1, attention, muon

ROOT = Path(__file__).resolve().parents[1]
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


def facts_of(folder):
    return json.loads((folder / "training.json").read_text())


def test_a_run_cut_off_at_any_step_ends_with_the_same_weights(tmp_path, sources, whole):
    cut = plan(tmp_path / "cut", sources)
    training.train(cut, max_steps=7)
    assert facts_of(tmp_path / "cut" / "model")["steps"] == 7
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


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


KILLED = """
import os, pathlib, signal, sys
import torch
from duoviz import training

torch.set_num_threads(1)
preset, out, *sources = sys.argv[1:]
micro_steps, compute_loss = [], training.DuoTrainer.compute_loss

def killed(*args, **kwargs):
    micro_steps.append(1)
    if len(micro_steps) == 16:  # the second half of step 8: a checkpoint was kept at 5, the next is due at 10
        os.kill(os.getpid(), signal.SIGKILL)
    return compute_loss(*args, **kwargs)

training.DuoTrainer.compute_loss = killed
plan = training.Stage1(
    pathlib.Path(out), eval("training." + preset), tuple(sources), micro_rows=2, evaluate_every=4, save_every=5
)
training.train(plan)
"""


def test_a_run_killed_between_two_saves_ends_bit_equal(tmp_path, sources, one_thread, monkeypatch):
    """SIGKILL in the middle of a step: no handler runs, nothing is saved; the repeated command does steps 6 to 8 again."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, repr(TINY), str(tmp_path / "killed"), *sources],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    left = sorted(path.name for path in (tmp_path / "killed").glob("[cm]*"))
    assert left == ["checkpoint-5"]
    rows, compute_loss = [], training.DuoTrainer.compute_loss

    def counted(trainer, model, inputs, *args, **kwargs):
        rows.extend(inputs["row"].tolist())
        return compute_loss(trainer, model, inputs, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(training.DuoTrainer, "compute_loss", counted)
        resumed = training.train(plan(tmp_path / "killed", sources))
    assert rows == list(range(5 * 4, 12 * 4))  # it went on after the checkpoint
    whole = training.train(plan(tmp_path / "whole", sources))
    want, got = weights(whole), weights(resumed)
    assert want.keys() == got.keys()
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name
    assert facts_of(resumed) == facts_of(whole) | {"name": "killed", "legs": facts_of(resumed)["legs"]}


def test_a_run_killed_while_its_tokenizer_was_written_goes_on(tmp_path, sources, whole):
    partial = tmp_path / "killed" / "tokenizer.partial"
    partial.mkdir(parents=True)
    (partial / "tokenizer.json").write_text("{")
    again = training.train(plan(tmp_path / "killed", sources), max_steps=1)
    assert (again / "tokenizer.json").read_text() == (whole / "tokenizer.json").read_text()
    assert not partial.exists()


def test_text_that_a_model_may_have_read_is_warned_of(tmp_path, whole, caplog):
    facts = facts_of(whole)
    facts["legs"][0] |= {"sources": ["python-prose"], "split": "text"}
    (tmp_path / "training.json").write_text(json.dumps(facts))
    for source in ("python-code", "shipped-prose"):
        training.warn_of_split(tmp_path, source)
    training.warn_of_split(tmp_path / "nowhere", "python-prose")
    training.warn_of_split("owner/name", "python-prose")
    assert not caplog.records
    training.warn_of_split(tmp_path, "python-prose")
    (record,) = caplog.records
    assert (
        "trained on python-prose split by the text of its documents, which is split by their name now" in record.message
    )
    caplog.clear()
    facts["legs"][0]["split"] = corpus.SPLIT
    (tmp_path / "training.json").write_text(json.dumps(facts))
    training.warn_of_split(tmp_path, "python-prose")
    assert not caplog.records


def test_the_log_and_the_card_say_what_was_done(sources, whole):
    log = pd.read_parquet(whole / "training-log.parquet")
    assert {"step", "tokens", "loss", "learning_rate", "grad_norm"} <= set(log)
    assert {f"eval_{source}_{name}" for source in sources for name in ("big", "small", "random")} <= set(log)
    held = log.dropna(subset=[f"eval_{sources[0]}_big"])
    assert held["step"].tolist() == [4, 8, 12]
    assert held["tokens"].tolist() == [4 * 128, 8 * 128, 12 * 128]
    assert log["loss"].dropna().iloc[-1] < log["loss"].dropna().iloc[0]
    facts, card = facts_of(whole), (whole / "README.md").read_text()
    assert facts["tokens"] == 12 * 128
    assert f"{facts['tokens']:,} tokens" in card
    assert f"Every 25th row of {sources[0]} and {sources[1]} was held out." in card
    assert "near-duplicates" not in card
    assert "1,536 tokens of" in card
    assert "12 steps\nof 4 rows of 32 tokens" in card
    assert "0.01 after 1 steps, then a cosine to 0.001; seed 0" in card
    assert "Leg" not in card
    assert "python -m" not in card  # its shape is no preset of the command line
    assert "near-duplicates" in training.card(facts | {"legs": [facts["legs"][0] | {"sources": corpus.PYTHON}]})


def test_the_card_gives_the_command_of_every_leg(tmp_path):
    first = Stage1(tmp_path / "first", seed=3).leg(PRESETS["tiny"].steps)
    paper = replace(PRESETS["paper"], tokens=10**9)
    policy = RandomPolicy(0.6, 0.3, 0.1)
    second = Stage1(tmp_path / "on", paper, ("python-code",), policy, micro_rows=16, start=tmp_path).leg(5)
    facts = {"name": "on", "tokens": 1, "holdout_nats": {}, "legs": [first, second | {"start": "data/my model"}]}
    card = training.card(facts)
    assert "runs/first \\\n        --sources python-prose,python-code --seed 3 --micro-rows 8\n" in card
    assert "runs/on --preset paper --start 'data/my model' --tokens 1000000000 \\\n" in card
    assert "--sources python-code --big 0.6 --skip 0.1 --seed 0 --micro-rows 16\n" in card
    assert "cut off" not in card
    assert "not finished: 5 of 238 steps of leg 2" in card
    alone = training.card(facts | {"legs": facts["legs"][1:]})
    assert "It started from the model in data/my model,\nwhich came without a record of its own training." in alone


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


def test_every_25th_row_of_own_text_is_held_out_however_many_are_read(tmp_path, sources):
    run = plan(tmp_path, sources, preset=replace(TINY, tokens=10**7))
    tokenizer = training.tokenizer_of(run)
    rows = training.rows_of(run, tokenizer)
    for source in sources:
        train, held = rows["train"][source], rows["holdout"][source]
        everything = corpus.packed(tokenizer, corpus.documents(source), length=32)
        np.testing.assert_array_equal(held, everything[::25])
        np.testing.assert_array_equal(train, np.delete(everything, np.s_[::25], 0))
        assert len(held) > 1
    assert {len(some) for some in training.held_out(rows["holdout"]).values()} == {
        len(h) for h in rows["holdout"].values()
    }
    few = plan(tmp_path / "short", sources)
    few.claim()
    short = training.rows_of(few, tokenizer)  # 24 rows of each are read in its 12 steps
    for source in sources:
        for split, least in (("train", 24), ("holdout", 1)):  # a beginning of the same
            np.testing.assert_array_equal(short[split][source], rows[split][source][: len(short[split][source])])
            assert least <= len(short[split][source]) < len(rows[split][source])
    again = training.rows_of(run, tokenizer)
    np.testing.assert_array_equal(again["train"][sources[0]], rows["train"][sources[0]])


def test_every_batch_takes_routes_of_its_own(tmp_path, sources, monkeypatch):
    seen = []
    forward = DuoCausalLM.forward
    monkeypatch.setattr(
        DuoCausalLM, "forward", lambda self, *a, duo_policy=None, **k: seen.append(duo_policy) or forward(self, *a, **k)
    )
    for seed in (0, 1):
        training.train(plan(tmp_path / str(seed), sources, seed=seed), max_steps=3)
    firsts = range(0, 12, 2)  # three steps of two batches of two rows
    drawn = {(policy.seed, policy.first) for policy in seen if policy is not None}
    assert {one for one in drawn if one[0] in (0, 1_000_003)} >= {(s, row) for s in (0, 1_000_003) for row in firsts}


@pytest.mark.parametrize("any_share", [False, True])
def test_a_rows_routes_do_not_depend_on_the_rows_beside_it(any_share):
    policy = RandomPolicy(0.5, 0.3, 0.2, seed=7, any_share=any_share)
    whole = policy.routes(6, 9, 4)
    assert torch.equal(torch.cat([replace(policy, first=at).routes(2, 9, 4) for at in (0, 2, 4)]), whole)


def test_what_several_processes_cannot_do_is_refused(tmp_path, sources, monkeypatch):
    with pytest.raises(ValueError, match="shard with muon"):
        plan(tmp_path, sources, shard=True, optimizer="muon")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match=r"3 processes with micro_rows 2 must divide the 4 rows of a step"):
        training.train(plan(tmp_path, sources))
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", property(lambda _: 2))
    with pytest.raises(ValueError, match=r"2 GPUs in one process: start one for each, torchrun"):
        training.train(plan(tmp_path, sources))


def test_a_shape_of_every_family_is_that_of_the_preset():
    for name in FAMILIES:
        config = replace(TINY, family=name).config()
        assert getattr(config, "head_dim", None) in (None, 8)
        assert (config.hidden_size, FAMILIES[name].ffn_width(config), config.num_hidden_layers) == (16, 32, 2)


def test_the_card_of_a_dense_model_says_what_was_skipped(tmp_path, sources):
    for policy, said in (
        (RandomPolicy(0.5, 0.0, 0.5), "took the FFN or none"),
        (RandomPolicy(1.0, 0.0, 0.0), "every FFN"),
    ):
        folder = training.train(plan(tmp_path / said[:3], sources, policy=policy), max_steps=1)
        assert said in (folder / "README.md").read_text()


def test_every_source_has_rows_of_its_own(tmp_path, whole):
    files = tmp_path / "a" / "b.txt", tmp_path / "a-b.txt"
    files[0].parent.mkdir()
    for number, file in enumerate(files):
        file.write_text(f"{number} " * 400)
    run = plan(tmp_path / "run", tuple(f"file:{file}" for file in files))
    run.claim()
    one, other = training.rows_of(run, load(whole).tokenizer)["train"].values()
    assert not np.array_equal(one, other)


def test_python_text_is_split_by_document(tmp_path, monkeypatch):
    texts = [d.text for d in corpus.documents("shipped-code")]
    frame = pd.DataFrame({"source": "python-code", "id": [f"m{i}" for i in range(len(texts))], "text": texts})
    frame["split"] = np.where(frame.index % 4 == 0, "holdout", "train")
    monkeypatch.setattr(corpus.python, "rows", lambda _: frame)
    run = plan(tmp_path, ("python-code",))
    tokenizer = training.tokenizer_of(run)
    rows = training.rows_of(run, tokenizer)
    for split in ("holdout", "train"):
        text = tokenizer.decode(rows[split]["python-code"].reshape(-1).astype(int))
        documents = [document.text for document in corpus.documents("python-code", split=split)]
        assert set(documents) <= set(frame.loc[frame["split"] == split, "text"])
        assert text.startswith(documents[0])
        assert text.count(training.text.END_OF_TEXT) >= len(documents) - 1
    drawn = training_rows(tokenizer, 10**6, length=32, sources=("python-code",))
    known = {d.text for d in corpus.documents("python-code", split="train")}
    whole = tokenizer.decode(drawn.reshape(-1).astype(int)).split(training.text.END_OF_TEXT)
    assert len(whole) > 3
    assert set(whole[:-1]) <= known  # the last is cut


def test_a_tokenizer_learns_from_no_holdout(monkeypatch):
    asked = []
    stream = corpus.stream
    monkeypatch.setattr(corpus, "stream", lambda source, split: asked.append(split) or stream("shipped-prose"))
    training.new_tokenizer(["python-prose"], vocab=300, context=32)
    assert asked == ["train"]


def test_distillation_weighs_the_models_predictions_against_the_text(tmp_path, whole, sources):
    """The first step's objective is a mean of the two losses with the weight that is given."""
    given = {"start": whole, "evaluate_every": 1, "policy": RandomPolicy(0.0, 1.0, 0.0)}

    def first(distil, micro_rows=2):
        run = plan(tmp_path / f"{distil}-{micro_rows}", sources, distil=distil, micro_rows=micro_rows, **given)
        folder = training.train(run, max_steps=1)
        log = pd.read_parquet(folder / "training-log.parquet")
        return log["objective" if distil else "loss"].dropna().iloc[-1]

    text, mixed, taught = (first(distil) for distil in (0.0, 0.25, 1.0))
    assert taught < text
    assert mixed == pytest.approx(0.75 * text + 0.25 * taught, rel=2e-4)
    assert first(1.0, micro_rows=4) == pytest.approx(taught, rel=2e-4)  # however the rows are cut into batches


def test_products_in_bfloat16_leave_the_weights_in_float32(tmp_path, sources, whole, monkeypatch):
    fused = attention.sdpa_attention_forward

    def outside_of_training(*args, **kwargs):
        assert not torch.is_autocast_enabled("cpu")
        return fused(*args, **kwargs)

    monkeypatch.setattr(attention, "sdpa_attention_forward", outside_of_training)
    short = training.train(plan(tmp_path / "short", sources, bf16=True))
    same, other = weights(whole), weights(short)
    assert all(one.dtype == torch.float32 for one in other.values())
    assert any((same[name] != other[name]).any() for name in same)
    losses = [facts_of(folder)["holdout_nats"] for folder in (whole, short)]
    for name, value in losses[0].items():
        assert losses[1][name] == pytest.approx(value, rel=0.01)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mistral", "qwen3"])
def test_attention_as_products_is_that_of_the_fused_one(family):
    """Where a layer has a window, too: then it is left to the fused one, which takes a mask."""
    torch.manual_seed(0)
    config = replace(TINY, family=family).config()
    if hasattr(config, "sliding_window"):
        config.sliding_window = 4
    model = duo.CLASSES[family][1](config)
    ids = torch.randint(0, TINY.vocab, (2, TINY.context))
    found = {}
    for name in ("sdpa", attention.NAME):
        model.set_attn_implementation("sdpa")
        if name != "sdpa":
            attention.use(model)
        with torch.autocast("cpu", torch.bfloat16):
            found[name] = model(ids, labels=ids, use_cache=False).loss
        model.zero_grad()
        found[name].backward()
        found[name, "gradient"] = [one.grad.clone() for one in model.parameters() if one.grad is not None]
    torch.testing.assert_close(found[attention.NAME], found["sdpa"], atol=2e-3, rtol=0)
    for one, other in zip(found[attention.NAME, "gradient"], found["sdpa", "gradient"]):
        assert float((one - other).norm()) <= 0.03 * float(other.norm())


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


def first_leg(folder, sources):
    """A cut run's model with a record as it was written when a model had but one leg."""
    run = plan(folder / "run", sources, micro_rows=4)
    shutil.copytree(training.train(run, max_steps=7), folder / "kept")
    facts = facts_of(folder / "kept")
    leg = facts.pop("legs")[0]
    old = {**leg, **facts, "continued": False}
    for name in ("name", "start"):
        del old[name]
    (folder / "kept" / "training.json").write_text(json.dumps(old))
    return folder / "kept"


def test_a_continued_run_keeps_the_record_of_every_leg(tmp_path, sources):
    kept = first_leg(tmp_path, sources)
    earlier = pd.read_parquet(kept / "training-log.parquet")
    run = plan(tmp_path / "on", sources, start=kept, seed=1, preset=replace(TINY, tokens=128 * 5))
    folder = training.train(run)
    facts, card = facts_of(folder), (folder / "README.md").read_text()
    legs = facts["legs"]
    assert [leg["name"] for leg in legs] == ["kept", "on"]
    assert [leg["start"] for leg in legs] == [None, str(kept)]
    assert [leg["seed"] for leg in legs] == [0, 1]
    assert [leg["micro_rows"] for leg in legs] == [4, 2]
    assert [(leg["steps"], leg["steps_planned"]) for leg in legs] == [(7, 12), (5, 5)]
    assert [leg["tokens"] for leg in legs] == [7 * 128, 5 * 128]
    assert (facts["steps"], facts["tokens"]) == (12, 12 * 128)
    assert "Trained on 1,536 tokens in 2 legs" in card
    assert "Leg 1 was cut off after 7 of 12 steps, before its learning rate had come down; leg 2 went on" in card
    assert "not finished" not in card
    assert (
        card.index("Leg 1: 896 tokens") < card.index("seed 0") < card.index("Leg 2: 640 tokens") < card.index("seed 1")
    )
    log = pd.read_parquet(folder / "training-log.parquet")
    pd.testing.assert_frame_equal(log[: len(earlier)][list(earlier)], earlier, check_dtype=False)
    assert log["step"][len(earlier) :].between(8, 12).all()
    assert (log["tokens"] == log["step"] * 128).all()
    curve = next(line for line in figures.training_curves(log).data if line.name == "all big")
    assert list(curve.x) == [4 * 128, 7 * 128, 11 * 128, 12 * 128]
    again = training.train(plan(tmp_path / "third", sources, start=folder, preset=replace(TINY, tokens=128)))
    assert facts_of(again)["legs"][:2] == legs
    assert facts_of(again)["tokens"] == 13 * 128


def test_the_record_outlives_the_model_it_came_from(tmp_path, sources):
    """The continued model takes the place of the model it started from, and then the command is repeated."""
    kept = first_leg(tmp_path, sources)
    run = plan(tmp_path / "on", sources, start=kept, seed=1, preset=replace(TINY, tokens=128 * 5))
    folder = training.train(run)
    shutil.rmtree(tmp_path / "on" / "start")  # a run of before the copy was made
    before = [(folder / name).read_bytes() for name in ("training.json", "README.md")]
    log = pd.read_parquet(folder / "training-log.parquet")
    for _ in range(2):
        training.train(run)
        assert [(folder / name).read_bytes() for name in ("training.json", "README.md")] == before
        pd.testing.assert_frame_equal(pd.read_parquet(folder / "training-log.parquet"), log, check_like=True)
        shutil.rmtree(kept)
        shutil.copytree(folder, kept)


def test_a_model_without_a_record_stays_without_one(tmp_path, sources, whole):
    kept = tmp_path / "kept"
    shutil.copytree(whole, kept)
    (kept / "training.json").unlink()
    run = plan(tmp_path / "on", sources, start=kept, preset=replace(TINY, tokens=128))
    folder = training.train(run)
    assert f"started from the model in {kept},\nwhich came without a record" in (folder / "README.md").read_text()
    facts = facts_of(folder)
    shutil.copy(folder / "training.json", kept)
    training.train(run)
    assert facts_of(folder) == facts
    assert facts["tokens"] == 128


def test_bad_records_are_named_before_training(tmp_path, sources, whole):
    kept = tmp_path / "kept"
    shutil.copytree(whole, kept)
    good = facts_of(kept)
    run = plan(tmp_path / "on", sources, start=kept)
    continued = good["legs"][0] | {"continued": True}
    for text, said in (
        ("{", r"training\.json is damaged"),
        ("[]", r"training\.json is damaged"),
        ("{}", r"training\.json is damaged .*KeyError\('preset'\).*: put the right file there, or remove it"),
        (json.dumps(continued), "continued, but not from what: repeat the command that trained it"),
    ):
        (kept / "training.json").write_text(text)
        with pytest.raises(ValueError, match=said):
            training.train(run)
    (kept / "training.json").write_text(json.dumps(good))
    (kept / "training-log.parquet").write_bytes(b"cut off here")
    with pytest.raises(ValueError, match=r"training-log\.parquet is damaged"):
        training.train(run)
    assert [path.name for path in (tmp_path / "on").iterdir()] == ["plan.json"]


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, sources):
    lm = tiny_model(vocab=300)
    lm.model.get_input_embeddings().weight.data *= 1e38
    lm.model.save_pretrained(tmp_path / "huge")
    tokenizer = training.new_tokenizer(sources, vocab=300, context=32)
    tokenizer.save_pretrained(tmp_path / "huge")
    shape = replace(training.Preset.of(lm.model.config, tokens=TINY.tokens, learning_rate=1e-3), rows=TINY.rows)
    with pytest.raises(ValueError, match="the training loss is nan in step 2: lower the learning rate"):
        training.train(plan(tmp_path / "run", sources, start=tmp_path / "huge", preset=shape))


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
        ({"micro_rows": 0}, "micro_rows 0: give a whole number, at least 1"),
        ({"preset": replace(TINY, heads=3)}, "3 heads need a multiple of 6"),
    ):
        with pytest.raises(ValueError, match=message):
            plan(tmp_path, **{"sources": sources} | changes)
    for changes in ({"start": tmp_path / "nowhere"}, {"sources": ("file:nowhere.txt",)}):
        with pytest.raises(FileNotFoundError, match="there is no such f"):
            plan(tmp_path, **{"sources": sources} | changes)
    with pytest.raises(ValueError, match="give a"):
        replace(TINY, rows=0)
    (tmp_path / "word.txt").write_text("few words")
    with pytest.raises(ValueError, match="tokens of text: one row needs 32"):
        training.train(plan(tmp_path / "few", (f"file:{tmp_path / 'word.txt'}",)))


def test_muon_makes_updates_orthogonal_and_leaves_the_rest_to_adamw():
    torch.manual_seed(0)
    for shape in ((3, 8, 8), (8, 32), (32, 8)):
        x = torch.randn(shape)
        values = torch.linalg.svdvals(muon.orthogonal(x))
        assert values.min() > 0.6
        assert values.max() < 1.3
        u, _, v = torch.linalg.svd(x, full_matrices=False)
        assert ((muon.orthogonal(x) - u @ v).norm() / (u @ v).norm()) < 0.3
    matrices = [torch.nn.Parameter(torch.randn(8, 16)) for _ in range(3)]
    rest = [torch.nn.Parameter(torch.randn(5))]
    alone = torch.nn.Parameter(rest[0].detach().clone())
    before = [one.detach().clone() for one in matrices]
    together = muon.Muon(matrices, rest, lr=0.01, weight_decay=0.1)
    adamw = torch.optim.AdamW([alone], lr=0.01, weight_decay=0.0, betas=(0.9, 0.95))
    gradients = [torch.randn_like(one) for one in matrices]
    for one, gradient in zip([*matrices, *rest, alone], [*gradients, torch.ones(5), torch.ones(5)]):
        one.grad = gradient
    together.step()
    adamw.step()
    assert torch.equal(rest[0], alone)
    for one, was, gradient in zip(matrices, before, gradients):
        step = 0.02 * 0.2 * 16**0.5
        torch.testing.assert_close(one, was * (1 - 0.02 * 0.1) - step * muon.orthogonal(gradient))
        assert one.grad is gradient  # for whoever looks at gradients afterwards
    again = muon.Muon(matrices, rest, lr=0.01)
    again.load_state_dict(together.state_dict())
    torch.testing.assert_close(again.state[matrices[0]]["momentum_buffer"], 0.05 * gradients[0])
