"""The benchmark: ratios measured in one run, with the machine's own matrix-multiplication rate beside them.

Every comparison alternates its sides and takes the median of each, so that a noisy machine disturbs both alike.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from .. import oracle, places, routes
from ..branching import Trie
from ..model import LanguageModel, RandomPolicy, forward_flops, load
from ..records import Tokens
from ..router import Router, trained
from ..router import load as load_router
from ..routes import BIG, SMALL
from ..study import Study, engines, sweep
from ..study.sweep import SurveySweep
from .decoding import SAID, Step, grid, steps
from .inspector import latencies
from .products import BOUNDING, timed, trie_products, ways, work_of
from .real import searches
from .table import Row, line

METHODS = ("random-200", "descent", "surrogate", "beam-16", "mcts-200")
DRAFTED = 64
"""Tokens of a text that is drafted."""
EXPANDED = 512
"""Branches of a batch whose K/V cache is expanded."""


def run(
    model: str,
    *,
    device: str = "auto",
    rounds: int = 3,
    specimen: str | None = None,
    say: Callable[[str], None] = print,
) -> tuple[list[Row], list[Step]]:
    """All measurements on one model and the shipped prose, and those of a real one.

    Args:
        model: folder or Hub id.
        device: as in `duoviz.model.load`.
        rounds: how often both sides of a comparison are timed.
        specimen: folder of a real model, of many layers and a large vocabulary, for searches and steps of `generate`; None for
            none.
        say: is given each line as it is ready.
    """
    study = Study(model=model, documents=8, length=128)
    lm, tokens = load(study.folder, device=device), study.tokens("shipped-prose")
    rows: list[Row] = []
    found: list[Step] = []

    def measure(measured: Iterator[Row]) -> None:
        for row in measured:
            say(line(row))
            rows.append(row)

    measure(_rows(lm, tokens, study.folder, rounds))
    if specimen is not None:
        real = load(specimen, device=device)
        measure(searches(real, Study(model=specimen, documents=8, length=128).tokens("shipped-prose")))
        found = list(steps(real, _router(specimen, real.layers), rounds=max(1, rounds - 1)))
        say(f"\n{SAID.format(of=specimen)}\n\n{grid(found)}")
    return rows, found


def _router(folder: str, layers: int) -> Router | None:
    """The first of a model's routers; None where it has none."""
    named = Path(places.found(folder), "routers")
    first = next(iter(trained(named, layers=layers)), None) if named.is_dir() else None
    return None if first is None else load_router(named / first)


def _rows(lm: LanguageModel, tokens: Tokens, folder: str, rounds: int) -> Iterator[Row]:
    yield from _oracle(lm, tokens, folder, rounds)
    yield from _three_ways(lm, tokens)
    yield _memory(folder)
    yield from _methods(lm, tokens[:2].cut(25))
    yield from _halved(folder, tokens[:2].cut(25), device=lm.device)
    yield from _dispatch(lm, rounds)
    yield _stage_1(lm, rounds)
    yield from _drafts(lm, tokens, rounds)
    yield from latencies(folder)
    yield sweep_of_two(folder)


def _oracle(lm: LanguageModel, tokens: Tokens, folder: str, rounds: int) -> Iterator[Row]:
    """All routes of every token and every budget under a reference context, replay included."""
    scored, space = int(tokens.scored.sum()), routes.Space(lm.layers, "SB")
    trie = Trie(space.enumerate())
    sample = space.sample(24, seed=0)
    products = list(trie_products(lm, trie, texts=len(tokens)))

    def stock(batch_size: int) -> None:
        for route in sample:
            lm.score(tokens, route, batch_size=batch_size)

    found = partial(oracle.by_budget, lm, tokens, context="reference:big")
    sizes = [1, 2, len(tokens)]
    multiplied = ways(products)
    own, expanded, *others = timed(
        [found, partial(_expanded, lm, tokens), *multiplied, *(partial(stock, size) for size in sizes)], rounds
    )
    fastest, stocks = min(others[: len(multiplied)]), others[len(multiplied) :]
    own, best = own / scored, min(stocks) / len(sample) * space.count() / scored
    yield Row(f"oracle, all {space.count():,} routes and budgets of a token", 1e3 * own, "ms")
    yield Row("one stock forward per route, best of three batch sizes", 1e3 * best, "ms", best / own, "oracle")
    alone = _in_own_process("expanded_seconds", folder, lm.device.type)
    for where, seconds in (("in a process of its own", alone), ("beside the search, freed memory kept", expanded)):
        other = seconds * space.count() / EXPANDED
        yield Row(f"K/V cache expanded to {EXPANDED} branches, {where}", 1e3 * other, "ms", other / own, "oracle")
    rate = work_of(products) / fastest
    yield Row("matrix products at the trie's shapes, the faster of two libraries", rate / 1e9, "GFLOP/s")
    work = _work(lm, tokens) + _replays(lm, tokens)
    yield Row(
        "trie with bounded head, and replays", work / 1e9, "GFLOP", own / (work / rate), "limit: FLOPs / product rate"
    )


def _work(lm: LanguageModel, tokens: Tokens) -> float:
    """FLOPs of one token with the head that bounds; leaves that are anchors or are finished come on top."""
    space = routes.Space(lm.layers, "SB")
    whole = oracle.estimate(lm, tokens, space, context="reference:big") / tokens.scored.sum()
    return float(whole - 2 * lm.model.config.hidden_size * space.count() * (lm.vocab - BOUNDING))


def _replays(lm: LanguageModel, tokens: Tokens) -> float:
    """FLOPs of one token in the forward passes that replay every budget."""
    bigs = np.tri(lm.layers + 1, lm.layers, -1, dtype=np.int8)[:, None] + SMALL  # k big layers, then small ones
    every = (forward_flops(lm.model, np.broadcast_to(k, (*tokens.ids.shape, lm.layers))) for k in bigs)
    return float(sum(every) / tokens.scored.sum())


@torch.no_grad()
def _expanded(lm: LanguageModel, tokens: Tokens) -> None:
    """Losses of 512 routes of the middle position: the usual way, a batch of so many with copies of the K/V cache."""
    ids = torch.from_numpy(tokens.ids[:1, : tokens.ids.shape[1] // 2]).to(lm.device)
    cache = DynamicCache(config=lm.model.config)
    lm.model(ids[:, :-2], past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(EXPANDED)
    every = torch.from_numpy(routes.Space(lm.layers, "SB").sample(EXPANDED, seed=0))[:, None].to(lm.device)
    out = lm.model(ids[:, -2:-1].expand(EXPANDED, 1), past_key_values=cache, duo_routes=every)
    torch.nn.functional.cross_entropy(out.logits[:, -1].float(), ids[0, -1].expand(EXPANDED))


def expanded_seconds(folder: str, device: str) -> float:
    """Median seconds of `EXPANDED` routes by copies of the K/V cache, as a process has it that has not searched: its C
    library gives freed memory back, where a search has it kept for the whole process.

    Args:
        folder: of the model.
        device: as in `duoviz.model.load`.
    """
    study = Study(model=folder, documents=8, length=128)
    (seconds,) = timed([partial(_expanded, load(folder, device=device), study.tokens("shipped-prose"))], 5)
    return seconds


def sweep_of_two(folder: str, *, documents: int = 32, length: int = 128) -> Row:
    """A sweep by two workers of one thread beside the same by one, merge included; a small one goes before, so that what workers
    are forked from is there."""

    def seconds(workers: int, texts: int) -> float:
        with TemporaryDirectory() as place:
            study = Study(model=folder, documents=texts, length=length, results=Path(place))
            ways = {"context": "reference:big", "method": None, "choices": None}
            shared: dict[str, Any] = {"source": "shipped-prose", "objectives": ("nll",), "ways": ways, "batch": 2}
            asked = SurveySweep(study=study, shards=texts // 2, **shared)
            began = time.perf_counter()
            sweep.run(asked, f"local:{workers}", engines.Resources())
            return time.perf_counter() - began

    _, one, two = seconds(1, 2), seconds(1, documents), seconds(2, documents)
    return Row(f"sweep of {documents} texts, two workers of one thread", two, "s", one / two, "one worker; limit 2")


def _three_ways(lm: LanguageModel, tokens: Tokens) -> Iterator[Row]:
    space = routes.Space(lm.layers, "-SB")
    land = partial(oracle.landscape, lm, tokens, space, seq=0, position=tokens.scored.shape[1] - 1)
    best = partial(oracle.search, lm, replace(tokens[:1], scored=_last(tokens[:1])), space, context="reference:big")
    for name, side in (("best", best), ("every loss", land)):
        (seconds,) = timed([side], 1)
        yield Row(f"{space.count():,} three-way routes of one token, {name}", seconds, "s")


def _last(tokens: Tokens) -> np.ndarray:
    """Only the last position is scored."""
    scored = np.zeros_like(tokens.scored)
    scored[:, -1] = True
    return scored


def _memory(folder: str) -> Row:
    """Largest memory of a process of its own that searches the last position of 16 texts of 256 tokens."""
    return Row("memory of a search in 16 texts x 256 tokens", _in_own_process("largest_memory", folder) / 2**30, "GiB")


def _in_own_process(measure: str, *arguments: str) -> float:
    """What a function of this package returns, in a process where nothing else has run."""
    code = f"import sys; from duoviz.bench import measures; print(measures.{measure}(*sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return float(done.stdout)


def largest_memory(folder: str) -> int:
    """Bytes this process has held at most, after a search behind the longest context; the cache of all 16 texts is there."""
    lm = load(folder, device="cpu")
    ids = np.random.default_rng(0).integers(0, lm.vocab, (16, 256))
    tokens = Tokens.of(ids)
    oracle.by_budget(
        lm,
        replace(tokens, scored=_last(tokens)),
        context="reference:big",
        setting=oracle.Setting(batch_size=16),
    )
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says begins with what the process had that started this one
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1])  # type: ignore[index]
    import resource  # which Windows does not have

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _methods(lm: LanguageModel, tokens: Tokens) -> Iterator[Row]:
    """Regret against exact, routes and FLOPs of the methods that do not enumerate, all routes allowed."""
    space = routes.Space(lm.layers, "SB")
    exact = oracle.search(lm, tokens, space, context="reference:big")
    assert exact.effort is not None, "a search counts"
    for method in METHODS:
        found = oracle.search(lm, tokens, space, context="reference:big", method=method)
        assert found.effort is not None, "a search counts"
        regret = float(np.nanmean(found.loss_nats - exact.loss_nats))
        share = found.effort.flops / exact.effort.flops
        yield Row(f"{method}: regret after {found.effort.routes:.0f} routes", regret, "nats", share, "FLOPs of exact")


def _halved(folder: str, tokens: Tokens, *, device: torch.device) -> Iterator[Row]:
    """What bfloat16 changes in a search: norm, logits and their log-sum-exp stay in float32."""
    models = [load(folder, device=str(device), dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    one, other = (oracle.by_budget(lm, tokens, context="reference:big") for lm in models)
    same = (one.routes == other.routes).all(-1)[1:-1].mean()  # with none or all big there is one route
    differs = np.abs(one.loss_nats - other.loss_nats)[1:-1].mean()
    yield Row("bfloat16: routes that are those of float32, 1 to all but one big", 100 * float(same), "%")
    yield Row("bfloat16: mean difference of the oracle's loss", float(differs), "nats")


@torch.no_grad()
def _dispatch(lm: LanguageModel, rounds: int) -> Iterator[Row]:
    """One FFN site over 4,096 tokens, some of them big."""
    ffn = lm.model.decoder_layers[0].duo_ffn
    x = torch.randn(4096, lm.model.config.hidden_size, device=lm.device, dtype=lm.model.dtype)
    for share in (0.25, 0.5, 0.75):
        choices = torch.where(torch.rand(len(x)) < share, BIG, SMALL).to(lm.device)

        def masked(choices: torch.Tensor = choices) -> torch.Tensor:
            return torch.where((choices == BIG)[:, None], ffn.big(x), ffn.narrow(x))

        many = 20 * rounds
        own, both, big, small = timed(
            [partial(ffn.dispatch, x, choices), masked, partial(ffn.big, x), partial(ffn.narrow, x)], many
        )
        limit = share * big + (1 - share) * small
        yield Row(f"FFN dispatch, {share:.0%} big", 1e3 * own, "ms", both / own, "both computed and masked")
        yield Row(f"FFN dispatch, {share:.0%} big", 1e3 * own, "ms", own / limit, "limit: p big + (1 - p) small")


def _stage_1(lm: LanguageModel, rounds: int) -> Row:
    """Forward and backward over 16 x 256 tokens with random routes, beside a dense model of as many FLOPs."""
    config = lm.model.config
    width = (lm.model.family.ffn_width(config) + config.small_intermediate_size) // 2
    fields = {**config.to_dict(), lm.model.family.width: width, "model_type": lm.model.family.name}
    dense = lm.model.family.causal_lm(lm.model.family.config(**fields)).to(lm.device, lm.model.dtype)
    ids = torch.randint(0, lm.vocab, (16, 256), device=lm.device)

    def step(model: torch.nn.Module, **routing: object) -> None:
        model(ids, labels=ids, use_cache=False, **routing).loss.backward()
        model.zero_grad()

    policy = RandomPolicy()
    own, other = timed([partial(step, lm.model, duo_policy=policy), partial(step, dense)], rounds)
    return Row("stage-1 step, 16 x 256 tokens", own, "s", own / other, "limit: dense Llama of equal FLOPs")


def _drafts(lm: LanguageModel, tokens: Tokens, rounds: int) -> Iterator[Row]:
    """Greedy text of the big FFNs, with drafts of the small ones and without."""
    prompt = torch.from_numpy(tokens.ids[:1, :64]).to(lm.device)
    way = {"max_new_tokens": DRAFTED, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    alone = partial(lm.model.generate, prompt, attention_mask=torch.ones_like(prompt), duo_routes="all-big", **way)
    own, plain = timed([partial(alone, assistant_routes="all-small"), alone], rounds)
    passes: Counter[int] = Counter()
    hook = lm.model.register_forward_pre_hook(partial(_count, passes), with_kwargs=True)
    alone(assistant_routes="all-small")
    hook.remove()
    yield Row("greedy text of all big, drafts by all small", DRAFTED / own, "tokens/s", plain / own, "without drafts")
    kept = (DRAFTED - passes[BIG]) / passes[SMALL]  # each check makes a token of its own
    yield Row("drafts that are kept", 100 * kept, "%")


def _count(passes: Counter[int], _: torch.nn.Module, args: object, given: dict[str, torch.Tensor]) -> None:
    """One forward pass more that took these routes, the same for all layers."""
    passes[int(given["duo_routes"].flatten()[0])] += 1
