"""Habits of people who use transformers: none of them makes a wrong number without a word."""

import copy
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import dense_model, tiny_model
from peft import PrefixTuningConfig, get_peft_model
from transformers import DynamicCache, GenerationConfig

from duoviz import model, oracle, router
from duoviz.families import FAMILIES
from duoviz.model import RandomPolicy
from duoviz.oracle.search import MOST_REPLAY_ERROR
from duoviz.routes import BIG, SKIP, SMALL, Space

IDS = np.random.default_rng(0).integers(0, 61, (3, 12))
X = torch.from_numpy(IDS)
LONG = GenerationConfig(max_new_tokens=8)
LOOKUP = GenerationConfig(prompt_lookup_num_tokens=3, max_new_tokens=8)
LEARNED = router.Router(4, 32, router.Mixture(big=0.5, small=0.5)).eval()


def duo(name):
    """A small Duo model of a family with random weights."""
    torch.manual_seed(0)
    return model.CLASSES[name][1](model.config_for(dense_model(name).config, small_width=8)).eval()


def generated(lm):
    way = {"attention_mask": torch.ones_like(X), "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    return lm.model.generate(X, duo_policy=RandomPolicy(0.4, 0.3, 0.3), **way).numpy()


CALLS = {
    "score big": lambda lm: lm.score(IDS, "BBBB"),
    "score small": lambda lm: lm.score(IDS, "SSSS"),
    "plain": lambda lm: lm.model(X).logits.detach().numpy(),
    "policy": lambda lm: lm.model(X, duo_policy=RandomPolicy()).logits.detach().numpy(),
    "router": lambda lm: LEARNED.run(lm, IDS)[1],
    "search": lambda lm: oracle.search(lm, IDS[:, :6], Space(4, "SB", big=2)).loss_nats,
    "search alone": lambda lm: oracle.search(lm, IDS[:1, :6], Space(4, "-B"), context="reference:BSSB").loss_nats,
    "uniform": lambda lm: oracle.search(lm, IDS[:1, :6], Space(4, "SB"), context="uniform").loss_nats,
    "landscape": lambda lm: oracle.landscape(lm, IDS, Space(4, "-SB"), seq=1, position=3, context="reference:big"),
    "generate": generated,
}


@pytest.mark.parametrize("threads", [2, 4])
def test_side_by_side_is_one_after_the_other(threads):
    """Any calls at the same time, in any order, give what each gives alone."""
    lm, names = tiny_model(), list(CALLS)
    alone = {name: call(lm) for name, call in CALLS.items()}
    draw, start = np.random.default_rng(threads), threading.Barrier(threads)

    def at_once(name):
        start.wait(60)
        return CALLS[name](lm)

    with ThreadPoolExecutor(threads) as pool:
        for _ in range(200 // threads):
            chosen = draw.choice(names, threads)
            for name, found in zip(chosen, pool.map(at_once, chosen)):
                np.testing.assert_allclose(found, alone[name], atol=1e-5, err_msg=f"{name} beside {chosen}")


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_arguments_stand_in_the_familys_own_order(name):
    """By position as by name, and with all that the dense model gives out."""
    dense = dense_model(name)
    dense.set_attn_implementation("eager")
    made = model.CLASSES[name][1](model.config_for(dense.config, small_width=8)).eval()
    made.load_state_dict(dense.state_dict(), strict=False)
    made.set_attn_implementation("eager")
    wanted, found = (each(X, output_attentions=True, labels=X) for each in (dense, made))
    assert [*found] == [key for key in wanted if key not in ("router_logits", "aux_loss")]
    torch.testing.assert_close(found.loss, wanted.loss)
    mask = torch.ones_like(X)
    mask[:, :2] = 0
    by_position = (X, None, mask) if name == "gpt2" else (X, mask)
    torch.testing.assert_close(
        made(*by_position).logits[:, 2:], dense(*by_position).logits[:, 2:], atol=1e-5, rtol=1e-5
    )
    one = RandomPolicy(0.4, 0.3, 0.3).routes(1, 12, 3)
    for routes in (one, one[:, :1]):  # the same for all texts, whatever the family does to them
        torch.testing.assert_close(
            made(X, duo_routes=routes).logits, made(X, duo_routes=routes.expand(3, -1, -1)).logits
        )


def test_routes_are_taken_in_any_form_and_others_refused():
    lm = tiny_model()
    wanted = lm.model(X, duo_routes=torch.tensor([2, 1, 0, 2])).logits
    own = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(X)}
    texts = lm.model.generate(X, duo_routes=torch.tensor([2, 1, 0, 2]), **own)
    for route in ("BS-B", [2, 1, 0, 2], np.array([2, 1, 0, 2]), [[[2, 1, 0, 2]]]):
        assert torch.equal(lm.model(X, duo_routes=route).logits, wanted)
        assert torch.equal(lm.model.generate(X, duo_routes=route, **own), texts)
    one_text = np.tile([2, 1, 0, 2], (12, 1))
    assert torch.equal(lm.model(X[:1], duo_routes=one_text).logits, lm.model(X[:1], duo_routes=one_text[None]).logits)
    for wrong, message in (
        (np.ones((3, 4), int), r"shape \(3, 4\): give \[3, "),  # [text, layer], or is it [token, layer]?
        (np.ones((2, 12, 4), int), r"shape \(2, 12, 4\): give \[3, "),
        ("BBB", "has 3 letters"),
        (np.ones(4), "dtype float64: give integers"),
    ):
        for call in (lm.model, lambda x, **way: lm.model.generate(x, **way, **own)):
            with pytest.raises(ValueError, match=message):
                call(X, duo_routes=wrong)
    for given in ({"duo_route": "BBBB"}, {"duo_routing": None}):
        with pytest.raises(ValueError, match="known are duo_routes, duo_policy and duo_router"):
            lm.model(X, **given)
    with pytest.raises(ValueError, match="duo_routes given to the backbone"):
        lm.model.model(X, duo_routes=torch.ones(4))


def test_a_dense_model_has_no_small_ffns(tmp_path):
    dense_model("llama").save_pretrained(tmp_path)
    lm = model.load(tmp_path, choices="-B")
    for way in (
        {"duo_routes": "BSB"},
        {"duo_policy": RandomPolicy()},
        {"duo_router": router.Router(3, 32, router.Mixture(big=0.5, small=0.5)).eval()},
    ):
        with pytest.raises(ValueError, match="dense model, without small FFNs"):
            lm.model(X, **way)
    assert torch.isfinite(lm.model(X, duo_routes="B-B").logits).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_changes_is_scored_as_it_is(dtype):
    lm = tiny_model()
    lm.model.to(getattr(torch, dtype))
    seen = [(lm.score(IDS, "SSSS"), lm.fingerprint)]
    optimizer = torch.optim.SGD(lm.model.parameters(), lr=0.3)
    lm.model(X, labels=X, duo_routes="SSSS").loss.backward()

    def resize():
        lm.model.resize_token_embeddings(70)

    def replace_head():
        lm.model.lm_head.weight = torch.nn.Parameter(torch.randn_like(lm.model.lm_head.weight))

    for change in (optimizer.step, replace_head, resize):
        change()
        fresh = model.LanguageModel(copy.deepcopy(lm.model))
        found = lm.score(IDS, "SSSS"), lm.fingerprint
        np.testing.assert_array_equal(found[0], fresh.score(IDS, "SSSS"))
        assert found[1] == fresh.fingerprint
        assert found[1] not in {mark for _, mark in seen}
        seen.append(found)
    assert np.isfinite(lm.score(np.full((1, 4), 69), "SSSS")).all()


def test_what_is_around_a_call_changes_nothing():
    """Training mode, autocast, inference mode, another default dtype: the same numbers, and all is as it was."""
    lm = tiny_model()
    lm.model.config.attention_dropout = 0.5
    for layer in lm.model.decoder_layers:
        layer.self_attn.attention_dropout = 0.5
    names = ("score small", "search", "landscape", "uniform", "router")
    wanted = {name: CALLS[name](lm) for name in names}

    def same():
        for name in names:
            np.testing.assert_array_equal(CALLS[name](lm), wanted[name], err_msg=name)

    lm.model.train()
    same()
    assert lm.model.training
    assert all(module.training for module in lm.model.modules())
    lm.model.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same()
        assert torch.is_autocast_enabled("cpu")
    with torch.inference_mode():
        same()
    torch.set_default_dtype(torch.float64)
    try:
        same()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_default_dtype_is_float32_until_the_last_call_ends():
    """Two models in two threads: the second call begins within the first, and ends after it."""
    one, other, seen = tiny_model(), tiny_model(), []
    begun, go_on = threading.Event(), threading.Event()

    def second():
        with other.as_it_is():
            begun.set()
            go_on.wait(60)
            seen.append(torch.get_default_dtype())

    thread = threading.Thread(target=second)
    torch.set_default_dtype(torch.float64)
    try:
        with one.as_it_is():
            thread.start()
            assert begun.wait(60)
        go_on.set()
        thread.join()
        assert seen == [torch.float32]
        assert torch.get_default_dtype() == torch.float64
    finally:
        go_on.set()
        torch.set_default_dtype(torch.float32)
    assert torch.is_grad_enabled()


class Adapted(torch.nn.Module):
    """A linear map with something beside it, as adapters have it."""

    def __init__(self, linear):
        super().__init__()
        self.base, self.more = linear, torch.nn.Linear(linear.in_features, linear.out_features, bias=False)
        self.weight, self.bias = linear.weight, linear.bias  # what a fast path would read

    def forward(self, x):
        return self.base(x) + self.more(x)


def adapt(lm):
    for layer in lm.model.decoder_layers:
        layer.self_attn.q_proj, layer.mlp.up_proj = Adapted(layer.self_attn.q_proj), Adapted(layer.mlp.up_proj)
        layer.mlp.small.down_proj = Adapted(layer.mlp.small.down_proj)


def hook(lm):
    for layer in lm.model.decoder_layers:
        layer.self_attn.o_proj.register_forward_hook(lambda module, args, out: 0.7 * out)


def replace_mlp(lm):
    for layer in lm.model.decoder_layers:
        layer.mlp = copy.deepcopy(layer.mlp)
        torch.nn.init.normal_(layer.mlp.up_proj.weight)


def parametrise(lm):
    for layer in lm.model.decoder_layers:
        torch.nn.utils.parametrizations.weight_norm(layer.self_attn.v_proj)
        torch.nn.init.normal_(layer.self_attn.v_proj.parametrizations.weight.original0)


@pytest.mark.parametrize("change", [adapt, hook, replace_mlp, parametrise])
def test_changed_modules_are_the_ones_that_run(change):
    """The search sees what an ordinary forward pass sees."""
    lm = tiny_model()
    plain = CALLS["search"](lm)
    torch.manual_seed(1)
    change(lm)
    for choices in ("SB", "-B"):
        found = oracle.search(lm, IDS[:, :6], Space(4, choices, big=2))
        assert found.replay_error < 1e-5
        np.testing.assert_allclose(lm.score(IDS[:, :6], found.routes), found.loss_nats, atol=1e-5)
    assert abs(CALLS["search"](lm) - plain).max() > 1e-3


def test_a_search_that_fails_its_own_check_raises(monkeypatch):
    lm = tiny_model()
    monkeypatch.setitem(MOST_REPLAY_ERROR, torch.float32, -1.0)
    with pytest.raises(
        ValueError, match=r"nats from an ordinary forward pass on the same routes, .* merge or remove it"
    ):
        oracle.search(lm, IDS, Space(4, "SB", big=2))
    oracle.search(lm, IDS, Space(4, "SB", big=2), context="reference:big")  # whose histories differ: nothing to check


def test_random_routes_belong_to_a_token():
    """Whether it is generated, cached, padded or read at once, with others beside it or alone."""
    lm, policy = tiny_model(), RandomPolicy(0.4, 0.3, 0.3, seed=2)
    long = policy.routes(3, 20, 4)
    assert torch.equal(policy.routes(2, 7, 4), long[:2, :7])
    assert {SKIP, SMALL, BIG} == set(long.unique().tolist())
    way = {"attention_mask": torch.ones_like(X), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    told = {"return_dict_in_generate": True, "output_logits": True, "eos_token_id": None}
    out = lm.model.generate(X, duo_policy=policy, **way, **told)
    whole = lm.model(out.sequences, duo_policy=policy).logits
    torch.testing.assert_close(torch.stack(out.logits, 1), whole[:, 11:-1], atol=1e-4, rtol=1e-4)
    cache = DynamicCache(config=lm.model.config)
    steps = [
        lm.model(out.sequences[:, i : i + 1], past_key_values=cache, use_cache=True, duo_policy=policy).logits
        for i in range(20)
    ]
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-4, rtol=1e-4)
    padded, mask = torch.nn.functional.pad(X, (4, 0)), torch.nn.functional.pad(torch.ones_like(X), (4, 0))
    beside = lm.model.generate(padded, duo_policy=policy, **{**way, "attention_mask": mask}, **told)
    torch.testing.assert_close(torch.stack(beside.logits), torch.stack(out.logits), atol=1e-4, rtol=1e-4)


WAYS = {
    "given": {"duo_routes": "SBS-"},
    "per token": {"duo_routes": RandomPolicy(0.4, 0.3, 0.3, seed=4).routes(1, 40, 4)},
    "policy": {"duo_policy": RandomPolicy(0.4, 0.3, 0.3, seed=5)},
    "router": {"duo_router": LEARNED},
    "nothing": {},
}
MANNERS = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "small drafts": {"assistant_routes": "SSSS"},
    "early exit": {"assistant_early_exit": 2},
    "guidance": {"guidance_scale": 1.5},
    "chunks": {"prefill_chunk_size": 5},
}


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("way", WAYS)
def test_generate_returns_the_routes_that_were_taken(way, manner):
    """With them, one forward pass over the text gives the logits that it was made from."""
    lm, prompt = tiny_model(), X[:1].repeat(1, 2)
    how = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    how |= {"eos_token_id": None, "return_dict_in_generate": True, "output_logits": True}
    made = lm.model.generate(prompt, **WAYS[way], **MANNERS[manner], **how)
    assert made.duo_routes.shape == (1, 32, 4)
    assert made.duo_routes.dtype == torch.int8
    if way in ("per token", "policy"):
        asked = WAYS[way].get("duo_routes", RandomPolicy(0.4, 0.3, 0.3, seed=5).routes(1, 40, 4))
        assert torch.equal(made.duo_routes, asked[:, :32])
    assert (made.duo_routes == BIG).all() == (way == "nothing")
    again = lm.model(made.sequences[:, :-1], duo_routes=made.duo_routes).logits
    torch.testing.assert_close(torch.stack(made.logits, 1), again[:, 23:], atol=1e-4, rtol=1e-4)


def cache_of(lm, ids):
    cache = DynamicCache(config=lm.model.config)
    lm.model(ids, past_key_values=cache, use_cache=True)
    return cache


def test_routes_that_were_taken_stand_at_their_tokens():
    lm, policy = tiny_model(), RandomPolicy(0.4, 0.3, 0.3, seed=6)
    how = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    told = {"return_dict_in_generate": True, "duo_policy": policy}
    embeds = lm.model.get_input_embeddings()(X)
    for given in ({"inputs": X}, {"inputs_embeds": embeds}):
        assert torch.equal(lm.model.generate(**given, **how, **told).duo_routes, policy.routes(3, 16, 4))
    seen = {"attention_mask": torch.ones_like(X)}
    whole, only_new = (
        lm.model.generate(ids, past_key_values=cache_of(lm, X[:, :7]), **seen, **how, **told).duo_routes
        for ids in (X, X[:, 7:])
    )
    assert (whole[:, :7] == -1).all()
    assert torch.equal(whole[:, 7:], policy.routes(3, 16, 4)[:, 7:])
    assert (only_new[:, :7] == -1).all()
    assert torch.equal(only_new[:, 7:], whole[:, 7:])
    assert not hasattr(lm.model.generate(X, num_beams=2, **how, **told), "duo_routes")
    assert isinstance(lm.model.generate(X, **how), torch.Tensor)


def test_reentrant_checkpointing_of_a_router_is_refused():
    lm, learned = tiny_model(), copy.deepcopy(LEARNED).train()
    lm.model.train()
    lm.model.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="'use_reentrant': False"):
        lm.model(X, labels=X, duo_router=learned)
    lm.model.activation_checkpointing_enable({"use_reentrant": False})
    lm.model(X, labels=X, duo_router=learned).loss.backward()
    assert torch.isfinite(learned.bias.grad).all()


def test_the_assistant_drafts_with_its_own_routes():
    """And leaves no trace of it: configurations are as they were, beside a thread that scores too."""
    lm, seen = tiny_model(), []
    kept = lm.model.register_forward_pre_hook(lambda _, args, way: seen.append(way["duo_routes"]), with_kwargs=True)
    way = {"attention_mask": torch.ones_like(X[:1]), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    before = lm.model.config.to_dict(), lm.model.generation_config.to_dict()
    lm.model.generate(X[:1], duo_routes="BBBB", assistant_routes="all-small", eos_token_id=None, **way)
    assert {tuple(routes.flatten().tolist()) for routes in seen} == {(BIG,) * 4, (SMALL,) * 4}
    seen.clear()
    lm.model.generate(X[:1], duo_routes="BBSS", assistant_early_exit=2, eos_token_id=None, **way)
    assert {tuple(routes.flatten().tolist()) for routes in seen} == {(BIG, BIG, SMALL, SMALL), (BIG, BIG)}
    kept.remove()
    wanted, scores = lm.score(IDS, "BSBS"), []
    with ThreadPoolExecutor(2) as pool:
        drafting = pool.submit(lm.model.generate, X[:1], assistant_early_exit=1, **(way | {"max_new_tokens": 30}))
        while not drafting.done() and len(scores) < 20:
            scores.append(lm.score(IDS, "BSBS"))
        drafting.result()
    np.testing.assert_allclose(scores, np.broadcast_to(wanted, (len(scores), *wanted.shape)), atol=1e-5)
    assert before == (lm.model.config.to_dict(), lm.model.generation_config.to_dict())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"duo_routes": "BBBB", "cache_implementation": "paged"}, "duo_routes: continuous batching .* no routes"),
        ({"assistant_routes": "BBBB", "prompt_lookup_num_tokens": 3}, "prompt lookup copies its drafts"),
        ({"assistant_routes": "BBBB", "generation_config": LOOKUP}, "prompt lookup copies its drafts"),
        ({"assistant_routes": "BBBB", "assistant_model": dense_model("llama")}, "a LlamaForCausalLM, no Duo model"),
        ({"assistant_routes": "BBB"}, "must hold 4 letters|4 layers"),
        ({"duo_routes": "BBBB", "duo_policy": RandomPolicy()}, "one of duo_routes, duo_policy and"),
        ({"duo_routes": np.full((1, 16, 4), BIG), "assistant_routes": "SSSS"}, "cover 16 tokens, .* reached token 17"),
    ],
)
def test_text_cannot_be_made_with_routes_in_every_way(given, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().model.generate(X[:1], attention_mask=torch.ones_like(X[:1]), **{"generation_config": LONG} | given)


def test_drafts_end_where_the_routes_do():
    """The shipped model repeats its prompt, so that drafts copied from it would go beyond the last route."""
    lm = model.load("data/duo-tiny")
    prompt = torch.tensor([lm.tokenizer("The function returns a list of all the").input_ids * 2])
    way = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    way |= {"eos_token_id": None, "duo_routes": RandomPolicy(0.4, 0.4, 0.2, seed=3).routes(1, prompt.shape[1] + 12, 12)}
    plain, drafted = (lm.model.generate(prompt, **way, **more) for more in ({}, {"prompt_lookup_num_tokens": 4}))
    assert torch.equal(plain, drafted)


def printed(code, path, *words):
    """Words that a fresh Python process prints."""
    done = subprocess.run([sys.executable, "-c", code, path, *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_whole_models_of_every_family_are_read_in_a_fresh_process(tmp_path):
    """Where no model of the family has been built: what spawn, Ray and `torch.save` need; outputs as well."""
    models = {name: duo(name) for name in FAMILIES}
    with torch.no_grad():
        outputs = {name: made(X, duo_routes="BSB") for name, made in models.items()}
    torch.save((X, models, outputs), tmp_path / "whole.pt")
    code = (
        "import sys, torch\n"
        "x, models, outputs = torch.load(sys.argv[1], weights_only=False)\n"
        "with torch.no_grad():\n"
        "    print(sum(torch.equal(made(x, duo_routes='BSB').logits, outputs[name].logits) for name, made in models.items()))"
    )
    assert printed(code, tmp_path / "whole.pt") == [str(len(FAMILIES))]


@pytest.mark.parametrize("first", ["duoviz", "transformers.models.auto.modeling_auto"])
def test_the_auto_classes_know_duo_folders_once_duoviz_is_imported(first, tmp_path):
    tiny_model().model.save_pretrained(tmp_path)
    code = (
        f"import sys, {first}, duoviz\n"
        "assert 'duoviz.model' not in sys.modules\n"
        "print('torch' in sys.modules)\n"
        "from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer\n"
        "print(type(AutoConfig.from_pretrained(sys.argv[1])).__name__)\n"
        "print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)"
    )
    assert printed(code, tmp_path) == [str(first != "duoviz"), "DuoLlamaConfig", "DuoLlamaForCausalLM"]


WITHOUT = """
import sys
from transformers import AutoModelForCausalLM

class Nowhere:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "duoviz" and "missing" in sys.argv:
            raise ModuleNotFoundError("No module named 'duoviz'")

sys.meta_path.insert(0, Nowhere)
try:
    made = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code="trusted" in sys.argv)
    made.save_pretrained(sys.argv[1] + "-again")
    print(type(made).__name__)
except (ValueError, ImportError) as error:
    print(error)
"""


def test_without_duoviz_the_auto_classes_say_how_to_open_a_duo_folder(tmp_path, monkeypatch):
    """It is imported by the module that lies in the folder; a second saving writes that module and no source of ours."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "duo"
    tiny_model().model.save_pretrained(folder)
    assert "trust_remote_code=True" in " ".join(printed(WITHOUT, folder))
    assert printed(WITHOUT, folder, "trusted") == ["DuoLlamaForCausalLM"]
    assert {path.name for path in tmp_path.glob("duo-again/*.py")} == {"duoviz_model.py"}
    assert "pip install duoviz" in " ".join(printed(WITHOUT, folder, "trusted", "missing"))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft asks for it
def test_virtual_tokens_of_prefix_tuning_have_no_routes():
    """Routes count from the first token of the text, at once and in steps."""
    lm, given = tiny_model(), RandomPolicy(0.4, 0.3, 0.3, seed=3).routes(3, 20, 4)
    prefix = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    tuned = get_peft_model(lm.model, prefix).eval()
    torch.nn.init.normal_(tuned.prompt_encoder.default.embedding.weight)
    way = {"attention_mask": torch.ones_like(X), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    told = {"eos_token_id": None, "return_dict_in_generate": True, "output_logits": True}
    made = tuned.generate(input_ids=X, duo_routes=given, **way, **told)
    assert torch.equal(made.duo_routes, given[:, :19])
    whole = tuned(made.sequences, attention_mask=torch.ones_like(made.sequences), duo_routes=given).logits
    torch.testing.assert_close(torch.stack(made.logits, 1), whole[:, 11:-1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(whole, lm.model(made.sequences, duo_routes=given).logits, atol=1e-2)  # they are attended


def test_compiled_models_take_routes(tmp_path):
    """In a process without the type checks of the tests; by a backend that needs no C++ compiler."""
    tiny_model(layers=2).model.save_pretrained(tmp_path)
    code = (
        "import sys, torch\n"
        "from duoviz.model import RandomPolicy, load_model\n"
        "made, x = load_model(sys.argv[1]), torch.arange(36).reshape(3, 12)\n"
        "compiled = torch.compile(made, backend='aot_eager')\n"
        "for ways in ({}, {'duo_routes': 'BS'}, {'duo_policy': RandomPolicy(0.4, 0.3, 0.3)}):\n"
        "    print(float((compiled(x, **ways).logits - made(x, **ways).logits).abs().max()) < 1e-5)"
    )
    assert printed(code, tmp_path) == ["True"] * 3
