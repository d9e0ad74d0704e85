"""Results on disk: parquet with a manifest, written atomically, looked up by what was asked.

A result is a folder named by the hash of its request; it holds one parquet file per table and `manifest.json`, which is
written last: a folder without one is an interrupted write and counts for nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

FORMAT = 1


class Store:
    """A folder of results, with a read-only one (the shipped results) that is looked at first.

    Args:
        folder: where results are written.
        shipped: where shipped results are; None for none.
        fresh: compute again whatever has not been computed through this object.
    """

    def __init__(self, folder: Path, *, shipped: Path | None = None, fresh: bool = False) -> None:
        self.folder, self.shipped, self.fresh = Path(folder), shipped, fresh
        self._made: set[str] = set()

    @staticmethod
    def key(request: dict[str, Any]) -> str:
        """A name for a request: its kind and sixteen hexadecimal digits."""
        text = json.dumps({**request, "format": FORMAT}, sort_keys=True, default=str)
        return f"{request.get('what', 'result')}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def cached(
        self, request: dict[str, Any], compute: Callable[[], dict[str, pd.DataFrame]]
    ) -> dict[str, pd.DataFrame]:
        """The stored result of a request; computed and stored first if there is none.

        Raises:
            ValueError: a stored result is damaged, or belongs to another request.
            OSError: it cannot be written (no space); nothing half-written is left.
        """
        key = self.key(request)
        if not self.fresh or key in self._made:
            for place in (self.shipped, self.folder):
                if place is not None and (place / key / "manifest.json").is_file():
                    return self.read(place / key, request)
        with self._only_writer(key):
            tables = compute()
            self.write(request, tables)
        self._made.add(key)
        return tables

    def read(self, folder: Path, request: dict[str, Any]) -> dict[str, pd.DataFrame]:
        """The tables of one result.

        Raises:
            ValueError: damaged files, or a result of another request (for example another model).
        """
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in manifest["tables"]}
        except Exception as error:
            raise ValueError(f"result {folder} is damaged ({error}): delete the folder to compute it again") from error
        asked = json.loads(json.dumps(request, default=str))
        if manifest["request"] != asked:
            wrong = {k: (manifest["request"].get(k), v) for k, v in asked.items() if manifest["request"].get(k) != v}
            raise ValueError(f"result {folder} answers another request (stored, asked): {wrong}")
        return tables

    def write(self, request: dict[str, Any], tables: dict[str, pd.DataFrame]) -> Path:
        """Store tables under a request; the manifest last, the whole by one rename.

        Raises:
            OSError: it cannot be written; nothing half-written is left.
        """
        target = self.folder / self.key(request)
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        manifest = {
            "request": json.loads(json.dumps(request, default=str)),
            "tables": sorted(tables),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {name: version(name) for name in ("torch", "transformers", "pandas", "pyarrow")},
        }
        try:
            partial.mkdir(parents=True, exist_ok=True)
            for name, table in tables.items():
                table.to_parquet(partial / f"{name}.parquet", compression="zstd", index=False)
            (partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
            if target.exists():
                shutil.rmtree(target)
            partial.rename(target)
        except OSError as error:
            raise OSError(f"result {target} cannot be written ({error}): make room, or give another folder") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return target

    @contextmanager
    def _only_writer(self, key: str) -> Iterator[None]:
        """One process computes a result at a time.

        Raises:
            ValueError: another process that is alive is at it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self.folder / f"{key}.lock"
        try:
            descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            owner = int(lock.read_text() or 0)
            if owner and owner != os.getpid() and Path(f"/proc/{owner}").exists():
                raise ValueError(
                    f"process {owner} is computing {key} in {self.folder}: wait for it, or give another folder"
                ) from None
            descriptor = os.open(lock, os.O_WRONLY | os.O_TRUNC)
        try:
            os.write(descriptor, str(os.getpid()).encode())
            os.close(descriptor)
            yield
        finally:
            lock.unlink(missing_ok=True)
