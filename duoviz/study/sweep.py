"""A search in shards, computed by any number of workers on any machines that see one folder.

A shard is some batches of documents. Whoever takes one holds its lock, computes its parts, and leaves a receipt that names them;
a part is written beside its place and renamed. So workers may die at any point: the system frees the lock, and another worker, or
the command repeated, computes what is missing. A batch is searched alone and with the same number of threads everywhere, so
neither the number of shards nor that of workers changes a number. The folder of a sweep holds

| file | what |
|---|---|
| `routes.parquet` | every token's best route for every budget, as `python -m duoviz oracle` writes it |
| `summary.csv` | the mean losses, with their intervals |
| `survey-*/` | the results, which `Study(..., results=FOLDER)` and the notebooks with `results=FOLDER` read |
| `survey-*.parts/`, `shards/` | parts, receipts and locks of what is not finished |

It lies on a file system that locks files for all machines: NFS 4, Lustre, GPFS; a local disk for one machine.
"""

from __future__ import annotations

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd

from .. import corpus, frames, oracle, progress
from ..model import configuration
from . import engines
from .shards import Shards
from .study import Study

PAUSE = 0.5
"""Seconds between two looks at shards that others hold."""
SHOWN = 10
"""Missing shards that are named one by one."""
GOLDEN = 0.618
"""Worker n begins at this share of the shards, n times over: the workers are spread evenly, however many there are."""


Files = list[Sequence[Path]]
"""What a shard leaves: of each group one file must stay."""


@dataclass(frozen=True, kw_only=True)
class Sweep(ABC):
    """What is computed of one source in shards, as all workers know it.

    Attributes:
        study: model and texts; its `results` are the folder of the sweep.
        source: one of its sources.
        batch: documents that are computed together.
        shards: into how many the documents are divided, at most one a batch.
        run: see `Shards`.
    """

    study: Study
    source: str
    batch: int = 8
    shards: int = 8
    run: str = field(default_factory=lambda: uuid4().hex)

    @abstractmethod
    def begin(self) -> Callable[[slice], Files]:
        """Load the model; returns the function that computes some documents."""

    @abstractmethod
    def merge(self) -> None:
        """Make the results of all shards."""

    def documents(self, shard: int) -> slice:
        """The documents of a shard."""
        batches = np.array_split(np.arange(-(-self.study.documents // self.batch)), self.ledger.number)[shard]
        return slice(int(batches[0]) * self.batch, min((int(batches[-1]) + 1) * self.batch, self.study.documents))

    @property
    def ledger(self) -> Shards:
        """What is done of it."""
        number = min(self.shards, -(-self.study.documents // self.batch))
        said = {name: str(value) for name, value in vars(self).items() if name != "run"} | {"shards": number}
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]
        return Shards(self.study.kept / "shards" / digest, number, self.run)

    def missing(self) -> str:
        """What to say of the shards that are not done, and why; nothing if there are none."""
        ledger = self.ledger
        rows = {shard: self.documents(shard) for shard in range(ledger.number) if not ledger.done(shard)}
        lines = [f"shard {i} (documents {of.start} to {of.stop - 1}): {ledger.why(i)}" for i, of in rows.items()]
        more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        said = f"{ledger.number - len(lines)} of {ledger.number} shards are done, and kept; not"
        return "\n".join([said, *lines[:SHOWN], *more]) if lines else ""


@dataclass(frozen=True, kw_only=True)
class SurveySweep(Sweep):
    """The best routes for every budget.

    Attributes:
        objectives: see `duoviz.oracle.objectives`.
        ways: context, method and choices, as in `Study.asked`.
        width: nodes of the trie held at a time.
    """

    objectives: tuple[str, ...]
    ways: dict[str, Any]
    width: int = 16_384

    @property
    def _setting(self) -> oracle.Setting:
        return oracle.Setting(batch_size=self.batch, width=self.width, max_flops=float("inf"), quiet=True)

    def begin(self) -> Callable[[slice], Files]:
        survey, store = self.study.asked(self.source, self.objectives, **self.ways), self.study.store
        requests = {names: self.study.request("survey", survey.asked(names)) for names in survey.parts}

        def compute(documents: slice) -> Files:
            files: Files = []

            def keep(request: dict[str, Any], name: str, part: Any) -> Any:
                files.append((store.place_of_part(request, name), store.folder / store.key(request)))
                return store.part(request, name, part)

            for names, request in requests.items():
                if not store.holds(request):
                    survey.search(names, survey.tokens[documents], self._setting, partial(keep, request))
            return files

        return compute

    def merge(self) -> None:
        curves = self.study.survey(self.source, self.objectives, setting=self._setting, **self.ways)
        tokens, out = self.study.tokens(self.source), self.study.kept
        tables = [frames.tidy(frames.curve(one, tokens), tokens).assign(objective=name) for name, one in curves.items()]
        pd.concat(tables, ignore_index=True).to_parquet(out / "routes.parquet", index=False)
        frames.curve_summary(list(curves.values()), tokens).to_csv(out / "summary.csv", index=False)


def work(sweep: Sweep, worker: int = 0) -> None:
    """What one worker does: take shards until none is left.

    It looks again at those that others hold, and takes them when their workers die. A shard that failed here is left to others.

    Args:
        sweep: what is computed.
        worker: its number; all but the first leave at once where nothing is left.

    Raises:
        OSError: a file cannot be read or written: other shards would fare no better on this worker's machine.
    """
    ledger, refused = sweep.ledger, set()
    if worker and not ledger.left:
        return
    try:
        compute = sweep.begin()
    except ValueError as error:  # what is asked for is wrong, wherever it is asked
        ledger.refuse(str(error))
        return
    while left := [shard for shard in ledger.left if shard not in refused]:
        start = int(worker * GOLDEN % 1 * len(left))
        for shard in [*left[start:], *left[:start]]:
            if engines.orphaned():
                return
            with ledger.taken(shard) as mine:
                try:
                    if mine:
                        ledger.finish(shard, compute(sweep.documents(shard)))
                except OSError:
                    raise
                except Exception as error:  # whatever it is, of this shard alone
                    ledger.fail(shard, f"{type(error).__name__}: {error}")
                    refused.add(shard)
        time.sleep(PAUSE)


def merge(sweep: Sweep) -> None:
    """Make the results.

    Raises:
        ValueError: shards are missing.
    """
    if missing := sweep.missing():
        raise ValueError(missing)
    sweep.merge()


def run(sweep: Sweep, on: str, resources: engines.Resources, *, say: Callable[[str], None] = print) -> None:
    """Have the shards computed, and merge them.

    Args:
        sweep: what is computed; what was computed before is kept.
        on: where, as in `engines.named`.
        resources: of each worker.
        say: is told of workers that died.

    Raises:
        ValueError: shards that failed, each named; the others are kept. No such engine, source or model.
    """
    name, number = engines.named(on)
    configuration(sweep.study.folder)  # or what is wrong with it, before anything is started
    corpus.check(sweep.source)
    ledger = sweep.ledger
    resources = replace(resources, folder=sweep.study.kept)
    workers = number or engines.room(name, resources)
    # Ray starts a task when there is room for it: more tasks than room, and a node that comes later has work
    tasks = ledger.number if name == "ray" and not number else min(workers, ledger.number)
    with progress.bar(f"{ledger.number} shards on {name}") as shown:

        def waiting() -> None:
            shown(1 - len(ledger.left) / ledger.number)

        calls = [partial(work, sweep, worker) for worker in range(tasks)]
        for line in engines.run(name, calls, resources, waiting):
            say(line)
    if missing := sweep.missing():
        raise ValueError(missing)
    if name == "local":
        merge(sweep)
        return
    said = engines.run(name, [partial(merge, sweep)], resources)  # where the model is what the workers have, dtype too
    if said:
        raise ValueError(f"all shards are done, and kept, but they could not be merged: {said[0]}")
