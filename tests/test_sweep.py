"""Sweeps: any number of shards and workers, on any engine, whatever dies, gives the same bits."""

import os
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from conftest import files_of_at_most, own_folder
from typer.testing import CliRunner

from duoviz import evaluation
from duoviz.cli import app
from duoviz.study import Study, engines, sweep
from duoviz.study.evaluations import EvaluationSweep
from duoviz.study.shards import ATTEMPTS
from duoviz.study.survey import Survey

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS, LENGTH, SHARDS = 24, 16, 12


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As every worker has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Duo folder of four layers."""
    return own_folder(tmp_path_factory.mktemp("sweep") / "own")


def asked(folder, out, *, shards=SHARDS, context="reference:big", documents=DOCUMENTS, length=LENGTH, batch=2):
    study = Study(model=str(folder), documents=documents, length=length, results=Path(out))
    ways = {"context": context, "method": None, "choices": None}
    given = {"objectives": ("nll", "null"), "ways": ways, "batch": batch, "shards": shards}
    return sweep.SurveySweep(study=study, source="shipped-prose", **given)


def words(folder, out, *, on="local:2", documents=DOCUMENTS, length=LENGTH, batch=2):
    texts = ["--documents", documents, "--length", length, "--batch-size", batch, "--shards", documents // batch]
    given = ["sweep", "--model", folder, *texts, "--objectives", "nll,null", "--on", on, "--out", out]
    return list(map(str, given))


def started(folder, out, **given):
    """The command in a process of its own."""
    variables = {**os.environ, "PYTHONWARNINGS": "ignore", **given.pop("variables", {})}
    command = [sys.executable, "-m", "duoviz", *words(folder, out, **given)]
    return subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process):
    """The exit status, once it is there, and what was said."""
    out, err = process.communicate(timeout=240)
    return process.returncode, out + err


def bits(out):
    return (Path(out) / "routes.parquet").read_bytes()


def here(one):
    """A sweep by one worker in this process."""
    sweep.work(one)
    sweep.merge(one)
    return bits(one.study.results)


def attempts(out):
    """How often each shard was begun."""
    return [path.read_text().count('["') for path in sorted(Path(out).glob("shards/*/*.tried"))]


def done(out):
    return len(list(Path(out).glob("shards/*/*.done")))


@pytest.fixture(scope="module")
def undisturbed(folder, one_thread, tmp_path_factory):
    return here(asked(folder, tmp_path_factory.mktemp("sweep") / "whole"))


@pytest.mark.parametrize("context", ["reference:big", "committed"])
def test_a_sweep_is_what_the_oracle_finds_whatever_the_number_of_shards(folder, tmp_path, context):
    few = {"documents": 5, "length": 6}
    ones = [asked(folder, tmp_path / str(shards), shards=shards, context=context, **few) for shards in (1, 2, 3)]
    assert here(ones[0]) == here(ones[1]) == here(ones[2])
    assert [number for shard in range(2) for number in range(*ones[1].documents(shard).indices(9))] == [0, 1, 2, 3, 4]
    assert not list(tmp_path.glob("*/*.parts"))
    found = pd.read_parquet(tmp_path / "1" / "routes.parquet")
    shared, alone = (Study(model=str(folder), results=tmp_path / name, **few) for name in ("2", "alone"))
    for name, curve in alone.survey("shipped-prose", ("nll", "null"), context=context).items():
        part = found[found["objective"] == name].sort_values(["budget", "seq", "position"])
        assert abs(part["loss_nats"].to_numpy() - curve.loss_nats.reshape(-1)).max() < 1e-5
    shared.survey("shipped-prose", ("nll", "null"), context=context)
    assert len(shared.store.found) == (2 if context == "committed" else 1)  # so do the notebooks


def test_an_evaluation_in_shards_is_that_of_one_machine_and_keeps_its_parts(folder, tmp_path):
    named = {"routes": ["BBSB"], "bigs": [0.5], "seed": 3}

    def evaluated(out, shards, **changes):
        study = Study(model=str(folder), documents=5, results=tmp_path / out)
        windows = {"length": 20, "stride": 7, "batch": 2, "ways": named} | changes
        one = EvaluationSweep(study=study, source="shipped-prose", shards=shards, **windows)
        sweep.work(one)
        sweep.merge(one)
        return (tmp_path / out / "perplexity.parquet").read_bytes()

    assert evaluated("few", 1) == (whole := evaluated("many", 9))
    found = pd.read_parquet(tmp_path / "many" / "perplexity.parquet").set_index("way")
    lm = Study(model=str(folder)).lm
    for name, way in evaluation.ways_of(lm, **named).items():
        alone = evaluation.perplexity(lm, "shipped-prose", way=way, length=20, stride=7, documents=5)
        for column in ("loss_nats", "loss_nats_low", "share_big", "bits_per_byte", "tokens", "documents"):
            assert found.loc[name, column] == pytest.approx(alone.row()[column], rel=1e-6)
    parts = sorted((tmp_path / "many").glob("perplexity.parts/*"))
    before = {part: part.stat().st_mtime_ns for part in parts}
    parts[0].unlink()
    assert evaluated("many", 9) == whole
    assert [part for part in parts if part.stat().st_mtime_ns != before[part]] == parts[:1]
    assert evaluated("many", 9, stride=5) != whole


def test_a_shard_is_computed_once_and_again_only_if_something_is_gone(folder, undisturbed, tmp_path):
    sweep.work(one := asked(folder, tmp_path, shards=512))
    sweep.work(asked(folder, tmp_path, shards=512))
    assert attempts(tmp_path) == [1] * (DOCUMENTS // 2)
    for path in tmp_path.rglob("*.*"):  # another machine's clock
        os.utime(path, (time.time() + 3600 * random.choice([-1, 1]),) * 2)
    next(tmp_path.glob("*.parts/*.npz")).unlink()
    with pytest.raises(
        ValueError, match=r"shards are done, and kept; not\nshard \d+ \(documents \d+ to \d+\): not computed$"
    ):
        sweep.merge(asked(folder, tmp_path, shards=512))
    assert here(asked(folder, tmp_path, shards=512)) == undisturbed
    assert sorted(attempts(tmp_path)) == [1] * (DOCUMENTS // 2 - 1) + [2]
    sweep.work(asked(folder, tmp_path, shards=512))  # of a result that is whole there is nothing to do
    assert sum(attempts(tmp_path)) == DOCUMENTS // 2 + 1
    assert one.missing() == ""


def test_a_shard_that_always_fails_is_named_and_the_others_are_kept(folder, tmp_path, monkeypatch):
    search, out = Survey.search, tmp_path / "out"

    def broken(self, names, some, *rest):
        if "shipped-prose/1" in some.documents[0] or some.documents[0] == self.tokens.documents[4]:
            raise RuntimeError("no luck")
        return search(self, names, some, *rest)

    def in_turn(on, calls, resources, waiting=lambda: None):
        for call in calls:
            call()
            waiting()
        return []

    monkeypatch.setattr(Survey, "search", broken)
    monkeypatch.setattr(engines, "run", in_turn)
    failed = CliRunner().invoke(app, words(folder, out))
    assert failed.exit_code == 2
    assert f"{SHARDS - 1} of {SHARDS} shards are done, and kept; not" in failed.output
    assert "shard 2 (documents 4 to 5): RuntimeError: no luck" in failed.output
    assert attempts(out) == [1, 1, 2, *[1] * (SHARDS - 3)]  # by each worker once
    monkeypatch.setattr(Survey, "search", search)
    assert CliRunner().invoke(app, words(folder, out)).exit_code == 0
    assert sum(attempts(out)) == SHARDS + 2


def test_a_worker_without_room_leaves_the_shards_to_the_others(folder, undisturbed, tmp_path):
    one = asked(folder, tmp_path)
    with files_of_at_most(2_000), pytest.raises(OSError, match="cannot be written"):
        sweep.work(one, 1)
    assert done(tmp_path) == 0
    assert here(one) == undisturbed
    assert sum(attempts(tmp_path)) == SHARDS + 1
    assert not list(tmp_path.rglob("*.partial"))


def test_workers_that_die_over_a_shard_give_it_up(folder, tmp_path):
    one = asked(folder, tmp_path)
    for _ in range(ATTEMPTS):
        with one.ledger.taken(3) as mine:
            assert mine
            with one.ledger.taken(3) as again:
                assert not again
    assert 3 not in one.ledger.left
    assert f"shard 3 (documents 6 to 7): {ATTEMPTS} workers died of it" in one.missing()
    assert 3 in asked(folder, tmp_path).ledger.left  # the next command tries again


def test_of_many_failures_ten_are_named(folder, tmp_path):
    wrong = asked(folder, tmp_path, length=64)
    sweep.work(wrong)
    with pytest.raises(ValueError, match="0 of 12 shards are done") as error:
        sweep.merge(wrong)
    assert "shard 0 (documents 0 to 1): ValueError: a text of 64 tokens: the model's context is 48" in str(error.value)
    assert str(error.value).endswith("and 2 more")


def test_two_sweeps_at_once_share_the_shards(folder, undisturbed, tmp_path):
    both = [started(folder, tmp_path, on="local:1") for _ in range(2)]
    assert [ended(process)[0] for process in both] == [0, 0]
    assert bits(tmp_path) == undisturbed
    assert attempts(tmp_path) == [1] * SHARDS


def test_slurms_jobs_give_the_same_bits(folder, undisturbed, tmp_path):
    """By the executor that submitit has where there is no Slurm."""
    status, said = ended(started(folder, tmp_path, on="slurm:2"))
    assert status == 0, said
    assert bits(tmp_path) == undisturbed


def test_twenty_kills_of_workers_and_their_parent_cost_a_shard_each_at_most(folder, tmp_path):
    shards, many = 96, {"documents": 96, "length": 12, "batch": 1}
    whole = here(asked(folder, tmp_path / "whole", shards=shards, **many))
    draw, kills, commands, lost, out, status = random.Random(0), [], 0, 0, tmp_path / "0", 1
    while len(kills) < 20 or status:
        process, commands = started(folder, out, on="local:8", **many), commands + 1
        parent, before = psutil.Process(process.pid), sum(attempts(out))
        while process.poll() is None:
            time.sleep(draw.uniform(0.02, 0.1))
            if len(kills) < 20 and done(out) < shards and (now := sum(attempts(out))) > before + 2:
                before = now
                kills.append(killed(draw, parent, itself=len(kills) == 9))
        status, _ = ended(process)
        if status == 0:
            assert bits(out) == whole
            lost += sum(attempts(out)) - shards
            out = tmp_path / str(len(kills))
    assert {"worker", "parent"} <= set(kills)
    assert 0 < lost <= len(kills)
    print(f"{len(kills)} kills, {kills.count('parent')} of them of the parent, {commands} commands, {lost} shards lost")


def killed(draw, parent, *, itself):
    """Kill a worker, or the parent itself; says which."""
    try:
        workers = [child for server in parent.children() for child in server.children()]
        chosen = parent if not workers or itself else draw.choice(workers)
        chosen.kill()
    except psutil.NoSuchProcess:
        return "nobody"
    return "parent" if chosen is parent else "worker"


@pytest.fixture
def cluster():
    """A Ray cluster on this machine: a head that works for nobody, and two nodes of one core."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 2**27})
        made.nodes = [made.add_node(num_cpus=1, object_store_memory=2**27) for _ in range(2)]
        yield made
        made.shutdown()


def test_ray_goes_on_when_a_worker_a_node_and_the_driver_die(folder, cluster, tmp_path):
    many = {"documents": 60, "length": 24}
    whole = here(asked(folder, tmp_path / "whole", shards=30, **many))
    out, ways = tmp_path / "out", {"on": "ray", "variables": {"RAY_ADDRESS": cluster.address}, **many}

    def more(process, number=3):
        wanted = sum(attempts(out)) + number
        while sum(attempts(out)) < wanted:
            assert process.poll() is None, ended(process)
            time.sleep(0.05)

    process = started(folder, out, **ways)
    more(process)
    at_work = [one for one in psutil.process_iter(["cmdline"]) if "ray::_as_a_child" in (one.info["cmdline"] or [])]
    at_work[0].kill()
    more(process)
    cluster.remove_node(cluster.nodes[1])
    cluster.add_node(num_cpus=1, object_store_memory=2**27)
    more(process, 6)
    process.kill()
    ended(process)
    assert done(out) < 30
    status, said = ended(started(folder, out, **ways))
    assert status == 0, said
    assert bits(out) == whole
    assert 0 < sum(attempts(out)) - 30 <= 4  # a worker, a node of one worker, and the two that the driver had
