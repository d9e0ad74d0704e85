import numpy as np
import pandas as pd
import pytest

from duoviz import corpus, figures, model, training
from duoviz.study import figure8

SHAPE = training.Preset(32, 2, 4, 64, 16, 300, 64, 64 * 32 * 4, 32, 2e-3, 1e-4)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """All models of the figure, very small."""
    folder = tmp_path_factory.mktemp("figure8")
    text = folder / "words.txt"
    text.write_text(" ".join(f"word {i % 97} and {i % 13} more, {i % 7} times" for i in range(6000)))
    ways = {"shape": SHAPE, "more_tokens": 64 * 32 * 2, "sources": [f"file:{text}"], "say": lambda _: None}
    figure8.train(folder, **ways)
    before = (folder / "duo" / "model" / "model.safetensors").read_bytes()
    figure8.train(folder, **ways)  # nothing is left to do
    assert (folder / "duo" / "model" / "model.safetensors").read_bytes() == before
    return folder


def test_the_dense_models_cost_what_the_duo_model_does(out):
    widths = [model.configuration(folder / "model").intermediate_size for folder in figure8._dense(out, SHAPE).values()]
    assert widths == [16, 28, 40, 52, 64]
    duo = model.load(out / "duo" / "model").model
    for share, folder in figure8._dense(out, SHAPE).items():
        dense = model.load(folder / "model", choices="-B").model
        routes = np.ones((4, 8, 2), np.int8)
        routes.reshape(-1)[: int(share * routes.size)] = 2
        assert model.forward_flops(duo, routes) == model.forward_flops(dense, np.full_like(routes, 2))


def test_what_is_measured_is_what_the_models_lose(out):
    tables = figure8.measured(out, shape=SHAPE, documents=3, length=40)
    duo = model.load(out / "duo" / "model")
    tokens = corpus.blocks(duo.tokenizer, "shipped-code", documents=3, length=40)
    ends = tables["shares"].query("run == 'duo' and source == 'shipped-code'").set_index("share")["loss_nats"]
    assert ends[0.0] == pytest.approx(duo.score(tokens, "SS").mean(), abs=1e-5)
    assert ends[1.0] == pytest.approx(duo.score(tokens, "BB").mean(), abs=1e-5)
    assert len(tables["shares"]) == 2 * 2 * 5
    begun = tables["beginnings"]
    assert set(begun["run"]) == {"duo", *figure8.CONVERSIONS} == set(figures.training.BEGINNINGS)
    own = model.load(out / "frozen-neurons" / "model").score(tokens, "SS") - duo.score(tokens, "SS")
    row = begun.query("run == 'frozen-neurons' and policy == 'small' and source == 'shipped-code'")
    assert row["more_nats"].item() == pytest.approx(own.mean(), abs=1e-5)
    assert tables["curves"].groupby("run")["tokens"].max().to_dict() == {
        run: 64 * 32 * (4 if run == "duo" else 2) for run in begun["run"].unique()
    }
    frozen = tables["curves"].query("run == 'frozen-random' and policy == 'big'")["loss_nats"]
    assert frozen.nunique() == 1
    figure8.write(tables, out / "tables")
    for name, table in figure8.read(out / "tables").items():
        pd.testing.assert_frame_equal(table, tables[name])
