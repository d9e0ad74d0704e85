import numpy as np
import pytest
import torch
from conftest import every, tiny_model

from duoviz import oracle
from duoviz.branching import Branches, Lockstep, Trie, attend, over_prefix, portable_over_prefix, texts
from duoviz.model import LanguageModel
from duoviz.records import Tokens
from duoviz.routes import BIG, Space

SHAPES = [
    {"layers": 3},
    {"layers": 4, "heads": 4, "kv_heads": 4, "hidden": 32},
    {"layers": 2, "heads": 8, "kv_heads": 1, "hidden": 64, "skip_scope": "block"},
    {"layers": 3, "skip_scope": "block"},
    {"layers": 2, "bias": True},
]


def naive(lm, ids, history, position, candidates):
    """Outputs of the last layer at one position, each candidate in a text of its own in one ordinary forward pass:
    `[seq, route, hidden]`."""
    texts = Tokens.of(np.tile(ids, (len(candidates), 1)))
    found = lm.hidden(texts, duo_routes=torch.from_numpy(every(history, position, candidates)))[:, position]
    return found.unflatten(0, (-1, len(ids))).transpose(0, 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("width", "cached"), [(1, 2**20), (7, 2**20), (1000, 2**20), (1000, 300)])
@pytest.mark.parametrize("fused", [True, False])
def test_leaves_equal_ordinary_forwards_for_any_width(monkeypatch, shape, width, cached, fused):
    monkeypatch.setattr(texts, "PIECE", cached)
    lm = tiny_model(**shape)
    if fused and not texts.applies(lm.model):
        pytest.skip("this build of torch has no fused products")
    if not fused:
        monkeypatch.setattr(texts, "applies", lambda model: False)
    draw = np.random.default_rng(0)
    ids = draw.integers(0, 61, (2, 9))
    history = draw.integers(0, 3, (2, 9, lm.layers)).astype(np.int8)
    space = Space(lm.layers, "-SB")
    trie = Trie(space.enumerate())
    branches = Branches(lm, ids, history, width=width)
    for position in (0, 1, 6):
        chunks = list(branches.leaves(position, trie))
        assert [rows.start for rows, _ in chunks][1:] == [rows.stop for rows, _ in chunks][:-1]
        hidden = torch.cat([chunk for _, chunk in chunks], 1)
        assert hidden.shape[1] == space.count()
        want = naive(lm, ids, history, position, trie.routes)
        torch.testing.assert_close(hidden, want, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("scope", ["ffn", "block"])
def test_commit_makes_later_positions_see_the_chosen_routes(scope):
    lm = tiny_model(skip_scope=scope)
    draw = np.random.default_rng(1)
    ids = draw.integers(0, 61, (3, 7))
    history = np.full((3, 7, 4), 2, np.int8)
    trie = Trie(Space(4, "-SB").enumerate())
    branches = Branches(lm, ids, history, width=64)
    for position in range(6):
        hidden = torch.cat([chunk for _, chunk in branches.leaves(position, trie)], 1)
        want = naive(lm, ids, history, position, trie.routes)
        torch.testing.assert_close(hidden, want, atol=1e-4, rtol=1e-5)
        history[:, position] = trie.routes[draw.integers(0, 81, 3)]
        branches.commit(position, history[:, position])


def test_a_pruned_trie_holds_only_nodes_that_lead_to_a_route():
    space = Space(6, "-SB", big=2, skip="<=1")
    trie = Trie(space.enumerate())
    assert [len(nodes) for nodes in trie.choices] == space.prefixes()
    rebuilt = np.zeros((space.count(), 6), np.int8)
    node = np.arange(space.count())
    for layer in reversed(range(6)):
        rebuilt[:, layer] = trie.choices[layer][node]
        node = trie.parents[layer][node]
    np.testing.assert_array_equal(rebuilt, space.enumerate())


def test_a_trie_refuses_unsorted_and_repeated_routes():
    routes = Space(3).enumerate()
    for bad in (routes[::-1], np.repeat(routes, 2, axis=0)):
        with pytest.raises(ValueError, match="lexicographic order"):
            Trie(bad)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", [5, 1000])
def test_scattered_routes_equal_ordinary_forwards(shape, width):
    lm = tiny_model(**shape)
    draw = np.random.default_rng(2)
    ids = draw.integers(0, 61, (3, 9))
    history = draw.integers(0, 3, (3, 9, lm.layers)).astype(np.int8)
    branches = Branches(lm, ids, history, width=width)
    asked = {(int(t), int(p), tuple(r)) for t, p, *r in draw.integers(0, (3, 9, *[3] * lm.layers), (40, 2 + lm.layers))}
    asked |= {(0, 0, (2,) * lm.layers), (0, 0, (0,) * lm.layers)}
    texts, positions, routes = (np.array(part) for part in zip(*sorted(asked)))
    hidden = torch.cat([part for _, part in branches.scattered(texts, positions, routes.astype(np.int8))])
    for row, (text, position, route) in enumerate(sorted(asked)):
        want = naive(lm, ids, history, position, np.array([route]))[text, 0]
        torch.testing.assert_close(hidden[row], want, atol=1e-4, rtol=1e-5)


def test_fused_and_portable_prefix_attention_agree():
    draw = torch.Generator().manual_seed(0)
    rows, keys, values = (torch.randn(2, 3, n, 8, generator=draw) for n in (10, 17, 17))
    for fused, portable in zip(over_prefix(rows, keys, values, 0.3), portable_over_prefix(rows, keys, values, 0.3)):
        torch.testing.assert_close(fused, portable, atol=1e-5, rtol=1e-5)
    seen = torch.rand(2, 10, 17, generator=draw) < 0.5
    seen[..., 0] = True
    found = [attention(rows, keys, values, 0.3, seen) for attention in (over_prefix, portable_over_prefix)]
    for fused, portable in zip(*found):
        torch.testing.assert_close(fused, portable, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("softcap", [None, 0.5])
def test_attention_is_softmax_over_prefix_and_self(softcap):
    draw = torch.Generator().manual_seed(1)
    query = torch.randn(1, 4, 5, 8, generator=draw)
    key, value = torch.randn(1, 2, 5, 8, generator=draw), torch.randn(1, 2, 5, 8, generator=draw)
    keys, values = torch.randn(1, 2, 6, 8, generator=draw), torch.randn(1, 2, 6, 8, generator=draw)
    out, _ = attend(torch.nn.Identity(), query, key, value, Lockstep(keys, values, 6), scaling=0.5, softcap=softcap)
    for head in range(4):
        for branch in range(5):
            all_keys = torch.cat([keys[0, head // 2], key[0, head // 2, branch : branch + 1]])
            all_values = torch.cat([values[0, head // 2], value[0, head // 2, branch : branch + 1]])
            scores = 0.5 * all_keys @ query[0, head, branch]
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            want = scores.softmax(0) @ all_values
            torch.testing.assert_close(out[0, branch, head], want, atol=1e-5, rtol=1e-5)


def test_the_models_own_attention_is_restored(lm, ids):
    before = lm.model.config._attn_implementation
    branches = Branches(lm, ids, np.full((*ids.shape, 4), 2, np.int8), width=8)
    for _ in branches.leaves(3, Trie(Space(4).enumerate())):
        pass
    assert lm.model.config._attn_implementation == before


def test_narrow_dtypes_do_not_round_large_scores():
    """Biases of keys make scores of thousands, which bfloat16 would round to whole nats and float16 cannot hold."""
    torch.manual_seed(0)
    rows, keys, values = torch.randn(2, 2, 5, 64), torch.randn(2, 2, 7, 64) + 40, torch.randn(2, 2, 7, 64)
    rows[..., :1] += 40
    for dtype, error in ((torch.bfloat16, 0.01), (torch.float16, 0.002)):
        given = [part.to(dtype) for part in (rows, keys, values)]
        exact = [part.double() for part in given]
        scores = exact[0] @ exact[1].transpose(2, 3) * 0.125
        out, lse = portable_over_prefix(*given, 0.125)
        torch.testing.assert_close(out.double(), scores.softmax(-1) @ exact[2], atol=4 * error, rtol=0)
        torch.testing.assert_close(lse.double(), scores.logsumexp(-1), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [{"hidden_act": "gelu"}, {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}],
    ids=["activation", "scaled attention"],
)
def test_layers_that_fused_products_do_not_know_take_their_own(fields):
    lm = tiny_model()
    config = lm.model.config.__class__(**{**lm.model.config.to_dict(), **fields})
    torch.manual_seed(0)
    made = LanguageModel(type(lm.model)(config))
    assert not texts.applies(made.model)
    ids, space = np.random.default_rng(0).integers(0, 61, (2, 9)), Space(4, "SB")
    land = oracle.landscape(made, ids, space, seq=1, position=6, context="reference:big")
    every = np.full((space.count(), 8, 4), BIG, np.int8)
    every[:, 6] = space.enumerate()
    np.testing.assert_allclose(land, made.score(np.repeat(ids[1:], space.count(), 0), every)[:, 6], atol=1e-4)
