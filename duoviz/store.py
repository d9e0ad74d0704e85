"""Results on disk: parquet with a manifest, written atomically, looked up by what was asked.

A result is a folder named by the hash of its request; it holds one parquet file per table and `manifest.json`, which is
written last: a folder without one is an interrupted write and counts for nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from . import places

SHIPPED_RESULTS = places.SHIPPED / "data" / "results"
FORMAT = 2
USED = "DUOVIZ_USED"
"""Name of the environment variable that holds the path of a file, to which the name of each result that is asked for is added."""
Arrays = dict[str, Any]
"""Arrays by name."""


class Store:
    """A folder of results, with a read-only one (the shipped results) that is looked at first.

    Args:
        folder: where results are written.
        shipped: where shipped results are; None for none.
        since: compute again whatever was written before this time, in seconds since 1970; shipped results too.
    """

    def __init__(self, folder: Path, *, shipped: Path | None = None, since: float = 0.0) -> None:
        self.folder, self.shipped, self.since = Path(folder), shipped, since
        self.found: list[Path] = []
        """Results that were found where they are kept."""

    @staticmethod
    def key(request: dict[str, Any]) -> str:
        """A name for a request: its kind and sixteen hexadecimal digits."""
        text = json.dumps({**request, "format": FORMAT}, sort_keys=True, default=str)
        return f"{request.get('what', 'result')}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def cached(
        self, request: dict[str, Any], compute: Callable[[], dict[str, pd.DataFrame]], *, note: bool = True
    ) -> dict[str, pd.DataFrame]:
        """The stored result of a request; computed and stored first if there is none. While another process computes the same
        one, it is waited for: two notebooks may ask at once.

        Args:
            request: all that the result depends on.
            compute: makes its tables.
            note: add it to the results that are shipped (see `USED`).

        Raises:
            ValueError: a stored result is damaged or belongs to another request.
            OSError: it cannot be written (no space); nothing half-written is left.
        """
        key = self.key(request)
        if note and (used := os.environ.get(USED)):
            with open(used, "a") as file:
                file.write(f"{key}\n")
        stored = self._stored(key)
        if stored:
            self.found.append(stored)
            return self.read(stored, request)
        with only_writer(self.folder / ".locks" / key, wait=True):
            stored = self._stored(key)  # another process may have finished it in the meantime
            if stored:
                return self.read(stored, request)
            tables = compute()
            self.write(request, tables)
        shutil.rmtree(self._parts(key), ignore_errors=True)
        return tables

    def part(self, request: dict[str, Any], name: str, compute: Callable[[], Arrays]) -> Arrays:
        """A part of a result that is being computed: kept in a file until the whole is written, so that a computation
        that was cut off goes on from there.

        Raises:
            OSError: it cannot be written; nothing half-written is left.
        """
        path = self.place_of_part(request, name)
        try:
            if path.stat().st_mtime >= self.since:
                with np.load(path) as kept:
                    return dict(kept)
        except (OSError, ValueError, EOFError, BadZipFile):
            pass  # not there, or damaged: compute it
        made = compute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            places.replaced(path, lambda partial: _to_npz(partial, made))
        except OSError as error:
            raise OSError(f"part {path} cannot be written ({error}): make room, or give another folder") from error
        return made

    def place_of_part(self, request: dict[str, Any], name: str) -> Path:
        """The file that keeps a part until the whole is written."""
        return self._parts(self.key(request)) / f"{name}.npz"

    def holds(self, request: dict[str, Any]) -> bool:
        """Whether a result is stored."""
        return self._stored(self.key(request)) is not None

    def _parts(self, key: str) -> Path:
        return self.folder / f"{key}.parts"

    def _stored(self, key: str) -> Path | None:
        """Where a result is, shipped results first; None if it must be computed."""
        if self.since:
            return self.folder / key if _written(self.folder / key) >= self.since else None
        places = [place / key for place in (self.shipped, self.folder) if place is not None]
        return next((place for place in places if _written(place)), None)

    def ship(self, names: Sequence[str], *, some: bool = False) -> None:
        """Put results in place of all that are shipped of the same models.

        Args:
            names: of results that are kept here, or shipped already.
            some: leave the others.

        Raises:
            ValueError: nowhere to ship to, or nothing to ship.
        """
        if self.shipped is None or not names:
            raise ValueError(f"{len(names)} results in {self.folder}, to be shipped to {self.shipped}: both are needed")
        for name in names:
            if _written(self.folder / name) > _written(self.shipped / name):
                shutil.copytree(self.folder / name, self.shipped / name, dirs_exist_ok=True)
        models = {_model(self.shipped / name) for name in names}
        for path in [] if some else [*self.shipped.glob("*-*")]:
            if path.name not in names and _model(path) in models:
                shutil.rmtree(path)

    def read(self, folder: Path, request: dict[str, Any]) -> dict[str, pd.DataFrame]:
        """The tables of one result.

        Raises:
            ValueError: a damaged file (named), or a result of another request (for example another model) or format.
        """
        path = folder / "manifest.json"
        try:
            manifest = json.loads(path.read_text())
            stored, names, format_ = manifest["request"], list(manifest["tables"]), manifest.get("format", FORMAT)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(_damaged(path, error)) from error
        if format_ != FORMAT:
            raise ValueError(
                f"result {folder} is of format {format_}, this version reads {FORMAT}: delete the folder to compute it again"
            )
        asked = json.loads(json.dumps(request, default=str))
        if stored != asked:
            keys = sorted({*stored, *asked})
            wrong = {k: (stored.get(k), asked.get(k)) for k in keys if stored.get(k) != asked.get(k)}
            raise ValueError(f"result {folder} answers another request (stored, asked): {wrong}")
        tables = {}
        for name in names:
            path = folder / f"{name}.parquet"
            try:
                tables[name] = pd.read_parquet(path)
            except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
                raise ValueError(_damaged(path, error)) from error
        return tables

    def write(self, request: dict[str, Any], tables: dict[str, pd.DataFrame]) -> Path:
        """Store tables under a request; the manifest last, the whole by one rename.

        Raises:
            ValueError: a table's name cannot name a file.
            OSError: it cannot be written; nothing half-written is left.
        """
        wrong = [name for name in tables if not name or Path(name).name != name]
        if wrong:
            raise ValueError(f"table names {wrong}: each names a file in the result's folder, without folders")
        target = self.folder / self.key(request)
        partial = target.with_name(f"{target.name}.{uuid4().hex}.partial")
        manifest = {
            "format": FORMAT,
            "request": json.loads(json.dumps(request, default=str)),
            "tables": sorted(tables),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {name: version(name) for name in ("duoviz", "torch", "transformers", "pandas", "pyarrow")},
        }
        try:
            partial.mkdir(parents=True, exist_ok=True)
            for name, table in tables.items():
                _to_parquet(table, partial / f"{name}.parquet")
            (partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
            if target.exists():
                shutil.rmtree(target)
            partial.rename(target)
        except OSError as error:
            raise OSError(f"result {target} cannot be written ({error}): make room, or give another folder") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return target


FULL = (
    "No space left",
    "File too large",
    "quota exceeded",
    "os error 28",
    "os error 27",
    "PytorchStreamWriter",
    "inline_container",
    "requested and",
)
"""What the libraries that write for us say where there is no room: each has an error of its own kind."""


@contextmanager
def room_in(folder: Path) -> Iterator[None]:
    """Turn every library's own error for a full disk, raised inside, into one OSError that names the folder.

    Raises:
        OSError: the folder cannot be written.
    """
    try:
        yield
    except Exception as error:
        if not any(words in str(error) for words in FULL):
            raise
        why = str(error).partition("\n")[0]
        raise OSError(
            f"{folder} cannot be written ({why}): make room; what was finished is kept, repeat the command to go on"
        ) from error


@contextmanager
def only_writer(lock: Path, *, wait: bool = False) -> Iterator[None]:
    """One process (or thread) writes a thing at a time.

    The lock belongs to the open file, so the system frees it when its process ends, however it ends; the empty file stays.

    Args:
        lock: a file that stands for the thing, for example `runs/x/training.lock`; its folder is made.
        wait: wait for another writer instead of refusing.

    Raises:
        ValueError: another process is at it.
        OSError: the lock cannot be written.
    """
    held = FileLock(lock, blocking=False)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire()
        except Timeout:
            busy = f"another process is computing {lock.stem} in {lock.parent}"
            if not wait:
                raise ValueError(f"{busy}: wait for it, or give another folder") from None
            print(f"{busy}: waiting for it", file=sys.stderr)
            held.acquire(blocking=True)
    except OSError as error:
        raise OSError(f"{lock} cannot be written ({error}): make room, or give another folder") from error
    try:
        yield
    finally:
        held.release()


def _to_parquet(table: pd.DataFrame, path: Path) -> None:
    """Floats byte by byte, all first bytes before all second ones: a third smaller, and as exact."""
    floats = [str(name) for name in table if table[name].dtype.kind == "f"]
    others = [str(name) for name in table if str(name) not in floats]
    ways: Any = {"use_byte_stream_split": floats, "use_dictionary": others} if floats else {}
    table.to_parquet(path, compression="zstd", index=False, **ways)


def _to_npz(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as file:  # to a path of another ending numpy would add its own
        np.savez(file, **arrays)


def _written(folder: Path) -> float:
    """When a result was written, in seconds since 1970; 0 where there is none."""
    try:
        return (folder / "manifest.json").stat().st_mtime
    except OSError:
        return 0.0


def _model(folder: Path) -> str:
    """The model that a result is of; nothing if it is of none."""
    return str(json.loads((folder / "manifest.json").read_text())["request"].get("model", ""))


def _damaged(path: Path, error: Exception) -> str:
    fault = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
    return f"{path} {fault}: delete the folder {path.parent} to compute it again"


def results(folder: Path, *, since: float = 0.0) -> Store:
    """The store of a folder; shipped results are looked up first."""
    return Store(folder, shipped=SHIPPED_RESULTS, since=since)


def write_tables(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Write tables as parquet files into a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        _to_parquet(table, folder / f"{name}.parquet")


def read_tables(folder: Path, names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Read the tables that `write_tables` wrote.

    Raises:
        FileNotFoundError: there are none.
    """
    return {name: pd.read_parquet(folder / f"{name}.parquet") for name in names}
