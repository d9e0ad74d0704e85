import json
import os
import shutil
import sys

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from duoviz import figures, frames
from duoviz.figures import export


@pytest.fixture
def means():
    return pd.DataFrame(
        {
            "name": ["<b>", "c & d", "e"],
            "source": ["s", "s", "t"],
            "mean": [1.0, 2.0, 3.0],
            "low": [0.5, 1.5, 2.5],
            "high": [2.0, 2.25, 3.5],
            "positions": 3,
            "documents": 2,
        }
    )


def summary():
    rows = [(s, p, k) for s in ("prose", "<code>") for p in ("oracle", "fixed") for k in range(3)]
    table = pd.DataFrame([dict(zip(("source", "policy", "budget"), row)) for row in rows])
    loss = np.random.default_rng(0).uniform(2, 3, len(table))
    ends = {"apart_low": loss - 0.1, "apart_high": loss + 0.3}
    counts = {"positions": 8, "documents": 2}
    return table.assign(context="c", realised_big=table["budget"], loss_nats=loss, **ends, **counts)


def test_drawn_holds_the_marks_and_their_intervals(means):
    table = figures.drawn(figures.intervals(means, x="nats", title="t"))
    assert table.columns.tolist() == ["trace", "panel", "kind", "x", "y", "low", "high"]
    assert table["trace"].tolist() == means["source"].tolist()
    assert table["y"].tolist() == ["<b>", "c & d", "e"]
    for column, name in (("x", "mean"), ("low", "low"), ("high", "high")):
        np.testing.assert_allclose(table[column], means[name])


def test_drawn_knows_panels_and_error_bars():
    given = summary()
    table = figures.drawn(figures.budget_curve(given, y="loss_nats"))
    for (source, policy), part in given.groupby(["source", "policy"]):
        name = {"fixed": "best fixed route"}.get(policy, policy)
        inside = table[table["panel"] == source]
        line = inside[inside["trace"] == name]
        np.testing.assert_array_equal(line["x"], part["realised_big"])
        np.testing.assert_allclose(line["y"], part["loss_nats"])
        np.testing.assert_allclose(line[["low", "high"]], part[["apart_low", "apart_high"]])


def test_drawn_lists_the_cells_of_heatmaps():
    routes = np.array([[0, 1], [-1, -1], [2, 2]], np.int8)
    table = figures.drawn(figures.route_maps([("a", routes), ("<b>", routes[::-1])], ["x", " &", "z"], title="t"))
    assert len(table) == 12
    cells = table[table["panel"] == "<b>"].pivot(index="x", columns="y", values="value")
    np.testing.assert_array_equal(cells, routes[::-1])
    assert dict(zip(table["x"], table["label"])) == {0: "x", 1: "·&", 2: "z"}
    usage = frames.usage(routes[None], source="s", panel="p")
    table = figures.drawn(figures.routing_heatmap(usage, title="t")).query("kind == 'heatmap'")
    table = table.merge(usage, left_on=["x", "y"], right_on=["position", "layer"])
    np.testing.assert_allclose(table["value"], table["share"])
    draw = np.random.default_rng(0).normal(size=(40, 2))
    given = pd.DataFrame(draw, columns=["a", "b"]).assign(source="s", seq=np.arange(40) // 20)
    alike = frames.rank_agreement(given, ["a", "b"])
    table = figures.drawn(figures.agreement(alike, title="t"))
    np.testing.assert_allclose(table[["value", "low", "high"]], alike[["mean", "low", "high"]])


def test_drawn_holds_boxes_and_refuses_what_it_does_not_know():
    ends = {"lowerfence": [0.0], "q1": [1.0], "median": [2.0], "q3": [3.0], "upperfence": [4.0]}
    table = figures.drawn(go.Figure(go.Box(x=[5], name="all", **ends)))
    assert table.iloc[0].to_dict() == {
        "trace": "all",
        "panel": "",
        "kind": "box",
        "x": 5,
        "y": 2.0,
        "low": 0.0,
        "q1": 1.0,
        "q3": 3.0,
        "high": 4.0,
    }
    with pytest.raises(ValueError, match="kind 'pie': a table can be made of scatter, bar, box, heatmap"):
        figures.drawn(go.Figure(go.Pie(values=[1])))


def test_what_is_written_reads_back(means, tmp_path):
    figure = figures.intervals(means, x="nats", title="<t>")
    table = pd.read_csv(figures.write(figure, tmp_path / "f.csv"))
    pd.testing.assert_frame_equal(table.drop(columns="panel"), figures.drawn(figure).drop(columns="panel"))
    page = figures.write(figure, str(tmp_path / "f.html")).read_text()
    assert "plotly.js v" in page
    assert not [part for part in page.split("<script")[1:] if " src=" in part.split(">")[0]]  # nothing is fetched
    assert json.loads(figures.write(figure, tmp_path / "f.JSON").read_text())["layout"]["title"]["text"] == "&lt;t&gt;"
    with pytest.raises(ValueError, match=r"'f\.jpg': a figure is written as one of \.csv, \.html, \.json, \.svg"):
        figures.write(figure, tmp_path / "f.jpg")
    assert not (tmp_path / "f.jpg").exists()


def test_pictures_are_written_on_white(means, tmp_path):
    pytest.importorskip("kaleido")
    if not (os.environ.get("BROWSER_PATH") or any(map(shutil.which, export.BROWSERS))):
        pytest.skip("no Chromium on this machine")
    figure = figures.intervals(means, x="nats", title="A title")
    picture = figures.write(figure, tmp_path / "f.svg").read_text()
    assert picture.startswith("<svg")
    assert "A title" in picture
    assert "fill: rgb(255, 255, 255)" in picture
    assert figures.write(figure, tmp_path / "f.pdf").read_bytes().startswith(b"%PDF")
    assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"


def test_without_kaleido_pictures_say_what_to_install(means, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(ModuleNotFoundError, match=r"\.pdf needs kaleido: pip install kaleido==1\.5\.0"):
        figures.write(figures.intervals(means, x="nats", title="t"), tmp_path / "f.pdf")
