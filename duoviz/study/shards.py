"""Which shards of a sweep are done, and whose turn it is: small files in a folder that all workers see.

| file | what |
|---|---|
| `00003.lock` | held by the worker of shard 3; the system frees it when that process ends, however it ends |
| `00003.done` | its receipt: the files that it left |
| `00003.tried` | for each attempt the run, and what went wrong if the worker lived to tell it |

No clock is asked: machines may disagree about the time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..places import replaced

ATTEMPTS = 3
"""How often one run tries a shard."""


class Shards:
    """The shards of a sweep, numbered from 0.

    Args:
        folder: of the files above.
        number: how many there are.
        run: names one command; the next command tries again what failed in this one.
    """

    def __init__(self, folder: Path, number: int, run: str) -> None:
        self.folder, self.number, self.run = folder, number, run
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> list[int]:
        """Those that are not done and may be tried."""
        return [shard for shard in range(self.number) if self._open(shard)]

    def done(self, shard: int) -> bool:
        """Whether there is a receipt, and what it names is still there."""
        try:
            files = json.loads(self._file(shard, "done").read_text())
        except (OSError, ValueError):
            return False
        return all(any(Path(one).exists() for one in either) for either in files)

    def why(self, shard: int) -> str:
        """Why a shard is not done."""
        tried = [why for run, why in self.tried(shard) if run == self.run]
        said = [why for why in tried if why]
        return said[-1] if said else f"{len(tried)} workers died of it" if tried else "not computed"

    @contextmanager
    def taken(self, shard: int) -> Iterator[bool]:
        """Hold a shard and count the attempt; False if another worker holds it, or if there is nothing to do any more."""
        lock = FileLock(self._file(shard, "lock"), blocking=False)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            if mine := self._open(shard):
                self._note(shard, [*self.tried(shard), (self.run, "")])
            yield mine
        finally:
            lock.release()

    def finish(self, shard: int, files: Sequence[Sequence[Path]]) -> None:
        """Write the receipt of a shard that is held: of each group of files, one must stay."""
        said = json.dumps([[str(one) for one in either] for either in files])
        replaced(self._file(shard, "done"), lambda partial: partial.write_text(said))

    def fail(self, shard: int, why: str) -> None:
        """Write down what went wrong with a shard that is held."""
        self._note(shard, [*self.tried(shard)[:-1], (self.run, why)])

    def _open(self, shard: int) -> bool:
        return not self.done(shard) and [run for run, _ in self.tried(shard)].count(self.run) < ATTEMPTS

    def refuse(self, why: str) -> None:
        """Write down why none of those that are left can be computed by this run."""
        for shard in self.left:
            self._note(shard, [*self.tried(shard), *[(self.run, why)] * ATTEMPTS])

    def tried(self, shard: int) -> list[tuple[str, str]]:
        """Of each attempt so far the run, and what went wrong, if it was written down."""
        try:
            return [(run, why) for run, why in json.loads(self._file(shard, "tried").read_text())]
        except (OSError, ValueError):
            return []

    def _note(self, shard: int, attempts: Sequence[tuple[str, str]]) -> None:
        replaced(self._file(shard, "tried"), lambda partial: partial.write_text(json.dumps(attempts)))

    def _file(self, shard: int, kind: str) -> Path:
        return self.folder / f"{shard:05}.{kind}"
