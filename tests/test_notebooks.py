"""What every saved notebook keeps to: the story in the notebook, the code in the package. Nothing is run here."""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import nbformat
import notebook_numbers
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
KEPT = sorted((ROOT / "data" / "reports").glob("*/*.ipynb"))
MOST_LINES = 14
MOST_BYTES = 300_000
WIDGET = "application/vnd.jupyter.widget"

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code(path):
    """Number in the notebook and source of every code cell."""
    return [(number, cell.source) for number, cell in enumerate(read(path).cells, 1) if cell.cell_type == "code"]


def cells_with(path, *kinds):
    """Numbers of the code cells that hold a statement of these kinds at any depth."""
    found = ((number, ast.walk(ast.parse(source))) for number, source in code(path))
    return [number for number, nodes in found if any(isinstance(node, kinds) for node in nodes)]


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_executed_notebooks_of_other_models_are_small_and_tell_nothing_of_the_machine(path):
    assert path.stat().st_size < MOST_BYTES
    text = path.read_text()
    assert not any(folder in text for folder in ("/tmp/", "/home/", "/root/", "/work/"))
    assert not any(out.output_type == "error" for cell in read(path).cells for out in cell.get("outputs", []))


@every_notebook
def test_saved_notebooks_are_small_and_hold_no_widgets_or_warnings(path):
    assert path.stat().st_size < MOST_BYTES
    notebook = read(path)
    assert "widgets" not in notebook.metadata
    shown = [kind for cell in notebook.cells for out in cell.get("outputs", []) for kind in out.get("data", {})]
    assert not [kind for kind in shown if kind.startswith(WIDGET)]
    assert not [out for cell in notebook.cells for out in cell.get("outputs", []) if out.get("name") == "stderr"]


@every_notebook
def test_cells_are_short_and_define_nothing(path):
    long = {number: lines for number, source in code(path) if (lines := len(source.splitlines())) > MOST_LINES}
    assert not long, f"cells with more than {MOST_LINES} lines; move code into the package"
    assert not cells_with(path, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@every_notebook
def test_the_first_code_cell_holds_parameters_only(path):
    """Literal assignments, each with its type and a comment on its line: `model: str = "..."  # folder or Hub id`."""
    first = next(cell for cell in read(path).cells if cell.cell_type == "code")
    assert "parameters" in first.metadata.get("tags", [])
    tokens = tokenize.generate_tokens(io.StringIO(first.source).readline)
    commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    statements = ast.parse(first.source).body
    assert statements
    for statement in statements:
        line = first.source.splitlines()[statement.lineno - 1]
        assert isinstance(statement, ast.AnnAssign), f"not `name: type = value`: {line}"
        assert statement.value is not None, f"no value: {line}"
        ast.literal_eval(statement.value)  # an error unless it is a literal
        assert statement.end_lineno in commented, f"no comment: {line}"


@every_notebook
def test_imports_stand_in_the_second_code_cell(path):
    second = code(path)[1][0]
    assert set(cells_with(path, ast.Import, ast.ImportFrom)) <= {second}


@every_notebook
def test_the_last_cell_says_what_is_not_shown(path):
    assert "What this does not show" in read(path).cells[-1].source


@pytest.mark.parametrize(
    ("stored", "found", "same"),
    [
        ("ratio 6.21 of it", "ratio 6.20 of it", True),
        ("ratio 6.21 of it", "ratio 6.83 of it", False),  # 10 %
        ("0.253 [0.146, 0.358] nats", "0.254 [0.147, 0.357] nats", True),
        ("0.253 nats", "0.278 nats", False),
        ("8 documents, 1,016 positions", "8 documents, 1,017 positions", True),
        ("8 documents", "9 documents", False),
        ("1,016 positions", "1,118 positions", False),
        ("replay differs by 1e-05", "replay differs by 3e-06", True),
        ("replay differs by 1e-05", "replay differs by 2e+00", False),
        ("93% of it", "94% of it", True),
        ("93% of it", "84% of it", False),
        ("x   0.31  0.25", "x 0.31   0.26", True),
        ("holds: a (0.100 [0.050, 0.150])", "does not hold: a (0.100 [0.050, 0.150])", False),
        ("holds: a (0.100 [0.001, 0.150])", "does not hold: a (0.100 [-0.000, 0.150])", True),
        ("holds: a (0.100 [0.002, 0.150])", "holds: b (0.100 [0.002, 0.150])", False),
        ("layer 3 to -: -0.844", "layer 4 to -: -0.844", False),
        ("True", "False", False),
        ("one\ntwo", "one", False),
    ],
)
def test_printed_numbers_are_compared_as_numbers_and_words_as_words(stored, found, same):
    assert notebook_numbers.same(stored, found) is same
    assert notebook_numbers.same(found, stored) is same


@pytest.mark.parametrize(("stored", "code"), [("loss 1.2345\n", 0), ("loss 1.358\n", 1), ("Loss 1.2345\n", 1)])
def test_nbval_fails_for_a_number_that_changed(tmp_path, stored, code):
    cell = nbformat.v4.new_code_cell("print('loss 1.2399')", execution_count=1)
    cell.metadata["tags"] = ["nbval-check-output"]
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=stored)]
    made = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": {"name": "python3", "display_name": "p"}})
    nbformat.write(made, tmp_path / "a.ipynb")
    words = [
        "-p",
        "tests.notebook_numbers",
        "--nbval-lax",
        "--nbval-current-env",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *words, str(tmp_path / "a.ipynb")], cwd=ROOT, capture_output=True, check=False
    )
    assert ran.returncode == code, ran.stdout.decode()
