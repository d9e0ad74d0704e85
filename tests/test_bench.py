"""The benchmark's arithmetic; its timings are no test."""

import json
import time

import numpy as np
import pytest
from conftest import tiny_model

from duoviz import bench
from duoviz.bench import measures
from duoviz.branching import Trie
from duoviz.records import Tokens
from duoviz.routes import Space


def test_the_products_are_the_work_of_the_trie():
    """All of it but the scores and mixtures over earlier tokens, which are no products of the trie's nodes."""
    lm, tokens = tiny_model(vocab=600), Tokens.of(np.zeros((2, 9), np.int64))
    trie = Trie(Space(4).enumerate())
    products = sum(2 * a * b * c for a, b, c in measures._shapes(list(measures._products(lm, trie, texts=3)))) / 3
    attended = 4 * 32 * 4.5 * sum([1, *map(len, trie.choices[:-1])])
    assert products + attended == pytest.approx(measures._work(lm, tokens))


def test_sides_are_timed_in_turn_and_the_first_round_does_not_count():
    calls = []
    fast, slow = measures.timed([lambda: calls.append("a"), lambda: calls.append("b") or time.sleep(0.01)], 2)
    assert calls == ["a", "b"] * 3
    assert fast < slow


def test_the_expanded_cache_is_timed_in_a_process_of_its_own():
    assert 0 < measures._in_own_process("expanded_seconds", "data/duo-tiny", "cpu") < 60


def test_a_text_is_drafted_and_measured(monkeypatch):
    monkeypatch.setattr(measures, "DRAFTED", 8)
    text, kept = measures._drafts(tiny_model(context=128), Tokens.of(np.arange(64)[None] % 61), rounds=1)
    assert text.value > 0
    assert 0 <= kept.value <= 100


def test_a_row_as_text_and_as_json(tmp_path):
    rows = [bench.Row("x", 1.2345, "ms", 2.0, "y"), bench.Row("z", 3.0, "GiB")]
    assert [bench.line(row) for row in rows] == ["| x | 1.23 ms | 2 | y |", "| z | 3 GiB |  |  |"]
    bench.write(rows, tmp_path / "deep" / "b.json")
    found = json.loads((tmp_path / "deep" / "b.json").read_text())
    assert [row["ratio"] for row in found["rows"]] == [2.0, None]
    assert "cores" in found["machine"]
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{bench.MARK}\nold\n{bench.MARK}\nafter")
    bench.ship(tmp_path / "deep" / "b.json", readme)
    begins, shown, ends = readme.read_text().split(bench.MARK)
    assert (begins, ends) == ("before\n", "\nafter")
    assert shown.splitlines()[-2:] == [bench.line(row) for row in rows]
