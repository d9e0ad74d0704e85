from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from plotly import graph_objects as go

from duoviz import figures, frames, oracle
from duoviz.records import Tokens


@pytest.fixture(scope="module")
def tokens():
    made = Tokens.of(np.random.default_rng(0).integers(0, 61, (3, 8)))
    return Tokens(made.ids, made.scored, made.text, made.offsets, made.documents, "prose")


@pytest.fixture(scope="module")
def curves(lm, tokens):
    return oracle.survey(lm, tokens)


def titled(figure):
    """Every axis that shows ticks has a title somewhere in its row or column, and the figure a title."""
    assert isinstance(figure, go.Figure)
    assert figure.layout.title.text
    assert any(axis.title.text for axis in figure.select_xaxes())
    assert any(axis.title.text for axis in figure.select_yaxes())
    assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"


def test_budget_curve_draws_the_summary(curves, tokens):
    summary = frames.curve_summary(list(curves.values()), tokens)
    for y, label in (("perplexity", "perplexity"), ("loss_nats", "loss (nats per token)")):
        figure = figures.budget_curve(summary, y=y)
        titled(figure)
        lines = {t.name: t for t in figure.data if t.mode == "lines+markers"}
        assert set(lines) == {"oracle", "label-free", "null control (sampled targets)"}
        np.testing.assert_allclose(lines["oracle"].y, summary[summary["policy"] == "oracle"][y])
        assert figure.layout.yaxis.title.text == label
        assert "3 documents, 21 positions" in figure.layout.title.subtitle.text


def test_gain_curve_and_bars_draw_their_tables(curves, tokens):
    gains = frames.gains(curves, tokens)
    figure = figures.gain_curve(gains)
    titled(figure)
    drawn = next(t for t in figure.data if t.name == "null control (sampled targets)")
    part = gains[gains["policy"] == "null"]
    np.testing.assert_allclose(drawn.y, part["gain_nats"])
    np.testing.assert_allclose(drawn.error_y.array, part["high_nats"] - part["gain_nats"])
    summary = frames.curve_summary(list(curves.values()), tokens)
    at = summary[summary["budget"] == 2]
    bars = figures.policy_bars(at, title="t")
    np.testing.assert_allclose(bars.data[0].y, at["perplexity"])


def test_heatmaps_draw_shares(curves):
    routes = curves["nll"].at(2)[1]
    usage = pd.concat(frames.usage(routes, source=s, panel="2 big") for s in ("prose", "code"))
    figure = figures.routing_heatmap(usage, title="t")
    titled(figure)
    grid = usage[usage["source"] == "code"].pivot(index="layer", columns="position", values="share")
    np.testing.assert_allclose(figure.data[1].z, grid.to_numpy(np.float32))
    maps = figures.route_maps([("a", routes[0]), ("b", routes[1])], ["<b>", " ", "x", "x", "\n", "y", "z"], title="t")
    titled(maps)
    np.testing.assert_array_equal(maps.data[1].z, routes[1].T)
    assert "&lt;b&gt;" in maps.layout.xaxis2.ticktext


def test_token_losses_keep_repeated_tokens_apart(curves, tokens):
    table = frames.difficulty(tokens, *curves.values(), budget=2)
    one = table[table["seq"] == 1].assign(target="same")
    figure = figures.token_losses(one[["document", "position", "target", "small_nats", "oracle_nats"]], title="t")
    titled(figure)
    assert list(figure.layout.xaxis.tickvals) == list(range(7))
    np.testing.assert_allclose(figure.data[1].y, one["oracle_nats"])


def test_distribution_draws_its_table():
    values = np.random.default_rng(0).normal(size=(50, 8))
    table = pd.DataFrame(values, columns=[f"<{n}>_gain_nats" for n in range(8)])
    figure = figures.distribution(table, list(table), x="gain (nats)", title="t")
    titled(figure)
    spread = frames.distribution(table, list(table))
    assert len(figure.data) == 16  # more columns than colours: all are drawn
    for number, column in enumerate(table):
        for trace, part, axis in zip(figure.data[2 * number :], ("histogram", "below"), ("x", "x2")):
            points = spread[(spread["quantity"] == column) & (spread["part"] == part)]
            np.testing.assert_array_equal(trace.x, points["value"])
            np.testing.assert_array_equal(trace.y, points["amount"])
            assert (trace.name, trace.xaxis) == (f"&lt;{number}&gt; gain", axis)
    bounds = np.percentile(values, [0.5, 99.5])
    for axis in (figure.layout.xaxis, figure.layout.xaxis2):
        np.testing.assert_allclose(axis.range, bounds)
        assert axis.title.text == "gain (nats)"
    assert figure.data[0].line.shape == "hv"
    assert figure.layout.title.subtitle.text == "50 positions; 99 % of the values shown"


def test_training_curves_draw_the_log():
    log = pd.DataFrame(
        {
            "tokens": [10, 10, 20, 20],
            "loss": [5.0, None, 4.0, None],
            **{f"eval_prose_{p}": [None, 5.0, None, 4.5] for p in ("big", "small", "random")},
        }
    )
    figure = figures.training_curves(log)
    titled(figure)
    assert list(figure.data[-1].x) == [10, 20]
    assert list(figure.data[-1].y) == [5.0, 4.5]


def test_intervals_and_budgets():
    table = pd.DataFrame(
        [{"name": "a", "source": "s", "mean": 1.0, "low": 0.5, "high": 2.0, "positions": 3, "documents": 2}]
    )
    figure = figures.intervals(table, x="nats", title="t")
    assert list(figure.data[0].error_x.array) == [1.0]
    assert list(figure.data[0].error_x.arrayminus) == [0.5]
    budget = figures.realised_budget(pd.DataFrame({"name": ["r"], "source": ["s"], "asked": [0.3], "realised": [0.4]}))
    titled(budget)
    assert (budget.data[0].x[0], budget.data[0].y[0]) == (0.3, 0.4)


def test_a_log_without_holdout_losses_is_drawn_and_says_so():
    figure = figures.training_curves(pd.DataFrame({"tokens": [10, 20], "loss": [5.0, 4.0]}))
    titled(figure)
    assert list(figure.data[0].y) == [5.0, 4.0]
    assert figure.layout.title.subtitle.text == "this log holds no holdout losses"


def test_contexts_of_one_policy_are_told_apart(curves, tokens):
    other = replace(curves["nll"], context="reference:big", loss_nats=curves["nll"].loss_nats + np.float32(1))
    third = replace(other, context="uniform")
    summary = frames.curve_summary([curves["nll"], other, third], tokens)
    drawn = {t.name: t for t in figures.budget_curve(summary).data if t.mode == "lines+markers"}
    assert len({(line.line.dash, line.marker.symbol) for line in drawn.values()}) == 3
    summary = frames.curve_summary([curves["nll"], other], tokens)
    figure = figures.budget_curve(summary, y="loss_nats")
    lines = {t.name: t for t in figure.data if t.mode == "lines+markers"}
    assert set(lines) == {"oracle, committed", "oracle, reference:big"}
    for name, dash, symbol in (("committed", "solid", "circle"), ("reference:big", "dash", "circle-open")):
        part, line = summary[summary["context"] == name], lines[f"oracle, {name}"]
        np.testing.assert_allclose(line.y, part["loss_nats"])
        assert (line.line.dash, line.marker.symbol) == (dash, symbol)
    bands = [t for t in figure.data if t.fill == "toself"]
    np.testing.assert_allclose(bands[0].y[:5], summary["high_nats"][:5])
    assert {band.mode for band in bands} == {"lines"}
    assert [shape.y0 for shape in figure.layout.shapes] == [summary["loss_nats"].iloc[4]]
    turned = summary[::-1]  # now reference:big, one nat above, comes first
    assert figures.budget_curve(turned, y="loss_nats").layout.shapes[0].y0 == summary["loss_nats"].iloc[9]
    with pytest.raises(ValueError, match=r"y='bits': allowed are \['perplexity', 'loss_nats'\]"):
        figures.budget_curve(summary, y="bits")


def test_gap_closed_draws_both_gaps_and_counts_what_is_missing():
    kinds = {"gap_closed": [0.2, np.nan], "label_free_gap_closed": [0.8, 0.9]}
    ends = {
        f"{k}{end}": np.array(v) + d for k, v in kinds.items() for end, d in (("", 0), ("_low", -0.1), ("_high", 0.2))
    }
    table = pd.DataFrame({"source": "s", "realised_big": [2.0, 4.0], **ends, "positions": 8, "documents": 2})
    figure = figures.gap_closed(table)
    titled(figure)
    for trace, kind in zip(figure.data, kinds):
        np.testing.assert_allclose(trace.y, kinds[kind])
        np.testing.assert_allclose(trace.error_y.arrayminus, np.array(kinds[kind]) * 0 + 0.1)
    assert "1 of 4 points missing" in figure.layout.title.subtitle.text


def test_unscored_positions_have_no_colour_and_short_maps_have_letters():
    routes = np.array([[0, 1], [-1, -1], [2, 2]], np.int8)
    figure = figures.route_maps([("a", routes)], ["x", "y", "z"], title="t")
    np.testing.assert_array_equal(figure.data[0].z, [[0, np.nan, 2], [1, np.nan, 2]])
    np.testing.assert_array_equal(figure.data[0].text, [["-", "", "B"], ["S", "", "B"]])
    long = figures.route_maps([("a", np.tile(routes, (100, 1)))], ["x"] * 300, title="t")
    assert long.data[0].text is None
    assert long.layout.xaxis.range == (-0.5, 63.5)
    with pytest.raises(ValueError, match="for 2 labels"):
        figures.route_maps([("a", routes)], ["x", "y"], title="t")


def test_names_and_titles_are_text():
    row = {
        "name": "<b>n</b>",
        "source": "<i>s</i>",
        "mean": 1.0,
        "low": 0.5,
        "high": 2.0,
        "positions": 3,
        "documents": 2,
    }
    figure = figures.intervals(pd.DataFrame([row]), x="nats", title="file:<script>.txt")
    assert figure.layout.title.text == "file:&lt;script&gt;.txt"
    assert figure.data[0].name == "&lt;i&gt;s&lt;/i&gt;"
    assert figure.data[0].y[0] == "&lt;b&gt;n&lt;/b&gt;"
    assert "<" not in figure.layout.title.subtitle.text


def test_tables_that_cannot_be_drawn_are_refused(curves, tokens):
    summary = frames.curve_summary([curves["nll"]], tokens)
    with pytest.raises(ValueError, match=r"without \['low_nats'\]"):
        figures.budget_curve(summary.drop(columns="low_nats"), y="loss_nats")
    with pytest.raises(ValueError, match="no rows"):
        figures.policy_bars(summary[:0], title="t")
    table = frames.token_losses(tokens, {"small": curves["nll"].loss_nats[0]})
    with pytest.raises(ValueError, match="give the rows of one text"):
        figures.token_losses(table, title="t")
