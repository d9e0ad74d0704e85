import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TOKENIZERS, shaped_like, tiny_model

from duoviz import corpus, model, places
from duoviz.corpus import python

ROOT = places.SHIPPED


@pytest.fixture(scope="module")
def tokenizer():
    return model.load(ROOT / "data" / "duo-tiny").tokenizer


@pytest.mark.parametrize("source", corpus.SHIPPED)
def test_the_shipped_text_is_as_designed(source, tokenizer):
    documents = corpus.documents(source)
    assert len(documents) >= 48
    assert len({d.id for d in documents}) == len({d.text for d in documents}) == len(documents)
    for document in documents:
        assert len(tokenizer(document.text, verbose=False)["input_ids"]) > 140
        if source == "shipped-code":
            compile(document.text, document.id, "exec")


@pytest.mark.parametrize("source", corpus.SHIPPED)
def test_a_third_of_the_shipped_text_is_for_choosing_and_of_the_same_kinds(source):
    """And a quarter of the prose is none of documentation."""
    rows = [json.loads(line) for line in (ROOT / "data" / "text" / f"{source[8:]}.jsonl").read_text().splitlines()]
    chosen_on = {d.id for d in corpus.documents(source, split="calibration")}
    scored = {d.id for d in corpus.documents(source)}
    assert chosen_on.isdisjoint(scored)
    assert chosen_on | scored == {row["id"] for row in rows}
    documentation = [row["kind"] in ("explanation", "reference", "howto") for row in rows]
    for part in (
        (documentation, np.logical_not(documentation)) if source == "shipped-prose" else [np.ones(len(rows), bool)]
    ):
        own = [row["id"] in chosen_on for row, inside in zip(rows, part) if inside]
        assert np.mean(own) == pytest.approx(1 / 3, abs=0.05)
    if source == "shipped-prose":
        assert len(rows) == 144
        assert np.mean(documentation) == 0.75


def test_blocks_hold_the_beginning_of_documents_and_their_characters(tokenizer):
    tokens = corpus.blocks(tokenizer, "shipped-prose", documents=5, length=100)
    assert tokens.ids.shape == (5, 100)
    assert tokens.scored.all()
    texts = {d.id: d.text for d in corpus.documents("shipped-prose")}
    for seq, name in enumerate(tokens.documents):
        assert texts[name].startswith(tokens.text[seq])
        assert "".join(tokens.pieces(seq)) == tokens.text[seq]
        assert tokenizer.decode(tokens.ids[seq]) == tokens.text[seq]


def test_characters_split_over_tokens_stay_whole(tokenizer):
    text = "naïve 水 and 🌱🌱 <b>"
    tokens = corpus.encode(tokenizer, text)
    pieces = tokens.pieces(0)
    assert "".join(pieces) == text
    assert "�" not in "".join(pieces)
    assert "" in pieces  # the earlier bytes of a character
    assert "".join(shown for shown, _ in tokens.chips(0)) == text
    assert [n for _, within in tokens.chips(0) for n in within] == list(range(tokens.ids.shape[1]))
    sprout = len(tokens.ids[0]) - 1 - [*pieces[::-1]].index("🌱")
    assert pieces[sprout - 1] == "", "the last token of a split character shows it"
    for size in range(2, tokens.ids.shape[1] + 1):  # wherever a block ends, also inside a character
        assert text.startswith("".join(tokens.cut(size).pieces(0)))


def test_own_texts_are_padded_and_padding_is_not_scored(tokenizer):
    tokens = corpus.encode(tokenizer, ["a b c d e f g", "def f"])
    size = len(tokenizer("def f")["input_ids"])
    assert tokens.scored[0].all()
    assert tokens.scored[1].sum() == size - 1
    assert "".join(tokens.pieces(1)) == "def f"
    assert tokens.pieces(1)[size:] == [""] * (tokens.ids.shape[1] - size)
    for text in ("", "a"):
        with pytest.raises(ValueError, match=f"text {text!r} of {len(text)} tokens has nothing to predict"):
            corpus.encode(tokenizer, ["long enough", text])
    with pytest.raises(ValueError, match="no texts"):
        corpus.encode(tokenizer, [])


def test_joined_blocks_do_not_score_the_first_token_of_a_document(tokenizer):
    tokens = corpus.blocks(tokenizer, "shipped-code", documents=6, length=120, cross=True)
    ends = np.argwhere(tokens.ids[:, :-1] == tokenizer.eos_token_id)
    assert len(ends)
    assert not tokens.scored[tuple(ends.T)].any()
    assert tokens.scored.sum() == tokens.scored.size - len(ends)
    everything = "".join(d.text for d in corpus.documents("shipped-code"))
    assert everything.startswith("".join(tokens.text))
    for seq in range(6):
        assert "".join(tokens.pieces(seq)) == tokens.text[seq]
    assert len(corpus.blocks(tokenizer, "shipped-code", documents=None, length=120, cross=True)) > 48


def test_a_dataset_is_read_only_as_far_as_needed(tokenizer, tmp_path):
    good = json.dumps({"text": "one two three four five six seven"})
    (tmp_path / "a.jsonl").write_text("\n".join([good] * 300 + ["{damaged"]))
    assert len(corpus.blocks(tokenizer, f"file:{tmp_path / 'a.jsonl'}", documents=3, length=4)) == 3
    rows = corpus.packed(tokenizer, corpus.stream(f"file:{tmp_path / 'a.jsonl'}"), length=4, rows=5)
    assert rows.shape == (5, 4)
    with pytest.raises(ValueError, match="line 301 is damaged"):
        corpus.documents(f"file:{tmp_path / 'a.jsonl'}")


def test_too_few_or_too_short_documents_are_named(tokenizer):
    with pytest.raises(ValueError, match=r"3 documents of 100000 tokens asked from 'shipped-prose': it has 0 so long"):
        corpus.blocks(tokenizer, "shipped-prose", documents=3, length=100_000)
    with pytest.raises(ValueError, match="a block needs at least 2 tokens"):
        corpus.blocks(tokenizer, "shipped-prose", length=1)
    with pytest.raises(ValueError, match="documents 0: give a whole number"):
        corpus.blocks(tokenizer, "shipped-prose", documents=0)
    with pytest.raises(ValueError, match=r"'shipped-prose' holds \d+ tokens: 10000 blocks of 100 need more"):
        corpus.blocks(tokenizer, "shipped-prose", documents=10_000, length=100, cross=True)
    with pytest.raises(ValueError, match="the model came without a tokenizer"):
        corpus.encode(None, "some text")
    slow = type("Slow", (), {"is_fast": False})()
    with pytest.raises(ValueError, match="Slow cannot say which characters a token covers: give a fast tokenizer"):
        corpus.encode(slow, "some text")


def test_unknown_sources_and_splits_are_named():
    for unknown in ("novels", "file:", "hf:", "https://example.org/a.txt"):
        with pytest.raises(ValueError, match=f"corpus source '{unknown}' is unknown: give one of shipped-prose"):
            corpus.documents(unknown)
    with pytest.raises(ValueError, match="split 'test': allowed are"):
        corpus.documents("shipped-prose", split="test")
    with pytest.raises(ValueError, match="is never trained on"):
        corpus.documents("shipped-prose", split="train")


def test_file_sources(tmp_path):
    (tmp_path / "a.txt").write_text("one text", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(json.dumps({"id": "x", "text": "first"}) + "\n" + json.dumps({"text": "second"}))
    pd.DataFrame({"text": ["p", "q"]}).to_parquet(tmp_path / "c.parquet")
    read = {
        name: [(d.id, d.text) for d in corpus.documents(f"file:{tmp_path / name}")]
        for name in ("a.txt", "b.jsonl", "c.parquet")
    }
    assert read == {
        "a.txt": [("a", "one text")],
        "b.jsonl": [("x", "first"), ("b-1", "second")],
        "c.parquet": [("c-0", "p"), ("c-1", "q")],
    }
    with (tmp_path / "b.jsonl").open("a") as lines:
        lines.write("\n\n" + json.dumps({"text": " "}) + "\n")
    assert len(corpus.documents(f"file:{tmp_path / 'b.jsonl'}")) == 2  # blank lines and empty texts are no documents
    assert [d.text for d in corpus.documents(f"file:{tmp_path / 'c.parquet'}", limit=1)] == ["p"]
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.py").write_text("x = 1")
    (tmp_path / "picture.png").write_bytes(b"\xff\xfe")
    assert [(d.id, d.text) for d in corpus.documents(f"file:{tmp_path}")] == [
        *(("a.txt", "one text"), ("x", "first"), ("b.jsonl-1", "second")),
        *(("c.parquet-0", "p"), ("c.parquet-1", "q"), ("more/a.py", "x = 1")),
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no text: at least one document"):
        corpus.documents(f"file:{tmp_path / 'empty'}")


def test_damaged_and_missing_files_are_named(tmp_path):
    (tmp_path / "bad.jsonl").write_text("{")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "caf\xe9"}')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    pd.DataFrame({"words": ["p"]}).to_parquet(tmp_path / "column.parquet")
    pd.DataFrame({"text": [1]}).to_parquet(tmp_path / "number.parquet")
    pd.DataFrame({"text": ["p" * 99] * 99}).to_parquet(tmp_path / "cut.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-20])
    (tmp_path / "bad.parquet").write_bytes(b"no")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty.txt").write_text(" \n")
    for name, message in (
        ("bad.jsonl", "bad.jsonl line 1 is damaged"),
        ("latin.jsonl", "latin.jsonl line 1 is damaged"),
        ("list.jsonl", "must be an object with a string 'text'"),
        ("column.parquet", r"has columns \['words'\]: a column 'text' is needed"),
        ("number.parquet", "row 0 holds a int: the column must hold text"),
        ("cut.parquet", "cut.parquet is damaged or no parquet"),
        ("bad.parquet", "bad.parquet is damaged or no parquet"),
        ("bad.txt", "is not UTF-8 text"),
        ("empty.txt", "holds no text"),
    ):
        with pytest.raises(ValueError, match=message):
            corpus.documents(f"file:{tmp_path / name}")
    with pytest.raises(FileNotFoundError, match="there is no such file or folder"):
        corpus.documents("file:nowhere.txt")


def test_hub_sources_stream_a_local_dataset(tmp_path):
    pd.DataFrame({"text": ["a", "b"], "other": ["c", "d"]}).to_parquet(tmp_path / "train.parquet")
    assert [d.text for d in corpus.documents(f"hf:{tmp_path}", limit=1)] == ["a"]
    assert [d.text for d in corpus.documents(f"hf:{tmp_path}::train:other")] == ["c", "d"]
    with pytest.raises(ValueError, match="there is no 'wrong'"):
        corpus.documents(f"hf:{tmp_path}::train:wrong")
    lines = tmp_path / "lines"
    lines.mkdir()
    (lines / "test.jsonl").write_text("".join(json.dumps({"text": t, "n": 1}) + "\n" for t in "pq"))
    assert [(d.id, d.text) for d in corpus.documents(f"hf:{lines}::test")] == [(f"{lines}-0", "p"), (f"{lines}-1", "q")]
    with pytest.raises(ValueError, match="row 0 holds a int: the column must hold text"):
        corpus.documents(f"hf:{lines}::test:n")


def saved(folder, *, split=None, **columns):
    """A dataset that `save_to_disk` wrote."""
    made = datasets.Dataset.from_dict(columns, split=split)
    (made if split else datasets.DatasetDict(train=made, test=made.select([1]))).save_to_disk(folder)


def test_hub_sources_read_what_save_to_disk_wrote(tmp_path):
    saved(tmp_path / "one", split="validation", text=["a", "b"], other=["c", "d"])
    saved(tmp_path / "dict", text=["a", "b"], other=["c", "d"])
    read = {
        name: [d.text for d in corpus.documents(f"hf:{tmp_path / name}")]
        for name in ("one::validation", "one::validation:other", "dict", "dict::test", "dict::train:other")
    }
    assert read == {
        "one::validation": ["a", "b"],
        "one::validation:other": ["c", "d"],
        "dict": ["a", "b"],
        "dict::test": ["b"],
        "dict::train:other": ["c", "d"],
    }
    for name, splits in (("one", "validation"), ("dict::nope", "test', 'train"), ("dict:config", "test', 'train")):
        with pytest.raises(ValueError, match=rf"cannot be opened: it was saved with splits \['{splits}'\]"):
            corpus.documents(f"hf:{tmp_path / name}")


def test_hub_sources_read_no_further_than_needed(tmp_path):
    rows = "".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(4))
    (tmp_path / "train-0.jsonl").write_text(rows)
    (tmp_path / "train-1.jsonl").write_text("{broken\n")
    assert [d.text for d in corpus.documents(f"hf:{tmp_path}", limit=4)] == [f"text {i}" for i in range(4)]
    with pytest.raises(ValueError, match="row 4 cannot be read"):
        corpus.documents(f"hf:{tmp_path}")


def test_bad_hub_sources_end_in_one_error_at_once(tmp_path, monkeypatch):
    pd.DataFrame({"text": ["a", "b"]}).to_parquet(tmp_path / "train.parquet")
    (tmp_path / "empty").mkdir()
    (tmp_path / "with:colon").mkdir()
    for name, message in (
        (f"{tmp_path}::test", r"cannot be opened: Bad split: test. Available splits: \['train'\]; give hf:DATASET"),
        (f"{tmp_path}:other", r"cannot be opened: BuilderConfig 'other' not found. Available: \['default'\]"),
        (f"{tmp_path}/empty", "cannot be opened: The directory at .* doesn't contain any data files"),
        (f"{tmp_path}/with:colon::train", "with no colon in a folder's path: rename it, or link to it"),
        ("a:b:c:d:e", "with no colon in a folder's path"),
    ):
        with pytest.raises(ValueError, match=message):
            corpus.documents(f"hf:{name}")
    for name in (f"{tmp_path}/missing", "./missing", "a/b/missing"):
        with pytest.raises(FileNotFoundError, match=r"there is no folder .*missing, and it is not a Hub id"):
            corpus.documents(f"hf:{name}")
    for setting, value, why in (
        ("ENDPOINT", "http://127.0.0.1:9", "Connection refused"),  # nobody listens there
        ("HF_HUB_OFFLINE", True, "offline mode"),
    ):
        monkeypatch.setattr(f"huggingface_hub.constants.{setting}", value)
        with pytest.raises(ConnectionError, match=rf"no folder no/where, and the Hub cannot be reached \(.*{why}"):
            corpus.documents("hf:no/where")


def test_packed_rows_close_each_document(tokenizer):
    documents = corpus.documents("shipped-prose")[:10]
    rows = corpus.packed(tokenizer, documents, length=64)
    assert rows.shape[1] == 64
    assert 8 <= (rows == tokenizer.eos_token_id).sum() <= 10
    text = tokenizer.decode(rows.reshape(-1).astype(int))
    assert text.startswith(documents[0].text + "<|endoftext|>")
    with pytest.raises(ValueError, match="tokens of text: one row needs 100000"):
        corpus.packed(tokenizer, documents, length=100_000)
    with pytest.raises(ValueError, match="0 tokens of text"):
        corpus.packed(tokenizer, [], length=2)


def test_near_duplicates_never_cross_the_split():
    words = [f"w{i}" for i in range(400)]
    held = " ".join(words)
    mostly = " ".join(words[:260] + [f"x{i}" for i in range(140)])
    partly = " ".join(words[:140] + [f"y{i}" for i in range(260)])
    inside = " ".join([f"v{i}" for i in range(800)] + words)
    other = " ".join(f"u{i}" for i in range(400))
    splits = python._split([held, mostly, partly, inside, other, ""], [True] + 5 * [False])
    assert splits == ["holdout", "dropped", "train", "dropped", "train", "train"]


def test_the_split_is_a_fixed_share():
    inside = [corpus.holdout_share(f"text {i}") for i in range(5000)]
    assert np.mean(inside) == pytest.approx(0.04, abs=0.01)
    assert inside[:200] == [corpus.holdout_share(f"text {i}") for i in range(200)]


def test_docstrings_and_code_of_a_package_become_documents():
    found = python._package("nbval")
    assert {source for source, _, _ in found} == {"python-prose", "python-code"}
    for _, _, text in found:
        assert len(text) >= python.SHORTEST


def test_all_versions_of_a_document_fall_on_the_same_side(monkeypatch, tmp_path):
    """The split of the same files with other texts, as in another release of a package, is the same."""

    def sides(change):
        monkeypatch.setenv(places.HOME, str(tmp_path / change))
        names = [f"some/module{i}.py" for i in range(400)]
        found = [("python-code", name, " ".join(f"{change}{name}{i}" for i in range(80))) for name in names]
        monkeypatch.setattr(python, "_package", lambda package: found if package else [])
        monkeypatch.setattr(python, "_packages", lambda: {"some": change})
        monkeypatch.setattr(python, "_topics", list)
        monkeypatch.setattr(python, "ProcessPoolExecutor", ThreadPoolExecutor)
        return {split: set(part["id"]) for split, part in python.rows(corpus.holdout_share).groupby("split")}

    first, second = sides("1.0"), sides("2.0")
    assert first == second
    assert set(first) == {"holdout", "train"}


def test_the_python_sources_are_split_by_hash_and_shared_by_both_splits_nowhere(monkeypatch):
    files = python._files  # of the standard library and its packages, some; of all, it takes minutes
    monkeypatch.setattr(python, "_files", lambda package: itertools.islice(files(package), 500))
    monkeypatch.setattr(python, "PACKAGES", ("nbclient", "pandas"))
    frame = python.rows(corpus.holdout_share)
    assert set(frame["source"]) == set(corpus.PYTHON)
    assert set(frame["split"]) == {"train", "holdout", "dropped"}
    assert not frame["text"].duplicated().any()
    for split, share in (("holdout", True), ("train", False)):
        names = frame[frame["split"] == split]["id"]
        assert len(names) > 40
        assert set(map(corpus.holdout_share, names)) == {share}
    for source in corpus.PYTHON:
        held = {d.id for d in corpus.documents(source)}
        assert held.isdisjoint(d.id for d in corpus.documents(source, split="train"))
        chosen_on = {d.id for d in corpus.documents(source, split="calibration")}
        assert len(chosen_on) > 4  # of some 700 documents
        assert chosen_on.isdisjoint(held)
        assert chosen_on.isdisjoint(d.id for d in corpus.documents(source, split="train"))
        assert 0.02 < len(held) / (frame["source"] == source).sum() < 0.06


BEGINS = {"llama2": 1, "llama3": 1, "gemma": 1, "gpt2": 0, "qwen": 0}
SAMPLE = "a model of the small world, 今日 café 👩‍👩‍👧 — how it goes on\n\n  and on"


def reads_as(kind):
    """A model with random weights and a tokenizer shaped like that of a family."""
    made = shaped_like(kind)
    lm = tiny_model(vocab=len(made), context=256)
    lm.tokenizer = made
    return lm


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_text_is_read_as_the_models_own_pipeline_reads_it(kind):
    lm = reads_as(kind)
    own = lm.tokenizer(SAMPLE, return_tensors="pt")
    tokens = corpus.encode(lm.tokenizer, SAMPLE)
    assert tokens.ids[0].tolist() == own["input_ids"][0].tolist()
    with torch.no_grad():
        wanted = lm.model(own["input_ids"], attention_mask=own["attention_mask"], labels=own["input_ids"]).loss
    losses = lm.score(tokens, "BBBB")
    assert np.nanmean(losses) == pytest.approx(float(wanted), rel=1e-5)
    assert tokens.special.sum() == BEGINS[kind]
    assert np.isfinite(losses).all()  # with a begin-of-text token the first token of the text is scored too


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_blocks_and_training_rows_begin_as_the_tokenizer_begins(kind, tmp_path):
    lm, size = reads_as(kind), BEGINS[kind]
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"{number} {SAMPLE}")
    source = f"file:{tmp_path}"
    whole = [lm.tokenizer(document.text)["input_ids"] for document in corpus.documents(source)]
    tokens = corpus.blocks(lm.tokenizer, source, documents=3, length=20)
    assert tokens.ids.tolist() == [ids[:20] for ids in whole]
    assert tokens.special.sum(1).tolist() == [size] * 3
    assert tokens.scored.all()
    first = [lm.tokenizer.bos_token_id] * size
    rows = corpus.packed(lm.tokenizer, corpus.documents(source), length=16)
    assert all(row[:size].tolist() == first for row in rows)
    end = lm.tokenizer.eos_token_id
    stream = [token for ids in whole for token in [*ids[size:], end]]
    assert rows[:, size:].ravel().tolist() == stream[: rows[:, size:].size]
    joined = corpus.blocks(lm.tokenizer, source, documents=4, length=16, cross=True)
    assert joined.ids.tolist() == rows[:4].tolist()
    assert joined.special[:, :size].all()


def test_a_begin_of_text_token_can_be_asked_for_or_left_out():
    for kind in TOKENIZERS:
        made = shaped_like(kind)
        plain = made(SAMPLE, add_special_tokens=False)["input_ids"]
        assert corpus.encode(made, SAMPLE, bos=False).ids[0].tolist() == plain
        assert corpus.encode(made, SAMPLE, bos=True).ids[0].tolist() == [made.bos_token_id, *plain]
    made.bos_token = None
    with pytest.raises(ValueError, match="bos=True: the tokenizer has no begin-of-text token"):
        corpus.encode(made, SAMPLE, bos=True)
    with pytest.raises(ValueError, match="length 2: the 2 special tokens"):
        corpus.blocks(twice(shaped_like("llama2")), "shipped-prose", documents=1, length=2)


def twice(tokenizer):
    """The tokenizer with two special tokens before a text."""
    from tokenizers import processors

    ids = [("<s>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> <s> $A", special_tokens=ids)
    return tokenizer


def test_only_what_follows_the_special_tokens_is_scored():
    made = twice(shaped_like("llama2"))
    tokens = corpus.encode(made, ["a model", "a small world goes on"])
    assert tokens.special[:, :2].all()
    assert not tokens.special[:, 2:].any()
    assert tokens.scored[:, 0].tolist() == [False, False]  # the second special token
    assert tokens.scored[1, 1:].all()
    assert tokens.scored[0].sum() == len(made("a model", add_special_tokens=False)["input_ids"])
    with pytest.raises(ValueError, match="text '' of 2 tokens has nothing to predict: at least 3 are needed"):
        corpus.encode(made, "")


def test_a_chat_template_gets_no_second_begin_of_text_token():
    made = shaped_like("llama3")
    made.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    text = made.apply_chat_template([{"role": "user", "content": SAMPLE}], tokenize=False)
    tokens = corpus.encode(made, text)
    assert tokens.ids[0].tolist() == made(SAMPLE)["input_ids"]
    assert tokens.special[0].tolist() == [True] + [False] * (tokens.ids.shape[1] - 1)
    assert corpus.encode(made, text).scored.all()
