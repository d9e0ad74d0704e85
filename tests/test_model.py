import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import dense_model, shaped_like, tiny_model
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, DynamicCache, LlamaForCausalLM
from transformers.utils import logging

from duoviz import corpus, model, oracle
from duoviz.model import RandomPolicy
from duoviz.routes import BIG, SKIP, SMALL, Space
from duoviz.training import PRESETS

logging.set_verbosity_error()
ROOT = Path(__file__).resolve().parents[1]


def reference_logits(lm, ids, routes):
    """A Duo Llama written out token by token and layer by layer: `[seq, token, vocab]`."""
    inner, scope = lm.model.model, lm.model.config.skip_scope
    x = inner.embed_tokens(ids)
    positions = inner.rotary_emb(x, torch.arange(ids.shape[1])[None])
    mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)[None, None]
    for index, layer in enumerate(inner.layers):
        attended, _ = layer.self_attn(layer.input_layernorm(x), position_embeddings=positions, attention_mask=mask)
        out = x.clone()
        for seq in range(len(ids)):
            for token in range(ids.shape[1]):
                choice = int(routes[seq, token, index])
                if choice == SKIP and scope == "block":
                    continue
                h = x[seq, token] + attended[seq, token]
                normed = layer.post_attention_layernorm(h)
                if choice == BIG:
                    h = h + layer.mlp.big(normed)
                elif choice == SMALL:
                    h = h + layer.mlp.small(normed)
                out[seq, token] = h
        x = out
    return lm.model.lm_head(inner.norm(x))


@pytest.mark.parametrize("scope", ["ffn", "block"])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_routes_per_token_equal_the_model_written_out(scope, kv_heads, ids):
    lm = tiny_model(skip_scope=scope, kv_heads=kv_heads)
    routes = torch.from_numpy(np.random.default_rng(1).integers(0, 3, (3, 12, 4)).astype(np.int8))
    with torch.no_grad():
        got = lm.model(torch.from_numpy(ids), duo_routes=routes).logits
        torch.testing.assert_close(got, reference_logits(lm, torch.from_numpy(ids), routes), atol=2e-4, rtol=1e-4)


def test_a_saved_duo_model_opens_as_the_dense_model_equal_to_all_big(lm, ids, tmp_path):
    lm.model.save_pretrained(tmp_path)
    dense = LlamaForCausalLM.from_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    x = torch.from_numpy(ids)
    for routes in (None, torch.full((4,), BIG)):
        torch.testing.assert_close(lm.model(x, duo_routes=routes).logits, dense(x).logits, atol=1e-5, rtol=1e-5)
    mixed = torch.tensor([0, 1, 2, 1])
    assert torch.equal(lm.model(x, duo_routes=mixed).logits, again(x, duo_routes=mixed).logits)
    assert again.config.small_intermediate_size == 8
    assert model.load(tmp_path).fingerprint == lm.fingerprint != tiny_model(seed=1).fingerprint


def test_a_dense_model_loads_with_skip_and_big(ids, tmp_path):
    dense = dense_model("llama")
    dense.save_pretrained(tmp_path)
    lm = model.load(tmp_path, choices="-B")
    assert lm.choices == "-B"
    got = lm.model(torch.from_numpy(ids)).logits
    torch.testing.assert_close(got, dense(torch.from_numpy(ids)).logits, atol=1e-5, rtol=1e-5)
    torch.manual_seed(1)  # whatever the random state, the same weights are the same model
    assert model.load(tmp_path, choices="-B").fingerprint == lm.fingerprint
    assert lm.score(ids, "B-B").shape == (3, 11)
    with pytest.raises(ValueError, match=r"routes choose \['S'\]: this model has only '-B'"):
        lm.score(ids, "BSB")
    for choices in (None, "SB"):
        with pytest.raises(ValueError, match="dense llama model without small FFNs: load it with choices='-B'"):
            model.load(tmp_path, choices=choices)


def test_a_route_that_skips_every_block_is_the_identity(ids):
    lm = tiny_model(skip_scope="block")
    embedded = lm.model.model.embed_tokens(torch.from_numpy(ids))
    tokens = lm.check(ids)
    assert torch.equal(lm.hidden(tokens, duo_routes=torch.zeros(4, dtype=torch.int8)), embedded)
    attending = tiny_model(skip_scope="ffn")
    assert not torch.equal(attending.hidden(tokens, duo_routes=torch.zeros(4, dtype=torch.int8)), embedded)


def test_a_block_skipped_token_is_still_attended_to(ids):
    lm = tiny_model(skip_scope="block")
    routes = np.full((3, 11, 4), BIG, np.int8)
    routes[:, 5, :2] = SKIP
    changed = ids.copy()
    changed[:, 5] = (ids[:, 5] + 1) % 61
    before, after = (
        lm.hidden(lm.check(x), duo_routes=torch.from_numpy(lm.spread(routes, lm.check(x)))) for x in (ids, changed)
    )
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 6:] - after[:, 6:]).abs().amax(-1).min() > 1e-4


def test_only_one_way_to_choose_and_routes_that_fit(lm, ids):
    x = torch.from_numpy(ids)
    with pytest.raises(ValueError, match="give one of duo_routes, duo_policy and duo_router"):
        lm.model(x, duo_routes=torch.full((4,), BIG), duo_policy=RandomPolicy())
    with pytest.raises(ValueError, match=r"duo_routes of shape \(2, 12, 4\): give \[3, 12, 4\] or \[layer\]"):
        lm.model(x, duo_routes=torch.full((2, 12, 4), BIG))
    with pytest.raises(ValueError, match="the last axis must hold 4 layers"):
        lm.model(x, duo_routes=torch.full((3,), BIG))
    for value, held in ((7, r"2\.\.7"), (-1, r"-1\.\.2")):
        wrong = torch.full((3, 12, 4), BIG, dtype=torch.int8)
        wrong[1, 11, 2] = value  # the last token: one step of `generate` would see it late, or never
        with pytest.raises(ValueError, match=f"routes hold values {held}: "):
            lm.model(x, duo_routes=wrong)
        with pytest.raises(ValueError, match="routes hold values"):
            lm.model.generate(x[:, :2], attention_mask=torch.ones_like(x[:, :2]), max_new_tokens=1, duo_routes=wrong)
    with pytest.raises(ValueError, match="skip_scope 'layer': allowed are"):
        tiny_model(skip_scope="layer")


def test_random_policy_has_its_shares_and_its_seed(lm, ids):
    routes = RandomPolicy(0.5, 0.3, 0.2, seed=4).routes(50, 50, 4)
    for choice, share in ((BIG, 0.5), (SMALL, 0.3), (SKIP, 0.2)):
        assert float((routes == choice).float().mean()) == pytest.approx(share, abs=0.02)
    x = torch.from_numpy(ids)
    same = RandomPolicy(seed=3).routes(3, 12, 4)
    assert torch.equal(lm.model(x, duo_policy=RandomPolicy(seed=3)).logits, lm.model(x, duo_routes=same).logits)
    nan = float("nan")
    for shares in ((0.5, 0.6), (nan, 0.5, 0.5), (0.5, nan, 0.5), (1.2, -0.2)):
        with pytest.raises(ValueError, match="probabilities that sum to 1"):
            RandomPolicy(*shares)


def test_with_any_share_every_text_has_its_own(lm):
    policy = RandomPolicy(0.5, 0.3, 0.2, seed=4, any_share=True)
    routes = policy.routes(300, 50, 4)
    big = (routes == BIG).float().mean((1, 2))
    counts = torch.histc(big, 5, 0, 1)
    assert counts.min() > 35  # 60 of each fifth
    assert counts.max() < 85
    rest = routes[routes != BIG]
    assert float((rest == SMALL).float().mean()) == pytest.approx(0.6, abs=0.02)  # 0.3 to 0.2
    assert torch.equal(policy.routes(20, 9, 4), routes[:20, :9])
    assert not (RandomPolicy(any_share=True).routes(300, 50, 4) == SKIP).any()


@pytest.mark.parametrize(
    "way",
    [
        {"duo_routes": torch.tensor([0, 1, 2, 1])},
        {"duo_routes": RandomPolicy(0.4, 0.4, 0.2).routes(3, 20, 4)},
        {"duo_policy": RandomPolicy(0.4, 0.4, 0.2, seed=5)},
    ],
)
@pytest.mark.parametrize("scope", ["ffn", "block"])
def test_generate_is_the_same_with_and_without_cache(way, scope, ids):
    lm, prompt = tiny_model(skip_scope=scope), torch.from_numpy(ids)
    found = [
        lm.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=8,
            do_sample=False,
            use_cache=cached,
            pad_token_id=0,
            **way,
        )
        for cached in (True, False)
    ]
    assert found[0].shape == (3, 20)
    assert torch.equal(*found)


def test_beams_keep_the_routes_of_their_text(ids):
    lm, prompt = tiny_model(), torch.from_numpy(ids)
    routes = RandomPolicy(0.4, 0.4, 0.2).routes(3, 20, 4)

    def beams(rows, cached):
        return lm.model.generate(
            prompt[rows],
            attention_mask=torch.ones_like(prompt[rows]),
            max_new_tokens=8,
            num_beams=3,
            do_sample=False,
            use_cache=cached,
            pad_token_id=0,
            eos_token_id=None,
            duo_routes=routes[rows],
        )

    together = beams(slice(None), True)
    assert torch.equal(together, beams(slice(None), False))
    for row in range(3):
        assert torch.equal(together[row : row + 1], beams(slice(row, row + 1), True))


def test_generate_refuses_routes_that_end_too_early(lm, ids):
    prompt = torch.from_numpy(ids)
    with pytest.raises(ValueError, match="duo_routes cover 12 tokens, generation has reached token 13"):
        lm.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=3,
            pad_token_id=0,
            duo_routes=RandomPolicy().routes(3, 12, 4),
        )


def test_activation_checkpointing_gives_the_same_gradients(ids):
    found = []
    for checkpointed in (False, True):
        lm = tiny_model(skip_scope="block")
        if checkpointed:
            lm.model.activation_checkpointing_enable()
        lm.model.train()
        x = torch.from_numpy(ids)
        lm.model(x, labels=x, duo_policy=RandomPolicy(0.4, 0.4, 0.2, seed=1)).loss.backward()
        found.append({name: p.grad for name, p in lm.model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name])
        assert gradient is not None


def test_gathered_tokens_get_the_gradients_of_ffns_that_see_all_of_them(lm):
    ffn, x = lm.model.decoder_layers[0].duo_ffn, torch.randn(3, 7, 32, requires_grad=True)
    choices = torch.randint(0, 3, (3, 7))
    masked = sum((choices == c)[..., None] * ffn.run(c, x) for c in (0, 1, 2))
    made = ffn.dispatch(x, choices)
    torch.testing.assert_close(made, masked)
    weight = torch.randn_like(made)
    own, want = (torch.autograd.grad((each * weight).sum(), x, create_graph=True)[0] for each in (made, masked))
    torch.testing.assert_close(own, want)
    assert (own[choices == 0] == 0).all()
    again, wanted = (torch.autograd.grad(each.square().sum(), x)[0] for each in (own, want))  # a penalty on gradients
    torch.testing.assert_close(again, wanted)


def test_an_unused_ffn_still_gets_zero_gradients(lm, ids):
    x = torch.from_numpy(ids)
    lm.model(x, labels=x, duo_routes=torch.full((4,), BIG)).loss.backward()
    assert all(p.grad is not None for p in lm.model.parameters())
    lm.model.zero_grad()


@pytest.mark.parametrize("scope", ["ffn", "block"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_flops_equal_the_flop_counter(scope, kv_heads):
    lm = tiny_model(skip_scope=scope, kv_heads=kv_heads)
    lm.model.set_attn_implementation("eager")
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 61, (2, 9)))
    for shares in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.3, 0.4, 0.3)):
        routes = RandomPolicy(*shares).routes(2, 9, 4)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            lm.model(ids, duo_routes=routes, use_cache=False)
        assert counter.get_total_flops() == model.forward_flops(lm.model, routes.numpy())


def test_flops_by_hand():
    lm = tiny_model(layers=1, hidden=8, heads=2, kv_heads=1, vocab=10)  # FFN 16 and 8, head width 4
    attention = 2 * (8 * 8 + 2 * 8 * 4 + 8 * 8) + 2 * 2 * 8 * 3  # q, k and v, o; scores and mixture over 3 tokens
    for choice, width in ((SKIP, 0), (SMALL, 8), (BIG, 16)):
        per_token = attention + 2 * 3 * 8 * width + 2 * 8 * 10
        assert model.forward_flops(lm.model, np.full((1, 3, 1), choice, np.int8)) == 3 * per_token
    for bad in (np.full((1, 3, 1), -1, np.int8), np.ones((1, 3, 2), np.int8)):
        with pytest.raises(ValueError, match=r"give a choice of 0\.\.2 for every token and each of 1 layers"):
            model.forward_flops(lm.model, bad)


def test_the_papers_shape():
    with torch.device("meta"):
        paper = model.CLASSES["llama"][1](PRESETS["paper"].config())
    groups = model.parameter_groups(paper)
    stated = {"small": 59, "big": 944, "attention": 314, "embedding": 82}  # the paper cuts 314.6 to 314
    for name, millions in stated.items():
        assert groups[name] / 1e6 == pytest.approx(millions, abs=0.6), name
    assert sum(groups.values()) / 1e9 == pytest.approx(1.399, abs=5e-4)


def test_scores_are_the_same_for_every_batch_size_and_nan_where_not_scored(lm):
    draw = np.random.default_rng(0)
    ids = draw.integers(0, 61, (8, 10))
    routes = draw.integers(0, 3, (8, 9, 4)).astype(np.int8)
    np.testing.assert_allclose(lm.score(ids, routes, batch_size=1), lm.score(ids, routes, batch_size=8), atol=1e-5)
    logits = lm.model(torch.from_numpy(ids), duo_routes=torch.from_numpy(lm.spread(routes, lm.check(ids)))).logits
    want = -logits[:, :-1].log_softmax(-1).gather(-1, torch.from_numpy(ids)[:, 1:, None])[..., 0]
    np.testing.assert_allclose(lm.score(ids, routes), want.detach().numpy(), atol=1e-5)
    tokens = lm.check(ids)
    tokens.scored[2, 5:] = False
    np.testing.assert_array_equal(np.isnan(lm.score(tokens, routes)), ~tokens.scored)
    unrouted, big = routes.copy(), routes.copy()
    unrouted[2, 5:], big[2, 5:] = -1, BIG
    np.testing.assert_array_equal(lm.score(tokens, unrouted), lm.score(tokens, big))
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size {size}: at least 1 sequence"):
            lm.score(ids, routes, batch_size=size)


def test_minus_one_stands_for_a_whole_route_that_is_not_scored(lm, ids):
    tokens = lm.check(ids)
    tokens.scored[1, 3:] = False
    routes = np.full((3, 11, 4), SMALL, np.int8)
    routes[1, 3:] = -1
    assert (lm.spread(routes, tokens)[1, 3:] == BIG).all()
    scored, partly = routes.copy(), routes.copy()
    scored[1, 2] = partly[1, 4, :3] = -1
    partly[1, 4, 3] = SMALL
    for wrong, positions in ((scored, 1), (partly, 1), (np.array([2, 2, -1, 2]), 33), (np.full(4, -1), 33)):
        with pytest.raises(ValueError, match=rf"routes hold -1 at {positions} positions .* give 0 \(skip\)"):
            lm.score(tokens, wrong)


def test_the_fingerprint_is_that_of_the_checkpoint_and_its_configuration(lm, tmp_path):
    lm.model.save_pretrained(tmp_path)
    half = model.load(tmp_path, dtype=torch.bfloat16)
    assert half.fingerprint == lm.fingerprint
    half.model.config.rope_parameters["rope_theta"] = 5.0
    assert model.LanguageModel(half.model).fingerprint != lm.fingerprint
    other = model.load(tmp_path)
    other.model.lm_head.weight.data[3, 4] += 0.1
    assert other.fingerprint != lm.fingerprint


def test_bfloat16_scores_with_a_float32_head(lm, ids, tmp_path):
    lm.model.save_pretrained(tmp_path)
    half = model.load(tmp_path, dtype=torch.bfloat16)
    assert half.head.weight.dtype == torch.float32
    assert np.abs(half.score(ids, "BBBB") - lm.score(ids, "BBBB")).mean() < 0.1


@pytest.mark.parametrize(
    ("ids", "routes", "message"),
    [
        ([[1, 2, 61]], "BBBB", r"token ids 1\.\.61: the model's vocabulary has ids 0\.\.60"),
        ([[1, -2, 3]], "BBBB", r"token ids -2\.\.3"),
        (np.ones((1, 49), int), "BBBB", "a text of 49 tokens: the model's context is 48"),
        ([[1]], "BBBB", "at least one sequence of two tokens"),
        ([[1.5, 2]], "BBBB", "give integers"),
        ([[1, 2, 3]], "BBB", "has 3 letters: the model has 4 layers"),
        ([[1, 2, 3]], "BBXB", r"holds \['X'\]: each letter must be"),
        ([[1, 2, 3]], np.zeros((1, 3, 4), np.int8), r"give \[layer\] or \[1, 2, 4\]"),
    ],
)
def test_bad_tokens_and_routes(lm, ids, routes, message):
    with pytest.raises(ValueError, match=message):
        lm.score(np.array(ids), routes)


def test_ffns_work_under_autocast(lm, ids, monkeypatch):
    """On CUDA, unlike here, autocast leaves `index_copy` alone: the dtypes of what it is given must agree."""
    copy = torch.Tensor.index_copy

    def strict(*given):
        with torch.autocast("cpu", enabled=False):
            return copy(*given)

    monkeypatch.setattr(torch.Tensor, "index_copy", strict)
    x, policy = torch.from_numpy(ids), RandomPolicy(0.4, 0.3, 0.3, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = lm.model(x, labels=x, duo_policy=policy).loss
    torch.testing.assert_close(half.float(), lm.model(x, labels=x, duo_policy=policy).loss, atol=0.05, rtol=0.01)


def test_a_head_of_its_own_stays_one_whatever_the_configuration_says(ids, tmp_path):
    lm, x = tiny_model(), torch.from_numpy(ids)
    lm.model.lm_head.weight = torch.nn.Parameter(torch.randn_like(lm.model.lm_head.weight))
    assert lm.model.config.tie_word_embeddings
    dense = lm.model.dense()
    torch.testing.assert_close(dense(x).logits, lm.model(x).logits, atol=1e-5, rtol=1e-5)
    assert not dense.config.tie_word_embeddings


def test_what_the_dense_class_takes_is_taken(ids):
    lm, x = tiny_model(), torch.from_numpy(ids)
    way = {"duo_policy": RandomPolicy(0.4, 0.3, 0.3, seed=1)}
    told = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    told["attention_mask"] = torch.ones_like(x)
    wanted = lm.model.generate(x, **way, **told)
    cached = lm.model.generate(x, past_key_values=DynamicCache(config=lm.model.config), **way, **told)
    assert torch.equal(wanted, cached)
    embedded = lm.model.generate(inputs_embeds=lm.model.get_input_embeddings()(x), **way, **told)
    assert torch.equal(wanted[:, x.shape[1] :], embedded)
    for cache in (True, False):
        out = lm.model(x, return_dict=False, use_cache=cache)
        assert isinstance(out, tuple)
        assert torch.equal(out[0], lm.model(x).logits)


def test_models_that_cannot_be_loaded(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        model.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="choices 'BX': name letters of '-SB'"):
        model.load(tmp_path, choices="BX")
    with pytest.raises(OSError, match="there is no such folder here, and the Hub cannot be reached"):
        model.load("no-such-model")
    lm = tiny_model()
    lm.model.save_pretrained(tmp_path / "nan")
    lm.model.lm_head.weight.data[0, 0] = float("nan")
    lm.model.save_pretrained(tmp_path / "nan")
    with pytest.raises(ValueError, match=r"weight \S+ of .*nan holds NaN or infinity"):
        model.load(tmp_path / "nan")


def test_damaged_and_incomplete_folders_are_named(lm, tmp_path):
    def saved(name):
        lm.model.save_pretrained(tmp_path / name)
        return tmp_path / name / "model.safetensors"

    weights = saved("cut")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(OSError, match="cut are damaged, cut short"):
        model.load(tmp_path / "cut")
    saved("none").unlink()
    with pytest.raises(OSError, match="none"):
        model.load(tmp_path / "none")
    weights = saved("lacking")
    tensors = load_file(weights)
    del tensors["model.layers.2.mlp.small.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacking lacks 1 weights, for example model\.layers\.2\.mlp\.small\.up_proj"):
        model.load(tmp_path / "lacking")
    weights = saved("more")
    save_file({**load_file(weights), "model.layers.4.mlp.up_proj.weight": torch.ones(2)}, weights, {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"more holds 1 weights that its configuration has no place for, for example mod"
    ):
        model.load(tmp_path / "more")
    weights = saved("shape")
    tensors = load_file(weights)
    tensors["model.norm.weight"] = torch.ones(5)
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"weight model\.norm\.weight of .*shape is \(5,\), its configuration says \(32,\)"
    ):
        model.load(tmp_path / "shape")


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (None, FileNotFoundError, "holds no config.json, or one that says nothing: it is not the folder of a model"),
        ("{", OSError, r"config\.json"),
        ("{}", FileNotFoundError, "holds no config.json, or one that says nothing"),
        ({"hidden_size": "wide"}, ValueError, "its config.json is that of no llama model .*hidden_size"),
        ({"hidden_act": "nope"}, ValueError, "its config.json makes no duo_llama .*nope"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_named(lm, tmp_path, fields, error, message):
    lm.model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    if fields is None:
        path.unlink()
    else:
        path.write_text(fields if isinstance(fields, str) else json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises(error, match=message):
        model.load(tmp_path)


def test_the_folder_of_a_training_run_names_the_model_in_it(lm, tmp_path):
    lm.model.save_pretrained(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=r"there is one in .*model$"):
        model.load(tmp_path)


@pytest.mark.parametrize("text", ["{", '{"version": "1.0"}'])
def test_a_tokenizer_that_cannot_be_read_is_named(lm, tmp_path, text):
    lm.model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"the tokenizer of .* cannot be read"):
        model.load(tmp_path)


def test_where_and_how_precisely_a_model_is_loaded(lm, ids, tmp_path):
    lm.model.half().save_pretrained(tmp_path)
    lm.model.float()
    assert {dtype: model.load(tmp_path, dtype=dtype).model.dtype for dtype in (None, "auto", "bfloat16")} == {
        None: torch.float32,
        "auto": torch.float16,
        "bfloat16": torch.bfloat16,
    }
    mapped = model.load(tmp_path, dtype="float32", device_map={"": "cpu"})
    np.testing.assert_array_equal(mapped.score(ids, "B-SB"), model.load(tmp_path).score(ids, "B-SB"))
    assert model.load(tmp_path, skip_scope="block").model.config.skip_scope == "block"
    with pytest.raises(ValueError, match="dtype 'int4': allowed are 'auto', 'float32'"):
        model.load(tmp_path, dtype="int4")
    with pytest.raises(ValueError, match="skip_scope 'layer': allowed are"):
        model.load(tmp_path, skip_scope="layer")
    with pytest.raises(ValueError, match="device 'cpu' and a device_map: give one of them"):
        model.load(tmp_path, device="cpu", device_map="auto")


def test_a_folder_without_tokenizer_still_loads(lm, tmp_path):
    lm.model.save_pretrained(tmp_path)
    assert model.load(tmp_path).tokenizer is None
    assert model.load(ROOT / "data" / "duo-tiny").tokenizer.is_fast


def test_a_plain_text_and_any_form_of_route_is_scored():
    lm = model.load(ROOT / "data" / "duo-tiny")
    tokens = corpus.encode(lm.tokenizer, "import os")
    wanted = lm.score(tokens, "B" * 12)
    for text in ("import os", ["import os"], tokens, tokens.ids):
        for route in ("all-big", [2] * 12, np.full(12, 2), torch.full((12,), 2)):
            np.testing.assert_array_equal(lm.score(text, route), wanted)
    with pytest.raises(ValueError, match="text '' of 0 tokens has nothing to predict"):
        lm.score("", "all-big")
    with pytest.raises(ValueError, match=r"routes of shape \(1, 12\): give \[layer\] or"):
        lm.score("import os", ["B" * 12])
    found = oracle.predict(lm, tokens, ["B" * 12, "all-small"], seq=0, position=0)
    np.testing.assert_allclose(found.loss_nats, [wanted[0, 0], lm.score(tokens, "all-small")[0, 0]], atol=1e-5)


def stranger(folder, name="llama", *, dtype="bfloat16", **fields):
    """A dense checkpoint as strangers have them: with a tokenizer that begins with a begin-of-text token, in half precision."""
    tokenizer = shaped_like("llama3")
    dense = dense_model(name, vocab=len(tokenizer), **fields).to(getattr(torch, dtype))
    tokenizer.save_pretrained(folder)
    return dense, tokenizer


def test_a_sharded_bfloat16_llama_with_a_begin_of_text_token(tmp_path):
    dense, tokenizer = stranger(tmp_path)
    dense.save_pretrained(tmp_path, max_shard_size="20kB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    lm = model.load(tmp_path, choices="-B")
    ids = tokenizer("a small world", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted = dense.float()(ids, labels=ids).loss
    losses = lm.score("a small world", "all-big")
    assert losses.size == ids.shape[1] - 1
    assert losses.mean() == pytest.approx(float(wanted), rel=1e-5)
    assert (
        oracle.search(lm, tokenizer("a small world", return_tensors="np")["input_ids"], Space(3, "-B")).replay_error
        < 1e-4
    )


@pytest.mark.parametrize("shards", [1, 3])
def test_weights_as_bin_files_are_read_as_tensors_and_nothing_else(tmp_path, shards):
    dense, _ = stranger(tmp_path, "opt", dtype="float32")
    dense.config.save_pretrained(tmp_path)
    weights = {name: tensor.clone() for name, tensor in dense.state_dict().items() if name != "lm_head.weight"}
    names = sorted(weights)
    parts = [names[part::shards] for part in range(shards)]
    files = (
        ["pytorch_model.bin"]
        if shards == 1
        else [f"pytorch_model-{n + 1:05}-of-{shards:05}.bin" for n in range(shards)]
    )
    for file, part in zip(files, parts):
        torch.save({name: weights[name] for name in part}, tmp_path / file)
    if shards > 1:
        index = {"metadata": {}, "weight_map": {name: file for file, part in zip(files, parts) for name in part}}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    lm = model.load(tmp_path, choices="-B")
    ids = torch.arange(20)[None]
    torch.testing.assert_close(lm.model(ids).logits, dense(ids).logits, atol=1e-5, rtol=1e-5)

    class Runs:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"model.decoder.embed_tokens.weight": Runs()}, tmp_path / files[0])
    with pytest.raises(OSError, match="damaged, cut short or no plain tensors"):
        model.load(tmp_path, choices="-B")
    assert not (tmp_path / "ran").exists()
    (tmp_path / files[0]).write_bytes(b"cut")
    with pytest.raises(OSError, match="damaged, cut short or no plain tensors"):
        model.load(tmp_path, choices="-B")


def test_the_code_that_a_checkpoint_names_is_not_run_and_that_is_said(tmp_path, caplog):
    dense, _ = stranger(tmp_path, dtype="float32")
    dense.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('it ran')")
    lm = model.load(tmp_path, choices="-B")
    assert "the code it names (auto_map) is not run; it is read as llama of transformers" in caplog.text
    ids = torch.arange(20)[None]
    torch.testing.assert_close(lm.model(ids).logits, dense(ids).logits, atol=1e-5, rtol=1e-5)
    lm.model.save_pretrained(tmp_path / "saved")
    assert "auto_map" not in (tmp_path / "saved" / "config.json").read_text()


def test_a_head_of_its_own_is_kept_though_the_configuration_ties_it(tmp_path, caplog):
    dense, _ = stranger(tmp_path, dtype="float32", tie_word_embeddings=False)
    dense.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    lm = model.load(tmp_path, choices="-B")
    assert "holds two matrices: both are kept" in caplog.text
    ids = torch.arange(20)[None]
    torch.testing.assert_close(lm.model(ids).logits, dense(ids).logits, atol=1e-5, rtol=1e-5)
    lm.model.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(model.load(tmp_path / "saved", choices="-B").model(ids).logits, lm.model(ids).logits)


def test_rows_that_fill_up_a_vocabulary_are_never_drawn_nor_named(tmp_path):
    tokenizer = shaped_like("gpt2")
    dense = dense_model("llama", vocab=len(tokenizer) + 40, tie_word_embeddings=False)
    with torch.no_grad():  # rows without a token that a model as it is would name first
        dense.lm_head.weight[len(tokenizer) :] = 3 * dense.lm_head.weight[:40]
    dense.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lm = model.load(tmp_path, choices="-B")
    assert (lm.vocab, lm.known) == (len(tokenizer) + 40, len(tokenizer))
    tokens = corpus.encode(lm.tokenizer, "a model of the words and the bytes of a small world")
    drawn = [oracle.sample_targets(lm, tokens, seed=seed) for seed in range(30)]
    assert np.max(drawn) < lm.known
    found = oracle.predict(lm, tokens, ["BBB", "-B-"], seq=0, position=3, top=30)
    assert found.top_ids.max() < lm.known
    logits = lm.model(torch.from_numpy(tokens.ids)).logits
    assert (logits[0, :-1].argmax(-1) >= lm.known).any()  # it would have been
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], torch.from_numpy(tokens.ids[0, 1:]))
    assert lm.score(tokens, "BBB").mean() == pytest.approx(loss.item(), rel=1e-5)  # the loss is the model's own


@pytest.mark.parametrize("name", ["gpt2", "owner/name"])
def test_an_id_of_the_hub_that_cannot_be_reached_ends_in_one_line(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=f"model {name}: there is no such folder here, and"):
        model.load(name, choices="-B")
    with pytest.raises(FileNotFoundError, match=r"model x\.gguf: there is no such file"):
        model.load("x.gguf", choices="-B")
