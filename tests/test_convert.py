import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import dense_model
from typer.testing import CliRunner

from duoviz import cli, corpus, model, training
from duoviz.convert import Imitation, begin_with_neurons, convert, imitate
from duoviz.model import RandomPolicy
from duoviz.study import train_small, training_rows

IDS = torch.from_numpy(np.random.default_rng(0).integers(0, 61, (2, 16)))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(f"word {i % 97} and {i % 13} more, {i % 7} times" for i in range(6000)))
    return f"file:{path}"


@pytest.fixture(scope="module")
def dense(text, tmp_path_factory):
    """A small dense OPT, trained a little by the command that trains the shipped one."""
    shape = training.Preset(32, 3, 4, 64, 4, 300, 32, 20_000, 8, 2e-3, 1e-4, family="opt")
    plan = training.Stage1(
        out=tmp_path_factory.mktemp("dense"), preset=shape, sources=(text,), policy=RandomPolicy(1.0, 0.0, 0.0)
    )
    return training.train(plan)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "phi3"])
def test_the_neurons_that_add_most_are_kept_and_rescaled_by_least_squares(name, tmp_path):
    dense_model(name).save_pretrained(tmp_path)
    ffn = convert(tmp_path, IDS, small=5, begin="random").decoder_layers[1].duo_ffn
    x = torch.randn(40, 32, generator=torch.Generator().manual_seed(1))
    *into, out = ffn.linears()
    weights = [linear.weight.T if name == "gpt2" else linear.weight for linear in (*into, out)]
    first, *second = [x @ w.T + (0.0 if m.bias is None else m.bias) for m, w in zip(into, weights)]
    if name == "phi3":  # one matrix for both
        first, *second = first.chunk(2, dim=-1)
    if name in ("llama", "phi3"):
        inner = torch.nn.functional.silu(first) * second[0]
    else:
        inner = torch.relu(first) if name == "opt" else torch.nn.functional.gelu(first, approximate="tanh")
    added = inner[:, None, :] * weights[-1]  # [token, hidden, neuron]
    kept = added.norm(dim=1).mean(0).topk(5).indices
    part, whole = added[..., kept].sum(-1), added.sum(-1)
    (factor,) = np.linalg.lstsq(part.detach().reshape(-1, 1), whole.detach().reshape(-1), rcond=None)[0]
    begin_with_neurons(ffn, x)
    bias = 0.0 if out.bias is None else out.bias
    torch.testing.assert_close(ffn.big(x), whole + bias, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ffn.small(x), float(factor) * part + bias, atol=1e-4, rtol=1e-4)


def test_the_width_is_a_sixteenth_unless_given_and_the_seed_counts(tmp_path):
    dense_model("llama").save_pretrained(tmp_path)
    ffns = [
        convert(tmp_path, IDS, begin="random", seed=seed).decoder_layers[0].duo_ffn.small.up_proj.weight
        for seed in (0, 0, 1)
    ]
    assert ffns[0].shape == (3, 32)
    assert torch.equal(ffns[0], ffns[1])
    assert not torch.equal(ffns[0], ffns[2])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"begin": "noise"}, "begin 'noise': allowed are neurons, random"),
        ({"small": 48}, r"small 48: give a width of 1\.\.47"),
        ({"small": 0}, r"small 0: give a width of 1\.\.47"),
        ({"ids": IDS + 50}, r"token ids 50\.\.\d+: the vocabulary has 0\.\.60"),
    ],
)
def test_conversions_that_are_refused(given, message, tmp_path):
    dense_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path, **{"ids": IDS, **given})


def test_a_duo_model_is_not_converted_again(lm, tmp_path):
    lm.model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a Duo model already"):
        convert(tmp_path, IDS)
    with pytest.raises(ValueError, match="is a Duo model already"):
        train_small(str(tmp_path), tmp_path / "out", tokens=1000)


def test_a_dense_model_has_no_shape_of_a_duo_model():
    with pytest.raises(ValueError, match="a dense opt has no small FFNs: give it some with python -m duoviz convert"):
        training.Preset.of(dense_model("opt").config, tokens=1000, learning_rate=1e-3)


def test_held_out_rows_are_not_measured(dense, text):
    tokenizer = model.load(dense, choices="-B").tokenizer
    everything = corpus.packed(tokenizer, corpus.documents(text), length=16)
    drawn = training_rows(tokenizer, 10**6, length=16, sources=[text])
    np.testing.assert_array_equal(drawn, training.apart(everything)[0])
    assert 0 < len(drawn) < len(everything)


def test_a_policy_without_small_trains_a_dense_model(dense):
    assert json.loads((dense / "config.json").read_text())["architectures"] == ["OPTForCausalLM"]
    assert "small" not in (dense / "model.safetensors").read_bytes()[:5000].decode("latin1")
    assert "A dense OPT: 3 layers of width 32" in (dense / "README.md").read_text()
    losses = json.loads((dense / "training.json").read_text())["holdout_nats"]
    (name, loss) = next(iter(losses.items()))
    assert name.endswith("_big")
    assert len(losses) == 1
    lm = model.load(dense, choices="-B")
    assert loss < np.log(300) - 1
    with pytest.raises(ValueError, match="this model has only '-B'"):
        lm.score(np.arange(10)[None], "SSS")


def test_frozen_leaves_the_dense_model_as_it_was(dense, text, tmp_path):
    folder = train_small(str(dense), tmp_path, tokens=20_000, sources=[text], micro_rows=8, frozen=True)
    before, after = model.load(dense, choices="-B"), model.load(folder)
    ids = corpus.encode(after.tokenizer, "word 5 and 6 more, 7 times word").ids
    np.testing.assert_array_equal(before.score(ids, "B-B"), after.score(ids, "B-B"))
    held = json.loads((folder / "training.json").read_text())
    begun = model.load(tmp_path / "converted")
    rows = training_rows(begun.tokenizer, 5_000, length=32, sources=[text]).astype(np.int64)
    assert after.score(rows, "SSS").mean() < begun.score(rows, "SSS").mean()
    assert [leg["conversion"] is None for leg in held["legs"]] == [True, False]
    card = " ".join((folder / "README.md").read_text().split())
    assert "begun from the most used neurons of the big ones; they alone were trained" in card
    assert "python -m duoviz convert --model" in card


def test_together_and_distilled_the_big_ffns_move_too(dense, text, tmp_path):
    ways = {"tokens": 5_000, "sources": [text], "micro_rows": 8}
    folder = train_small(str(dense), tmp_path, frozen=False, distil=0.5, **ways)
    before, after = model.load(dense, choices="-B"), model.load(folder)
    assert not torch.equal(before.head.weight, after.head.weight)
    assert train_small(str(dense), tmp_path, frozen=False, distil=0.5, **ways) == folder  # nothing left to do
    with pytest.raises(ValueError, match=r"holds a run with distil=0\.5"):
        train_small(str(dense), tmp_path, frozen=False, **ways)
    with pytest.raises(ValueError, match="holds a conversion with"):
        train_small(str(dense), tmp_path, begin="random", **ways)


def test_distillation_alone_comes_nearer_to_the_dense_model(dense, text, tmp_path):
    ways = {"tokens": 20_000, "sources": [text], "micro_rows": 8, "frozen": True}
    folder = train_small(str(dense), tmp_path, distil=1.0, **ways)
    lm = model.load(dense, choices="-B")
    rows = training_rows(lm.tokenizer, 2_000, length=32, sources=[text]).astype(np.int64)
    x, small = torch.from_numpy(rows), torch.ones(3, dtype=torch.int8)
    with torch.no_grad():
        taught = lm.model(x).logits
        found = [
            float(training.divergence(taught, model.load(path).model(x, duo_routes=small).logits))
            for path in (tmp_path / "converted", folder)
        ]
    assert 0 < found[1] < found[0]
    log = pd.read_parquet(folder / "training-log.parquet").dropna(subset=["objective"])
    assert log["objective"].iloc[-1] < log["objective"].iloc[0]
    assert log["loss"].isna().all()  # what was minimised is no loss on the text


def test_small_ffns_learn_by_themselves_and_are_saved_as_an_adapter(dense, text, tmp_path, monkeypatch):
    ways = {"sources": [text], "layer_tokens": 30_000, "learning_rate": 3e-3, "adapter": True, "frozen": True}
    write, calls = model.Checkpoint.write, []

    def killed(self, *args):
        write(self, *args)
        calls.append(self.path)
        raise KeyboardInterrupt

    monkeypatch.setattr(model.Checkpoint, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        train_small(str(dense), tmp_path, **ways)
    assert calls[0].is_file()
    monkeypatch.setattr(model.Checkpoint, "write", write)
    folder = train_small(str(dense), tmp_path, **ways)
    assert folder == tmp_path / "adapter"
    assert not calls[0].exists()
    log = pd.read_parquet(tmp_path / "converted" / "imitation-log.parquet")
    assert log["step"].tolist() == list(range(1, len(log) + 1))
    assert log["error"].iloc[-5:].mean() < 0.8 * log["error"].iloc[:5].mean()
    lm, again = model.load(dense, choices="-B"), model.load(folder)
    np.testing.assert_array_equal(again.score(IDS.numpy(), "BBB"), lm.score(IDS.numpy(), "BBB"))
    assert str(tmp_path) not in (folder / "conversion.json").read_text().replace(str(dense), "")
    with pytest.raises(ValueError, match="train them alone"):
        train_small(str(dense), tmp_path / "other", adapter=True)
    with pytest.raises(ValueError, match="layer_tokens -1"):
        train_small(str(dense), tmp_path / "other", layer_tokens=-1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2", "granite", "phi"])
def test_a_layers_error_is_what_its_own_inputs_and_outputs_say(name):
    """Of the first step, by hand: on the dense model's own forward pass, weighted by the length of what the layer is given."""
    dense = dense_model(name)
    duo = model.CLASSES[name][1](model.config_for(dense.config, small_width=4)).eval()
    duo.load_state_dict(dense.state_dict(), strict=False)
    before = {key: weight.clone() for key, weight in duo.state_dict().items()}
    rows = IDS.numpy()
    seen, hooks = [], []
    for layer in duo.decoder_layers:
        hooks.append(
            layer.register_forward_pre_hook(
                lambda _, args, kwargs: seen.append((*args, *kwargs.values())[0]), with_kwargs=True
            )
        )
        hooks.append(layer.duo_ffn.register_forward_hook(lambda _, args, made: seen.append((args[0], made))))
    with torch.no_grad():
        duo(IDS)
    for hook in hooks:
        hook.remove()
    wanted = []
    for layer, h, (x, big) in zip(duo.decoder_layers, seen[::2], seen[1::2]):
        with torch.no_grad():
            missed, weight = layer.duo_ffn.narrow(x) - big, 1 / h.square().sum(-1).flatten()
        shares = [(each.flatten(0, -2).square().sum(-1) * weight).mean() for each in (missed, big)]
        wanted.append(float(shares[0] / shares[1]))
    log = imitate(duo, rows, Imitation(tokens=8 * rows.size, rows=len(rows), learning_rate=1e-2))
    np.testing.assert_allclose(log.filter(regex=r"error_\d").iloc[0], wanted, rtol=1e-4)
    assert log["error"].iloc[0] == pytest.approx(np.mean(wanted), rel=1e-4)
    assert log["error"].iloc[-1] < log["error"].iloc[0]
    for key, weight in duo.state_dict().items():
        assert torch.equal(weight, before[key]) == (".small." not in key)
    assert all(parameter.requires_grad for parameter in duo.parameters())


def test_nothing_is_dropped_out_of_a_model_that_is_trained_on(tmp_path):
    made = dense_model("opt", dropout=0.3, attention_dropout=0.2).train()
    assert not torch.equal(made(IDS).logits, made(IDS).logits)
    training.run._stop_dropout(made)
    assert torch.equal(made(IDS).logits, made(IDS).logits)
    assert made.config.dropout == 0.3


def test_a_run_that_starts_from_a_model_has_its_shape(lm, text, tmp_path):
    lm.model.save_pretrained(tmp_path / "start")
    shape = training.Preset.of(lm.model.config, tokens=1000, learning_rate=1e-3)
    assert (shape.hidden, shape.layers, shape.big, shape.small, shape.context) == (32, 4, 64, 8, 48)
    for wrong, message in (({"layers": 5}, "has layers 4, the preset 5"), ({"context": 64}, "rows of 64 tokens")):
        with pytest.raises(ValueError, match=message):
            replace(shape, **wrong).check(lm.model.config)


def test_bad_options_are_refused_before_anything_is_converted(dense, text, tmp_path):
    for wrong, message in (({"micro_rows": 5}, "micro_rows 5 must divide"), ({"distil": 1.5}, r"distil 1\.5")):
        with pytest.raises(ValueError, match=message):
            train_small(str(dense), tmp_path, tokens=1000, sources=[text], **wrong)
    assert not (tmp_path / "converted").exists()


def test_divergence_by_hand():
    taught, found = torch.tensor([[[0.0, 0.0], [9.0, 9.0]]]), torch.tensor([[[np.log(3.0), 0.0], [0.0, 5.0]]])
    wanted = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)  # of the first token alone
    assert float(training.divergence(taught, found)) == pytest.approx(wanted)
    assert float(training.divergence(taught, found, 4)) == pytest.approx(wanted / 4)


def test_the_command_says_where_the_model_is_or_what_is_wrong(dense, text, tmp_path):
    def run(*words):
        return CliRunner().invoke(cli.app, ["convert", "--out", str(tmp_path), "--sources", text, *words])

    done = run("--model", str(dense), "--tokens", "0", "--small", "6")
    assert done.exit_code == 0, done.output
    assert f"the Duo model is in {tmp_path / 'converted'}" in done.output
    assert model.load(tmp_path / "converted").model.config.small_intermediate_size == 6
    wrong = run("--model", str(tmp_path / "nowhere"))
    assert wrong.exit_code == 2
    assert "there is no such folder" in wrong.output
    with pytest.raises(ValueError, match=r"distil 1\.5: give 0"):
        training.Stage1(out=tmp_path, distil=1.5)
    with pytest.raises(ValueError, match="frozen or distil: there is no model to keep"):
        training.Stage1(out=tmp_path, frozen=True)
