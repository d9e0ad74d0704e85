import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from duoviz.store import Store

TABLE = pd.DataFrame({"a": [1, 2], "b": pd.Categorical(["x", "y"])})


def test_the_same_request_is_never_computed_twice(tmp_path):
    store, calls = Store(tmp_path), []

    def compute():
        calls.append(1)
        return {"t": TABLE}

    request = {"what": "test", "model": "m", "budgets": (1, 2)}
    for _ in range(3):
        pd.testing.assert_frame_equal(store.cached(request, compute)["t"], TABLE)
    pd.testing.assert_frame_equal(Store(tmp_path).cached(request, compute)["t"], TABLE)
    assert len(calls) == 1
    store.cached({**request, "model": "other"}, compute)
    assert len(calls) == 2
    Store(tmp_path, fresh=True).cached(request, compute)
    assert len(calls) == 3
    manifest = json.loads((tmp_path / store.key(request) / "manifest.json").read_text())
    assert manifest["request"]["model"] == "m"
    assert {"torch", "pandas"} <= set(manifest["versions"])


def test_shipped_results_come_first_and_are_not_written(tmp_path):
    Store(tmp_path / "shipped").write({"what": "r"}, {"t": TABLE})
    store = Store(tmp_path / "own", shipped=tmp_path / "shipped")
    pd.testing.assert_frame_equal(store.cached({"what": "r"}, dict)["t"], TABLE)
    assert not (tmp_path / "own").exists()


def test_damaged_and_foreign_results_are_named(tmp_path):
    store, request = Store(tmp_path), {"what": "r", "model": "m"}
    folder = store.write(request, {"t": TABLE})
    (folder / "t.parquet").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"is damaged .* delete the folder"):
        store.cached(request, dict)
    other = store.write({"what": "r", "model": "other"}, {"t": TABLE})
    with pytest.raises(ValueError, match=r"answers another request .*'model': \('other', 'm'\)"):
        store.read(other, request)


def test_an_interrupted_or_failed_write_counts_for_nothing(tmp_path):
    store, request = Store(tmp_path), {"what": "r"}

    class Full:
        def to_parquet(self, *args, **kwargs):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device.*make room"):
        store.write(request, {"a": TABLE, "t": Full()})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / store.key(request)).mkdir()
    assert "t" in store.cached(request, lambda: {"t": TABLE})


def test_two_writers_of_one_result(tmp_path):
    store, request = Store(tmp_path), {"what": "r"}
    lock = tmp_path / f"{store.key(request)}.lock"
    lock.write_text(str(os.getppid()))
    with pytest.raises(ValueError, match=f"process {os.getppid()} is computing"):
        store.cached(request, lambda: {"t": TABLE})
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    lock.write_text(gone.stdout.decode().strip())
    assert "t" in store.cached(request, lambda: {"t": TABLE})
    assert not lock.exists()
