"""Where the workers of a sweep run: processes of this machine, tasks of a Ray cluster, or jobs of a Slurm array.

Ray and submitit are optional (`pip install 'duoviz[ray]'`, `'duoviz[slurm]'`). All that they are asked for is to run some calls
and to say which of them died: which shard is whose is settled in the sweep's folder, which all workers see.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], None]
"""What one worker does; it can be pickled."""
Waiting = Callable[[], None]
"""Is called about once a second while workers run."""
NAMES = ("local", "ray", "slurm")
SECONDS = 0.5
"""Between two looks at the workers."""


@dataclass(frozen=True)
class Resources:
    """What the workers get.

    Attributes:
        threads: CPU threads of each. Another number may round differently, so it is 1 whatever the machine, unless asked.
        gpus: of each; on a local machine with GPUs each worker gets one.
        folder: for what the engine itself writes.
        options: of Slurm, such as `{"partition": "gpu", "time": 600}`.
    """

    threads: int = 1
    gpus: float = 0.0
    folder: Path = Path()
    options: dict[str, Any] = field(default_factory=dict)


def named(on: str) -> tuple[str, int]:
    """An engine and the number of its workers, 0 if not given: `("local", 2)` of `"local:2"`.

    Raises:
        ValueError: no such engine, or one that is not installed.
    """
    name, colon, number = on.partition(":")
    if name not in NAMES or (colon and not (number.isdecimal() and int(number) > 0)):
        raise ValueError(f"engine {on!r}: give local, ray or slurm, with a number of workers if you like (local:2)")
    needs = {"ray": "ray", "slurm": "submitit"}.get(name)
    if needs and find_spec(needs) is None:
        raise ValueError(f"engine {name!r} needs the package {needs}: pip install 'duoviz[{name}]'")
    return name, int(number or 0)


def run(on: str, calls: Sequence[Call], resources: Resources, waiting: Waiting = lambda: None) -> list[str]:
    """Run calls side by side, as many as there is room for; returns what is to be said of those that ended early.

    Args:
        on: `local`, `ray` or `slurm`.
        calls: one for each worker.
        resources: of each.
        waiting: see `Waiting`; what it raises, such as KeyboardInterrupt, ends the workers.
    """
    return {"local": _local, "ray": _ray, "slurm": _slurm}[on](calls, resources, waiting)


def room(on: str, resources: Resources) -> int:
    """How many workers there are if nobody says: one for each GPU, or each core where there is none; of Ray, in the whole
    cluster."""
    if on == "local":
        return torch.cuda.device_count() or max(1, (os.cpu_count() or 1) // resources.threads)
    if on == "ray":
        with _ray_session() as ray:
            all_of_it = ray.cluster_resources()
        per_gpu = all_of_it.get("GPU", 0) / resources.gpus if resources.gpus else float("inf")
        return max(1, int(min(per_gpu, all_of_it.get("CPU", 1) / resources.threads)))
    return 8  # an array of jobs, of which Slurm starts those it has room for


def _local(calls: Sequence[Call], resources: Resources, waiting: Waiting) -> list[str]:
    """Processes of this machine; with GPUs, one of them for each."""
    devices = torch.cuda.device_count()
    # workers on the CPU are forked from one process that has imported everything; a GPU's must see their own device first
    forks = not devices and "forkserver" in multiprocessing.get_all_start_methods()
    ways: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        ways.set_forkserver_preload(["duoviz.study.sweep"])
    processes = []
    try:
        for number, call in enumerate(calls):
            device = {"CUDA_VISIBLE_DEVICES": str(number % devices)} if devices else {}
            with _variables(OMP_NUM_THREADS=str(resources.threads), **device):
                process = ways.Process(target=_as_a_process, args=(call, resources.threads))
                process.start()
            processes.append(process)
        while alive := [process.sentinel for process in processes if process.is_alive()]:
            wait(alive, timeout=SECONDS)
            waiting()
    finally:
        for process in processes:
            process.kill()
            process.join()
    ended = [(number, process.exitcode) for number, process in enumerate(processes) if process.exitcode]
    return [f"worker {number} ended early, with exit status {status}" for number, status in ended]


def _as_a_child(call: Call, threads: int) -> None:
    torch.set_num_threads(threads)
    call()


def _as_a_process(call: Call, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    _as_a_child(call, threads)


def orphaned() -> bool:
    """Whether this is a process of the local engine whose parent is gone."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


@contextmanager
def _variables(**values: str) -> Iterator[None]:
    """The environment that a process started inside gets."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _ray_session() -> Iterator[Any]:
    """Ray, on the cluster that RAY_ADDRESS or a running node names, or else on this machine alone."""
    import ray

    was = ray.is_initialized()
    if not was:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield ray
    finally:
        if not was:
            ray.shutdown()


def _ray(calls: Sequence[Call], resources: Resources, waiting: Waiting) -> list[str]:
    """Tasks of a Ray cluster, which starts one again elsewhere when its worker or its node dies."""
    with _ray_session() as ray:
        asked = {"num_cpus": resources.threads, "num_gpus": resources.gpus, "max_retries": 3}
        variables = {"env_vars": {"OMP_NUM_THREADS": str(resources.threads)}}
        task = ray.remote(_as_a_child).options(**asked, runtime_env=variables)
        tasks = [task.remote(call, resources.threads) for call in calls]
        running, said = list(tasks), []
        while running:
            ended, running = ray.wait(running, timeout=SECONDS)
            waiting()
            for one in ended:
                try:
                    ray.get(one)
                except ray.exceptions.RayError as error:
                    said.append(f"worker {tasks.index(one)} ended early: {_line(error)}")
    return said


def _slurm(calls: Sequence[Call], resources: Resources, waiting: Waiting) -> list[str]:
    """Jobs of a Slurm array, or processes that submitit starts where there is no Slurm."""
    import submitit

    executor = submitit.AutoExecutor(folder=resources.folder / "jobs")
    own = {f"slurm_{name}": value for name, value in resources.options.items()}
    executor.update_parameters(
        name="duoviz",
        cpus_per_task=resources.threads,
        timeout_min=24 * 60,
        slurm_array_parallelism=len(calls),
        **({"gpus_per_node": int(resources.gpus)} if resources.gpus else {}),
        **own,
    )
    with _variables(OMP_NUM_THREADS=str(resources.threads)), executor.batch():
        jobs = [executor.submit(_as_a_child, call, resources.threads) for call in calls]
    try:
        while not all(job.done() for job in jobs):
            waiting()
            time.sleep(SECONDS)
    except BaseException:
        for job in jobs:
            job.cancel()
        raise
    failed = [
        (number, job.exception()) for number, job in enumerate(jobs) if job.state not in ("FINISHED", "COMPLETED")
    ]
    return [f"worker {number} ended early: {_line(why)}" for number, why in failed if why]


def _line(error: BaseException) -> str:
    """The last line of an error that may bring its whole traceback along."""
    return str(error).strip().splitlines()[-1]
