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
    spread = figures.distribution(table, ["difficulty_nats", "null_difficulty_nats"], x="nats", title="t")
    assert sum(spread.data[0].y) <= len(table)
    assert spread.data[1].y[-1] == 1


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
