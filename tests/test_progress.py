import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import tiny_model
from transformers import AutoTokenizer

from duoviz import evaluation, places, progress, router, training

WORK = """
import sys
from duoviz import progress
progress.DELAY_SECONDS = progress.LINE_SECONDS = 0.0
with progress.bar("counting", begun=0.25) as watch:
    for step in (2, 3, 4, 9):
        watch(step / 4)
"""


def lines(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=places.SHIPPED, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_a_file_gets_plain_lines_and_a_quiet_process_none():
    found = lines(WORK)
    assert [line.split("%")[0] for line in found if line] == [
        "counting:  25",
        "counting:  50",
        "counting:  75",
        "counting: 100",
    ]
    assert all("gone" in line and "left" in line for line in found)
    assert lines(WORK, DUOVIZ_QUIET="1") == []
    assert lines(WORK.replace("progress.DELAY_SECONDS = ", "")) == []  # quicker than the delay


def test_lengths_of_time_are_as_exact_as_an_estimate():
    assert [progress.duration(s) for s in (0.1, 89.0, 91.0, 5000.0, 9000.0)] == [
        "1 s",
        "89 s",
        "2 min",
        "83 min",
        "2.5 h",
    ]


def train_model(tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "one two three four five six seven"}\n' * 60)
    preset = training.Preset(16, 2, 2, 32, 4, 300, 16, 16 * 2 * 4, 2, 1e-2, 1e-3, warmup=2)
    training.train(training.Stage1(out=tmp_path / "run", preset=preset, sources=(f"file:{text}",), micro_rows=1))


def train_router(tmp_path):
    rows = np.random.default_rng(0).integers(0, 61, (8, 16))
    router.train(tiny_model(), rows, router.Stage3(mixture=router.Mixture(0.5, 0.5), tokens=256, rows=2))


def perplexity(tmp_path):
    lm = tiny_model(vocab=4096)
    lm.tokenizer = AutoTokenizer.from_pretrained(places.SHIPPED / "data" / "duo-tiny")
    evaluation.perplexity(lm, "shipped-prose", way="all-big", documents=3, length=32, batch_size=2)


WORKERS = {"training": train_model, "training the router": train_router, "perplexity": perplexity}


@pytest.mark.parametrize("what", WORKERS)
def test_long_work_says_how_far_it_is(what, tmp_path, monkeypatch):
    seen = {}

    @contextmanager
    def bar(name, **options):
        shares = seen.setdefault(name, [])
        yield shares.append

    monkeypatch.setattr(progress, "bar", bar)
    WORKERS[what](tmp_path)
    (shares,) = [shares for name, shares in seen.items() if name.startswith(what)]
    assert len(shares) > 2
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
