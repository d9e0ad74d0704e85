import html
import re

import numpy as np
import pytest

from duoviz import corpus, model, style
from duoviz.corpus.python import ROOT


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
        assert re.fullmatch(r"(&(amp|lt|gt|quot|#x27);|[^&])+", shown)


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
    for colour in (*style.CHOICE_COLOURS[1:], style.INK):
        assert contrast(colour, "#ffffff") > 3
        assert contrast(colour, "#15171a") > 3
