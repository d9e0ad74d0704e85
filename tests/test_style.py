import html
import random
import re
from itertools import combinations

import numpy as np
import plotly.offline
import pytest

from duoviz import corpus, model, style
from duoviz.figures import landscapes, look, tokens
from duoviz.places import SHIPPED as ROOT

ESCAPED = r"(&(amp|lt|gt|#\d+);|[^&<>\"'$])*"


def alone(*pieces):
    """Chips of a token each."""
    return [(piece, (token,)) for token, piece in enumerate(pieces)]


def test_markup_is_shown_and_not_run():
    chips = style.token_chips(alone("<script>", "a & b", '"q"'), np.array([1.0, -1.0, np.nan]), title="<b>loss</b>")
    assert "<script>" not in chips
    assert "&lt;script&gt;" in chips
    assert "&lt;b&gt;loss&lt;/b&gt;" in chips
    assert "not scored" in chips
    with pytest.raises(ValueError, match="values for these tokens: give one for each"):
        style.token_chips(alone("a", "b"), np.zeros(1), title="")


def test_every_token_of_the_vocabulary_is_escaped():
    tokenizer = model.load(ROOT / "data" / "duo-tiny").tokenizer
    for token in range(len(tokenizer)):
        shown = style.token_text(tokenizer.decode([token]))
        assert shown
        assert not re.search(r"[<>\n\t ]", shown)
        assert re.fullmatch(ESCAPED, shown)


def strings():
    """Every character up to U+2100 and some beyond, markup, entities, formulas, and random mixtures of them."""
    hostile = [
        "<script>alert(1)</script>",
        "<b>x</b>",
        "&lt;",
        "&amp;quot;",
        "a' onclick='x",
        '"',
        "$x^2$",
        "%{y}",
        "<br>",
    ]
    draw = random.Random(0)
    characters = [chr(n) for n in (*range(0x2100), 0x202E, 0xFEFF, 0x1F600, 0xE0001)]
    return [*hostile, *characters, *("".join(draw.choices([*hostile, *characters], k=8)) for _ in range(300))]


def test_escaped_text_reads_back_as_itself_and_holds_no_markup():
    for text in strings():
        shown = style.escape(text)
        assert re.fullmatch(ESCAPED, shown, re.DOTALL)
        assert html.unescape(shown) == text


def test_plotly_decodes_every_entity_that_is_written():
    script = plotly.offline.get_plotlyjs()
    assert r"/&(#\d+|#x[\da-fA-F]+|[a-z]+);/g" in script
    named = re.search(r'\{mu:"[^}]*deg:"[^}]*\}', script)[0]
    for name in re.findall(r"&([a-z]+);", style.escape("<&>\"'$")):
        assert f"{name}:" in named


def test_token_text_shows_what_cannot_be_seen():
    assert style.token_text(" a\n\t\r") == "·a⏎⇥␍"
    assert style.token_text("") == "∅"
    assert style.token_text("a\u202eb\x07") == "a\\u202eb\\x07"
    assert style.token_text("\U000e0001") == "\\U000e0001"
    assert style.token_text("abcdef", limit=4) == "abc…"
    assert style.token_text("<<<<<", limit=2) == "&lt;…"
    assert style.token_text("👩\u200d👧") == "👩\u200d👧"
    assert style.token_text("\u200d") == "\\u200d"
    for text in strings():
        assert re.sub(f"[{style.JOINERS}]", "", style.token_text(text)).isprintable()


def test_chips_tell_their_values_and_the_legend_its_range():
    chips = style.token_chips(alone("a", "b", "c"), np.array([2.0, -1.0, np.nan]), title="gain", unit='"nats')
    assert 'title="2.00 &#34;nats" style="background:rgba(213,94,0,0.65);text-decoration:underline">a<' in chips
    assert (
        'title="-1.00 &#34;nats" style="background:rgba(0,114,178,0.33);text-decoration:underline dotted">b<' in chips
    )
    legend = chips[: chips.index("<pre")]
    assert re.findall(r">(-?\d\.\d)<", legend) == ["-1.0", "-0.5", "0.0", "0.5", "1.0", "1.5", "2.0"]
    assert ">-" not in style.token_chips(alone("a"), np.array([1.0]), title="t")
    assert "not scored" in style.token_chips([], np.zeros(0), title="t") + style.token_chips(
        alone("a"), np.array([np.nan]), title="t"
    )
    with pytest.raises(ValueError, match="1 infinite values"):
        style.token_chips(alone("a"), np.array([np.inf]), title="t")


def test_a_chip_of_several_tokens_has_their_sum():
    made = [("", (0,)), ("水", (1, 2, 3)), ("\u0007", ()), ("b", (4,))]
    chips = style.token_chips(made, np.array([np.nan, 1.0, np.nan, 2.0, 1.5]), title="loss", selected=2)
    shown = chips[chips.index("<pre") :]
    assert 'title="not scored" style="background:rgba(213,94,0,0.00)">⊢<' in shown
    frame = f"outline:2px solid {style.POLICY_COLOURS['user']}"
    assert (
        f'title="1.00 nats + not scored + 2.00 nats" style="background:rgba(213,94,0,0.65);text-decoration:underline;{frame}">水<'
        in shown
    )
    assert f'title="{style.DROPPED}" style="opacity:.5;text-decoration:line-through">' in shown
    assert ">3.0<" in chips[: chips.index("<pre")]  # the legend goes as far as the sums


def test_chips_hold_the_text_as_written():
    source = corpus.documents("shipped-code")[0].text
    chips = style.token_chips(alone(*source), np.zeros(len(source)), title="t")
    inside = chips[chips.index("<pre") :]
    assert html.unescape(re.sub(r"<[^>]*>", "", inside)) == source


def linear(colour):
    """Red, green and blue of `#rrggbb` as amounts of light."""
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """Of two colours, as the Web Content Accessibility Guidelines have it."""
    light = [linear(colour) @ [0.2126, 0.7152, 0.0722] for colour in (one, other)]
    return (max(light) + 0.05) / (min(light) + 0.05)


def distance(one, other):
    """CIE76: how far apart two colours look; 2.3 is just seen."""

    def lab(colour):
        to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
        parts = to_xyz @ linear(colour) / [0.9505, 1, 1.089]
        x, y, z = np.where(parts > 0.008856, np.cbrt(parts), 7.787 * parts + 16 / 116)
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    return float(np.linalg.norm(lab(one) - lab(other)))


COLOURS = {
    "ink": style.INK,
    **{f"choice {glyph}": colour for glyph, colour in zip(style.GLYPHS, style.CHOICE_COLOURS)},
    **style.POLICY_COLOURS,
    **{f"source {number}": colour for number, (_, colour) in enumerate(look.SOURCES)},
    **{f"method {name}": colour for name, (_, colour) in landscapes.METHODS.items()},
    **{f"palette {number}": colour for number, colour in enumerate(tokens.PALETTE)},
    **{f"losses {name}": colour for name, colour in tokens.COLOURS.items()},
}


@pytest.mark.parametrize("page", ["#ffffff", "#15171a", "#111111"])
@pytest.mark.parametrize("name", COLOURS)
def test_every_colour_has_contrast_on_light_and_dark_pages(name, page):
    assert contrast(COLOURS[name], page) >= 3


def test_contrast_and_distance_are_those_of_the_standards():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert distance("#ffffff", "#000000") == pytest.approx(100, abs=0.1)
    assert distance("#ff0000", "#00ff00") == pytest.approx(170.6, abs=0.1)


TOGETHER = ["oracle", "label-free", "null", "random-100", "fixed", "router"]


@pytest.mark.parametrize(("one", "other"), list(combinations(TOGETHER, 2)))
def test_policies_of_one_figure_are_told_apart_by_colour_and_mark(one, other):
    assert distance(style.POLICY_COLOURS[one], style.POLICY_COLOURS[other]) > 15
    assert style.policy_mark(one) != style.policy_mark(other)


def test_choices_are_told_apart():
    assert min(distance(*pair) for pair in combinations(style.CHOICE_COLOURS, 2)) > 40
