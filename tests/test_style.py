import html
import random
import re

import numpy as np
import plotly.offline
import pytest

from duoviz import corpus, model, style
from duoviz.corpus.python import ROOT

ESCAPED = r"(&(amp|lt|gt|#\d+);|[^&<>\"'$])*"


def test_markup_is_shown_and_not_run():
    chips = style.token_chips(["<script>", "a & b", '"q"'], np.array([1.0, -1.0, np.nan]), title="<b>loss</b>")
    assert "<script>" not in chips
    assert "&lt;script&gt;" in chips
    assert "&lt;b&gt;loss&lt;/b&gt;" in chips
    assert "not scored" in chips
    with pytest.raises(ValueError, match="2 tokens"):
        style.token_chips(["a", "b"], np.zeros(3), title="")


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
    for text in strings():
        assert style.token_text(text).isprintable()


def test_chips_tell_their_values_and_the_legend_its_range():
    chips = style.token_chips(["a", "b", "c"], np.array([2.0, -1.0, np.nan]), title="gain", unit='"nats')
    assert 'title="2.00 &#34;nats" style="background:rgba(213,94,0,0.65);text-decoration:underline">a<' in chips
    assert 'title="-1.00 &#34;nats" style="background:rgba(0,114,178,0.33);text-decoration:underline">b<' in chips
    legend = chips[: chips.index("<pre")]
    assert re.findall(r">(-?\d\.\d)<", legend) == ["-2.0", "-1.0", "0.0", "0.5", "1.0", "1.5", "2.0"]
    assert ">-" not in style.token_chips(["a"], np.array([1.0]), title="t")
    assert "not scored" in style.token_chips([], np.zeros(0), title="t") + style.token_chips(
        ["a"], np.array([np.nan]), title="t"
    )
    with pytest.raises(ValueError, match="1 infinite values"):
        style.token_chips(["a"], np.array([np.inf]), title="t")


def test_chips_hold_the_text_as_written():
    source = corpus.documents("shipped-code")[0].text
    chips = style.token_chips(list(source), np.zeros(len(source)), title="t")
    inside = chips[chips.index("<pre") :]
    assert html.unescape(re.sub(r"<[^>]*>", "", inside)) == source


def contrast(one, other):
    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_big_small_and_ink_stand_out_on_white_and_black():
    for colour in (*style.CHOICE_COLOURS[1:], style.POLICY_COLOURS["user"], style.INK):
        assert contrast(colour, "#ffffff") > 3
        assert contrast(colour, "#15171a") > 3
