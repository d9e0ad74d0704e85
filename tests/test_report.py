"""The report, run with other parameters than the defaults and opened in a real browser without a network."""

import os
import shutil

import nbformat
import pytest
from playwright.sync_api import sync_playwright

from duoviz import report

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
        assert page.parameters["documents"] == "2"
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


def test_a_failing_notebook_names_its_cell_and_the_others_still_run(tmp_path, monkeypatch):
    cells = {
        "1-fails": ["x = 1  # a parameter", "1 / 0"],
        "2-runs": ["x = 1  # a parameter", "print('<script>', x)"],
    }
    for name, (first, second) in cells.items():
        notebook = nbformat.v4.new_notebook(
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        )
        notebook.cells = [
            nbformat.v4.new_markdown_cell(f"# {name}\n\nA question & an <b>answer</b>?"),
            nbformat.v4.new_code_cell(first, metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(second),
        ]
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    monkeypatch.setattr(report, "NOTEBOOKS", tmp_path)
    said = []
    pages = report.build(tmp_path / "out", parameters={"x": 7}, say=said.append)
    assert "ZeroDivisionError" in pages[0].error
    assert pages[0].error.startswith("cell ")
    assert pages[1].error == ""
    index = (tmp_path / "out" / "index.html").read_text()
    assert "an &lt;b&gt;answer" in index
    assert "ZeroDivisionError" in index
    assert "&lt;script&gt; 7" in (tmp_path / "out" / "2-runs.html").read_text()
    assert len(said) == 4
    with pytest.raises(ValueError, match="parameter 'y': the notebooks have x"):
        report.build(tmp_path / "out", parameters={"y": 7})
