import numpy as np
import pytest
from conftest import tiny_model

from duoviz import oracle
from duoviz.model import RandomPolicy
from duoviz.records import Tokens
from duoviz.routes import LETTERS, SKIP


@pytest.mark.parametrize("choices", ["SB", "-SB"])
def test_flips_are_the_losses_of_ordinary_passes_with_one_layer_changed(lm, ids, choices):
    routes = RandomPolicy(0.4, 0.3, 0.3, seed=1).routes(*ids.shape, 4).numpy()[:, :-1]
    found = oracle.flips(lm, ids, routes, objectives=("nll", "expected"), choices=choices)
    assert found.shape == (2, *routes.shape, len(choices))
    for seq, position, layer in ((0, 0, 0), (0, 5, 3), (2, 9, 1), (1, 3, 2)):
        for number, letter in enumerate(choices):
            changed = routes.copy()
            changed[seq, position, layer] = LETTERS.index(letter)
            want = lm.score(ids, changed)[seq, position]
            assert found[0, seq, position, layer, number] == pytest.approx(want, abs=1e-5)
    own = lm.score(ids, routes)
    for letter in choices:
        taken = routes == LETTERS.index(letter)
        of_letter = found[0, ..., choices.index(letter)]
        np.testing.assert_allclose(of_letter[taken], np.broadcast_to(own[..., None], taken.shape)[taken], atol=1e-5)
    assert not np.allclose(found[0], found[1])


def test_flips_are_not_known_where_nothing_is_scored_and_refuse_what_the_model_lacks(lm, ids):
    tokens = Tokens.of(ids)
    tokens.scored[1, 4:] = False
    routes = RandomPolicy(seed=2).routes(*ids.shape, 4).numpy()[:, :-1]
    found = oracle.flips(lm, tokens, routes, setting=oracle.Setting(batch_size=2))
    np.testing.assert_array_equal(np.isnan(found).all((0, 3, 4)), ~tokens.scored)
    whole = oracle.flips(lm, ids, routes)
    np.testing.assert_allclose(found[:, tokens.scored], whole[:, tokens.scored], atol=1e-5)
    dense = tiny_model()
    dense.choices = "-B"
    with pytest.raises(ValueError, match="choices 'SB': this model has only '-B'"):
        oracle.flips(dense, ids, np.full((4,), SKIP))
    with pytest.raises(ValueError, match=r"candidates \(3, 11, 2, 3\): give \[3, 11, 'candidate', 4\]"):
        oracle.alternatives(tiny_model(), ids, "BBBB", np.zeros((3, 11, 2, 3), np.int8))
