import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from duoviz.places import replaced
from duoviz.store import USED, Store, only_writer

ROOT = Path(__file__).resolve().parents[1]

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
    again = Store(tmp_path, since=time.time() + 0.01)
    time.sleep(0.02)
    for _ in range(2):
        again.cached(request, compute)
    Store(tmp_path, since=again.since).cached(request, compute)  # another notebook of the same report
    assert len(calls) == 3
    manifest = json.loads((tmp_path / store.key(request) / "manifest.json").read_text())
    assert manifest["request"]["model"] == "m"
    assert {"torch", "pandas"} <= set(manifest["versions"])


def test_shipped_results_come_first_and_are_not_written(tmp_path):
    Store(tmp_path / "shipped").write({"what": "r"}, {"t": TABLE})
    store = Store(tmp_path / "own", shipped=tmp_path / "shipped")
    pd.testing.assert_frame_equal(store.cached({"what": "r"}, dict)["t"], TABLE)
    assert not (tmp_path / "own").exists()


def test_what_was_asked_for_replaces_what_is_shipped_of_the_same_model(tmp_path, monkeypatch):
    own, other = {"what": "r", "model": "own"}, {"what": "r", "model": "other"}
    for request in (own | {"what": "old"}, other):
        Store(tmp_path / "shipped").write(request, {"t": TABLE})
    store = Store(tmp_path / "own", shipped=tmp_path / "shipped")
    with pytest.raises(ValueError, match="0 results"):
        store.ship([])
    monkeypatch.setenv(USED, str(tmp_path / "used"))
    for _ in range(2):
        store.cached(own, lambda: {"t": TABLE})
    names = (tmp_path / "used").read_text().split()
    assert names == [Store.key(own)] * 2
    store.ship(names, some=True)
    assert len(list((tmp_path / "shipped").iterdir())) == 3
    store.ship(names)
    store.ship(names)  # again, now that they are there
    assert {path.name for path in (tmp_path / "shipped").iterdir()} == {Store.key(own), Store.key(other)}
    pd.testing.assert_frame_equal(Store(tmp_path, shipped=tmp_path / "shipped").cached(own, dict)["t"], TABLE)


def test_damaged_and_foreign_results_are_named(tmp_path):
    store, request = Store(tmp_path), {"what": "r", "model": "m"}
    folder = store.write(request, {"t": TABLE})
    (folder / "t.parquet").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"t\.parquet is damaged .* delete the folder"):
        store.cached(request, dict)
    (folder / "t.parquet").unlink()
    with pytest.raises(ValueError, match=r"t\.parquet is missing: delete the folder"):
        store.cached(request, dict)
    manifest = json.loads((folder / "manifest.json").read_text())
    for text in ("{", "[]", "{}", json.dumps({"tables": ["t"]})):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
            store.cached(request, dict)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(ValueError, match="is of format 99, this version reads 2"):
        store.cached(request, dict)
    other = store.write({"what": "r", "model": "other"}, {"t": TABLE})
    with pytest.raises(ValueError, match=r"answers another request .*'model': \('other', 'm'\)"):
        store.read(other, request)


def test_an_interrupted_or_failed_write_counts_for_nothing(tmp_path):
    store, request = Store(tmp_path), {"what": "r"}

    class Full(pd.DataFrame):
        def to_parquet(self, *args, **kwargs):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device.*make room"):
        store.write(request, {"a": TABLE, "t": Full()})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / store.key(request)).mkdir()
    assert "t" in store.cached(request, lambda: {"t": TABLE})


def test_only_one_writer_at_a_time_whatever_is_written(tmp_path):
    lock = tmp_path / "run" / "training.lock"

    def write():
        with only_writer(lock):
            with pytest.raises(
                ValueError, match=r"is computing training in .*run: wait for it, or give another folder"
            ):
                only_writer(lock).__enter__()
            raise KeyboardInterrupt

    for _ in range(2):  # also after a writer that failed
        with pytest.raises(KeyboardInterrupt):
            write()


def test_a_lock_dies_with_its_process_and_holds_across_processes(tmp_path):
    lock = tmp_path / "training.lock"
    code = (
        "import pathlib, sys, time\n"
        "from duoviz.store import only_writer\n"
        "with only_writer(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(lock)], cwd=ROOT, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match="another process is computing training"), only_writer(lock):
        pass
    other.kill()
    other.communicate()
    with only_writer(lock):
        pass


def test_a_result_finished_while_waiting_for_the_lock_is_not_computed_again(tmp_path, capsys):
    store, request = Store(tmp_path), {"what": "r"}
    lock = tmp_path / ".locks" / store.key(request)

    held = threading.Event()

    def other():
        with only_writer(lock):
            held.set()
            while "waiting for it" not in capsys.readouterr().err:
                time.sleep(0.01)
            Store(tmp_path).write(request, {"t": TABLE})

    other = threading.Thread(target=other)
    other.start()
    held.wait()
    pd.testing.assert_frame_equal(store.cached(request, dict)["t"], TABLE)
    other.join()


def test_many_processes_compute_one_result_once(tmp_path):
    code = (
        "import sys, time, pathlib, os, pandas as pd\n"
        "from duoviz.store import Store\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "def compute():\n"
        "    (folder / f'computed-{os.getpid()}').touch()\n"
        "    time.sleep(0.3)\n"
        "    return {'t': pd.DataFrame({'a': [1]})}\n"
        "while not (folder / 'go').exists(): time.sleep(0.001)\n"
        "print(Store(folder / 'results').cached({'what': 'r'}, compute)['t'])\n"
    )
    jobs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT) for _ in range(4)]
    (tmp_path / "go").touch()
    assert [job.wait() for job in jobs] == [0] * 4
    assert len(list(tmp_path.glob("computed-*"))) == 1
    assert {path.name for path in (tmp_path / "results").iterdir()} == {".locks", Store.key({"what": "r"})}


def test_folders_that_cannot_be_written_and_bad_names_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be written .*make room, or give another folder"):
        Store(tmp_path / "file" / "results").cached({"what": "r"}, lambda: {"t": TABLE})
    with pytest.raises(ValueError, match=r"table names \['a/b', ''\]"):
        Store(tmp_path).write({"what": "r"}, {"a/b": TABLE, "": TABLE})


def test_parts_are_kept_until_the_whole_is_written(tmp_path):
    store, request, made = Store(tmp_path), {"what": "r"}, []

    def part(number):
        return lambda: made.append(number) or {"x": np.full(3, number)}

    def whole(fails=False):
        parts = [store.part(request, str(number), part(number))["x"] for number in (1, 2)]
        if fails:
            raise KeyboardInterrupt
        return {"t": pd.DataFrame({"x": np.concatenate(parts)})}

    with pytest.raises(KeyboardInterrupt):
        store.cached(request, lambda: whole(fails=True))
    kept = sorted(tmp_path.glob("*.parts/*"))
    assert [path.name for path in kept] == ["1.npz", "2.npz"]
    for damaged in (b"cut short", b""):
        kept[1].write_bytes(damaged)
        with pytest.raises(KeyboardInterrupt):
            store.cached(request, lambda: whole(fails=True))
    found = store.cached(request, whole)["t"]["x"].tolist()
    assert (found, made) == ([1, 1, 1, 2, 2, 2], [1, 2, 2, 2])
    assert not list(tmp_path.glob("*.parts"))


def test_parts_from_before_a_time_are_computed_again(tmp_path):
    request, made = {"what": "r"}, []
    for since in (0.0, 0.0, time.time() + 60):
        Store(tmp_path, since=since).part(request, "1", lambda: made.append(1) or {"x": np.zeros(1)})
    assert len(made) == 2


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"

    def write(partial):
        partial.write_text("half")
        assert path.read_text() == "old"
        raise KeyboardInterrupt

    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        replaced(path, write)
    assert path.read_text() == "old"
    replaced(path, lambda partial: partial.write_text("new"))
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
