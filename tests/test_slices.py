import json

import numpy as np
import pandas as pd
import pytest

from duoviz import frames
from duoviz.places import SHIPPED as ROOT
from duoviz.records import Tokens


def pieced(*texts, documents=None):
    """Texts whose tokens are the given pieces; ids count up."""
    width = max(map(len, texts))
    offsets = np.zeros((len(texts), width, 2), np.int64)
    scored = np.zeros((len(texts), width - 1), bool)
    for seq, pieces in enumerate(texts):
        ends = np.cumsum([len(piece) for piece in pieces])
        offsets[seq, : len(pieces)] = np.stack([ends - [len(piece) for piece in pieces], ends], -1)
        scored[seq, : len(pieces) - 1] = True
    ids = np.arange(len(texts) * width).reshape(len(texts), width)
    names = documents or tuple(f"d{seq}" for seq in range(len(texts)))
    return Tokens(ids, scored, tuple(map("".join, texts)), offsets, names, "made")


CODE = {
    "def": "keyword",
    " to": "identifier",
    "tal": "continuation",
    "_2": "continuation",
    "(": "punctuation",
    "x": "identifier",
    "):": "punctuation",
    "\n   ": "newline",
    " ": "whitespace",
    "ret": "keyword",
    "urn": "continuation",
    " 4": "number",
    "2": "number",
    ".": "punctuation",
    "append": "identifier",
    "(in": "identifier",
    "dex3": "continuation",
    "7": "continuation",
    "": "continuation",
}
PROSE = {
    "It": "word",
    " does": "word",
    "n": "continuation",
    "'t": "continuation",
    " matter": "word",
    ",": "punctuation",
    " for": "word",
    " 30": "number",
    "th": "continuation",
    " Straß": "word",
    "en": "continuation",
    " “": "punctuation",
    "now": "word",
    "”.": "punctuation",
    "\n\n": "newline",
    "\t": "whitespace",
}


def test_tokens_are_what_their_characters_say():
    tokens = pieced(list(CODE), list(PROSE))
    found = frames.token_classes(tokens)
    assert found.shape == tokens.ids.shape
    assert dict(zip(CODE, found[0])) == CODE
    assert dict(zip(PROSE, found[1])) == PROSE
    assert set(found[1, len(PROSE) :]) == {"continuation"}  # padding
    assert set(found.ravel()) == set(frames.CLASSES)
    assert (frames.token_classes(Tokens.of(np.ones((2, 3), int))) == "continuation").all()


@pytest.mark.parametrize("kind", ["prose", "code"])
def test_code_is_told_from_prose(kind):
    lines = (ROOT / "data" / "text" / f"{kind}.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    right = sum(frames.looks_like_python(text) == (kind == "code") for text in texts)
    assert right >= len(texts) - (kind == "prose")  # 143 of 144 and 144 of 144
    assert not frames.looks_like_python("")


def test_slices_average_what_lies_in_them():
    tokens = pieced(["a", " b", ",", " c"], ["d", ",", " e"])
    table = frames.token_losses(tokens, {"small": np.array([[1, 5, 3], [7, 2, np.nan]], np.float32)})
    found = frames.slices(table, tokens, by="class", values=["small_nats"])
    assert found.columns.tolist()[:4] == ["source", "by", "slice", "small_nats"]
    assert found["slice"].tolist() == ["punctuation", "word"]
    assert found["small_nats"].tolist() == [6, 2]  # 5 and 7; 1, 3 and 2
    assert found["positions"].tolist() == [2, 3]
    assert found["documents"].tolist() == [2, 2]
    # a document of each mean 5 and 7: a standard error of 1, and one degree of freedom
    assert found["small_nats_low"].tolist() == pytest.approx([6 - 12.7062, 2], abs=1e-3)
    assert found["small_nats_high"].tolist() == pytest.approx([6 + 12.7062, 2], abs=1e-3)


def test_every_slice_is_named_by_its_borders():
    tokens = pieced(*[["x"] * 21] * 3)
    losses = np.arange(60, dtype=np.float32).reshape(3, 20) / 10
    table = frames.token_losses(tokens, {"big": losses, "small": losses})
    places = frames.slices(table, tokens, by="position", values=["big_nats", "small_nats"])
    assert places["slice"].tolist() == ["0-2", "3-4", "5-7", "8-9", "10-12", "13-14", "15-17", "18-19"]
    assert places["big_nats"].iloc[1] == pytest.approx(losses[:, 3:5].mean())
    fifths = frames.slices(table, tokens, by="loss", values=["small_nats"])
    assert fifths["slice"].iloc[0] == "0.00 to 1.18 nats"
    assert fifths["positions"].tolist() == [12] * 5
    same = frames.slices(table.assign(small_nats=2.0), tokens, by="loss", values=["small_nats"])
    assert same["slice"].tolist() == ["2.00 nats"]
    other = frames.slices(table.drop(columns="small_nats"), tokens, by="loss", values=["big_nats"])
    assert other["slice"].tolist() == fifths["slice"].tolist()


def test_frequency_is_that_of_the_target():
    tokens = pieced(["x"] * 6)
    counts = np.array([9999, 0, 5, 50, 500, 9_446 + 80_000])  # of 100,000
    table = frames.token_losses(tokens, {"small": np.arange(5, dtype=np.float32)[None]})
    found = frames.slices(table, tokens, by="frequency", values=["small_nats"], counts=counts)
    assert found["slice"].tolist() == ["0", "below 1", "1 to 10", "10 to 100", "over 100"]
    assert found["small_nats"].tolist() == [0, 1, 2, 3, 4]
    assert found["small_nats_low"].isna().all()  # one document


@pytest.mark.parametrize("by", ["class", "position", "loss", "frequency"])
def test_slices_leave_no_position_out(by):
    tokens = pieced(list(CODE), list(PROSE), list(CODE)[:7])
    losses = np.random.default_rng(0).normal(size=tokens.scored.shape).astype(np.float32)
    table = frames.token_losses(tokens, {"small": losses})
    counts = np.bincount(tokens.ids.ravel())
    found = frames.slices(table, tokens, by=by, values=["small_nats"], counts=counts)
    assert found["positions"].sum() == len(table) == tokens.scored.sum()
    assert (found["small_nats"] * found["positions"]).sum() == pytest.approx(table["small_nats"].sum(), abs=1e-4)


def test_slices_that_cannot_be_made_are_refused():
    tokens = pieced(["a", "b", "c"])
    table = frames.token_losses(tokens, {"small": np.zeros((1, 2), np.float32)})
    with pytest.raises(ValueError, match="by='length': allowed are class, position, loss, frequency"):
        frames.slices(table, tokens, by="length", values=["small_nats"])
    with pytest.raises(ValueError, match="give counts"):
        frames.slices(table, tokens, by="frequency", values=["small_nats"])
    with pytest.raises(ValueError, match="counts of 2 tokens, 2 in all, for ids up to 2"):
        frames.slices(table, tokens, by="frequency", values=["small_nats"], counts=np.ones(2, int))
    with pytest.raises(ValueError, match="no column in nats"):
        frames.slices(table.drop(columns="small_nats"), tokens, by="loss", values=["position"])


def test_medians_follow_a_monotone_relation():
    x = np.random.default_rng(0).permutation(100).astype(float)
    table = pd.DataFrame({"source": "s", "x": [*x, 1000.0], "y": [*(2 * x), np.nan]})
    found = frames.medians(table, x="x", y="y")
    assert found["part"].tolist() == list(range(10))
    np.testing.assert_allclose(found["x"], np.arange(10) * 10 + 4.5)
    np.testing.assert_allclose(found["y"], 2 * found["x"])
    assert (found["positions"] == 10).all()
    flat = frames.medians(table.assign(x=[1.0] * 90 + list(range(2, 13))), x="x", y="y")
    assert flat["positions"].sum() == 100


def test_extremes_show_tokens_in_their_text():
    tokens = pieced(["The", " cat", " sat", "."], ["x" * 50, "\n", "<b>"])
    losses = np.array([[1, 9, 2], [3, 7, np.nan]], np.float32)
    table = frames.token_losses(tokens, {"small": losses, "gain": -losses})
    found = frames.extremes(table, tokens, "gain_nats", number=2)
    assert found.columns.tolist() == ["kind", "before", "target", "gain_nats", "small_nats"]
    assert found["kind"].tolist() == ["highest"] * 2 + ["lowest"] * 2
    assert found["target"].tolist() == [" cat", ".", " sat", "<b>"]
    assert found["before"].tolist() == ["The", "The cat sat", "The cat", "x" * 39 + "\n"]
    assert found["small_nats"].tolist() == [1, 2, 9, 7]
    assert frames.extremes(table, tokens, "small_nats", number=1).columns.tolist()[3:] == ["small_nats"]
    with pytest.raises(ValueError, match="column 'loss': the table has"):
        frames.extremes(table, tokens, "loss")


def test_density_counts_every_row_in_its_range_once():
    draw = np.random.default_rng(0)
    table = pd.DataFrame({"source": "s", "x": draw.normal(size=2000), "y": draw.normal(size=2000)})
    table.loc[0, "x"] = np.nan
    cells = frames.density(table, x="x", y="y", bins=(6, 4))
    assert len(cells) == 24
    known = table.dropna()
    ends = {name: np.percentile(known[name], [0.5, 99.5]) for name in "xy"}
    inside = known[known["x"].between(*ends["x"]) & known["y"].between(*ends["y"])]
    assert cells["positions"].sum() == len(inside)
    cell, steps = cells.iloc[13], [(high - low) / size for (low, high), size in zip(ends.values(), (6, 4))]
    near = (abs(known["x"] - cell["x"]) < steps[0] / 2) & (abs(known["y"] - cell["y"]) < steps[1] / 2)
    assert cell["positions"] == near.sum()
