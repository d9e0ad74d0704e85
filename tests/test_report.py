"""The report, run with other parameters than the defaults and opened in a real browser without a network."""

import json
import os
import re
import shutil

import nbformat
import pytest
from playwright.sync_api import sync_playwright
from typer.testing import CliRunner

from duoviz import report, style
from duoviz.cli import app

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    given = {"documents": 2, "length": 8, "context": "reference:big", "budgets": [1, 3], "budget": 3, "skip": 10}
    return out, report.build(out, parameters=given, say=lambda line: None)


def test_every_notebook_runs_with_other_parameters(built):
    out, pages = built
    assert [page.error for page in pages] == [""] * len(report.notebooks())
    for page in pages:
        assert page.parameters["documents"] == 2
        executed = nbformat.read(out / f"{page.name}.ipynb", as_version=4)
        assert "widgets" not in executed.metadata
        assert (out / f"{page.name}.ipynb").stat().st_size < 2_000_000
        text = (out / f"{page.name}.html").read_text()
        assert "https://cdn" not in text


@pytest.mark.skipif(not CHROMIUM and not os.environ.get("CI"), reason="no Chromium on this machine")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_open_offline_and_draw_every_figure(built, scheme):
    out, pages = built
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_context(
            offline=True, color_scheme=scheme, viewport={"width": 1200, "height": 900}
        ).new_page()
        faults = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("requestfailed", lambda request: faults.append(request.url))
        page.goto((out / "index.html").as_uri())
        assert page.locator("li a").count() == len(pages)
        for made in pages:
            page.goto((out / f"{made.name}.html").as_uri())
            figures = page.locator(".plotly-figure").count()
            page.wait_for_function(f"document.querySelectorAll('.plotly-figure .main-svg').length >= {figures}")
            assert figures > 0
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        browser.close()
    assert faults == []


def write(folder, name, *code, parameter="x: int = 1  # a parameter"):
    """A notebook with a heading, a parameters cell and these code cells."""
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    notebook.cells = [
        nbformat.v4.new_markdown_cell(f"# {name}\n\nA question & an <b>answer</b>?"),
        nbformat.v4.new_code_cell(parameter, metadata={"tags": ["parameters"]}),
        *map(nbformat.v4.new_code_cell, code),
    ]
    nbformat.write(notebook, folder / f"{name}.ipynb")


@pytest.mark.parametrize("given", [{}, {"x": 7}])
def test_failing_notebooks_name_their_cell_and_the_others_still_run(tmp_path, monkeypatch, given):
    write(tmp_path, "1-fails", "y = x", "1 / 0", "y")
    write(tmp_path, "2-dies", "import os; os._exit(1)", "x")
    write(tmp_path, "3-runs", "print('<script>', x)")
    monkeypatch.setattr(report, "NOTEBOOKS", tmp_path)
    said = []
    pages = report.build(tmp_path / "out", parameters=given, say=said.append)
    assert [page.error for page in pages] == [
        "cell 4 failed: ZeroDivisionError: division by zero",
        "cell 3 failed: DeadKernelError: Kernel died (out of memory?)",
        "",
    ]
    assert [page.title for page in pages] == ["1-fails", "2-dies", "3-runs"]
    assert {page.question for page in pages} == {"A question & an <b>answer</b>?"}
    assert [page.parameters for page in pages] == [{"x": 1, **given}] * 3
    index = (tmp_path / "out" / "index.html").read_text()
    assert "an &lt;b&gt;answer" in index
    assert "ZeroDivisionError" in index
    assert f"x = {given.get('x', 1)}" in index
    assert f"&lt;script&gt; {given.get('x', 1)}" in (tmp_path / "out" / "3-runs.html").read_text()
    assert len(said) == 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"y": 7}, "parameter 'y': the notebooks have budgets, name, x"),
        ({"x": "7"}, "parameter x='7' is of type str: notebook 1-a takes int, for example x=1"),
        ({"x": True}, "is of type bool: notebook 1-a takes int"),
        ({"x": 7.0}, "is of type float: notebook 1-a takes int"),
        ({"name": 7}, 'is of type int: notebook 1-a takes str, for example name="a"'),
        ({"budgets": "4"}, r"is of type str: notebook 2-b takes list of int, for example budgets=\[4, 6\]"),
        ({"budgets": 4}, "is of type int: notebook 2-b takes list of int"),
        ({"budgets": ["4"]}, "is of type list of str: notebook 2-b takes list of int"),
        ({"budgets": [4, True]}, "is of type list of bool and int: notebook 2-b takes list of int"),
        ({"x": 2, "budgets": []}, "is of type list of nothing: notebook 2-b takes list of int"),
    ],
)
def test_parameters_are_checked_before_anything_runs(tmp_path, monkeypatch, given, message):
    write(tmp_path, "1-a", parameter='x: int = 1  # one\nname: str = "a"  # two')
    write(tmp_path, "2-b", parameter="x = 3  # one\nbudgets: list[int] = [4, 6]  # two")
    monkeypatch.setattr(report, "NOTEBOOKS", tmp_path)
    with pytest.raises(ValueError, match=message):
        report.build(tmp_path / "out", parameters=given, say=lambda line: None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("before", [None, "0"])
def test_fresh_holds_for_the_notebooks_and_not_beyond(tmp_path, monkeypatch, before):
    write(tmp_path, "1-asks", "import os; print('fresh:', float(os.environ['DUOVIZ_FRESH']) > 1e9)")
    monkeypatch.setattr(report, "NOTEBOOKS", tmp_path)
    monkeypatch.delenv("DUOVIZ_FRESH", raising=False)
    if before:
        monkeypatch.setenv("DUOVIZ_FRESH", before)
    done = CliRunner().invoke(app, ["report", "--fresh", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "fresh: True" in (tmp_path / "out" / "1-asks.html").read_text()
    assert os.environ.get("DUOVIZ_FRESH") == before


def test_no_figure_offers_to_upload_what_it_shows():
    figure = {
        "data": [],
        "layout": {"title": {"text": "</script>"}},
        "config": {"showSendToCloud": True, "scrollZoom": 1},
    }
    output = nbformat.v4.new_output("display_data", {report.PLOTLY: figure})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("draw()", outputs=[output, output])])
    page = report.html(notebook, title="t")
    drawn = [json.loads(spec) for spec in re.findall(r'<script>duoviz\("figure-\d", (.*?)\)</script>', page)]
    assert [config for *_, config in drawn] == [{"scrollZoom": 1, **style.CONFIG}] * 2
    assert style.CONFIG["showSendToCloud"] is False
    assert re.search(r"Plotly\.react\(id, data, .*, config\);", page)
