"""The house rules that a machine can check: ranks of imports, rooms without torch, sizes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RANKS = {
    0: ["routes", "style"],
    1: ["records", "families"],
    2: ["corpus", "metrics", "model"],
    3: ["convert", "training", "branching"],
    4: ["oracle", "router"],
    5: ["frames"],
    6: ["store"],
    7: ["figures"],
    8: ["inspector"],
    9: ["study"],
    10: ["report"],
    11: ["cli"],
    12: ["__main__"],
}
RANK = {name: rank for rank, names in RANKS.items() for name in names}
TORCH_FREE = ["routes", "style", "records", "corpus", "metrics", "frames", "store", "figures", "inspector"]
FILES = sorted((ROOT / "duoviz").rglob("*.py"))


def room(path):
    return path.relative_to(ROOT / "duoviz").parts[0].removesuffix(".py")


def imported_rooms(path):
    """Rooms of the package that a file imports, `if TYPE_CHECKING:` aside."""
    tree = ast.parse(path.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    depth = len(path.relative_to(ROOT / "duoviz").parts)
    for node in ast.walk(tree):
        if node in typing_only or not isinstance(node, ast.ImportFrom):
            continue
        if node.level == depth:
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            yield from names
        elif node.level == 0 and (node.module or "").startswith("duoviz"):
            yield from [node.module.split(".")[1]] if "." in node.module else [a.name for a in node.names]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_lower_ranks(path):
    if path.parent == ROOT / "duoviz" and path.name == "__init__.py":
        return
    own = room(path)
    for other in imported_rooms(path):
        assert RANK[other] < RANK[own], f"{own} (rank {RANK[own]}) imports {other} (rank {RANK[other]})"


@pytest.mark.parametrize("name", [n for n in TORCH_FREE if n in {room(p) for p in FILES}])
def test_rooms_without_torch(name):
    code = f"import sys, duoviz.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_no_file_outgrows_its_room():
    long = {str(p.relative_to(ROOT)): n for p in FILES if (n := len(p.read_text().splitlines())) > 400}
    allowed = {"duoviz/figures.py", "duoviz/oracle/search.py"}
    assert set(long) <= allowed, long
