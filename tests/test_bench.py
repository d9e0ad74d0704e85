"""The benchmark's arithmetic; its timings are no test."""

import json
import time

import numpy as np
import pytest
from conftest import own_folder, tiny_model

from duoviz import router
from duoviz.bench import decoding, measures, products, real
from duoviz.bench import table as bench
from duoviz.branching import Trie
from duoviz.model import parameter_groups
from duoviz.records import Tokens
from duoviz.routes import BIG, Space


def test_the_products_are_the_work_of_the_trie():
    """All of it but the scores and mixtures over earlier tokens, which are no products of the trie's nodes."""
    lm, tokens = tiny_model(vocab=600), Tokens.of(np.zeros((2, 9), np.int64))
    trie = Trie(Space(4).enumerate())
    multiplied = products.work_of(list(products.trie_products(lm, trie, texts=3))) / 3
    attended = 4 * 32 * 4.5 * sum([1, *map(len, trie.choices[:-1])])
    assert multiplied + attended == pytest.approx(measures._work(lm, tokens))


def test_the_products_of_a_search_are_noted_and_sampled():
    """Those of a search by paths are its work but for the attention; the passes before it and after it are few."""
    lm, tokens = tiny_model(vocab=600, layers=6), Tokens.of(np.arange(18).reshape(2, 9) % 61)
    with products.noted() as shapes:
        found = real._curve(lm, tokens, Space(6), "paths-2")
    multiplied = sum(2 * rows * inner * outer for rows, inner, outer in shapes)
    assert 0.9 < multiplied / found.effort.flops < 1.3
    drawn = products.sample(shapes)
    assert len(drawn) == min(products.SAMPLED, len(shapes))
    assert {(len(x), *reversed(w.shape)) for x, w in drawn} <= set(shapes)
    assert len(products.ways(drawn)) == 3


def test_sides_are_timed_in_turn_and_the_first_round_does_not_count():
    calls = []
    fast, slow = products.timed([lambda: calls.append("a"), lambda: calls.append("b") or time.sleep(0.01)], 2)
    assert calls == ["a", "b"] * 3
    assert fast < slow


def test_the_expanded_cache_is_timed_in_a_process_of_its_own(tmp_path):
    own = own_folder(tmp_path, layers=9, context=128)  # at least as many routes as copies
    assert 0 < measures._in_own_process("expanded_seconds", str(own), "cpu") < 60


def test_a_sweep_of_two_workers_is_set_beside_one(tmp_path):
    row = measures.sweep_of_two(str(own_folder(tmp_path, layers=3)), documents=4, length=8)
    assert 0.2 < row.ratio < 5
    assert row.value > 0


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


def test_a_deep_search_is_measured_beside_its_limit():
    """Leaves that take the whole vocabulary are counted, and methods stand beside exact."""
    lm, tokens = tiny_model(layers=9, vocab=600, context=64), Tokens.of(np.arange(120).reshape(2, 60))
    rows = {row.measure: row for row in real.searches(lm, tokens, groups=8)}
    assert 0 < rows["leaves that take the whole vocabulary of 600"].value < 100
    assert 0 < rows["time in the head, bounds included"].value < 100
    assert rows["trie of 9 layers in 8 groups with bounded head"].ratio > 1
    (paths,) = [row for name, row in rows.items() if name.startswith("paths-4 over 8 groups")]
    assert paths.value >= -1e-6
    assert 0 < paths.ratio < 2


def test_what_a_step_touches_is_counted(monkeypatch):
    """Whole FFNs of whoever takes them, and of a block that all skip the keys and values; equal to the weights there are."""
    monkeypatch.setattr(decoding, "BATCHES", (1, 3))
    monkeypatch.setattr(decoding, "STEPS", 4)
    lm = tiny_model(vocab=199, context=64)
    made = router.Router(4, 32, router.Mixture(0.5, 0.5, 0.0)).eval()
    found = {(step.way, step.batch): step for step in decoding.steps(lm, made, rounds=1)}
    assert {way for way, _ in found} == {decoding.STOCK, *decoding._ways(lm, made)}
    assert all(step.ms > 0 and 0 < step.limit < 1 for step in found.values())
    assert found["all big", 3].touched == 1.0
    assert found["half of the FFNs skipped", 3].touched == 0.5
    one, many = (found["random routes of each text, half small", batch].touched for batch in (1, 3))
    assert 0.2 < one < 0.8 < 0.6 + many
    groups = parameter_groups(lm.model)
    cached = decoding.touched_bytes(lm, np.zeros((1, 4, 4), np.int8), scope="block", batch=1) - 4 * (
        199 * 32 + 4 * 2 * 32 * 16
    )
    assert cached == 4 * 2 * 16 * 4  # of each layer its own key and value alone
    whole = decoding.touched_bytes(lm, np.full((1, 4, 4), BIG, np.int8), scope="ffn", batch=1)
    assert whole == 4 * (groups["big"] + groups["attention"] + 199 * 32 + 2 * 16 * 18 * 4)
    assert decoding.grid(list(found.values())).count("\n") == 1 + len(found) / 2


def test_memory_is_that_of_the_process_alone(tmp_path):
    """Not of the one that started it, which holds more."""
    held = np.ones(2**28)  # 2 GiB
    assert 2e8 < measures._in_own_process("largest_memory", str(own_folder(tmp_path, context=256))) < 2e9
    assert held.nbytes > 2e9


def test_rows_of_one_measure_are_one_row():
    from duoviz.bench.table import Row, lines

    rows = [Row("a", 1.0, "ms", 2.0, "x"), Row("a", 1.0, "ms", 3.0, "limit: y"), Row("b", 5.0, "s")]
    rows += [Row("c, median of 9", 10.0, "ms", 0.1, "limit: z"), Row("c, 95 % of 9", 20.0, "ms", 0.2, "limit: z")]
    assert lines(rows) == [
        "| a | 1 ms | 2; 3 | x; limit: y |",
        "| b | 5 s |  |  |",
        "| c, median (95 %) of 9 | 10 (20) ms | 0.1 (0.2) | limit: z |",
    ]
