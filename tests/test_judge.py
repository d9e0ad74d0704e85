"""The judge of routers, on a toy model with a planted rule (see `conftest.planted`)."""

import numpy as np
import pandas as pd
import pytest
from conftest import planted_plan

from duoviz import evaluation, figures, frames, metrics, oracle, router
from duoviz.evaluation.routers import _runs
from duoviz.model import forward_flops
from duoviz.records import Curve, Tokens


@pytest.fixture(scope="module")
def judged(planted, planted_rows):
    tokens = Tokens.of(planted_rows)
    made, _ = router.train(planted, planted_rows, planted_plan("distil"))
    router.calibrate(made, planted, tokens)
    best = oracle.by_budget(planted, tokens, context="reference:big")
    routes = np.stack(
        [np.broadcast_to(np.array(one, np.int8), (*tokens.scored.shape, 2)) for one in ([1, 1], [2, 1], [2, 2])]
    )
    losses = np.stack([planted.score(tokens, one[0, 0]) for one in routes])
    known = {
        tokens.source: {
            "fixed": Curve("fixed", "own", np.arange(3), losses, routes),
            "oracle": best,
            "label-free": best,
        }
    }
    return evaluation.routers(planted, [tokens], {"found": made}, known=known), tokens, made, known


def test_a_router_that_knows_the_rule_closes_the_gap_and_its_shuffled_routes_do_not(judged):
    table, *_ = judged
    own, shuffled, random = (table[table["control"] == name].iloc[0] for name in evaluation.CONTROLS)
    assert own["realised_big"] == own["asked_big"] == 1
    assert own["over_fixed_nats"] == pytest.approx(np.log(8) / 2, abs=0.06)
    assert own["gap_closed"] == own["label_free_gap_closed"] == pytest.approx(1, abs=0.01)
    assert own["over_fixed_nats_low"] > 0.5
    assert shuffled["realised_big"] == 1  # the same routes, for other tokens
    assert abs(shuffled["over_fixed_nats"]) < 0.25
    assert random["realised_big"] == pytest.approx(1, abs=0.15)
    assert abs(random["over_fixed_nats"]) < 0.35
    assert (own["kind"], own["units"], own["trained_tokens"]) == ("distil", 0, 2560)


def test_shuffled_routes_are_the_same_routes_at_other_tokens(judged, planted):
    _, tokens, made, _ = judged
    (_, own, _), (_, shuffled, loss) = _runs(planted, tokens, made, ("", "shuffled"), 0)
    assert (own != shuffled).any()
    for routes in (own, shuffled):
        np.testing.assert_array_equal(np.unique(routes.reshape(-1, 2), axis=0, return_counts=True)[1], [120, 120])
    np.testing.assert_array_equal(loss, planted.score(tokens, shuffled))


def test_the_judge_counts_what_it_says(judged, planted):
    table, tokens, made, known = judged
    own = table.iloc[0]
    routes, loss = made.run(planted, tokens)
    at = metrics.at_budget(
        known[tokens.source]["fixed"].budgets, known[tokens.source]["fixed"].loss_nats, own["realised_big"]
    )
    want = metrics.difference_interval(at, loss, tokens.documents)
    assert (own["over_fixed_nats"], own["over_fixed_nats_high"]) == (want.mean, want.high)
    weights = sum(one.numel() for one in made.parameters())
    assert own["parameters"] == weights == 2 * 2 * (32 + 1)
    assert made.flops(planted.vocab) == 2 * 2 * 2 * 32
    assert own["mflop"] * 1e6 == pytest.approx(
        forward_flops(planted.model, routes) / routes[..., 0].size + made.flops(planted.vocab)
    )
    assert (own["positions"], own["documents"]) == (tokens.scored.sum(), len(tokens))
    big = metrics.difference_interval(known[tokens.source]["fixed"].loss_nats[-1], loss, tokens.documents)
    assert (own["over_big_nats"], own["over_big_nats_low"]) == (big.mean, big.low)


def test_what_cannot_be_judged_is_refused(judged, planted):
    _, tokens, made, known = judged
    with pytest.raises(ValueError, match=r"controls \['lucky'\]: allowed are '', 'shuffled', 'random'"):
        evaluation.routers(planted, [tokens], {"a": made}, known=known, controls=("lucky",))
    with pytest.raises(ValueError, match="come without a curve 'fixed'"):
        evaluation.routers(planted, [tokens], {"a": made}, known={})


def test_budgets_are_met_on_the_text_at_hand_without_a_label(judged, planted):
    """A router that takes nothing big here, since its offsets were set elsewhere, does as it should once they are set here."""
    _, tokens, made, known = judged
    before = made.offset.clone()
    made.offset[1] -= 1e3
    try:
        off, met = (
            evaluation.routers(planted, [tokens], {"a": made}, known=known, controls=("",), meet=meet).iloc[0]
            for meet in (None, {tokens.source: tokens})
        )
        assert float(made.offset[1]) == pytest.approx(float(before[1]) - 1e3)  # not changed
    finally:
        made.offset.copy_(before)
    assert off["realised_big"] == 0
    assert met["realised_big"] == pytest.approx(1, abs=0.05)
    assert met["gap_closed"] == pytest.approx(1, abs=0.01)


def test_gaps_are_measured_on_the_documents_that_were_searched(judged, planted):
    """Gains are of all documents; gaps of the first three, whose best routes alone are known."""
    table, tokens, made, known = judged
    fixed, best = known[tokens.source]["fixed"], known[tokens.source]["oracle"]
    few = Curve(best.name, best.context, best.budgets, best.loss_nats[:, :3], best.routes[:, :3])
    sources = {tokens.source: {"fixed": fixed, "oracle": few}}
    (part,) = evaluation.routers(planted, [tokens], {"found": made}, known=sources, controls=("shuffled",)).to_dict(
        "records"
    )
    (whole,) = table[table["control"] == "shuffled"].to_dict("records")
    for name in ("over_fixed_nats", "over_fixed_nats_low", "documents", "loss_nats"):
        assert part[name] == whole[name]
    ((_, _, loss),) = _runs(planted, tokens, made, ("shuffled",), 0)
    at = [metrics.at_budget(one.budgets, one.loss_nats[:, :3], part["realised_big"]) for one in (fixed, best)]
    want = metrics.gap_interval(loss[:3], *at, tokens.documents[:3])
    assert (part["gap_closed"], part["gap_closed_low"]) == (want.mean, want.low)
    assert (part["gap_positions"], part["gap_documents"]) == (want.positions, 3)
    assert part["gap_closed"] != whole["gap_closed"]


def test_what_a_router_says_of_a_gain_is_compared_with_the_gain(judged, planted, planted_rows):
    _, tokens, made, _ = judged
    gains = evaluation.predicted_gains(planted, tokens, made, objective="nll")
    assert len(gains) == tokens.scored.sum() * 2
    routes, losses = made.run(planted, tokens)
    for row in gains.sample(20, random_state=0).itertuples():
        seq = tokens.documents.index(row.document)
        other = routes.copy()
        other[seq, row.position, row.layer] = 3 - other[seq, row.position, row.layer]  # big for small, small for big
        off = planted.score(tokens, other)[seq, row.position] - losses[seq, row.position]
        takes_big = routes[seq, row.position, row.layer] == 2
        assert row.realised_nats == pytest.approx(off if takes_big else -off, abs=1e-4)
    expected = evaluation.predicted_gains(planted, tokens, made)
    parts, layers = frames.calibration(expected, parts=4), frames.explained(expected)
    assert (len(parts), len(layers)) == (4, 2)
    assert layers["explained"].min() > 0.9  # what it learned
    assert parts["positions"].sum() == layers["positions"].sum() == len(expected)
    np.testing.assert_allclose(parts["predicted_nats"], parts["realised_nats"], atol=0.3)
    one = expected[expected["layer"] == 1]
    wrong = np.mean((one["realised_nats"] - one["predicted_nats"]) ** 2) / one["realised_nats"].var(ddof=0)
    assert layers["explained"][1] == pytest.approx(1 - wrong)
    none = metrics.explained(*np.random.default_rng(0).normal(size=(2, 40, 30)), [str(row) for row in range(40)])
    assert none.low < -1 < none.high < -0.7  # a prediction as wide as the truth, and of something else
    drawn = figures.gain_calibration(parts, layers)
    np.testing.assert_allclose(drawn.data[1].y, parts["realised_nats"])
    np.testing.assert_allclose(drawn.data[2].y, layers["explained"])
    three = router.Router(2, 32, router.Mixture(0.5, 0.3, 0.2))
    with pytest.raises(ValueError, match="choices '-SB': a gain is that of one choice over another"):
        evaluation.predicted_gains(planted, tokens, three)


def test_seeds_are_a_second_level_of_the_interval():
    """With many documents and seeds drawn about a truth, the interval covers it about as often as it says."""
    draw, covered = np.random.default_rng(0), 0
    for _ in range(300):
        seeds, documents = draw.normal(0, 0.3, 5), draw.normal(0, 1, 40)
        rows = []
        for seed, shift in enumerate(seeds):
            found = metrics.mean_interval((documents + shift + draw.normal(0, 0.5, 40))[:, None])
            about = {"source": "x", "control": "", "kind": "distil", "units": 0, "reads": "ffn", "shuffled": False}
            about["trained_big"] = 2
            rows.append({**about, "asked_big": 2, "seed": seed, "router": seed, **found.columns("over_fixed_nats")})
        (row,) = frames.over_seeds(pd.DataFrame(rows).assign(realised_big=2.0, mflop=1.0)).to_dict("records")
        covered += row["over_fixed_nats_low"] < 0 < row["over_fixed_nats_high"]
    assert row["seeds"] == 5
    assert "router" not in row
    assert 0.94 < covered / 300 <= 1
    with pytest.raises(ValueError, match="two routers of one kind, budget and seed"):
        frames.over_seeds(pd.DataFrame(rows[:1] * 2))


def test_policies_agree_as_far_as_they_choose_alike_beyond_chance():
    draw, tokens = np.random.default_rng(0), Tokens.of(np.zeros((20, 41), np.int64))
    biased = (draw.random((2, 20, 40, 6)) < np.linspace(0.1, 0.9, 6)).astype(np.int8) + 1
    half = np.where(draw.random(biased[0].shape) < 0.5, biased[0], biased[1])
    chosen = {"one": biased[0], "other": biased[1], "half": half}
    table = frames.route_agreement(chosen, tokens).set_index(["one", "other"])
    assert table.loc[("one", "one"), "mean"] == 1
    assert table.loc[("one", "other"), "low"] < 0 < table.loc[("one", "other"), "high"]
    assert table.loc[("one", "half"), "mean"] == pytest.approx(0.5, abs=0.06)
    assert table.loc[("half", "one"), "mean"] == pytest.approx(table.loc[("one", "half"), "mean"])
    assert table["positions"].eq(800).all()
    drawn = figures.agreement(table.reset_index(), title="t", of="policy", measure="agreement beyond chance")
    np.testing.assert_allclose(np.diag(drawn.data[0].z), 1)
