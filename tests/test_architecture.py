"""The house rules that a machine can check: ranks of imports, rooms without torch, sizes."""

import ast
import graphlib
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import duoviz
from duoviz.model import LanguageModel

ROOT = Path(__file__).resolve().parents[1]
RANKS = {
    0: ["routes", "style", "progress", "places", "auto"],
    0.5: ["__init__"],
    1: ["records", "families"],
    2: ["corpus", "metrics"],
    2.2: ["claims"],
    2.5: ["model"],  # reads plain text through `corpus`
    3: ["convert", "training", "branching"],
    4: ["oracle"],
    4.5: ["router"],  # one kind learns from the oracle's losses
    5: ["evaluation", "frames"],
    6: ["store"],
    7: ["figures"],
    8: ["inspector"],
    9: ["study"],
    10: ["report", "bench"],
    11: ["cli"],
    12: ["__main__"],
}
RANK = {name: rank for rank, names in RANKS.items() for name in names}
TORCH_FREE = [
    "auto",
    "routes",
    "style",
    "progress",
    "places",
    "records",
    "corpus",
    "metrics",
    "claims",
    "frames",
    "store",
    "figures",
    "inspector",
]
FILES = sorted((ROOT / "duoviz").rglob("*.py"))


@pytest.mark.parametrize("command", ["ruff check --quiet .", "ruff format --quiet --check .", "mypy"])
def test_style_and_types(command):
    """As `make lint` looks at them."""
    found = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr


def room(path):
    return path.relative_to(ROOT / "duoviz").parts[0].removesuffix(".py")


def imported_rooms(code, *, depth):
    """Rooms of the package that a file `depth` folders below its top imports, `if TYPE_CHECKING:` aside."""
    tree = ast.parse(code)
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level in (0, depth):
            start = ".".join(filter(None, ["duoviz" * bool(node.level), node.module]))
            names = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (parts[1] for name in names if (parts := name.split("."))[0] == "duoviz" and len(parts) > 1)


def test_imports_are_found_in_every_form():
    code = """
import duoviz.store, numpy
from .. import routes as r, style
from ..model.duo import DuoFFN
from duoviz import corpus
from duoviz.oracle import search
from .sibling import x
from torch import nn
if TYPE_CHECKING:
    from ..report import Page
else:
    from ..cli import app
def f():
    from ..figures import look
"""
    rooms = {"store", "routes", "style", "model", "corpus", "oracle", "cli", "figures"}
    assert set(imported_rooms(code, depth=2)) == rooms


def test_every_room_has_a_rank():
    rooms = {room(p) for p in FILES} - {"__init__"}
    assert rooms <= set(RANK)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_lower_ranks(path):
    own = room(path)
    for other in imported_rooms(path.read_text(), depth=len(path.relative_to(ROOT / "duoviz").parts)):
        if other != own:
            assert RANK[other] < RANK[own], f"{own} (rank {RANK[own]}) imports {other} (rank {RANK[other]})"


@pytest.mark.parametrize("name", [n for n in TORCH_FREE if n in {room(p) for p in FILES}])
def test_rooms_without_torch(name):
    code = f"import sys, duoviz.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def files_imported(path):
    """Files of the package that a file imports, wherever in it; `if TYPE_CHECKING:` aside."""
    package = path.relative_to(ROOT).parts[:-1]
    tree = ast.parse(path.read_text())
    ignored = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and node not in ignored:
            base = ROOT.joinpath(*package[: len(package) + 1 - node.level], *(node.module or "").split("."))
            for place in (base / alias.name for alias in node.names):
                found = (place.with_suffix(".py"), place / "__init__.py", base.with_suffix(".py"), base / "__init__.py")
                yield next(each for each in found if each.is_file())


def test_no_files_import_each_other_in_a_circle():
    sorter = graphlib.TopologicalSorter({path: {*files_imported(path)} - {path} for path in FILES})
    assert len(list(sorter.static_order())) == len(FILES)
    assert ROOT / "duoviz" / "places.py" in set(files_imported(ROOT / "duoviz" / "study" / "shards.py"))


def test_no_function_is_longer_than_sixty_lines():
    long = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60
    ]
    assert not long


def test_no_file_outgrows_its_room():
    long = {str(p.relative_to(ROOT)) for p in FILES if len(p.read_text().splitlines()) > 350}
    assert not long, "split them by question"


def test_the_table_of_changes_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where to change what")[2].partition("\n## ")[0]
    named = re.findall(r"`([\w./-]+/[\w./-]*|[\w-]+\.toml)`", text)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_ten_names_of_the_package_are_there():
    names = re.findall(r"^\| `(\w+)\.(\w+|<question>)", duoviz.__doc__, re.M)
    assert len(names) == 10
    modules = [
        (importlib.import_module(f"duoviz.{room}"), name) for room, name in names if room not in ("lm", "figures")
    ]
    assert [name for module, name in modules if not hasattr(module, name)] == []
    assert hasattr(LanguageModel, "score")
