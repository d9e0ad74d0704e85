"""Stage 1 and routers by several processes under torchrun: they learn what one learns, whoever dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from conftest import planted_plan
from test_training import plan, sources, weights  # noqa: F401 (one is a fixture)

from duoviz import router, training

ROOT = Path(__file__).resolve().parents[1]
CODE = """
import sys, time
from pathlib import Path, PosixPath
from test_training import plan
from duoviz import training
from duoviz.training.run import DuoTrainer
out, pause, first, second, *changes = sys.argv[1:]
step = DuoTrainer.training_step
def slow(self, *args, **kwargs):
    time.sleep(float(pause))
    return step(self, *args, **kwargs)
DuoTrainer.training_step = slow
for number, changed in enumerate(changes):
    training.train(plan(Path(out) / str(number), (first, second), micro_rows=1, **eval(changed)))
"""


ROUTERS = """
import sys
import torch
from conftest import planted_model, planted_plan, planted_texts
from duoviz import router
out, *kinds = sys.argv[1:]
with router.together() as first:
    for kind in kinds:
        made, log = router.train(planted_model(), planted_texts(), planted_plan(kind))
        torch.save({"log": log, "weights": made.state_dict()}, f"{out}-{kind}-{0 if first else 1}.pt")
"""


def started(out, texts, *changes, pause=0.0, restarts=0):
    """Two processes that train together, one run after another."""
    return two(CODE, out, str(pause), *texts, *map(repr, changes), restarts=restarts)


def two(code, out, *words, restarts=0):
    """Two processes that run the same code, which is given a folder and some words."""
    script = out.parent / f"{out.name}.py"
    script.write_text(code)
    run = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts)]
    command = [sys.executable, "-m", *run, str(script), str(out), *words]
    paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    paths["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # gloo would look for processes of before a restart
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **paths}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def log_of(folder):
    return pd.read_parquet(folder / "model" / "training-log.parquet")


def close(one, other):
    """Losses on rows and holdout of two runs, step by step."""
    for columns in [name for name in one if name == "loss" or name.startswith("eval_")]:
        np.testing.assert_allclose(one[columns].dropna(), other[columns].dropna(), atol=2e-4)


@pytest.fixture(scope="module")
def alone(sources, tmp_path_factory):  # noqa: F811
    """The same run by one process."""

    def run(**changes):
        made = plan(tmp_path_factory.mktemp("alone") / "run", sources, micro_rows=1, **changes)
        training.train(made)
        return made.out

    return run


@pytest.mark.parametrize("divided", [False, True], ids=["each holds all weights", "the weights are divided"])
def test_two_processes_learn_what_one_learns(divided, tmp_path, sources, alone):  # noqa: F811
    plain = alone()
    ways = [{"shard": True}] if divided else [{}, {"optimizer": "muon"}, {"distil": 0.5, "start": plain / "model"}]
    process = started(tmp_path / "two", sources, *ways)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    for number, way in enumerate(ways):
        one, two_ = plain if number == 0 else alone(**way), tmp_path / "two" / str(number)
        close(log_of(one), log_of(two_))
        want, got = (weights(folder / "model") for folder in (one, two_))
        assert want.keys() == got.keys()
        assert max(float((want[name] - got[name]).abs().max()) for name in want) < 5e-3


def test_one_of_two_that_is_killed_costs_the_steps_since_the_checkpoint(tmp_path, sources, alone):  # noqa: F811
    process = started(tmp_path / "two", sources, {}, pause=0.3, restarts=2)
    while not (tmp_path / "two" / "0" / "checkpoint-5" / "trainer_state.json").is_file():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    psutil.Process(process.pid).children()[-1].send_signal(signal.SIGKILL)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    one, other = log_of(alone()), log_of(tmp_path / "two" / "0")
    close(one.drop(columns="loss"), other.drop(columns="loss"))  # the mean loss since step 4 begins after the restart


def test_two_processes_train_the_routers_of_one(planted, planted_rows, tmp_path):
    """The texts of one begin with the other token than those of the other: neither could find the rule alone."""
    kinds = [kind for kind in router.KINDS if kind != "threshold"]
    process = two(ROUTERS, tmp_path / "two", *kinds)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    for kind in kinds:
        one, other = (torch.load(tmp_path / f"two-{kind}-{rank}.pt", weights_only=False) for rank in (0, 1))
        pd.testing.assert_frame_equal(one["log"], other["log"])
        for name, tensor in one["weights"].items():
            assert torch.equal(tensor, other["weights"][name]), (kind, name)
        made, log = router.train(planted, planted_rows, planted_plan(kind))
        if kind == "budget":  # which draws nothing
            np.testing.assert_allclose(one["log"], log, atol=1e-3)
        made.load_state_dict(one["weights"])
        router.calibrate(made, planted, planted_rows)
        assert made.losses(planted, planted_rows).mean() < 0.05, kind


def test_processes_that_do_not_divide_the_rows_of_a_step_are_refused(planted, planted_rows, monkeypatch):
    monkeypatch.setattr(router.processes, "number", lambda: 2)
    with pytest.raises(ValueError, match="2 processes must divide the 3 rows of a step"):
        router.train(planted, planted_rows, planted_plan("budget", rows=3))
