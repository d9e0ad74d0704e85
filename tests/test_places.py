"""The package as others install it: a wheel, used from another folder by somebody who may not write to it."""

import ctypes
import os
import shutil
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import pytest

from duoviz import places

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Where the wheel was unpacked, as pip would, and an empty folder to work in."""
    base = tmp_path_factory.mktemp("wheel")
    base.chmod(0o755)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = base / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(places.SHIPPED / name, source)
    for name in ("duoviz", "notebooks", "data"):
        shutil.copytree(places.SHIPPED / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", base, source], check=True)
    (wheel,) = base.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", base / "site", wheel], check=True)
    work = base / "work"
    work.mkdir()
    for path in [base / "site", *(base / "site").rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return wheel, base / "site", work


def as_user(installed, *words):
    """A command run in the empty folder, finding the wheel's package first and with no right to write to it, even for root."""
    _, site, work = installed
    drop = partial(ctypes.CDLL(None).prctl, PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0) if os.geteuid() == 0 else None
    home = {"PYTHONPATH": str(site), "HOME": str(work), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=work,
        env=home | kept,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=drop,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_holds_what_the_suite_needs(installed):
    names = zipfile.ZipFile(installed[0]).namelist()
    for path in [*places.SHIPPED.glob("notebooks/*.ipynb"), *places.SHIPPED.glob("data/results/*/manifest.json")]:
        assert f"duoviz/shipped/{path.relative_to(places.SHIPPED)}" in names
    assert {"duoviz/cli/command.py", "duoviz/inspector/chips.js"} <= set(names)
    assert "duoviz/shipped/data/duo-tiny/model.safetensors" in names
    assert not [name for name in names if name.split("/")[0] in ("tests", "notebooks", "data", "runs")]


def test_an_installed_package_scores_with_its_own_model(installed):
    where = as_user(installed, "-c", "import duoviz.places as p; print(p.__file__, p.REPOSITORY, p.runs())").split()
    with pytest.raises(AssertionError, match="PermissionError"):
        as_user(installed, "-c", "import duoviz.places as p; open(p.__file__, 'a')")
    assert where == [str(installed[1] / "duoviz" / "places.py"), "None", str(installed[2] / "runs")]
    assert "nats" in as_user(installed, "-m", "duoviz", "score", "--text", "import os", "--route", "all-big")


def test_an_installed_package_runs_its_notebooks(installed):
    """From another folder, without writing to the package; results are found among the shipped ones."""
    as_user(installed, "-m", "duoviz", "report", "--only", "2,6")
    work = installed[2]
    assert {path.name for path in work.glob("runs/report/*.html")} > {"index.html", "6-inspect-a-token.html"}
    assert not list(work.glob("runs/results/*/manifest.json"))
    assert "8 notebooks" in as_user(installed, "-m", "duoviz", "init", "mine")
    assert (work / "mine" / "6-inspect-a-token.ipynb").is_file()


def test_notebooks_are_never_copied_over_others(tmp_path):
    copies = places.copy_notebooks(tmp_path / "mine")
    copies[0].write_text("changed")
    copies[1].unlink()
    with pytest.raises(FileExistsError, match=f"{copies[0].name} is there already"):
        places.copy_notebooks(tmp_path / "mine")
    assert (copies[0].read_text(), copies[1].exists()) == ("changed", False)


def test_a_file_here_comes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(places.found("data/duo-tiny")) == places.SHIPPED / "data" / "duo-tiny"
    assert places.found("owner/name") == "owner/name"
    (tmp_path / "data" / "duo-tiny").mkdir(parents=True)
    assert places.found("data/duo-tiny") == "data/duo-tiny"
    monkeypatch.setenv(places.HOME, "elsewhere")
    assert places.runs() == Path("elsewhere", "runs")
