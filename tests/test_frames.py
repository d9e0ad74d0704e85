from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from duoviz import figures, frames, metrics, oracle
from duoviz.records import Curve, Tokens
from duoviz.routes import BIG, Space


@pytest.fixture(scope="module")
def tokens():
    made = Tokens.of(np.random.default_rng(0).integers(0, 61, (3, 7)))
    scored = made.scored.copy()
    scored[2, 4:] = False
    return Tokens(made.ids, scored, made.text, made.offsets, ("a", "b", "c"), "test")


def equal(one, other):
    for name, value in vars(one).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)
        elif name == "effort":  # a table keeps no more of it than the routes of `Found`
            assert other.effort is None or other.effort.routes == value.routes
        else:
            assert value == getattr(other, name), name


def kept(record):
    """The record as a table keeps it: margins have three digits."""
    close = record.margin_nats.astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(close, record.margin_nats, rtol=1e-3, atol=1e-7)
    return replace(record, margin_nats=close)


def test_curves_and_found_survive_parquet(lm, tokens, tmp_path):
    for objective in ("nll", "expected"):
        curve = oracle.by_budget(lm, tokens, objective=objective)
        frames.curve(curve, tokens).to_parquet(tmp_path / "curve.parquet")
        read = pd.read_parquet(tmp_path / "curve.parquet")
        assert ("minimised" in read) == (objective == "expected")  # where it is the loss, it is there once
        equal(kept(curve), frames.curve_from_frame(read, tokens))
    fixed = replace(curve, margin_nats=None, minimised=None)
    equal(fixed, frames.curve_from_frame(frames.curve(fixed, tokens), tokens))
    found = oracle.search(lm, tokens, Space(4, "-SB", big="<=2"))
    frames.found(found, tokens).to_parquet(tmp_path / "found.parquet")
    equal(kept(found), frames.found_from_frame(pd.read_parquet(tmp_path / "found.parquet"), tokens))
    with pytest.raises(ValueError, match="it belongs to other texts"):
        frames.found_from_frame(frames.found(found, tokens).iloc[:-1], tokens)


def test_summaries_gains_and_difficulty_say_what_the_curves_hold(lm, tokens):
    found = oracle.survey(lm, tokens)
    summary = frames.curve_summary(list(found.values()), tokens)
    assert summary["realised_big"].tolist() == summary["budget"].tolist()
    row = summary[(summary["policy"] == "oracle") & (summary["budget"] == 2)].iloc[0]
    assert row["loss_nats"] == pytest.approx(np.nanmean(found["nll"].loss_nats[2]))
    for end in ("", "_low", "_high"):
        assert row[f"perplexity{end}"] == pytest.approx(np.exp(row[f"{end[1:] or 'loss'}_nats"]))
    assert (row["documents"], row["positions"]) == (3, int(tokens.scored.sum()))
    apart = metrics.difference_interval(found["nll"].loss_nats[2], found["nll"].loss_nats[-1], tokens.documents)
    for end, bound in (("low", apart.low), ("high", apart.high)):
        assert row[f"apart_{end}"] - row["loss_nats"] == pytest.approx(bound - apart.mean, abs=1e-6)
    gains = frames.gains(found, tokens)
    want = np.nanmean(found["null"].loss_nats[-1] - found["null"].loss_nats[1])
    assert gains[(gains["policy"] == "null") & (gains["budget"] == 1)]["gain_nats"].iloc[0] == pytest.approx(want)
    table = frames.difficulty(tokens, *found.values(), budget=2)
    assert len(table) == tokens.scored.sum()
    np.testing.assert_allclose(table["difficulty_nats"], table["small_nats"] - table["oracle_nats"], atol=1e-6)
    every = found["nll"]
    one = replace(every, loss_nats=every.loss_nats[:, :1], routes=every.routes[:, :1], margin_nats=None, minimised=None)
    alone = frames.curve_summary([one], tokens[:1])
    assert alone["perplexity"].notna().all()
    assert alone[["perplexity_low", "perplexity_high"]].isna().all(axis=None)  # one document: no interval
    usage = frames.usage(found["nll"].at(2)[1], source="s", panel="p")
    assert usage["share"].mean() == pytest.approx(0.5)
    assert usage["n"].min() == 2


def test_gains_over_the_fixed_route_are_paired_and_the_null_has_its_own(lm, tokens):
    found = oracle.survey(lm, tokens)
    curves = {"oracle": found["nll"], "null": found["null"]}
    fixed = replace(found["nll"], name="fixed", loss_nats=found["nll"].loss_nats + np.float32(0.5))
    own = replace(found["null"], loss_nats=found["null"].loss_nats + np.float32(0.25))
    router = replace(found["nll"], name="router")
    with pytest.raises(ValueError, match="'fixed' is needed too"):
        frames.over_fixed(router, curves, tokens)
    table = frames.over_fixed(router, {"fixed": fixed, **curves}, tokens, null_fixed=own)
    assert set(table["policy"]) == {"router", "oracle", "null"}
    np.testing.assert_allclose(table.loc[table["policy"] == "null", "gain_nats"], 0.25, atol=1e-5)
    np.testing.assert_allclose(table.loc[table["policy"] != "null", "gain_nats"], 0.5, atol=1e-5)
    np.testing.assert_allclose(table["gain_nats_low"], table["gain_nats"], atol=1e-5)  # the same at every position
    assert "null" not in set(frames.over_fixed(router, {"fixed": fixed, **curves}, tokens)["policy"])


def test_usage_counts_in_bins_of_positions():
    routes = np.random.default_rng(0).integers(0, 3, (5, 7, 3)).astype(np.int8)
    routes[0, 4:] = -1
    table = frames.usage(routes, source="s", panel="p", bin=3)
    assert table["position"].unique().tolist() == [0, 3, 6]
    for row in table.itertuples():
        cell = routes[:, row.position : row.position + 3, row.layer]
        assert row.n == (cell >= 0).sum()
        assert row.share == pytest.approx((cell == BIG).sum() / row.n)
        assert row.by_layer == pytest.approx((routes[..., row.layer] == BIG).sum() / (routes[..., 0] >= 0).sum())
        assert row.mean == pytest.approx((routes == BIG).sum() / (routes >= 0).sum())


def test_gaps_interpolate_to_the_realised_budget(lm, tokens):
    found = oracle.survey(lm, tokens)
    curves = {"oracle": found["nll"], "label-free": found["expected"]}
    fixed = replace(found["nll"], name="fixed", loss_nats=found["nll"].loss_nats + np.float32(0.5))
    one, other = fixed.at(1), fixed.at(2)
    routes = np.where(np.arange(3)[:, None, None] == 0, one[1], other[1])
    router = Curve("router", "own", np.array([2]), (one[0] + other[0])[None] / 2, routes[None])
    row = frames.gaps(router, {**curves, "fixed": fixed}, tokens).iloc[0]
    real = (routes[tokens.scored] == BIG).sum() / tokens.scored.sum()
    assert row["realised_big"] == pytest.approx(real)
    best = metrics.at_budget(fixed.budgets, found["nll"].loss_nats, real)
    assert row["regret_nats"] == pytest.approx(np.nanmean(router.loss_nats[0] - best), abs=1e-6)
    assert row["gap_closed"] == pytest.approx(1 - row["regret_nats"] / 0.5, abs=1e-5)
    assert row["over_fixed_nats"] == pytest.approx(0.5 - row["regret_nats"], abs=1e-5)
    assert row["asked"] == 2
    with pytest.raises(ValueError, match=r"\['fixed'\] are needed too"):
        frames.gaps(router, curves, tokens)


def test_a_distribution_counts_values_and_the_share_below():
    table = pd.DataFrame({"a_nats": [*np.arange(100.0), np.nan], "b_nats": [np.nan, *np.full(100, 50.0)]})
    spread = frames.distribution(table, ["a_nats", "b_nats"]).set_index(["quantity", "part"])
    low, high = np.percentile([*np.arange(100), *np.full(100, 50)], [0.5, 99.5])
    assert (low, high) == pytest.approx((0.995, 98.005))
    for name, values in (("a_nats", np.arange(100)), ("b_nats", np.full(100, 50))):
        bars = spread.loc[(name, "histogram")]
        np.testing.assert_allclose(bars["value"], np.linspace(low, high, 41))
        inside = [((values >= a) & (values < b)).sum() for a, b in zip(bars["value"], bars["value"][1:])]
        np.testing.assert_array_equal(bars["amount"], [*inside, 0])
        below = spread.loc[(name, "below")]
        np.testing.assert_allclose(below["amount"], np.linspace(0, 1, 201))
        np.testing.assert_allclose(below["value"].iloc[[0, 100, 200]], np.percentile(values, [0, 50, 100]))
    assert spread.loc[("a_nats", "histogram"), "amount"].sum() == 98  # 0 and 99 are the outermost half per cent
    with pytest.raises(ValueError, match=r"columns \['c'\] hold no number"):
        frames.distribution(table.assign(c=np.nan), ["a_nats", "c"])


def test_tidy_puts_the_texts_beside_the_routes(lm, tokens):
    curve = oracle.by_budget(lm, tokens, choices="-B")
    table = frames.tidy(frames.curve(curve, tokens), tokens)
    assert len(table) == 5 * tokens.scored.sum()
    assert (table["big"] == table["budget"]).all()
    assert (table["big"] + table["skip"] == 4).all()
    row = table[(table["budget"] == 3) & (table["seq"] == 1) & (table["position"] == 2)].iloc[0]
    assert row["target_id"] == tokens.ids[1, 3]
    assert row["document"] == "b"
    assert row["loss_nats"] == curve.at(3)[0][1, 2]
    equal(kept(curve), frames.curve_from_frame(table, tokens))
    with pytest.raises(ValueError, match="it belongs to other texts"):
        frames.tidy(frames.curve(curve, tokens).assign(position=lambda t: t["position"] + 100), tokens)


def test_luck_is_what_the_gains_leave(lm, tokens):
    found = oracle.survey(lm, tokens)
    curves = {curve.name: curve for curve in found.values()}
    table, gains = frames.luck(curves, tokens), frames.gains(curves, tokens)
    for name, column in (("oracle", "oracle"), ("null", "null"), ("label-free", "label_free")):
        np.testing.assert_allclose(table[column], gains[gains["policy"] == name]["gain_nats"])
    np.testing.assert_allclose(table["oracle_less_null"], table["oracle"] - table["null"], atol=1e-6)
    np.testing.assert_allclose(table["label_luck"], table["oracle"] - table["label_free"], atol=1e-6)
    assert (table["label_luck_low"] <= table["label_luck"]).all()
    assert table["budget"].tolist() == [0, 1, 2, 3]


def test_interval_tables_hold_every_policy_and_leave_out_what_was_not_asked():
    rows = [("s", "oracle", 1), ("s", "oracle", 2), ("s", "router", 2)]
    summary = pd.DataFrame([dict(zip(("source", "policy", "budget"), row)) for row in rows])
    table = frames.interval_table(summary.assign(loss_nats=2.0, low_nats=1.5, high_nats=2.25))
    assert list(table.columns) == ["oracle", "router"]
    assert table.loc[("s", 2), "router"] == "2.000 [1.500, 2.250]"
    assert table.loc[("s", 1), "router"] == ""


def test_quantities_agree_as_far_as_they_rank_tokens_alike():
    draw = np.random.default_rng(0).normal(size=(3, 50))
    table = pd.DataFrame({"source": "s", "seq": np.arange(3).repeat(50), "a": draw.ravel()})
    table = table.assign(
        b=np.exp(table["a"]) + 10 * table["seq"], c=-table["a"], d=np.random.default_rng(1).normal(size=150)
    )
    found = frames.rank_agreement(table, ["a", "b", "c", "d"]).set_index(["one", "other"])
    assert found.loc[("a", "b"), "mean"] == pytest.approx(1)  # another level in every document changes nothing
    assert found.loc[("a", "c"), "high"] == pytest.approx(-1)
    assert abs(found.loc[("a", "d"), "mean"]) < 0.3
    assert found.loc[("d", "a"), ["documents", "positions"]].tolist() == [3, 150]
    figure = figures.agreement(found.reset_index(), title="t")
    assert figure.data[0].z[0][2] == pytest.approx(-1)
    assert list(figure.data[0].x) == ["a", "b", "c", "d"]


def test_held_losses_are_those_of_the_last_training():
    log = pd.DataFrame(
        {
            "tokens": [10, 20, 20, 30, 40, 40],
            "loss": [5.0, 4.0, None, 3.0, 2.0, None],
            "eval_p-q_big": [None, None, 4.5, None, None, 2.5],
            "eval_p-q_random": [None, None, 4.7, None, None, 2.7],
        }
    )
    table = frames.held_losses(log, run="x", before=20)
    assert table.to_dict("list") == {
        "run": ["x", "x"],
        "tokens": [20, 20],
        "source": ["p-q", "p-q"],
        "policy": ["big", "random"],
        "loss_nats": [2.5, 2.7],
    }
    assert len(frames.held_losses(log, run="x")) == 4


def test_measured_models_are_compared_with_the_first(tokens):
    shape = tokens.scored.shape
    one = np.where(tokens.scored, 1.0, np.nan)
    table = frames.measured({"a": one, "b": one + 0.5}, tokens, share=0.25)
    assert table["run"].tolist() == ["a", "b"]
    assert table["more_nats"].tolist() == [0.0, 0.5]
    assert table["loss_nats"].tolist() == [1.0, 1.5]
    assert (table["share"] == 0.25).all()
    assert (table["positions"] == tokens.scored.sum()).all()
    assert shape[0] == table["documents"].iloc[0]
