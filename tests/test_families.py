"""Every family does what a Duo model must; what passes is the table in the README."""

import copy
import os
import pickle
import warnings
from functools import cache
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHAPES, dense_model
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.distributed.fsdp import fully_shard
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, BloomConfig, FalconConfig, LlamaConfig, OPTConfig
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from duoviz import branching, model, oracle, router, routes
from duoviz.convert import convert
from duoviz.families import FAMILIES, family
from duoviz.model import RandomPolicy
from duoviz.model.routing import GivenRoutes
from duoviz.routes import BIG, SKIP, SMALL

logging.set_verbosity_error()
logging.disable_progress_bar()
README = Path(__file__).resolve().parents[1] / "README.md"
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft asks for it
IDS = np.random.default_rng(0).integers(0, 61, (3, 12))
X = torch.from_numpy(IDS)
MIXED = RandomPolicy(0.4, 0.3, 0.3, seed=3).routes(3, 12, 3).numpy()


def stored(name, folder):
    """The folder of a dense checkpoint as a stranger would have it, in several files; written once for each family."""
    path = next(above for above in folder.parents if above.name == name) / "dense"
    if not path.exists():
        dense_model(name).save_pretrained(path, max_shard_size="20kB")
        assert len(list(path.glob("*.safetensors"))) > 1
    return path


@cache
def converted(path):
    """A Duo model on that checkpoint, of which every law has a copy."""
    return convert(path, X, small=8, begin="random")


def duo(name, folder, scope="ffn"):
    """A Duo model on that checkpoint, whose small FFNs do something of their own."""
    made = copy.deepcopy(converted(stored(name, folder)))
    made.config.skip_scope = scope
    torch.manual_seed(0)
    for layer in made.decoder_layers:
        for parameter in layer.duo_ffn.small.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.LanguageModel(made)


def all_big_is_the_dense_model(name, folder):
    lm = model.load(stored(name, folder), choices="-B")
    wanted = dense_model(name)(X).logits
    for way in ({}, {"duo_routes": torch.full((3,), BIG)}):
        torch.testing.assert_close(lm.model(X, **way).logits, wanted, atol=1e-5, rtol=1e-5)
    head = lm.head.logits(lm.hidden(lm.check(IDS)))
    torch.testing.assert_close(head, wanted, atol=1e-5, rtol=1e-5)


def trie_equals_brute_force(name, folder):
    for scope in ("ffn", "block"):
        lm, space = duo(name, folder / scope, scope), routes.Space(3, "-SB")
        texts, position = 2, 8
        ids = IDS[:texts]
        land = oracle.landscape(lm, ids, space, seq=1, position=position, context="reference:BSB")
        every = np.broadcast_to(routes.from_text("BSB"), (space.count(), 11, 3)).copy()
        every[:, position] = space.enumerate()
        brute = lm.score(np.repeat(ids[1:], space.count(), 0), every)[:, position]
        np.testing.assert_allclose(land, brute, atol=2e-5)  # nemotron: 1.1e-5 of 4.8 with other kernels
        apart = np.array([0, 1, 1]), np.array([3, 2, 9]), MIXED[0, :3]  # each at its own text and position
        everywhere = np.full((texts, 12, 3), BIG, np.int8)
        branches = branching.Branches(lm, ids, everywhere, width=64)
        hidden = torch.cat([part for _, part in branches.scattered(*apart)])
        for row, (text, place, route) in enumerate(zip(*apart)):
            one = everywhere.copy()
            one[text, place] = route
            wanted = lm.hidden(lm.check(ids), duo_routes=torch.from_numpy(one))[text, place]
            torch.testing.assert_close(hidden[row], wanted, atol=2e-5, rtol=2e-5)  # before the norm: up to 10 in size
        found = oracle.search(lm, ids[:, :8], routes.Space(3, "-SB", big=1), context="committed")
        assert found.replay_error < 1e-5
        ids = ids[:1, :7]
        uniform = oracle.search(lm, ids, space, context="uniform")
        alone = np.stack([lm.score(ids, route) for route in space.enumerate()]).min(0)
        np.testing.assert_allclose(uniform.loss_nats, alone, atol=1e-5)


def skip_leaves_out_what_it_says(name, folder):
    lm = duo(name, folder, "block")
    tokens = lm.check(IDS)
    nothing = torch.full((3,), SKIP, dtype=torch.int8)
    kept = []
    hook = lm.model.decoder_layers[0].register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    bypassed = lm.hidden(tokens, duo_routes=nothing)
    hook.remove()
    assert torch.equal(bypassed, kept[0])  # every block skipped: the embeddings
    lm.model.config.skip_scope = "ffn"
    attended = lm.hidden(tokens, duo_routes=nothing)
    for layer in lm.model.decoder_layers:  # the same as FFNs that give nothing
        for parameter in layer.duo_ffn.small.parameters():
            torch.nn.init.zeros_(parameter)
    silent = lm.hidden(tokens, duo_routes=torch.ones(3, dtype=torch.int8))
    torch.testing.assert_close(attended, silent, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(attended, bypassed, atol=1e-3)


def generate_is_the_same_with_and_without_cache(name, folder):
    for scope in ("ffn", "block"):
        lm = duo(name, folder / scope, scope)
        way = {"duo_policy": RandomPolicy(0.4, 0.4, 0.2, seed=5), "max_new_tokens": 8, "do_sample": False}
        found = [
            lm.model.generate(X, attention_mask=torch.ones_like(X), use_cache=cached, pad_token_id=0, **way)
            for cached in (True, False)
        ]
        assert found[0].shape == (3, 20)
        assert torch.equal(*found)
    padded, mask = torch.cat([torch.zeros(3, 4, dtype=torch.long), X], 1), torch.ones(3, 16, dtype=torch.long)
    mask[:, :4] = 0
    one_route = {"duo_routes": torch.tensor([2, 1, 2]), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    told = {"eos_token_id": None, "return_dict_in_generate": True, "output_logits": True}
    alone, beside = (
        torch.stack(lm.model.generate(ids, attention_mask=seen, **one_route, **told).logits)
        for ids, seen in ((X, torch.ones_like(X)), (padded, mask))
    )
    torch.testing.assert_close(alone, beside, atol=1e-4, rtol=1e-4)  # padding moves nothing
    assert lm.model._supports_logits_to_keep()


def a_block_that_all_skip_only_writes_its_keys(name, folder):
    """Cache and logits are those of the whole layer, whose output nobody takes; without a cache nothing of it runs."""
    lm = duo(name, folder, "block")

    def read(cut, **ways):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            first = lm.model(X[:, :cut], duo_routes="B-S", **ways)
            last = lm.model(X[:, cut:], duo_routes="B-S", past_key_values=first.past_key_values, **ways)
        parts = [each for layer in first.past_key_values.layers for each in (layer.keys, layer.values)]
        return [first.logits, last.logits, *parts], counter.get_total_flops()

    for cut in (5, 11):
        lean, flops = read(cut)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(GivenRoutes, "leaves_out", lambda *_: False)
            whole, more = read(cut)
        torch.testing.assert_close(lean, whole, atol=1e-6, rtol=1e-6)
        assert flops < more
        assert read(cut, output_attentions=True)[1] >= more
    seen = []
    hooks = [part.register_forward_hook(lambda *_: seen.append(1)) for part in lm.model.decoder_layers[1].modules()]
    with torch.no_grad():
        lm.model(X, duo_routes="B-S", use_cache=False)
    for hook in hooks:
        hook.remove()
    assert len(seen) == 1  # the layer's own


def drafts_change_no_text(name, folder):
    lm, prompt = duo(name, folder), X[:1].repeat(1, 2)
    given = RandomPolicy(0.4, 0.3, 0.3, seed=4).routes(1, 32, 3)
    how = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 8, "do_sample": False}
    how |= {"pad_token_id": 0, "eos_token_id": None}
    lookup, early = {"prompt_lookup_num_tokens": 4}, {"assistant_early_exit": 2}
    small, same = {"assistant_routes": "SSS"}, {"assistant_routes": given}
    for ours, drafts in (
        (given, (lookup, early, small, same)),
        ("SBS", ({"assistant_early_exit": 1, "assistant_routes": "BBB"}, {"assistant_model": dense_model(name)})),
    ):
        wanted = lm.model.generate(prompt, duo_routes=ours, **how)
        for way in drafts:
            assert torch.equal(lm.model.generate(prompt, duo_routes=ours, **how, **way), wanted), way
    assert lm.model.config.num_hidden_layers == 3


def guidance_routes_both_texts(name, folder):
    lm = duo(name, folder)
    given = RandomPolicy(0.4, 0.3, 0.3, seed=4).routes(1, 16, 3)
    how = {"attention_mask": torch.ones_like(X[:1]), "max_new_tokens": 4, "do_sample": False, "guidance_scale": 1.5}
    how |= {"pad_token_id": 0, "eos_token_id": None}
    for routes_, negative in ((given, X[1:2, :5]), (given, None), (given[:, :1], X[1:2, :5])):
        asked, beside = X[:1], X[:1, -1:] if negative is None else negative
        for _ in range(4):
            both = []
            for text in (asked, beside):
                own = routes_ if routes_.shape[1] == 1 else routes_[:, : asked.shape[1]][:, -text.shape[1] :]
                both.append(lm.model(text, duo_routes=own).logits[:, -1].log_softmax(-1))
            new = (1.5 * (both[0] - both[1]) + both[1]).argmax(-1, keepdim=True)
            asked, beside = torch.cat([asked, new], 1), torch.cat([beside, new], 1)
        for cached in (True, False):
            told = {"duo_routes": routes_, "negative_prompt_ids": negative, "use_cache": cached}
            assert torch.equal(lm.model.generate(X[:1], **told, **how), asked)
    long = {"duo_routes": given, "negative_prompt_ids": X[:1].repeat(1, 2)}
    with pytest.raises(ValueError, match="the negative prompt has 12 tokens more"):
        lm.model.generate(X[:1], **long, **how)


def adapters_on_every_linear(name, folder):
    lm, space = duo(name, folder), routes.Space(3, "-SB", big=1)
    before = lm.score(IDS, "BSB")
    torch.manual_seed(1)
    linears = sum(isinstance(module, torch.nn.Linear | Conv1D) for module in lm.model.modules())
    conv = name == "gpt2"
    wanted = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, fan_in_fan_out=conv)
    adapted = get_peft_model(lm.model, wanted)
    assert sum(own.endswith("lora_A.default") for own, _ in adapted.named_modules()) == linears - 1  # not the head
    adapted(X, labels=X, duo_routes="BSB").loss.backward()
    adapted.eval()
    scored = lm.score(IDS, "BSB")
    assert abs(scored - before).max() > 1e-3
    found = oracle.search(lm, IDS[:2, :8], space, context="committed")
    assert found.replay_error < 1e-4
    adapted.save_pretrained(folder / "adapter")
    again = PeftModel.from_pretrained(duo(name, folder).model, folder / "adapter").get_base_model()
    np.testing.assert_allclose(model.LanguageModel(again).score(IDS, "BSB"), scored, atol=1e-5)
    merged = model.LanguageModel(adapted.merge_and_unload())
    np.testing.assert_allclose(merged.score(IDS, "BSB"), scored, atol=1e-4)
    np.testing.assert_allclose(
        oracle.search(merged, IDS[:2, :8], space, context="committed").loss_nats, found.loss_nats, atol=1e-4
    )


def saved_models_open_as_duo_and_as_dense(name, folder):
    lm = duo(name, folder)
    chosen = torch.from_numpy(MIXED)
    wanted = {way: lm.model(X, duo_routes=way).logits for way in (None, chosen)}
    for _ in range(2):  # a second round finds what the first might have renamed
        lm.model.save_pretrained(folder / "duo", max_shard_size="20kB")
        lm = model.load(folder / "duo")
        for way, logits in wanted.items():
            assert torch.equal(lm.model(X, duo_routes=way).logits, logits)
        dense = FAMILIES[name].causal_lm.from_pretrained(folder / "duo")
        torch.testing.assert_close(dense(X).logits, wanted[None], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(lm.model.dense()(X).logits, wanted[None], atol=1e-5, rtol=1e-5)
    dense.save_pretrained(folder / "dense-again")
    torch.testing.assert_close(
        model.load(folder / "dense-again", choices="-B").model(X).logits, wanted[None], atol=1e-5, rtol=1e-5
    )
    assert type(AutoModelForCausalLM.from_pretrained(folder / "duo")) is type(lm.model)
    skipped = model.load(stored(name, folder), choices="-B")
    skipped.model.save_pretrained(folder / "again")
    assert not any(".small." in weight for weight in load_file(folder / "again" / "model.safetensors"))
    fingerprint = skipped.fingerprint
    assert model.load(folder / "again", choices="-B").fingerprint == fingerprint
    for own, parameter in skipped.model.named_parameters():
        if ".small." in own:  # which only holds the place
            torch.nn.init.ones_(parameter)
    assert skipped.fingerprint == fingerprint
    for again in (copy.deepcopy(lm.model), pickle.loads(pickle.dumps(lm.model))):
        assert torch.equal(again(X, duo_routes=chosen).logits, wanted[chosen])


def sizes_and_flops_are_counted(name, folder):
    lm = duo(name, folder)
    lm.model.set_attn_implementation("eager")
    lm.model.set_experts_implementation("eager")
    for shares in ((1.0, 0.0, 0.0), (0.3, 0.4, 0.3)):
        chosen = RandomPolicy(*shares).routes(2, 9, 3)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            lm.model(X[:2, :9], duo_routes=chosen, use_cache=False)
        assert counter.get_total_flops() == model.forward_flops(lm.model, chosen.numpy())
    groups, matrices = model.parameter_groups(lm.model), FAMILIES[name].ffn_matrices
    entry, config = lm.model.family, lm.model.config
    for kind, width in (("small", 8), ("big", 48)):
        many = config.num_experts if entry.experts and kind == "big" else 1
        choosing = 32 * many if many > 1 else 0
        biases = groups[kind] - 3 * (many * matrices * 32 * width + choosing)
        activation = 6 if name == "apertus" else 0  # two weights, which it learns
        assert biases - activation in (0, 3 * ((matrices - 1) * width + 32))
    positions = 0 if name not in ("gpt2", "opt") else 48 + 2 * (name == "opt")
    ends = 2 - lm.model.config.tie_word_embeddings
    assert groups["embedding"] in (32 * (61 * ends + positions), 32 * (61 * ends + positions) + 61)  # a head's bias


def routers_learn(name, folder):
    lm = duo(name, folder)
    rows = np.tile(np.arange(16), (8, 2)) % 61
    mixture = router.Mixture(big=0.5, small=0.3, skip=0.2)
    made, log = router.train(lm, rows, router.Stage3(mixture, tokens=30 * 256, rows=8, alpha=0.0))
    assert log["loss_nats"].iloc[-5:].mean() < log["loss_nats"].iloc[:5].mean()
    chosen, losses = made.run(lm, IDS)
    np.testing.assert_allclose(losses, lm.score(IDS, chosen), atol=1e-5)


def small_ffns_begin_as_the_big_ones_neurons(name, folder):
    path = stored(name, folder)
    if FAMILIES[name].experts:
        with pytest.raises(ValueError, match=f"the big FFNs of {name} are mixtures of experts, .* give begin='random'"):
            convert(path, X, small=12)
        return
    lm = model.load(path, choices="-B")
    nearly = convert(path, X, small=47)  # all neurons but the least used
    for layer, dense_layer in zip(nearly.decoder_layers, lm.model.decoder_layers):
        x = torch.randn(5, 32)
        big = layer.duo_ffn.big(x)
        torch.testing.assert_close(big, dense_layer.duo_ffn.big(x))
        off = (layer.duo_ffn.narrow(x) - big).norm() / big.norm()
        assert off < 0.5
    few, noise = convert(path, X, small=12), convert(path, X, small=12, begin="random")
    targets = lm.model(X).logits.log_softmax(-1)
    apart = []
    for made in (few, noise):
        found = made(X, duo_routes=torch.ones(3, dtype=torch.int8)).logits.log_softmax(-1)
        apart.append(torch.nn.functional.kl_div(found, targets, reduction="batchmean", log_target=True))
    assert apart[0] < apart[1]


def gradients(lm):
    """Of one step with random routes."""
    lm.model.train()
    lm.model(X, labels=X, duo_policy=RandomPolicy(0.4, 0.4, 0.2, seed=1), use_cache=False).loss.backward()
    return {own: parameter.grad for own, parameter in lm.model.named_parameters()}


def checkpointing_gives_the_same_gradients(name, folder):
    plain, checkpointed = duo(name, folder / "plain"), duo(name, folder / "checkpointed")
    checkpointed.model.activation_checkpointing_enable()
    wanted, found = gradients(plain), gradients(checkpointed)
    for own, gradient in wanted.items():
        assert gradient is not None, own
        torch.testing.assert_close(gradient, found[own])


def decoder_layers_are_the_units_that_are_sharded(name, folder):
    plain, sharded = duo(name, folder / "plain"), duo(name, folder / "sharded")
    for layer in sharded.model.decoder_layers:
        assert type(layer).__name__ in sharded.model._no_split_modules  # what device maps and Trainer's FSDP go by
        fully_shard(layer)
    fully_shard(sharded.model)
    wanted = gradients(plain)
    with warnings.catch_warnings():  # OPT and Phi return views, also when they are dense; nothing changes them in place
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        found = gradients(sharded)
    for own, gradient in wanted.items():
        torch.testing.assert_close(gradient, found[own].full_tensor())


def half_precision_stays_near(name, folder):
    path = stored(name, folder)
    exact = model.load(path, choices="-B").score(IDS, "B-B")
    for dtype in ("bfloat16", "float16"):
        lm = model.load(path, choices="-B", dtype=dtype)
        assert str(lm.model.dtype) == f"torch.{dtype}"
        losses = lm.score(IDS, "B-B")
        assert losses.dtype == np.float32
        assert abs(losses - exact).max() < 0.3
        found = oracle.search(lm, IDS[:1], routes.Space(3, "-B"), context="reference:big")
        assert np.isfinite(found.loss_nats).all()
    assert model.load(path, choices="-B", dtype="auto").model.dtype == torch.float32


FEATURES = {
    "all big = dense": all_big_is_the_dense_model,
    "trie = brute force": trie_equals_brute_force,
    "skip scopes": skip_leaves_out_what_it_says,
    "skipped blocks": a_block_that_all_skip_only_writes_its_keys,
    "generate": generate_is_the_same_with_and_without_cache,
    "drafts": drafts_change_no_text,
    "guidance": guidance_routes_both_texts,
    "LoRA": adapters_on_every_linear,
    "save, load": saved_models_open_as_duo_and_as_dense,
    "FLOPs": sizes_and_flops_are_counted,
    "router": routers_learn,
    "convert": small_ffns_begin_as_the_big_ones_neurons,
    "gradient checkpointing": checkpointing_gives_the_same_gradients,
    "FSDP": decoder_layers_are_the_units_that_are_sharded,
    "bf16, fp16": half_precision_stays_near,
}


@cache
def failure(name, feature, folder):
    """What goes wrong with a feature of a family; None where it passes."""
    try:
        FEATURES[feature](name, folder / name / feature.replace(" ", "-"))
    except Exception as error:
        return error
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder, and this process alone as those that share the work."""
    made = tmp_path_factory.mktemp("families")
    torch.distributed.init_process_group("gloo", init_method=f"file://{made}/rendezvous", rank=0, world_size=1)
    yield made
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_family_has_a_feature(name, feature, folder):
    if error := failure(name, feature, folder):
        raise error


def test_the_readme_says_what_passes(folder):
    """With UPDATE_README=1 it is written: what all pass, and the families by what their tested models have."""
    lines = [
        f"Small checkpoints of {len(FAMILIES)} families pass tests of: {', '.join(FEATURES)}.",
        "",
        "| with | families |",
        "|---|---|",
    ]
    groups, exceptions = {}, []
    for name, entry in sorted(FAMILIES.items()):
        stem = entry.causal_lm.__name__.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
        groups.setdefault(", ".join(traits(name)) or "plain attention, sequential residuals", []).append(stem)
        failed = [feature for feature in FEATURES if failure(name, feature, folder)]
        exceptions += [f"{stem}: not {', '.join(failed)}."] if failed else []
    lines += [
        f"| {with_} | {', '.join(stems)} |" for with_, stems in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
    lines += ["", "Small FFNs of experts begin at random. " + " ".join(exceptions)]
    before, _, rest = README.read_text().partition("<!-- families -->\n")
    shown, _, after = rest.partition("\n<!-- families -->")
    table = "\n".join(lines).rstrip()
    if os.environ.get("UPDATE_README"):
        README.write_text(f"{before}<!-- families -->\n{table}\n<!-- families -->{after}")
    else:
        assert shown == table, "the list is out of date: UPDATE_README=1 writes it"


def traits(name):
    """What the tested model of a family has beyond plain attention and sequential residuals."""
    config = dense_model(name).config
    if getattr(config, "num_key_value_heads", None) not in (None, config.num_attention_heads):
        yield "grouped queries"
    if getattr(config, "sliding_window", None):
        yield "sliding windows"
    if name in ("phi", "cohere", "cohere2") or getattr(config, "use_parallel_residual", False):
        yield "parallel residual"
    if FAMILIES[name].post_norm:
        yield "norm after the FFN"
    if getattr(config, "final_logit_softcapping", None):
        yield "capped scores and logits"
    if FAMILIES[name].residual_factor:
        yield "multipliers"
    if FAMILIES[name].experts:
        yield "experts"


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_an_entry_says_where_the_parts_of_its_dense_model_are(name):
    entry = family(name)
    assert family(f"duo_{name}") is entry
    assert entry.config.model_type == entry.name == name
    dense = dense_model(name)
    ffn = entry.build_ffn(dense.config)
    layers = attrgetter(entry.layers)(dense)
    assert len(layers) == 3
    assert isinstance(attrgetter(entry.final_norm)(dense), torch.nn.Module)
    own = entry.find_ffn(layers[0])
    for one in (ffn,) if entry.experts else (own, ffn):
        *into, out = (attrgetter(path)(one).weight for path in (*entry.into, entry.out))
        assert all(sorted(weight.shape) == [32, 48 * entry.fused] for weight in into)
        assert sorted(out.shape) == [32, 48]
    if entry.experts:
        assert own.experts.down_proj.shape == (4, 32, 48)
    assert entry.ffn_width(dense.config) == (96 if entry.experts else 48)
    assert name in SHAPES


def test_a_gpt2_that_does_not_say_its_width_has_four_times_the_hidden_size():
    assert FAMILIES["gpt2"].ffn_width(dense_model("gpt2", n_inner=None).config) == 128


@pytest.mark.parametrize(("name", "parallel"), [("gpt_neox", False), ("stablelm", True)])
def test_parallel_residuals_can_be_off_or_on(name, parallel, tmp_path):
    dense = dense_model(name, use_parallel_residual=parallel)
    dense.save_pretrained(tmp_path)
    lm = model.load(tmp_path, choices="-B")
    torch.testing.assert_close(lm.model(X).logits, dense(X).logits, atol=1e-5, rtol=1e-5)
    assert oracle.search(lm, IDS, routes.Space(3, "-B"), context="committed").replay_error < 1e-5


POST_NORMS = [name for name, entry in FAMILIES.items() if entry.post_norm]


@pytest.mark.parametrize("name", POST_NORMS)
def test_a_norm_after_the_ffn_leaves_a_skip_nothing(name):
    """Zero is normalised to zero: its length is bounded away from zero by the norm's epsilon."""
    layer = attrgetter(FAMILIES[name].layers)(dense_model(name))[0]
    norm = attrgetter(FAMILIES[name].post_norm)(layer)
    assert (getattr(norm, "eps", None) or norm.variance_epsilon) > 0
    assert torch.equal(norm(torch.zeros(2, 32)), torch.zeros(2, 32))
    assert not [own for own, _ in norm.named_parameters() if own != "weight"]  # a bias would be added to nothing


@pytest.mark.parametrize("scope", ["ffn", "block"])
@pytest.mark.parametrize("name", [*POST_NORMS, "granite", "cohere", "mixtral"])
def test_a_soft_mixture_is_of_what_the_layer_adds(name, scope, folder):
    """It is linear in the shares, a skip's included, also where a norm or a factor follows; and a sure one is a hard choice."""
    lm = duo(name, folder / name / "soft" / scope, scope)
    layer = lm.model.decoder_layers[1]
    learned = router.Router(3, 32, router.Mixture(big=0.4, small=0.3, skip=0.3)).train()
    kept = []
    hook = layer.register_forward_hook(
        lambda _, args, kwargs, out: kept.append((args[0], kwargs, out)), with_kwargs=True
    )
    with torch.no_grad():
        lm.model(X, duo_router=learned, use_cache=False)
        hook.remove()
        ((x, kwargs, mixed),) = kept
        shares = kwargs.pop("duo_routing").logits[1].softmax(-1)
        apart = [
            layer(x, **kwargs, duo_routing=GivenRoutes(torch.full((1, 1, 3), choice), skip_scope=scope))
            for choice in (SKIP, SMALL, BIG)
        ]
        names = [int(choice) for choice in learned.choices]
        weighed = sum(shares[..., names.index(choice), None] * apart[choice] for choice in (SKIP, SMALL, BIG))
        torch.testing.assert_close(mixed, weighed, atol=1e-5, rtol=1e-5)
        learned.beta.fill_(1e6)
        sure = lm.model(X, duo_router=learned).logits
        torch.testing.assert_close(sure, lm.model(X, duo_router=learned.eval()).logits, atol=1e-4, rtol=1e-4)


def test_experts_are_stored_as_everybody_stores_them(folder):
    """One matrix for each expert, as in the checkpoints of the Hub; with small FFNs beside them too."""
    lm = duo("mixtral", folder / "mixtral" / "names")
    lm.model.save_pretrained(folder / "names")
    names = set(load_file(folder / "names" / "model.safetensors"))
    assert "model.layers.1.block_sparse_moe.experts.3.w2.weight" in names
    assert "model.layers.1.block_sparse_moe.small.down_proj.weight" in names
    lm.model.config.output_router_logits = True  # as a checkpoint may ask for while it is trained
    out = lm.model(X, labels=X, duo_policy=RandomPolicy(0.4, 0.3, 0.3))
    assert out.loss.isfinite()
    assert out.router_logits is None


@pytest.mark.parametrize("unknown", ["bloom", "bert", "duo_bert", ""])
def test_an_unsupported_family_is_an_error_that_names_the_supported_ones(unknown):
    with pytest.raises(ValueError, match=f"model family '{unknown}' is not supported.*; supported are .*llama"):
        family(unknown)


def test_checkpoints_that_cannot_become_duo_models(tmp_path):
    def refused(config, message, **fields):
        config.save_pretrained(tmp_path)
        if fields:
            import json

            path = tmp_path / "config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
        with pytest.raises(ValueError, match=message):
            model.load(tmp_path, choices="-B")

    refused(
        BloomConfig(),
        "model family 'bloom' is not supported: its attention is written out in its layers, .* apertus, arcee",
    )
    refused(OPTConfig(do_layer_norm_before=False), "this opt model cannot be a Duo model: it normalises after each")
    refused(OPTConfig(hidden_size=64, word_embed_proj_dim=32), "its embeddings are narrower than its layers")
    refused(family("gpt2").config(add_cross_attention=True), "it attends to an encoder")
    refused(family("gemma3_text").config(use_bidirectional_attention=True), "its tokens attend to later ones")
    refused(family("qwen3_moe").config(mlp_only_layers=[0]), "some of its layers have no experts")
    refused(FalconConfig(), "its attention is written out in its layers, where the search's own attention cannot")
    refused(LlamaConfig(), "is quantised: give a checkpoint in", quantization_config={"quant_method": "awq"})
    with pytest.raises(ValueError, match="model family 'bloom' is not supported"):
        model.config_for(BloomConfig(), small_width=4)
    with pytest.raises(ValueError, match="small_intermediate_size 0: at least 1"):
        model.config_for(LlamaConfig(), small_width=0)


def test_a_duo_model_names_its_family():
    lm = model.load(README.parent / "data" / "duo-tiny")
    assert family(lm.model.config.model_type) is lm.model.family is FAMILIES["llama"]
    assert lm.model.final_norm is lm.model.model.norm
    assert list(lm.model.decoder_layers) == list(lm.model.model.layers)
    assert lm.model.decoder_layers[0].mlp.small.up_proj.weight.shape == (32, 128)
