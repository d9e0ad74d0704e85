"""What many tests share: tiny real models, one browser."""

import os
import resource
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig

from duoviz import model, places
from duoviz.families import FAMILIES

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


LONGEST = "sweep", "report", "families", "oracle", "methods", "inspector", "several_processes"


def pytest_collection_modifyitems(items):
    """The longest files come first, so that two processes end together; browser tests, which have files of their own, last:
    Playwright leaves an event loop running in this thread, where others expect none."""
    first = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path.name, len(first) + item.path.name.startswith("test_browser")))


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """What torch keeps for a whole thread is as it was, or the test that changed it fails instead of the next."""
    yield
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


def tiny_model(*, layers=4, hidden=32, heads=4, kv_heads=2, vocab=61, context=48, skip_scope="ffn", seed=0, bias=False):
    """A Duo Llama with random weights, large enough that its routes differ."""
    torch.manual_seed(seed)
    dense = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        initializer_range=hidden**-0.5,  # rounding is not magnified from layer to layer
        tie_word_embeddings=True,
        attention_bias=bias,
        mlp_bias=bias,
        bos_token_id=0,
        eos_token_id=0,
    )
    config = model.config_for(dense, small_width=8, skip_scope=skip_scope)
    made = model.CLASSES["llama"][1](config)
    if bias:  # and norms that are not 1
        for name, parameter in made.named_parameters():
            if name.endswith("bias") or "norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.LanguageModel(made)


def own_folder(folder, made=None, **shape):
    """A folder that holds a model with random weights, a tiny Duo Llama if none is given, and the shipped tokenizer."""
    (made or tiny_model(vocab=4096, **shape).model).save_pretrained(folder)
    AutoTokenizer.from_pretrained(places.SHIPPED / "data" / "duo-tiny").save_pretrained(folder)
    return folder


def every(history, position, candidates):
    """The routes of all texts with every candidate in turn at one position: int8 `[candidate x text, position, layer]`."""
    given = np.tile(history, (len(candidates), 1, 1))
    given[:, position] = np.repeat(candidates, len(history), 0)
    return given


@pytest.fixture(scope="session")
def planted():
    return planted_model()


def planted_model():
    """Two layers; tokens 0 and 1 follow each other. After a 0 only the big FFN of layer 0 knows what comes, after a 1 only that
    of layer 1; small FFNs know nothing, and attention adds nothing."""
    lm = tiny_model(layers=2, vocab=8)
    model = lm.model
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.zero_()
        width = model.config.hidden_size
        model.get_input_embeddings().weight[:2, :2] = torch.eye(2)
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))  # not that of the embeddings
        model.lm_head.weight[:2, 2:4] = torch.eye(2)
        for number, layer in enumerate(model.decoder_layers):
            ffn = layer.duo_ffn
            ffn.gate_proj.weight[0, number] = ffn.up_proj.weight[0, number] = 1.0
            ffn.down_proj.weight[3 - number, 0] = 1.0 / width**0.5
    return lm


@pytest.fixture(scope="session")
def planted_rows():
    return planted_texts()


def planted_texts():
    return np.stack([(np.arange(16) + start) % 2 for start in (0, 1) * 8]).astype(np.int64)


def planted_plan(kind, mixture=None, **changes):
    """How a router of a kind is trained to find the planted rule."""
    from duoviz.router import Mixture, Stage3

    steps = 10 if kind in ("distil", "pairwise") else 150
    ways = {"tokens": 16 * 16 * steps, "rows": 16, "learning_rate": 0.03, "alpha": 3.0, "epochs": 32}
    return Stage3(mixture or Mixture(0.5, 0.5), kind=kind, **(ways | changes))


_MIXED_WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]
SHAPES = {
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 5},
    "qwen2": {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "smollm3": {"num_key_value_heads": 2, "no_rope_layer_interval": 2},
    "opt": {"init_std": 0.18},
    "gpt2": {},
    "gpt_neox": {},
    "phi": {"num_key_value_heads": 2, "partial_rotary_factor": 0.5},
    "gemma": {"num_key_value_heads": 2, "head_dim": 16},
    "gemma2": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "query_pre_attn_scalar": 8,
        "sliding_window": 5,
        "attn_logit_softcapping": 1.0,
        "final_logit_softcapping": 5.0,
    },
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4, "layer_types": _MIXED_WINDOWS},
    "olmo": {"num_key_value_heads": 2, "clip_qkv": 0.5},
    "olmo2": {"num_key_value_heads": 2},
    "olmo3": {"num_key_value_heads": 2, "sliding_window": 4, "layer_types": _MIXED_WINDOWS},
    "phi3": {"num_key_value_heads": 2, "sliding_window": 5, "partial_rotary_factor": 0.5},
    "granite": {
        "num_key_value_heads": 2,
        "attention_bias": True,
        "mlp_bias": True,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.25,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
    "stablelm": {"num_key_value_heads": 2, "use_qkv_bias": True, "qk_layernorm": True},
    "starcoder2": {"num_key_value_heads": 2, "sliding_window": 5},
    "cohere": {"num_key_value_heads": 2, "use_qk_norm": True, "logit_scale": 0.5},
    "cohere2": {"num_key_value_heads": 2, "sliding_window": 4, "layer_types": _MIXED_WINDOWS, "logit_scale": 0.5},
    "glm": {"num_key_value_heads": 2, "head_dim": 8, "attention_bias": True},
    "glm4": {"num_key_value_heads": 2, "head_dim": 8, "attention_bias": True},
    "nemotron": {"num_key_value_heads": 2, "mlp_bias": True},
    "ernie4_5": {"num_key_value_heads": 2, "head_dim": 8, "use_bias": True},
    "helium": {"num_key_value_heads": 2, "head_dim": 8},
    "arcee": {"num_key_value_heads": 2, "mlp_bias": True},
    "seed_oss": {"num_key_value_heads": 2, "head_dim": 16, "attention_out_bias": True},
    "exaone4": {"num_key_value_heads": 2, "sliding_window": 4, "layer_types": _MIXED_WINDOWS},
    "hunyuan_v1_dense": {"num_key_value_heads": 2, "head_dim": 16},
    "apertus": {"num_key_value_heads": 2},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_key_value_heads": 2, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {"num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2},
}
"""What a small dense model of each family has of its own: grouped queries, sliding windows (in Qwen2 from layer 1 on), caps
that its scores and logits reach, experts."""


def dense_model(name, *, layers=3, vocab=61, context=48, seed=0, **fields):
    """A dense model of a family with random weights, biases and norms."""
    torch.manual_seed(seed)
    entry = FAMILIES[name]
    shape = {
        "vocab_size": vocab,
        "hidden_size": 32,
        entry.width: 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": context,
        "initializer_range": 32**-0.5,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
        **{field: 0.0 for field in entry.config().to_dict() if "drop" in field},
    }
    made = entry.causal_lm(entry.config(**{**shape, **SHAPES[name], **fields}))
    for module in made.modules():
        for own, parameter in module.named_parameters(recurse=False):
            if own == "bias":
                torch.nn.init.uniform_(parameter, -0.5, 0.5)
            elif "Norm" in type(module).__name__:
                neutral = parameter.flatten()[0].item()  # 1, or 0 where 1 is added (Gemma)
                torch.nn.init.uniform_(parameter, neutral - 0.5, neutral + 0.5)
    return made.eval()


@pytest.fixture(scope="session")
def lm():
    """4 layers, grouped-query attention, skip scope ffn."""
    return tiny_model()


@pytest.fixture
def ids():
    """Three texts of 12 tokens."""
    return np.random.default_rng(0).integers(0, 61, (3, 12))


@pytest.fixture(scope="session")
def browser():
    """The Chromium of this machine; its tests are left out only where there is none and nobody relies on them."""
    from playwright.sync_api import sync_playwright

    if not CHROMIUM and not os.environ.get("CI"):
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as player:
        started = player.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


TOKENIZERS = ("llama2", "llama3", "gemma", "gpt2", "qwen")


def shaped_like(kind):
    """A small fast tokenizer built like that of a family: its normaliser, pre-tokeniser, byte handling and special tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    first = {"llama2": "<s>", "llama3": "<|begin_of_text|>", "gemma": "<bos>"}.get(kind)
    special = [first or "<|endoftext|>", "<unk>"]
    if kind in ("llama2", "gemma"):
        made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        made.normalizer = normalizers.Replace(" ", "▁")
        if kind == "llama2":
            made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), made.normalizer])
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        alphabet = []
    else:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if kind != "gpt2":
            words = pre_tokenizers.Split(Regex(r"\s?\w+|[^\w\s]+|\s+"), "isolated")
            made.pre_tokenizer = pre_tokenizers.Sequence(
                [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
            )
        if kind == "qwen":
            made.normalizer = normalizers.NFC()
        made.decoder = decoders.ByteLevel()
        alphabet = byte_level.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["a model of the words and the bytes of a small world, how it goes on"] * 2, trainer)
    template = None
    if first:
        ids = [(first, made.token_to_id(first))]
        template = processors.TemplateProcessing(
            single=f"{first} $A", pair=f"{first} $A {first} $B", special_tokens=ids
        )
    if kind in ("llama3", "gpt2", "qwen"):
        bytes_ = processors.ByteLevel(trim_offsets=kind == "llama3")
        template = processors.Sequence([bytes_, template]) if template else bytes_
    if template:
        made.post_processor = template
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=special[0], eos_token=special[0])


@contextmanager
def files_of_at_most(size):
    """As if the disk were full: no file may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
