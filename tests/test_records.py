import numpy as np
import pytest

from duoviz.records import Curve, Found, Tokens


def test_plain_ids_become_a_record():
    tokens = Tokens.of(np.arange(6).reshape(2, 3))
    assert tokens.scored.all()
    assert tokens.scored.shape == (2, 2)
    assert Tokens.of(tokens) is tokens
    assert len(tokens[:1]) == 1
    assert tokens.fingerprint == Tokens.of(tokens.ids.copy()).fingerprint
    assert tokens.fingerprint != Tokens.of(tokens.ids + 1).fingerprint
    joined = Tokens.joined([tokens, tokens.cut(3)])
    assert joined.ids.shape == (4, 3)
    assert tokens.cut(2).ids.shape == (2, 2)


def test_a_piece_ends_where_the_next_token_begins_and_padding_is_empty():
    offsets = np.array(
        [[(0, 1), (1, 3), (2, 3), (2, 3), (3, 4), (0, 0)]]
    )  # the third character is split over three tokens
    tokens = Tokens(np.zeros((1, 6), np.int64), np.ones((1, 5), bool), ("abçd",), offsets, ("x",))
    assert tokens.pieces(0) == ["a", "b", "", "ç", "d", ""]
    assert tokens.cut(2).pieces(0) == ["a", "bç"]  # cut inside the character: what the last token touches is shown
    assert Tokens.of(np.zeros((1, 3), int)).pieces(0) == ["", "", ""]


def cut_at_bytes(text):
    """A record of a text with a token for each byte of UTF-8, as byte-level tokenizers fall back to."""
    offsets = np.array([[(n, n + 1) for n, c in enumerate(text) for _ in c.encode()]])
    tokens = offsets.shape[1]
    return Tokens(np.zeros((1, tokens), np.int64), np.ones((1, tokens - 1), bool), (text,), offsets, ("x",))


@pytest.mark.parametrize("character", ["é", "e\u0301", "今", "👩\u200d👩\u200d👧", "🇩🇪", "ש\u05b8"])
def test_a_chip_is_a_whole_character(character):
    size = len(character.encode())
    chips = cut_at_bytes(f"a{character}b").chips(0)
    assert chips == [("a", (0,)), (character, tuple(range(1, size + 1))), ("b", (size + 1,))]


def test_chips_name_special_and_dropped_and_leave_out_padding():
    offsets = np.array([[(0, 0), (0, 1), (2, 3), (4, 6), (0, 0)]])  # ␇ was dropped; the space belongs to what follows
    special = np.array([[True, False, False, False, False]])
    scored = np.array([[True, True, True, False]])
    tokens = Tokens(np.zeros((1, 5), np.int64), scored, ("a\u0007b cd",), offsets, ("x",), special=special)
    assert tokens.chips(0) == [("", (0,)), ("a", (1,)), ("\u0007", ()), ("b", (2,)), (" cd", (3,))]
    cut = cut_at_bytes("a👩\u200d👧").cut(6)  # within the second code point of one character
    assert cut.chips(0) == [("a", (0,)), ("👩\u200d", (1, 2, 3, 4, 5))]


def test_only_texts_of_one_length_are_joined():
    tokens = Tokens.of(np.arange(6).reshape(2, 3))
    with pytest.raises(ValueError, match=r"texts of \[2, 3\] tokens: join parts of one length"):
        Tokens.joined([tokens, tokens.cut(2)])
    with pytest.raises(ValueError, match="texts of"):
        Tokens.joined([])


@pytest.mark.parametrize("bad", [np.zeros(3, int), np.zeros((2, 3)), np.zeros((0, 3), int), np.zeros((2, 1), int)])
def test_ids_that_are_no_texts_are_refused(bad):
    with pytest.raises(ValueError, match="tokens of shape"):
        Tokens.of(bad)


def test_records_prove_their_shapes():
    routes, loss = np.zeros((1, 2, 3), np.int8), np.zeros((1, 2), np.float32)
    with pytest.raises(AssertionError, match="unscored positions"):
        Found(routes, np.full((1, 2), np.nan, np.float32), loss, 0.0, "", "committed")
    curve = Curve("oracle", "committed", np.array([0, 2]), np.stack([loss, loss + 1]), np.stack([routes, routes]))
    assert curve.at(2)[0][0, 0] == 1
    with pytest.raises(ValueError, match=r"budget 1: the curve 'oracle' holds \[0, 2\]"):
        curve.at(1)
