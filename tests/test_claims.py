import numpy as np
import pytest

from duoviz import claims, figures, metrics
from duoviz.claims import Claim
from duoviz.metrics import Interval


def test_verdicts_and_claims():
    for low, high, documents, want in (
        (0.05, 0.2, 4, "holds"),
        (-0.05, 0.2, 4, "open"),
        (-0.3, -0.2, 4, "does not hold"),
        (np.nan, np.nan, 1, "cannot be said (one document)"),
        (np.nan, np.nan, 4, "cannot be said (no interval)"),
    ):
        assert claims.verdict(Interval(0.1, low, high, 20, documents)) == want
    line = claims.claim("x", np.array([[1.0, 1.0], [1.5, 1.5], [2.0, 2.0]]), unit="of share")
    assert str(line) == "holds: x (1.500 [0.258, 2.742] of share; 3 documents, 6 positions)"
    one = str(claims.claim("x", np.ones((1, 2))))
    assert one.startswith("cannot be said (one document): x (1.000 [nan, nan] nats; 1 ")


def test_claims_of_one_page_are_decided_together():
    """Holm: the adjusted p-value is the largest of (claims left) x p so far; a claim is decided where that is at most 5 %."""
    draw = np.random.default_rng(3)
    found = [metrics.mean_interval(draw.normal(shift, 1, (9, 5))) for shift in np.linspace(-1.2, 1.2, 9)]
    assert [one.p < 0.05 for one in found] == [not one.low <= 0 <= one.high for one in found]
    ranked = sorted(one.p for one in found)
    adjusted = {p: max((9 - j) * q for j, q in enumerate(ranked[: i + 1])) for i, p in enumerate(ranked)}
    wanted = [claims.verdict(one) if adjusted[one.p] <= 0.05 else "open" for one in found]
    assert claims.verdicts(found) == wanted
    assert set(wanted) == {"holds", "does not hold", "open"}
    assert wanted != [claims.verdict(one) for one in found]
    single = metrics.mean_interval(np.ones((1, 3)))
    assert claims.verdicts([single, found[0]]) == ["cannot be said (one document)", "does not hold"]
    assert claims.verdicts([]) == []


def test_an_interval_below_a_limit_turns_its_bounds():
    found = Interval(0.3, 0.1, 0.4, 5, 2)
    assert claims.verdict(found.below(0.5)) == "holds"
    assert claims.verdict(found.below(0.35)) == "open"
    assert claims.verdict(found.below(0.05)) == "does not hold"
    assert claims.verdict(Interval(0.3, np.nan, np.nan, 5, 1).below(0.5)).startswith("cannot be said")


@pytest.fixture
def page():
    """Five claims in two units, one of a single document."""
    draw = np.random.default_rng(0)
    said = [
        claims.claim(text, draw.normal(shift, 0.1, (8, 20)), source=source, unit=unit, paper=paper)
        for text, shift, unit, paper in (("a < b", 0.5, "nats", True), ("c", -0.5, "share", False))
        for source in ("prose", "code")
    ]
    return claims.table([*said, Claim("d", metrics.mean_interval(np.ones((1, 3))))])


def test_a_page_of_claims_is_a_table_of_them(page):
    assert page["state"].tolist() == [*["holds"] * 2, *["does not hold"] * 2, "cannot be said (one document)"]
    assert page["paper"].tolist() == [True, True, False, False, False]
    assert page["documents"].tolist() == [8, 8, 8, 8, 1]
    assert page.loc[2, "mean"] == pytest.approx(-0.5, abs=0.05)


def test_the_forest_draws_every_claim_once_with_its_state(page):
    figure = figures.forest(page)
    drawn = {}
    for trace in figure.data:
        for x, less, more in zip(trace.x, trace.error_x.arrayminus, trace.error_x.array):
            drawn[float(x)] = (trace.name, float(x - less), float(x + more))
    assert len(drawn) == len(page)
    for row in page.itertuples():
        name, low, high = drawn[row.mean]
        assert name == row.state.partition(" (")[0]
        np.testing.assert_allclose([low, high], [row.low, row.high])
    assert figure.layout.yaxis.ticktext == ("<i>prose</i>", "<i>code</i>", "<i></i>")
    written = [(one.y, one.text) for one in figure.layout.annotations if one.yref == "y" and one.x == 0]
    assert written == [(0, "▸ a &lt; b"), (3, "d")]
    assert figure.layout.yaxis.tickvals == (1, 2, 4)
    assert [axis.title.text for axis in figure.select_xaxes()] == ["nats", "share"]
    assert "1 to 8 documents" in figure.layout.title.subtitle.text
    assert len({trace.name: trace.marker.symbol for trace in figure.data}.values()) == 3
    with pytest.raises(ValueError, match="a table of no rows"):
        figures.forest(page[:0])


def test_a_folded_table_is_printed_whole_and_drawn_behind_a_click(page):
    folded = figures.folded(page[["claim", "mean"]], "All <claims>")
    assert repr(folded).splitlines()[0] == "All <claims>"
    html = folded._repr_html_()
    assert "<summary>All &lt;claims&gt;</summary>" in html
    rows = [line for line in html.splitlines() if "<td>" in line]
    assert len(rows) == len(page)
    assert "a &lt; b" in rows[0]
    assert f"{page['mean'][0]:.3f}" in rows[0]
    indexed = figures.folded(page.set_index("claim")[["mean"]], "x")
    assert list(indexed.table) == ["claim", "mean"]
