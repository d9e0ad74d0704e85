import numpy as np
import pytest

from duoviz.records import Curve, Found, Tokens


def test_plain_ids_become_a_record():
    tokens = Tokens.of(np.arange(6).reshape(2, 3))
    assert tokens.scored.all()
    assert tokens.scored.shape == (2, 2)
    assert Tokens.of(tokens) is tokens
    assert len(tokens[:1]) == 1
    joined = Tokens.joined([tokens, tokens.cut(3)])
    assert joined.ids.shape == (4, 3)
    assert tokens.cut(2).ids.shape == (2, 2)


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
