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
