import json
import math
import os
import subprocess
import sys
import zlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TOKENIZERS, dense_model, shaped_like, tiny_model
from typer.testing import CliRunner

from duoviz import corpus, metrics, model, router
from duoviz.cli import app
from duoviz.evaluation import perplexity, way_of, ways, ways_of, windows
from duoviz.model import RandomPolicy
from duoviz.router import Mixture, Router
from duoviz.routes import from_text

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "data" / "duo-tiny"
EXTRA = ROOT / ".venv" / "eval"
"""lm-evaluation-harness, beside the pinned packages: see the Makefile."""
HALF = RandomPolicy(big=0.5, small=0.3, skip=0.2, seed=7)


@pytest.fixture(scope="module")
def lm():
    """A Duo model with random weights that reads 48 tokens of the shipped model's vocabulary."""
    made = tiny_model(vocab=4096)
    made.tokenizer = model.load(SHIPPED).tokenizer
    return made


@pytest.fixture(scope="module")
def learned(lm):
    """A router with random weights large enough that it takes every choice."""
    made = Router(lm.layers, 32, Mixture(big=0.4, small=0.3, skip=0.3))
    torch.nn.init.normal_(made.weight, std=1.0, generator=torch.Generator().manual_seed(1))
    return made


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Documents of 120, 49, 48, 2 and 1 tokens, the second with characters of several bytes."""
    tokenizer = model.load(SHIPPED).tokenizer
    long, other, *_ = (d.text for d in corpus.documents("shipped-prose"))
    cut = [(long, 120), ("naïve café – ünïcödé\n" + other, 49), (other, 48), (long, 2), (long, 1)]
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    with path.open("w") as lines:
        for text, tokens in cut:
            ids, offsets = corpus.tokenize(tokenizer, text)
            assert corpus.tokenize(tokenizer, text[: offsets[tokens - 1][1]])[0] == ids[:tokens]
            lines.write(json.dumps({"text": text[: offsets[tokens - 1][1]]}) + "\n")
    return f"file:{path}"


def encoded(lm, source):
    """The token ids of each document with something to predict."""
    found = [corpus.tokenize(lm.tokenizer, d.text)[0] for d in corpus.documents(source)]
    return [ids for ids in found if len(ids) > 1]


def routing(way, ids, *, key=None, layers=4):
    """The forward's argument for the tokens of a text that are read, made without the code under test."""
    if isinstance(way, Router):
        return {"duo_router": way.eval()}
    if isinstance(way, str):
        return {"duo_routes": torch.from_numpy(from_text(way)).expand(1, len(ids) - 1, -1)}
    seed = zlib.crc32(np.array(ids if key is None else key, np.int64).tobytes(), way.seed)
    return {"duo_routes": replace(way, seed=seed).routes(1, len(ids) - 1, layers)}


def part(given, begin, end):
    """The routes of some of the tokens; a router as it is."""
    return {name: value if name == "duo_router" else value[:, begin:end] for name, value in given.items()}


@torch.no_grad()
def brute_force(lm, ids, *, length, stride, way):
    """Loss of every token but the first, each from a forward pass of its own over what its window holds before it."""
    losses, given = [], routing(way, ids)
    for target in range(1, len(ids)):
        begin = max(0, math.ceil((target - length) / stride)) * stride  # of the first window that reaches the token
        out = lm.model(torch.tensor([ids[begin:target]]), **part(given, begin, target))
        losses.append(-out.logits[0, -1].log_softmax(-1)[ids[target]].item())
    return losses


@torch.no_grad()
def guide(lm, ids, *, max_length, stride, route):
    """Sum of the losses, as the Transformers guide on perplexity of fixed-length models computes it."""
    ids, total, prev_end = torch.tensor([ids]), 0.0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + max_length, ids.shape[1])
        labels = ids[:, begin:end].clone()
        labels[:, : -(end - prev_end)] = -100
        out = lm.model(ids[:, begin:end], labels=labels, duo_routes=torch.from_numpy(from_text(route)))
        total += out.loss.item() * (labels[:, 1:] != -100).sum().item()
        prev_end = end
        if end == ids.shape[1]:
            break
    return total


@pytest.mark.parametrize(("length", "stride"), [(48, 48), (48, 24), (20, 7), (5, 5), (9, 1), (1, 1)])
def test_perplexity_is_that_of_the_brute_force(lm, texts, length, stride):
    found = perplexity(lm, texts, way="BS-B", length=length, stride=stride, batch_size=3)
    each = [brute_force(lm, ids, length=length, stride=stride, way="BS-B") for ids in encoded(lm, texts)]
    losses = np.full((len(each), max(map(len, each))), np.nan)
    for row, of_document in zip(losses, each):
        row[: len(of_document)] = of_document
    interval = metrics.mean_interval(losses)
    assert found.tokens == interval.positions == 119 + 48 + 47 + 1
    assert found.loss_nats.documents == 4
    for bound in ("mean", "low", "high"):
        assert getattr(found.loss_nats, bound) == pytest.approx(getattr(interval, bound), abs=1e-5)
    assert found.perplexity == pytest.approx(math.exp(np.nanmean(losses)), rel=1e-4)


@pytest.mark.parametrize("kind", ["random", "router"])
def test_perplexity_of_random_choices_and_of_a_router_is_that_of_the_brute_force(lm, texts, learned, kind):
    way = HALF if kind == "random" else learned
    found = perplexity(lm, texts, way=way, length=30, stride=11)
    each = [brute_force(lm, ids, length=30, stride=11, way=way) for ids in encoded(lm, texts)]
    assert found.loss_nats.mean == pytest.approx(np.concatenate(each).mean(), abs=1e-5)


def test_perplexity_is_that_of_the_guide_with_one_more_token_in_a_window(lm, texts):
    for length, stride in ((47, 47), (47, 12), (20, 7)):
        found = perplexity(lm, texts, way="BSSB", length=length, stride=stride)
        by_guide = sum(guide(lm, ids, max_length=length + 1, stride=stride, route="BSSB") for ids in encoded(lm, texts))
        assert found.loss_nats.mean * found.tokens == pytest.approx(by_guide, rel=1e-5)


def test_a_stride_of_the_length_is_disjoint_windows(lm, texts):
    ids = encoded(lm, texts)[0][:113]
    assert list(windows(112, length=28, stride=28)) == [(0, 28, 0), (28, 56, 28), (56, 84, 56), (84, 112, 84)]
    blocks = np.array([ids[begin : begin + 29] for begin in range(0, 112, 28)])
    found = perplexity(lm, texts, way="SBSB", length=28, stride=28, documents=1)
    assert found.loss_nats.mean * 119 == pytest.approx(
        lm.score(blocks, "SBSB").sum() + lm.score(np.array([encoded(lm, texts)[0][112:]]), "SBSB").sum(), rel=1e-5
    )


def test_windows_score_every_token_once_and_keep_the_context():
    for tokens, length, stride in ((1, 5, 2), (5, 5, 5), (6, 5, 5), (100, 7, 3), (100, 7, 7), (23, 8, 1)):
        cut = list(windows(tokens, length=length, stride=stride))
        assert [i for _, end, scored in cut for i in range(scored, end)] == list(range(tokens))
        for begin, end, scored in cut:
            assert end - begin <= length
            assert scored == 0 or scored - begin >= length - stride
        assert all(later[0] - earlier[0] == stride for earlier, later in pairwise(cut))


def test_shares_and_bytes_are_those_of_the_text(lm, texts, learned):
    found = perplexity(lm, texts, way="B-SS")
    assert (found.share_big, found.share_small, found.share_skip, found.share_asked) == (0.25, 0.5, 0.25, 0.25)
    size = 0
    for document in corpus.documents(texts)[:4]:
        _, offsets = corpus.tokenize(lm.tokenizer, document.text)
        size += len(document.text[offsets[0][1] :].encode())
    assert size > sum(len(d.text) for d in corpus.documents(texts)[:4]) - 20  # accents take two bytes, dashes three
    assert found.bytes == size
    assert found.bits_per_byte == pytest.approx(found.loss_nats.mean * found.tokens / math.log(2) / size)
    drawn = np.concatenate([routing(HALF, ids)["duo_routes"][0] for ids in encoded(lm, texts)])
    found = perplexity(lm, texts, way=HALF, length=10, stride=3)
    assert [found.share_skip, found.share_small, found.share_big] == pytest.approx(
        np.bincount(drawn.ravel()) / drawn.size
    )
    found = perplexity(lm, texts, way=learned, length=47, documents=1, stride=47)
    ids = np.array(encoded(lm, texts)[0])
    routes = [learned.routes(lm, ids[None, begin : begin + 48]).ravel() for begin in (0, 47, 94)]
    counts = np.bincount(np.concatenate(routes), minlength=3)
    assert counts.min() > 0
    assert [found.share_skip, found.share_small, found.share_big] == pytest.approx(counts / counts.sum())
    assert found.share_asked == 0.4


def test_nothing_but_the_seed_changes_random_choices(lm, texts):
    one = perplexity(lm, texts, way=HALF, batch_size=1)
    many = perplexity(lm, texts, way=HALF, batch_size=64)
    assert one.loss_nats.mean == pytest.approx(many.loss_nats.mean, abs=1e-5)
    assert one.share_big == many.share_big
    assert perplexity(lm, texts, way=replace(HALF, seed=8)).loss_nats.mean != pytest.approx(
        many.loss_nats.mean, abs=1e-3
    )
    first, second = (ways.drawn(HALF, ids, tokens=40, layers=4) for ids in encoded(lm, texts)[:2])
    assert (first != second).any()
    assert (ways.drawn(HALF, encoded(lm, texts)[0], tokens=30, layers=4) == first[:30]).all()


def test_a_router_in_training_is_used_as_it_will_be_and_stays_in_training(lm, texts, learned):
    learned.eval()
    still = perplexity(lm, texts, way=learned)
    learned.train()
    assert perplexity(lm, texts, way=learned) == still
    assert learned.training


def test_perplexity_reads_a_stream_no_further_than_needed(lm, tmp_path):
    rows = "".join(json.dumps({"text": text}) + "\n" for text in ("one text", "", "a", "and another text"))
    (tmp_path / "train-0.jsonl").write_text(rows)
    (tmp_path / "train-1.jsonl").write_text("{broken\n")
    found = perplexity(lm, f"hf:{tmp_path}", way="BBBB", documents=2)
    assert found.loss_nats.documents == 2
    with pytest.raises(ValueError, match="row 4 cannot be read"):
        perplexity(lm, f"hf:{tmp_path}", way="BBBB")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"length": 49}, r"length 49: the model's context is 48, give 1..48"),
        ({"length": 0}, r"length 0: the model's context is 48"),
        ({"stride": 0}, r"stride 0: windows of 48 tokens advance by 1..48"),
        ({"stride": 11, "length": 10}, r"stride 11: windows of 10 tokens advance by 1..10"),
        ({"documents": 0}, "documents 0: give a whole number, at least 1"),
        ({"batch_size": 0}, "batch_size 0: give a whole number, at least 1"),
        ({"way": "BB"}, "has 2 letters: the model has 4 layers"),
        ({"way": np.ones((2, 4), np.int8)}, r"a way of shape \(2, 4\): give one route"),
        ({"way": Router(3, 32, Mixture(big=0.5, small=0.5))}, "belongs to another model"),
        ({"source": "novels"}, "corpus source 'novels' is unknown"),
        ({"split": "nope"}, "split 'nope': allowed are"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(lm, asked, message):
    with pytest.raises(ValueError, match=message):
        perplexity(lm, **{"source": "shipped-prose", "way": "BBBB", **asked})


def test_a_source_without_text_and_a_model_without_tokenizer_are_refused(lm, tmp_path):
    (tmp_path / "short.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    with pytest.raises(ValueError, match="holds no document of two tokens or more"):
        perplexity(lm, f"file:{tmp_path / 'short.jsonl'}", way="BBBB")
    with pytest.raises(ValueError, match="the model came without a tokenizer"):
        perplexity(tiny_model(), "shipped-prose", way="BBBB")


def test_ways_are_named_by_words(lm, tmp_path, learned):
    assert way_of(lm).tolist() == [2, 2, 2, 2]
    assert way_of(lm, route="BS-B").tolist() == [2, 1, 0, 2]
    assert way_of(lm, big=0.9, skip=0.1, seed=3) == RandomPolicy(big=0.9, small=0.0, skip=0.1, seed=3)
    assert way_of(lm, big=0.5) == RandomPolicy(big=0.5, small=0.5)
    assert way_of(lm, big=0.5, small=0.25) == RandomPolicy(big=0.5, small=0.25, skip=0.25)
    router.save(learned, tmp_path)
    assert torch.equal(way_of(lm, router=tmp_path).weight, learned.weight)
    named = ways_of(lm, routes=["BBBB", "BS-B"], routers=[tmp_path], bigs=[0.0, 0.5, 1.0], skip=0.0)
    shares = {"BBBB": 1, "BS-B": 0.5, str(tmp_path): 0.4}
    shares |= {"random small 1": 0, "random big 0.5, small 0.5": 0.5, "random big 1": 1}
    assert {name: ways.share_asked(way) for name, way in named.items()} == shares
    assert list(ways_of(lm)) == ["BBBB"]
    for words, message in (
        ({"route": "BBBB", "big": 0.5}, "route BBBB and big 0.5: give one of"),
        ({"skip": 0.5}, r"small None, skip 0.5 without a share of big: give big too"),
        ({"big": 0.7, "skip": 0.6}, "give probabilities that sum to 1"),
        ({"big": math.nan}, "give probabilities that sum to 1"),
        ({"big": 0.5, "small": 0.1, "skip": 0.1}, "give probabilities that sum to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            way_of(lm, **words)
    with pytest.raises(ValueError, match="without a share of big"):
        ways_of(lm, routes=["BBBB"], skip=0.5)


def test_a_dense_model_skips_what_is_not_big(lm, tmp_path, texts):
    dense_model("llama", vocab=4096).save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    dense = model.load(tmp_path, choices="-B")
    assert way_of(dense, big=0.25) == RandomPolicy(big=0.25, small=0.0, skip=0.75)
    found = perplexity(dense, texts, way=way_of(dense, big=0.25))
    assert found.share_small == 0
    assert found.share_skip == pytest.approx(0.75, abs=0.1)
    for way in ("BSB", RandomPolicy()):
        with pytest.raises(ValueError, match="this model has only '-B'"):
            perplexity(dense, texts, way=way)


def test_the_shell_writes_the_perplexity_of_every_way(tmp_path):
    words = [
        "evaluate",
        "--documents",
        2,
        "--stride",
        100,
        "--big",
        0,
        "--big",
        0.5,
        "--route",
        "B" * 12,
        "--out",
        tmp_path,
    ]
    done = CliRunner().invoke(app, [str(word) for word in [*words, "--router", SHIPPED / "routers" / "budget-4"]])
    assert done.exit_code == 0, done.output
    table = pd.read_parquet(tmp_path / "perplexity.parquet").set_index("way")
    assert json.loads((tmp_path / "perplexity.json").read_text())[0]["way"] == "B" * 12
    assert list(table.index) == ["B" * 12, f"{SHIPPED}/routers/budget-4", "random small 1", "random big 0.5, small 0.5"]
    lm = model.load(SHIPPED)
    for name, way in (("B" * 12, "B" * 12), ("random small 1", "S" * 12)):
        expected = perplexity(lm, "shipped-prose", way=way, documents=2, stride=100)
        assert table.loc[name, "perplexity"] == pytest.approx(expected.perplexity)
        assert table.loc[name, "share_big"] == expected.share_big == table.loc[name, "share_asked"]
    assert set(table["fingerprint"]) == {lm.fingerprint}
    shared = ["--router", str(SHIPPED / "routers" / "budget-4"), "--on", "local:1", "--out", str(tmp_path / "on")]
    done = CliRunner().invoke(app, [*map(str, words[:-2]), *shared])
    assert done.exit_code == 0, done.output
    other = pd.read_parquet(tmp_path / "on" / "perplexity.parquet")
    np.testing.assert_allclose(other["perplexity"], table["perplexity"], rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--length", 257), "length 257: the model's context is 256"),
        (("--limit", 3), "--limit without --tasks says nothing: leave one out"),
        (("--tasks", "x", "--stride", 3), "--stride beside --tasks says nothing: leave one out"),
        (("--small", 0.5), "without a share of big"),
        (("--route", "BQ"), "each letter must be one of"),
        (("--router", "no/such"), "there is no router.json"),
        (("--on", "local"), "--on local divides documents: give --documents with it, and no --tasks"),
        (("--source", "hf:./nowhere"), "there is no folder ./nowhere"),
    ],
)
def test_bad_input_to_the_shell_ends_in_one_line(words, message):
    done = CliRunner().invoke(app, ["evaluate", *map(str, words)])
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


@pytest.fixture(scope="module")
def harness():
    """The room's part that stands on lm-evaluation-harness, which is beside the pinned packages and not among them."""
    subprocess.run(["make", EXTRA / ".ready"], cwd=ROOT, check=True)
    sys.path.append(str(EXTRA))
    try:
        import lm_eval.evaluator  # noqa: F401

        from duoviz.evaluation import harness as found
    finally:
        sys.path.remove(str(EXTRA))
    return found


def requests(kind, *arguments):
    """What lm-evaluation-harness hands to a model."""
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, given, index, ("task", index, 1)) for index, given in enumerate(arguments)]


PAIRS = (
    ("The kettle whistles. An old man pours the water and", " waits for his guest."),
    ("The kettle whistles. An old man pours the water and", " grows leaves."),
    ("import os\n", "import sys"),
    ("A sentence. ", "Another"),
)


@pytest.mark.parametrize("kind", ["route", "random", "router"])
def test_loglikelihood_is_minus_the_sum_of_the_losses(harness, lm, learned, kind):
    way = {"route": "BS-B", "random": HALF, "router": learned}[kind]
    for batch_size in (1, 3):
        made = harness.Harness(lm, way, batch_size=batch_size)
        answers = made.loglikelihood(requests("loglikelihood", *PAIRS), disable_tqdm=True)
        counts = np.zeros(3, int)
        for (context, continuation), (total, greedy) in zip(PAIRS, answers, strict=True):
            before = lm.tokenizer(context.rstrip())["input_ids"]  # blanks at its end go to the continuation
            ids = np.array([lm.tokenizer(context + continuation)["input_ids"]])
            given = routing(way, ids[0], key=before).get("duo_routes")
            routes = learned.routes(lm, ids) if given is None else given.to(torch.int8).numpy()
            losses = lm.score(ids, routes)[0, len(before) - 1 :]
            assert total == pytest.approx(-losses.sum(), abs=1e-4)
            assert not greedy
            counts += np.bincount(routes.ravel(), minlength=3)
        assert made.counts.tolist() == counts.tolist()


def test_greedy_is_true_where_every_token_is_the_likeliest(harness, lm):
    made, route = harness.Harness(lm, "BS-B"), torch.from_numpy(from_text("BS-B"))
    context = lm.tokenizer("def f(x):")["input_ids"]
    likeliest = list(context)
    for _ in range(3):
        likeliest.append(lm.model(torch.tensor([likeliest]), duo_routes=route).logits[0, -1].argmax().item())
    right = likeliest[len(context) :]
    wrong = [*right[:2], (right[2] + 1) % 4096]
    found = made._loglikelihood_tokens([(("", ""), context, right), (("", ""), context, wrong)])
    assert [greedy for _, greedy in found] == [True, False]


def test_a_long_context_is_cut_from_the_left_and_an_empty_one_is_the_prefix_token(harness, lm):
    text = corpus.documents("shipped-prose", limit=1)[0].text
    ids = lm.tokenizer(text, verbose=False)["input_ids"][:130]
    made = harness.Harness(lm, HALF, max_length=20)
    found = made._loglikelihood_tokens([(("", ""), ids[:125], ids[125:])])[0][0]
    routes = routing(HALF, ids, key=ids[:125])["duo_routes"][:, -20:].to(torch.int8).numpy()
    assert found == pytest.approx(-lm.score(np.array([ids[-21:]]), routes)[0, -5:].sum(), abs=1e-4)
    made = harness.Harness(lm, "BS-B")
    alone, again = (made.loglikelihood(requests("loglikelihood", (c, "A word")))[0][0] for c in ("", "<|endoftext|>"))
    losses = lm.score(np.array([[0, *lm.tokenizer("A word")["input_ids"]]]), "BS-B")
    assert lm.tokenizer.eos_token_id == 0
    assert alone == again == pytest.approx(-losses.sum(), abs=1e-4)
    (blank,) = made.loglikelihood(requests("loglikelihood", ("\n\n", "A word")))  # blanks go to the continuation
    losses = lm.score(np.array([[0, *lm.tokenizer("\n\nA word")["input_ids"]]]), "BS-B")
    assert blank[0] == pytest.approx(-losses.sum(), abs=1e-4)
    for continuation, size in (("", 0), (text, len(lm.tokenizer(text, verbose=False)["input_ids"]))):
        with pytest.raises(ValueError, match=rf"of {size} tokens: 1..48 can be scored"):
            made._loglikelihood_tokens(
                [(("", continuation), [0], lm.tokenizer(continuation, verbose=False)["input_ids"])]
            )


@pytest.mark.parametrize("kind", ["route", "random", "router"])
def test_rolling_is_the_perplexity_of_the_text(harness, lm, learned, tmp_path, kind):
    way = {"route": "BS-B", "random": HALF, "router": learned}[kind]
    text = corpus.documents("shipped-prose", limit=1)[0].text
    _, offsets = corpus.tokenize(lm.tokenizer, text)
    made = harness.Harness(lm, way, max_length=40)
    parts = [text[: offsets[tokens - 1][1]] for tokens in (120, 33)]  # three whole windows, and less than one
    found = made.loglikelihood_rolling(requests("loglikelihood_rolling", *((part,) for part in parts)))
    counts = np.zeros(3)
    for part_, total in zip(parts, found, strict=True):
        (tmp_path / "a.txt").write_text("<|endoftext|>" + part_)
        expected = perplexity(lm, f"file:{tmp_path / 'a.txt'}", way=way, length=40, stride=40)
        assert total == pytest.approx(-expected.loss_nats.mean * expected.tokens, rel=1e-6)
        counts += np.array([expected.share_skip, expected.share_small, expected.share_big]) * expected.tokens * 4
    assert made.counts.tolist() == counts.round().tolist()
    (uneven,) = made.loglikelihood_rolling(requests("loglikelihood_rolling", (text,)))
    ids = [0, *lm.tokenizer(text, verbose=False)["input_ids"]]
    assert (len(ids) - 1) % 40
    assert made.counts.sum() == counts.sum().round() + 4 * (len(ids) - 1)  # a token in two windows counts once
    if kind == "route":  # the last window is full: it begins where 40 tokens are left to read
        begins = [*range(0, len(ids) - 41, 40), len(ids) - 41]
        losses = [lm.score(np.array([ids[begin : begin + 41]]), way)[0] for begin in begins]
        left = (len(ids) - 1) % 40
        assert uneven == pytest.approx(-sum(one.sum() for one in losses[:-1]) - losses[-1][-left:].sum(), rel=1e-5)


@pytest.mark.parametrize("kind", ["route", "random", "router"])
def test_texts_are_generated_as_one_by_one_and_until_they_stop(harness, lm, learned, kind):
    way = {"route": "BS-B", "random": HALF, "router": learned}[kind]
    contexts = ("import os", "A sentence that is longer. And", "")
    made = harness.Harness(lm, way, batch_size=3)
    found = made.generate_until(requests("generate_until", *((c, {"until": [], "max_gen_toks": 8}) for c in contexts)))
    for context, text in zip(contexts, found, strict=True):
        ids = lm.tokenizer(context)["input_ids"] or [0]
        given = routing(way, [*ids, *[0] * 9], key=ids)
        out = lm.model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, **given)
        assert text == lm.tokenizer.decode(out[0, len(ids) :])
        stop = text[5:7]
        (stopped,) = made.generate_until(requests("generate_until", (context, {"until": stop, "max_gen_toks": 8})))
        assert stopped == text[: text.index(stop)]
    assert len(set(found)) == 3
    assert made.counts.sum() % 4 == 0
    if kind == "router":
        assert made.counts.min() > 0
    until = {"until": [found[0][3:5]], "max_gen_toks": 8}
    counts = []
    for size in (1, 3):
        made = harness.Harness(lm, way, batch_size=size)
        made.generate_until(requests("generate_until", *((c, until) for c in contexts)))
        counts.append(made.counts.tolist())
    assert counts[0] == counts[1]  # whatever ran beside it
    long = "word " * 100
    options = {"until": ["\n"], "max_gen_toks": 10}
    (cut,) = made.generate_until(requests("generate_until", (long, options)))
    last = lm.tokenizer.decode(lm.tokenizer(long, verbose=False)["input_ids"][-38:])
    assert made.generate_until(requests("generate_until", (last, options))) == [cut]
    with pytest.raises(ValueError, match=r"48 new tokens: the model reads 48, ask for 1..47"):
        made.generate_until(requests("generate_until", ("a", {"max_gen_toks": 48})))


def test_the_model_is_registered_under_its_name(harness):
    from lm_eval.api.registry import get_model

    made = get_model("duoviz").create_from_arg_string(
        f"path={SHIPPED},big=1,seed=3,max_length=64", {"batch_size": "4", "device": "cuda:0"}
    )
    assert isinstance(made, harness.Harness)
    assert (made.way, made.batch_size, made.max_length) == (RandomPolicy(1.0, 0.0, 0.0, seed=3), 4, 64)
    made = get_model("duoviz").create_from_arg_obj({"path": SHIPPED, "router": SHIPPED / "routers" / "budget-4"})
    assert made.way.facts["mixture"] == router.load(SHIPPED / "routers" / "budget-4").facts["mixture"]
    for words, message in (
        ({"big": 0.5}, "give path=FOLDER"),
        ({"path": SHIPPED, "bigg": 0.5}, r"unknown are \['bigg'\]"),
        ({"path": SHIPPED, "batch_size": "auto"}, "give a number there"),
        ({"path": SHIPPED, "max_length": 257}, "max_length 257: the model's context is 256, give 2..256"),
        ({"path": SHIPPED, "batch_size": 0}, "batch_size 0: at least 1 text"),
        ({"path": SHIPPED, "route": "BB"}, "has 2 letters: the model has 12 layers"),
    ):
        with pytest.raises(ValueError, match=message):
            get_model("duoviz").create_from_arg_obj(words)


def evaluated(*words, extra=True):
    """`python -m duoviz evaluate` in a process of its own, offline."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(EXTRA) if extra else ""}
    command = [sys.executable, "-m", "duoviz", "evaluate", "--tasks", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def by_hand(lm, way, name):
    """Accuracy, with and without dividing by the characters of the choice, and how often each choice was taken."""
    right, counts = [], np.zeros(3)
    for line in (ROOT / "tests" / "tasks" / f"{name}.jsonl").read_text().splitlines():
        item = json.loads(line)
        if name == "science":
            context, endings = f"Question: {item['question']}\nAnswer:", item["choices"]["text"]
            answer = "ABCD".index(item["answerKey"])
        else:
            context, endings, answer = f"{item['activity_label']}: {item['ctx']}", item["endings"], item["label"]
        before = lm.tokenizer(context)["input_ids"]
        texts = [lm.tokenizer(f"{context} {ending}")["input_ids"] for ending in endings]
        ids, routes = np.zeros((4, max(map(len, texts))), int), np.zeros((4, max(map(len, texts)) - 1, 12), np.int8)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = text
            routes[row, : len(text) - 1] = taken = routing(way, text, key=before, layers=12)["duo_routes"][0]
            counts += np.bincount(taken.ravel(), minlength=3)
        scores = lm.score(ids, routes)[:, len(before) - 1 :]
        losses = [row[: len(text) - len(before)].sum() for row, text in zip(scores, texts)]
        right.append((np.argmin(losses) == answer, np.argmin(losses / np.array([*map(len, endings)])) == answer))
    return dict(zip(("acc", "acc_norm"), np.mean(right, axis=0))), counts / counts.sum()


def test_tasks_reach_what_is_computed_by_hand_at_every_share_of_big(harness, tmp_path):
    shares = ("--big", 0, "--big", 0.5, "--big", 1, "--seed", 5)
    done = evaluated("own_science,own_endings", "--include-path", "tests/tasks", *shares, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(tmp_path / "tasks.parquet")
    assert len(table) == len(json.loads((tmp_path / "tasks.json").read_text())) == 3 * 2 * 2
    lm = model.load(SHIPPED)
    for asked, way in ((0, "S" * 12), (0.5, RandomPolicy(0.5, 0.5, seed=5)), (1, "B" * 12)):
        for name, documents in (("science", 20), ("endings", 10)):
            reached, realised = by_hand(lm, way, name)
            rows = table[(table["task"] == f"own_{name}") & (table["share_asked"] == asked)].set_index("metric")
            assert rows["value"].to_dict() == pytest.approx(reached)
            assert (rows["documents"] == documents).all()
            for choice, found in zip(("skip", "small", "big"), realised):
                assert rows[f"share_{choice}"].tolist() == pytest.approx([found, found])
            spread = [math.sqrt(value * (1 - value) / (documents - 1)) for value in rows["value"]]
            assert rows["stderr"].tolist() == pytest.approx(spread)
    for word in ("own_science", "acc_norm", "random big 0.5, small 0.5"):
        assert word in done.stdout


def test_without_the_library_one_line_says_what_to_install():
    done = evaluated("arc_easy", extra=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: tasks need lm-evaluation-harness, and there is no module 'lm_eval': pip install 'duoviz[eval]'"
    )
    assert "Traceback" not in done.stderr


def test_bad_words_about_tasks_are_refused_before_anything_is_computed(harness, lm):
    from duoviz.evaluation import tasks

    way, own = {"small": "SSSS"}, ROOT / "tests" / "tasks"
    for names, options, message in (
        ([], {"ways": way}, r"tasks \[\], ways \['small'\]: give at least one of each"),
        (["own"], {"ways": {}}, "give at least one of each"),
        (["own"], {"ways": way, "limit": 0}, "limit 0, fewshot None: give at least 1 document"),
        (["own"], {"ways": way, "fewshot": -1}, "no negative number of examples"),
        (["own"], {"ways": way, "batch_size": 0}, "batch_size 0: at least 1 text"),
        (["own"], {"ways": {"two": "BB"}}, "has 2 letters: the model has 4 layers"),
        (["own"], {"ways": way, "include_path": ROOT / "nowhere"}, "nowhere: there is no such folder"),
    ):
        with pytest.raises(ValueError, match=message):
            tasks(lm, names, **{"include_path": own, **options})


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_windows_and_the_harness_begin_as_the_tokenizer_begins(harness, kind, tmp_path):
    """A text of one window has the loss of transformers' own pipeline; every further window begins like the first."""
    lm = tiny_model(vocab=len(shaped_like(kind)), context=128)
    lm.tokenizer = shaped_like(kind)
    text = "a small world of words and bytes, how it goes — and on: é" * 3
    (tmp_path / "a.txt").write_text(text)
    ids = lm.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted = float(lm.model(ids[:, :128], labels=ids[:, :128]).loss)
    found = perplexity(lm, f"file:{tmp_path / 'a.txt'}", way="BBBB", length=128, stride=100)
    begin = int(kind in ("llama2", "llama3", "gemma"))
    assert found.tokens == ids.shape[1] - 1
    if ids.shape[1] <= 128:
        assert found.loss_nats.mean == pytest.approx(wanted, rel=1e-5)
    (tmp_path / "b.txt").write_text(text[:50])
    ids = lm.tokenizer(text[:50], return_tensors="pt")["input_ids"][0]
    short = perplexity(lm, f"file:{tmp_path / 'b.txt'}", way="BBBB", length=16, stride=8)
    losses, last = [], len(ids) - 1
    for start in range(begin, last, 8):
        stop = min(start + 16 - begin, last)
        window = torch.cat([ids[:begin], ids[start : stop + 1]])[None].numpy()
        new = lm.score(window, "BBBB")[0]
        losses += new[-(stop - len(losses)) :].tolist()  # the targets up to `stop` that no earlier window has scored
        if stop == last:
            break
    assert short.tokens == len(losses) == last
    assert short.loss_nats.mean == pytest.approx(np.mean(losses), rel=1e-5)
    if begin:  # the harness puts its own prefix where the tokenizer has none
        (total,) = harness.Harness(lm, "BBBB").loglikelihood_rolling(requests("loglikelihood_rolling", (text[:60],)))
        own = lm.tokenizer(text[:60], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            loss = float(lm.model(own, labels=own).loss)
        assert total == pytest.approx(-loss * (own.shape[1] - 1), rel=1e-5)
