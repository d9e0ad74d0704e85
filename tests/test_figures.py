import inspect
import re
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.io
import pytest
from plotly import graph_objects as go

from duoviz import claims, figures, frames, oracle, style
from duoviz.records import Landscape, Luck, Tokens
from duoviz.routes import Space


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
    usage = pd.concat(frames.usage(routes, source=s, panel="2 big", bin=4) for s in ("prose", "code"))
    figure = figures.routing_heatmap(usage, title="t")
    titled(figure)
    part = usage[usage["source"] == "code"]
    grid = part.pivot(index="layer", columns="position", values="share").to_numpy(np.float32)
    heat, bars = ([t for t in figure.data if t.type == kind][1] for kind in ("heatmap", "bar"))
    np.testing.assert_allclose(heat.z, grid)
    np.testing.assert_allclose(bars.x, part.drop_duplicates("layer")["by_layer"])
    assert "bins of 4 positions" in figure.layout.title.subtitle.text
    apart = [t for t in figures.routing_heatmap(usage, title="t", relative=True).data if t.type == "heatmap"][1]
    np.testing.assert_allclose(apart.z, grid - 0.5, atol=1e-6)  # two of four layers
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
            assert (trace.name, trace.xaxis) == (f"&lt;{number}&gt; gain (n = 50)", axis)
            assert trace.line.dash == ("dash" if number > 5 else "solid")
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
    shares = table.assign(asked=0.3, mean=0.4, low=0.35, high=0.5)
    budget = figures.realised_budget(shares)
    titled(budget)
    assert (budget.data[0].x[0], budget.data[0].y[0]) == (0.3, 0.4)
    assert budget.data[0].error_y.array[0] == pytest.approx(0.1)


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
        np.testing.assert_allclose(line.error_y.array, part["apart_high"] - part["loss_nats"], atol=1e-6)
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
    np.testing.assert_array_equal(figure.data[0].z, [[0, -1, 2], [1, -1, 2]])
    axis = figure.layout.coloraxis
    assert (axis.cmin, axis.colorscale[:3]) == (
        -1.5,
        ((0, "rgba(0,0,0,0)"), (0.25, "rgba(0,0,0,0)"), (0.25, style.CHOICE_COLOURS[0])),
    )
    full = figures.route_maps([("a", routes[[0, 2]])], ["x", "z"], title="t").layout.coloraxis
    assert (full.cmin, full.cmax, full.colorscale[0][1]) == (-0.5, 2.5, style.CHOICE_COLOURS[0])
    np.testing.assert_array_equal(figure.data[0].text, [["-", "", "B"], ["S", "", "B"]])
    long = figures.route_maps([("a", np.tile(routes, (100, 1)))], ["x"] * 300, title="t")
    assert long.data[0].text is None
    assert len(long.layout.xaxis.ticktext) == 300
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
    with pytest.raises(ValueError, match=r"without \['apart_low'\]"):
        figures.budget_curve(summary.drop(columns="apart_low"), y="loss_nats")
    with pytest.raises(ValueError, match="no rows"):
        figures.policy_bars(summary[:0], title="t")
    table = frames.token_losses(tokens, {"small": curves["nll"].loss_nats[0]})
    with pytest.raises(ValueError, match="give the rows of one text"):
        figures.token_losses(table, title="t")


def test_long_texts_make_small_figures_quickly():
    routes = np.random.default_rng(0).integers(0, 3, (2048, 12)).astype(np.int8)
    routes[-1] = -1
    usage = frames.usage(np.stack([routes, routes[::-1]]), source="s", panel="p")
    losses = {f"{name}_nats": np.random.default_rng(0).exponential(size=2048) for name in ("small", "big", "oracle")}
    table = pd.DataFrame({"document": "d", "position": np.arange(2048, dtype=np.int32), "target": " token", **losses})
    for draw in (
        lambda: figures.route_maps([(name, routes) for name in "abc"], [" token"] * 2048, title="t"),
        lambda: figures.routing_heatmap(usage, title="t"),
        lambda: figures.token_losses(table, title="t"),
    ):
        started = time.perf_counter()
        figure = draw()
        written = figure.to_json()
        assert time.perf_counter() - started < 1  # 0.1 s on two cores
        assert figure.layout.xaxis.ticktext is None
        assert len(written) < 200_000


def test_slices_draw_their_table():
    rows = [("s", "word", 0.5, 3), ("s", "<n>", 0.25, 2), ("t", "word", 0.75, 1200)]
    table = pd.DataFrame([dict(zip(("source", "slice", "gain_nats", "positions"), row)) for row in rows])
    table = table.assign(
        by="class", documents=2, gain_nats_low=table["gain_nats"] - 0.1, gain_nats_high=table["gain_nats"] + 0.2
    )
    figure = figures.slices(table, "gain_nats", title="t")
    titled(figure)
    assert [list(trace.x) for trace in figure.data] == [[0.5, 0.25], [0.75]]
    assert [list(trace.y) for trace in figure.data] == [["word (n = 3)", "&lt;n&gt; (n = 2)"], ["word (n = 1,200)"]]
    np.testing.assert_allclose(figure.data[0].error_x.array, 0.2)
    np.testing.assert_allclose(figure.data[0].error_x.arrayminus, 0.1)
    assert [note.text for note in figure.layout.annotations] == ["s", "t"]
    assert figure.layout.xaxis2.title.text == "gain (nats)"
    assert figure.layout.title.subtitle.text.startswith(
        "s: 2 documents, 5 positions; t: 2 documents, 1,200 positions; by class"
    )


def test_difficulty_is_drawn_against_loss(curves, tokens):
    table = frames.difficulty(tokens, *curves.values(), budget=2)
    both = pd.concat([table, table.assign(source="other")])
    figure = figures.difficulty_against_loss(both, title="t")
    titled(figure)
    middle = frames.medians(table, x="small_nats", y="difficulty_nats")
    assert len(figure.data) == 6
    cells = frames.density(both, x="small_nats", y="difficulty_nats").query("source == 'other'")
    for heat, line in (figure.data[:2], figure.data[3:5]):
        drawn = cells.pivot(index="difficulty_nats", columns="small_nats", values="positions")
        np.testing.assert_array_equal(heat.z, drawn)
        np.testing.assert_allclose(heat.x, drawn.columns, rtol=1e-6)
        np.testing.assert_allclose(line.x, middle["small_nats"])
        np.testing.assert_allclose(line.y, middle["difficulty_nats"])
    assert figure.layout.title.subtitle.text == "3 documents, 21 positions each; 99 % of the values shown"


def test_gains_over_the_fixed_route_are_drawn_with_luck_behind_them(curves, tokens):
    named = {curve.name: curve for curve in curves.values()}
    fixed = replace(named["oracle"], name="fixed", loss_nats=named["oracle"].loss_nats + np.float32(0.5))
    router = replace(named["label-free"], name="router")
    table = frames.over_fixed(router, {**named, "fixed": fixed}, tokens, null_fixed=named["null"])
    figure = figures.gap_dumbbell(table)
    titled(figure)
    for policy, name in (("oracle", "oracle"), ("router", "router"), ("null", "null control: what luck gives")):
        trace = next(t for t in figure.data if t.name == name)
        np.testing.assert_allclose(trace.x, table.loc[table["policy"] == policy, "gain_nats"])
    assert figure.layout.yaxis.ticktext[1] == "1 big (1.0)"


def test_ridges_are_drawn_with_their_medians(curves, tokens):
    table = frames.difficulty(tokens, *curves.values(), budget=2)
    table["kind"] = np.where(np.arange(len(table)) % 3 == 0, "<rare>", "often")
    hills = frames.ridges(table, "small_nats", by="kind")
    assert set(hills["kind"]) == {"often"}  # seven tokens of the other
    hills = frames.ridges(table, "small_nats", by="kind", least=5)
    figure = figures.ridges(hills, "kind", x="loss (nats)", title="t")
    titled(figure)
    for name, part in hills.groupby("kind"):
        line = next(t for t in figure.data if t.name == f"{style.escape(name)}: quartiles")
        want = np.quantile(table.loc[table["kind"] == name, "small_nats"], [0.25, 0.5, 0.75])
        np.testing.assert_allclose(line.x, want)
        hill = next(t for t in figure.data if t.name == style.escape(name))
        assert max(hill.y) - min(hill.y) == pytest.approx(0.75 * part["density"].max() / hills["density"].max())
    whole = np.trapezoid(hills.loc[hills["kind"] == "often", "density"], hills.loc[hills["kind"] == "often", "value"])
    assert 0.6 < whole < 1  # what lies outside of the range is missing


def losses_by_luck(tokens):
    """Of three budgets at two positions of each text; the best route gains 0.1 a budget more on the true token."""
    k = np.arange(3, dtype=np.float32)[:, None, None] + np.zeros((3, len(tokens), 2), np.float32)
    mean, big = 5.0 - 0.5 * k, 0.25 * k * (2 - k)  # with none or all big there is one route
    values = {"true_mean": mean, "true_best": mean - 2 * big, "free": mean - big / 2, "null_mean": mean - 1}
    values |= {"null_best": mean - 1 - big, "matched_mean": mean, "matched_best": mean - 1.5 * big}
    return frames.luck_losses(Luck(np.arange(3), **values, temperature=1.5), tokens, [0, 4])


def test_gains_by_luck_are_drawn_beside_those_on_the_true_token(tokens):
    gains = frames.luck_gains(losses_by_luck(tokens), tokens)
    at = gains.set_index(["over", "budget"])
    assert at.loc[("mean", 1), ["true", "free", "null", "matched"]].tolist() == pytest.approx([0.5, 0.125, 0.25, 0.375])
    # over all big (4.0 nats, 3.0 on its own tokens) the one more layer counts too
    assert at.loc[("big", 1), ["true", "free", "null", "matched"]].tolist() == pytest.approx(
        [0.0, -0.375, -0.25, -0.125]
    )
    assert at.loc[("mean", 1), "true_less_null"] == pytest.approx(0.25)
    assert at.loc[("big", 2), "true_less_matched"] == pytest.approx(0.0)
    assert (at["positions"] == 6).all()
    figure = figures.luck_curve(gains)
    titled(figure)
    assert len(figure.data) == 8
    over_mean = [trace for trace in figure.data if trace.xaxis == "x"]
    for trace, name in zip(over_mean, ("true", "null", "matched", "free")):
        np.testing.assert_allclose(trace.y, at.loc["mean", name])
        assert trace.customdata.tolist() == [0, 1, 2]


def judged_routers():
    """Two kinds of router and a control at two budgets, and the label-free policy."""
    counts = {"source": "s", "positions": 21, "documents": 3, "gap_positions": 14, "gap_documents": 2}
    rows = [
        {"name": name, "asked_big": k, "realised_big": k + 0.1, "over_fixed_nats": gain * k, **counts}
        for name, gain in (("shuffled labels", 0.001), ("distil", 0.03), ("budget", 0.02))
        for k in (2, 1)
    ]
    judged = pd.DataFrame(rows).eval("over_fixed_nats_low = over_fixed_nats - 0.01")
    judged = judged.eval("label_free_gap_closed = over_fixed_nats * 8")
    judged = judged.eval("label_free_gap_closed_low = label_free_gap_closed - 0.1")
    judged = judged.eval("label_free_gap_closed_high = label_free_gap_closed + 0.1")
    policies = pd.DataFrame([{"policy": name, "realised_big": k, "gain_nats": 0.1 * k, **counts}
                             for name in ("label-free", "oracle") for k in (1, 2)])  # fmt: skip
    return (
        judged.eval("over_fixed_nats_high = over_fixed_nats + 0.01"),
        policies.assign(gain_nats_low=0.0, gain_nats_high=0.3),
    )


def test_routers_of_every_kind_stand_beside_the_label_free_policy():
    judged, policies = judged_routers()
    figure = figures.router_gains(judged, policies)
    assert [trace.name for trace in figure.data] == ["label-free policy", "budget", "distil", "shuffled labels"]
    np.testing.assert_allclose(figure.data[0].y, [0.1, 0.2])
    closed = figures.router_gaps(judged).data
    for trace, share in zip(figure.data[1:], closed):
        own = judged[judged["name"] == trace.name].sort_values("asked_big")
        np.testing.assert_allclose(trace.y, own["over_fixed_nats"])
        np.testing.assert_allclose(share.y, own["label_free_gap_closed"])
        np.testing.assert_allclose(trace.error_y.array, 0.01)
        np.testing.assert_allclose(share.error_y.arrayminus, 0.1)
        assert (share.name, share.line.color) == (trace.name, trace.line.color)
        np.testing.assert_allclose(trace.customdata, own["realised_big"])
        assert abs(trace.x - own["realised_big"]).max() < 0.051
    assert figure.data[3].line.color == "#7f7f7f" != figure.data[2].line.color
    assert "s: 2 documents, 14 positions" in figures.router_gaps(judged).layout.title.subtitle.text


@pytest.fixture(scope="module")
def every(curves, tokens):
    """One figure of each kind, by the function that draws it."""
    named = {curve.name: curve for curve in curves.values()}
    summary = frames.curve_summary(list(named.values()), tokens)
    fixed = replace(named["oracle"], name="fixed", loss_nats=named["oracle"].loss_nats + np.float32(0.5))
    table = frames.difficulty(tokens, *curves.values(), budget=2)
    losses = [name for name in table if name.endswith("_nats")]
    routes = curves["nll"].at(2)[1]
    counts = {"positions": 21, "documents": 3}
    means = pd.DataFrame([{"name": "n", "source": "s", "asked": 0.5, "mean": 0.4, "low": 0.3, "high": 0.6, **counts}])
    drawn = frames.sampled(tokens, range(7), {name: table[["small_nats"]].to_numpy().reshape(3, 7) for name in "ab"})
    points = [drawn.assign(candidates=k, true_nats=drawn["a"] + k, null_nats=drawn["b"]) for k in (1, 2)]
    candidates = pd.concat(points)
    methods = drawn.assign(method="beam-4", space="free", regret_nats=drawn["a"], routes=5.0)
    space = Space(4, "SB")
    land = Landscape(space.enumerate(), np.arange(16, dtype=np.float32), 16)
    marks = frames.best_routes(land, number=2).assign(policy=["oracle", "router"])
    log = pd.DataFrame({"tokens": [1, 2], "loss": [2.0, 1.0], "eval_s_big": [2.0, 1.0]})
    one = frames.measured({"dense": curves["nll"].loss_nats[0], "duo": curves["nll"].loss_nats[1]}, tokens)
    held = frames.held_losses(log.assign(eval_s_small=[3.0, 2.0]), run="duo")
    gains = {"predicted_nats": drawn["a"], "realised_nats": drawn["b"], "document": drawn["seq"].astype(str)}
    foreseen = drawn.assign(source="s", layer=0, **gains)
    return {
        "beginnings": figures.beginnings(held),
        "budget_curve": figures.budget_curve(summary),
        "candidates_curve": figures.candidates_curve(
            frames.means(candidates, tokens, by=["candidates"], values=["true_nats", "null_nats"])
        ),
        "difficulty_against_loss": figures.difficulty_against_loss(table, title="t"),
        "distribution": figures.distribution(table, losses, x="loss (nats)", title="t"),
        "equal_flops": figures.equal_flops(one.assign(share=0.5, mflop=1.0)),
        "gain_calibration": figures.gain_calibration(frames.calibration(foreseen), frames.explained(foreseen)),
        "gain_curve": figures.gain_curve(frames.gains(named, tokens)),
        "gap_dumbbell": figures.gap_dumbbell(
            frames.over_fixed(
                replace(named["oracle"], name="router"), {**named, "fixed": fixed}, tokens, null_fixed=named["null"]
            )
        ),
        "gap_closed": figures.gap_closed(frames.gaps(named["oracle"], {**named, "fixed": fixed}, tokens)),
        "intervals": figures.intervals(means, x="nats", title="t"),
        "landscape": figures.landscape(frames.spread(land), marks, title="t"),
        "layer_usage": figures.layer_usage(frames.layer_usage({"oracle": routes, "yours": routes}), title="t"),
        "luck_curve": figures.luck_curve(frames.luck_gains(losses_by_luck(tokens), tokens)),
        "forest": figures.forest(claims.table([claims.claim("x", curves["nll"].loss_nats[0])])),
        "policy_bars": figures.policy_bars(summary[summary["budget"] == 2], title="t"),
        "agreement": figures.agreement(frames.rank_agreement(table, losses[:3]), title="t"),
        "realised_budget": figures.realised_budget(means),
        "regret_curve": figures.regret_curve(frames.regrets(methods, candidates, tokens)),
        "route_comparison": figures.route_comparison(
            ("a", routes[0]), ("b", routes[1]), ["x"] * 7, title="t", selected=3
        ),
        "route_maps": figures.route_maps([("a", routes[0])], ["x"] * 7, title="t"),
        "router_gains": figures.router_gains(*judged_routers()),
        "router_gaps": figures.router_gaps(judged_routers()[0]),
        "routing_heatmap": figures.routing_heatmap(frames.usage(routes, source="s", panel="p"), title="t"),
        "ridges": figures.ridges(
            frames.ridges(table.assign(kind="a"), "small_nats", by="kind"), "kind", x="loss (nats)", title="t"
        ),
        "slices": figures.slices(
            frames.slices(table, tokens, by="position", values=["small_nats"]), "small_nats", title="t"
        ),
        "token_losses": figures.token_losses(table[table["seq"] == 0], title="t"),
        "training_curves": figures.training_curves(log),
    }


def test_every_figure_says_how_much_it_rests_on(every):
    public = {name for name, each in vars(figures).items() if name in figures.__all__ and inspect.isfunction(each)}
    assert set(every) == public - {"around", "drawn", "folded", "frame", "nothing", "write"}
    for name, figure in every.items():
        note = figure.layout.title.subtitle.text
        assert re.search(
            r"\d (documents|positions|texts|tokens|evaluations|routes)|one text, first \d+ of \d+ positions", note
        ), name
        bars = [trace for trace in figure.data if trace.type in ("scatter", "bar") and trace.error_y.array is not None]
        bars += [trace for trace in figure.data if trace.type == "scatter" and trace.error_x.array is not None]
        pointed = [trace for trace in figure.data if "[%{customdata" in (trace.hovertemplate or "")]
        if bars or pointed:
            assert re.search("95 % intervals" if bars else "intervals at the pointer", note), name


def test_every_figure_can_be_had_as_a_table(every):
    for name, figure in every.items():
        table = figures.drawn(figure)
        assert {"trace", "panel", "kind", "x", "y"} <= set(table), name
        marks = sum(len(t.x) for t in figure.data if t.type in ("bar", "scatter"))
        cells = sum(np.size(trace.z) for trace in figure.data if trace.type == "heatmap")
        boxes = sum(len(trace.x) for trace in figure.data if trace.type == "box")
        assert len(table) == marks + cells + boxes, name
        pd.testing.assert_frame_equal(figures.drawn(plotly.io.from_json(figure.to_json())), table)


def test_duo_and_dense_models_are_drawn_at_their_shares():
    one = {"source": "s", "mflop": 1.5, "loss_nats": 3.0, "loss_nats_low": 2.5, "loss_nats_high": 4.0}
    counts = {"documents": 2, "positions": 9}
    rows = [{"run": run, "share": share, **one, **counts} for run in ("dense", "duo") for share in (0.5, 0.0)]
    figure = figures.equal_flops(pd.DataFrame(rows))
    titled(figure)
    assert [trace.name for trace in figure.data] == ["Duo, one model", "dense, a model for each"]
    assert list(figure.data[0].x) == [0.0, 0.5]
    assert list(figure.data[0].error_y.array) == [1.0, 1.0]
    assert list(figure.data[0].error_y.arrayminus) == [0.5, 0.5]


def test_ways_to_begin_are_drawn_for_one_policy():
    rows = [
        {"run": run, "tokens": tokens, "source": source, "policy": policy, "loss_nats": tokens / 10}
        for run in figures.training.BEGINNINGS
        for tokens in (20, 10)
        for source in ("p", "c")
        for policy in ("small", "random", "big")
    ]
    figure = figures.beginnings(pd.DataFrame(rows), policy="random")
    titled(figure)
    assert len(figure.data) == 2 * len(figures.training.BEGINNINGS)
    assert all(list(trace.x) == [10, 20] and list(trace.y) == [1.0, 2.0] for trace in figure.data)
    assert sum(trace.showlegend for trace in figure.data) == len(figures.training.BEGINNINGS)
