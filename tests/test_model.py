import numpy as np


def test_score(lm, ids):
    a = lm.score(ids, "SB-B")
    assert a.shape == (3, 11)
    np.testing.assert_allclose(a, lm.score(ids, "SB-B", batch_size=1), atol=1e-5)
