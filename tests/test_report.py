"""The report: what it refuses, keeps and says; test_browser_report runs it with other parameters and opens it."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import papermill
import psutil
import pytest
import torch
from conftest import dense_model
from typer.testing import CliRunner

from duoviz import convert, report, style
from duoviz.cli import app
from duoviz.model import save_adapter
from duoviz.report import index, kept, page, run

SHIPPED = Path(__file__).resolve().parents[1] / "data" / "duo-tiny"


@pytest.mark.parametrize(("family", "layers", "absent"), [("qwen3", 4, "15"), ("gpt2", 15, "157")])
def test_a_strangers_dense_model_gets_the_notebooks_that_apply(family, layers, absent, tmp_path):
    """Also one whose routes are too many to enumerate."""
    dense = dense_model(family, layers=layers, vocab=4096, context=128)
    dense.save_pretrained(tmp_path / "own", max_shard_size="200kB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SHIPPED / name, tmp_path / "own")
    given = ["-p", "documents=1", "-p", "length=4", "-p", "context=reference:big"]
    done = CliRunner().invoke(app, ["report", "--model", str(tmp_path / "own"), "--out", str(tmp_path / "out"), *given])
    assert done.exit_code == 0, done.output
    shown = (tmp_path / "out" / "index.html").read_text()
    for path in report.notebooks():
        number = path.stem.partition("-")[0]
        assert (tmp_path / "out" / f"{path.stem}.html").exists() == (number not in absent)
    assert shown.count("does not apply: ") == len(absent)
    assert "own is a dense model, without small FFNs" in shown
    assert ("2^15 routes are too many to look at each" in shown) == (layers == 15)
    own = nbformat.read(tmp_path / "out" / "8-your-own-model.ipynb", as_version=4)
    printed = " ".join(str(out.get("data", "")) for cell in own.cells for out in cell.get("outputs", []))
    assert f"{family}: {layers} layers" in printed
    assert f"method {'paths' if layers == 15 else 'exhaustive'}" in printed
    assert "There is no" in printed


def test_a_deep_models_layers_are_tied_unless_asked_otherwise(tmp_path, monkeypatch):
    """So that all its routes can be looked at, in notebook 7 too; and it is said."""
    dense_model("gpt2", layers=15, vocab=4096, context=128).save_pretrained(tmp_path / "own")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SHIPPED / name, tmp_path / "own")
    asked, said, model = {}, [], str(tmp_path / "own")

    def page(path, out, given, links):
        asked[path.stem[0]] = given
        return report.Page(path.stem, "t", "q", 0.0)

    monkeypatch.setattr("duoviz.report.run._page", page)
    report.build(tmp_path / "out", only=["2", "7", "8"], parameters={"model": model}, say=said.append)
    assert asked["8"] == {"model": model, "groups": 10, "context": "reference:big"}
    assert asked["7"] == {"model": model, "groups": 10}
    assert asked["2"].items() >= {"budgets": [5, 7, 10], "skip": 7}.items()
    tied = "groups=10, context=reference:big, budget=5, budgets=[5, 7, 10], skip=7"
    assert f"15 layers: {tied}, unless -p says otherwise" in said
    for other in ({"groups": 0}, {"context": "committed"}):
        asked.clear()
        report.build(tmp_path / "out", only=["7", "8"], parameters={"model": model, **other}, say=said.append)
        assert asked == {"8": {"model": model, **other}}


def test_a_model_that_no_notebook_could_read_is_refused_before_one_starts(tmp_path):
    dense_model("gpt2", vocab=4096, context=64).save_pretrained(tmp_path / "own")

    def refused(*given):
        done = CliRunner().invoke(app, ["report", "--out", str(tmp_path / "out"), *given])
        assert done.exit_code == 2
        return done.output

    assert "there is no such folder" in refused("--model", str(tmp_path / "nowhere"), "--only", "2,8")
    assert "came without a tokenizer" in refused("--model", str(tmp_path / "own"), "--only", "8", "-p", "length=9")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SHIPPED / name, tmp_path / "own")
    assert "length 128: the context of" in refused("--model", str(tmp_path / "own"), "--only", "8")
    assert "there is no such file" in refused("--only", "8", "-p", "source=file:nowhere.txt")
    for given in (["--only", "2"], ["-p", "documents=2"], ["--model", str(tmp_path / "own")]):
        assert "--ship is for the results of all notebooks" in refused("--ship", *given)
    assert not (tmp_path / "out").exists()


def test_files_are_found_from_where_the_command_is_given(tmp_path, monkeypatch):
    (tmp_path / "my.txt").write_text("words")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert run._absolute({"source": "hf:data::train:text"}) == {"source": f"hf:{tmp_path / 'data'}::train:text"}
    assert run._absolute({"source": "hf:owner/name"}) == {"source": "hf:owner/name"}
    given = run._absolute({"model": ".", "source": "file:my.txt", "sources": ["file:my.txt", "shipped-code"]})
    where = f"file:{tmp_path / 'my.txt'}"
    assert given == {"model": str(tmp_path), "source": where, "sources": [where, "shipped-code"]}


def test_a_notebook_may_only_need_what_is_known(tmp_path, monkeypatch):
    write(tmp_path, "1-a", parameter='model: str = "data/duo-tiny"  # a model')
    notebook = nbformat.read(tmp_path / "1-a.ipynb", as_version=4)
    notebook.metadata["duoviz"] = {"needs": ["luck"]}
    nbformat.write(notebook, tmp_path / "1-a.ipynb")
    monkeypatch.setattr(run, "NOTEBOOKS", tmp_path)
    with pytest.raises(
        ValueError, match=r"1-a.ipynb needs \['luck'\]: known are dense, training log, small, routers, every"
    ):
        report.build(tmp_path / "out")


def write(folder, name, *code, parameter="x: int = 1  # a parameter"):
    """A notebook with a heading, a parameters cell and these code cells."""
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    notebook.cells = [
        nbformat.v4.new_markdown_cell(f"# {name}\n\nA question & an\n<b>answer</b>?\n\nMore."),
        nbformat.v4.new_code_cell(parameter, metadata={"tags": ["parameters"]}),
        *map(nbformat.v4.new_code_cell, code),
    ]
    nbformat.write(notebook, folder / f"{name}.ipynb")


def test_kept_pages_stand_in_where_the_base_of_an_adapter_is_not_here(tmp_path, tmp_path_factory, monkeypatch):
    base, adapter = tmp_path / "dense", tmp_path / "adapter"
    dense_model("llama", vocab=4096).save_pretrained(base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SHIPPED / name, base)
    made = convert.convert(base, torch.zeros((1, 8), dtype=torch.int64), begin="random")
    save_adapter(made, adapter, base=base)
    write(
        tmp_path, "1-a", "print(len(model), model, x)", parameter='model: str = "data/duo-tiny"  # a\nx: int = 1  # b'
    )
    write(tmp_path, "2-b", "print(x)")
    for place, folder in ((run, tmp_path), (kept.places, tmp_path)):
        monkeypatch.setattr(place, "NOTEBOOKS" if place is run else "SHIPPED", folder)
    monkeypatch.setattr(kept, "KEPT", tmp_path / "kept")
    asked, said = {"parameters": {"model": str(adapter)}, "say": lambda line: None}, []
    out = tmp_path_factory.mktemp("out")
    report.build(out, only=["1"], **asked)
    assert report.keep([out / "1-a.ipynb"], "data/adapter") == tmp_path / "kept" / "adapter"
    base.rename(tmp_path / "gone")
    (page,) = report.build(tmp_path / "other", parameters=asked["parameters"], say=said.append)
    assert (page.title, page.parameters, page.error) == ("1-a", {"model": "adapter", "x": 1}, "")
    assert page.seconds > 0
    (line,) = said
    assert "is an adapter, and its base is not here" in line
    assert line.endswith("These pages were made where it was")
    shown = (tmp_path / "other" / "1-a.html").read_text()
    assert f"{len(str(adapter))} adapter 1" in shown.replace("\n", " ")
    for path in (tmp_path, out):
        assert str(path) not in shown + (tmp_path / "other" / "1-a.ipynb").read_text()
    index = (tmp_path / "other" / "index.html").read_text()
    assert "1-a.html" in index
    assert style.escape(line) in index
    for more in ({"x": 2}, {"model": str(adapter), "x": 2}):
        with pytest.raises(FileNotFoundError, match="its base is not here"):
            report.build(tmp_path / "more", parameters=asked["parameters"] | more, say=said.append)


@pytest.mark.parametrize("given", [{}, {"x": 7}])
def test_failing_notebooks_name_their_cell_and_the_others_still_run(tmp_path, monkeypatch, given):
    write(tmp_path, "1-fails", "y = x", "1 / 0", "y")
    write(tmp_path, "2-dies", "import os; os._exit(1)", "x")
    write(tmp_path, "3-runs", "print('<script>', x)")
    monkeypatch.setattr(run, "NOTEBOOKS", tmp_path)
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
    assert len(said) == 4


def test_a_kernel_whose_port_was_taken_is_started_again(tmp_path, monkeypatch):
    write(tmp_path, "1-runs", "print('here', x)")
    monkeypatch.setattr(run, "NOTEBOOKS", tmp_path)
    execute, tried = papermill.execute_notebook, []

    def unlucky(*given, **ways):
        tried.append(1)
        if len(tried) <= luckless:
            raise RuntimeError("Kernel died before replying to kernel_info")
        return execute(*given, **ways)

    monkeypatch.setattr(papermill, "execute_notebook", unlucky)
    luckless = 1
    (page,) = report.build(tmp_path / "out", say=lambda line: None)
    assert (page.error, len(tried)) == ("", 2)
    luckless = 9
    with pytest.raises(RuntimeError, match="Kernel died before replying"):
        report.build(tmp_path / "out", say=lambda line: None)
    assert len(tried) == 4


def test_ctrl_c_ends_the_kernels_and_nothing_else(tmp_path, monkeypatch):
    write(tmp_path, "1-short", "x")
    write(tmp_path, "2-long", "import time; time.sleep(300)")
    monkeypatch.setattr(run, "NOTEBOOKS", tmp_path)

    def stop(line):
        if line.startswith("[1/2]"):
            raise KeyboardInterrupt

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        before, began = psutil.Process().children(recursive=True), time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            report.build(tmp_path / "out", say=stop)
        assert time.monotonic() - began < 120
        _, left = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - set(before), timeout=20)
        assert not left
        assert other.poll() is None
        other.communicate(b"\n")
    assert (tmp_path / "out" / "1-short.html").exists()


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
    monkeypatch.setattr(run, "NOTEBOOKS", tmp_path)
    with pytest.raises(ValueError, match=message):
        report.build(tmp_path / "out", parameters=given, say=lambda line: None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("before", [None, "0"])
def test_fresh_holds_for_the_notebooks_and_not_beyond(tmp_path, monkeypatch, before):
    write(tmp_path, "1-asks", "import os; print('fresh:', float(os.environ['DUOVIZ_FRESH']) > 1e9)")
    monkeypatch.setattr(run, "NOTEBOOKS", tmp_path)
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
    made = report.html(notebook, title="t")
    drawn = [json.loads(spec) for spec in re.findall(r'<script>duoviz\("figure-\d", (.*?)\)</script>', made)]
    assert [config for *_, config in drawn] == [{"scrollZoom": 1, **style.CONFIG}] * 2
    assert style.CONFIG["showSendToCloud"] is False
    assert re.search(r"Plotly\.react\(id, data, .*, config\);", made)


def output(data):
    return nbformat.v4.new_output("display_data", data)


def notebook_of(*outputs):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("show()", outputs=list(outputs))])


@pytest.mark.parametrize("kind", [lambda notebook: notebook, lambda notebook: json.loads(json.dumps(notebook))])
def test_widgets_go_and_their_twins_stay(kind):
    view, twin = {page.WIDGET: {"model_id": "7"}}, {"text/html": "<b>twin</b>"}
    spoken = nbformat.v4.new_output("stream", text="spoken")
    before = notebook_of(output({**view, **twin}), output(view), spoken, output({"text/plain": "x"}))
    before.cells.insert(0, nbformat.v4.new_markdown_cell("# t"))
    before.metadata.widgets = {"state": {}}
    given = kind(before)
    after = report.without_widgets(given)
    assert type(after) is type(given)
    assert "widgets" not in after["metadata"]
    assert after["cells"][1]["outputs"] == [output(twin), spoken, output({"text/plain": "x"})]
    assert given == kind(before)
    assert "widgets" in given["metadata"]  # not changed
    shown = report.html(before, title="t")
    assert "<b>twin</b>" in shown
    assert page.WIDGET not in shown


def test_executed_notebooks_hold_no_widgets_and_are_not_large(tmp_path, monkeypatch):
    write(tmp_path, "1-large", "print('x' * 2_100_000)")
    show = f"display({{{page.WIDGET!r}: {{'model_id': '7'}}, 'text/html': '<i>twin</i>'}}, raw=True)"
    write(tmp_path, "2-widget", show)
    monkeypatch.setattr(run, "NOTEBOOKS", tmp_path)
    large, widget = report.build(tmp_path / "out", say=lambda line: None)
    assert large.error.startswith("1-large.ipynb: 2.1 MB once executed, more than the 2 MB it may take")
    assert "more than the 2 MB" in (tmp_path / "out" / "index.html").read_text()
    assert widget.error == ""
    executed = nbformat.read(tmp_path / "out" / "2-widget.ipynb", as_version=4)
    assert [dict(made.data) for made in executed.cells[-1].outputs] == [{"text/html": "<i>twin</i>"}]
    links = re.findall(r'<a href="([^"]*)">([^<]*)</a>', (tmp_path / "out" / "2-widget.html").read_text())
    assert links[:2] == [("index.html", "all notebooks"), ("1-large.html", "← 1-large")]


def test_the_first_page_tells_what_a_tagged_figure_and_the_paragraph_after_it_say():
    figure = {"data": [{"type": "bar", "y": [1, 2], "name": "</script>"}], "layout": {"title": {"text": "A"}}}
    told = output({"text/markdown": "**One** thing.\n\nAnother."})
    made = notebook_of(
        output({"text/markdown": "before"}), output({report.PLOTLY: figure}), output({"text/plain": "x"}), told
    )
    assert index.story(made) is None  # no cell is tagged
    made.cells[0].metadata["tags"] = ["nbval-check-output", "story-3"]
    found = index.story(made)
    assert found.place == 3
    assert found.told.strip() == "<p><strong>One</strong> thing.</p>"
    assert "</script>" not in found.drawn
    data, layout, config = json.loads(found.drawn)
    assert (data, layout) == (figure["data"], figure["layout"])
    assert not config["showSendToCloud"]
    assert index.story(notebook_of(told)) is None


def test_the_index_says_what_the_report_was_made_with():
    told = page.Story(2, '[{"y":[1]}],{},{}', "<p>So it is.</p>")
    drawn = report.Page("1-a", "A & b", "Why?", 61.6, parameters={"x": "<1>", "model": "<m>"}, story=told)
    first = report.Page("3-c", "C", "How?", 0.0, story=replace(told, place=1))
    shown = index.index([drawn, report.Page("2-b", "Chips", "What?", 9.7, error="cell 3 failed"), first])
    assert 'duoviz("story-1-a", [{"y":[1]}],{},{})' in shown
    assert "Studied here: &lt;m&gt;." in shown
    assert 0 < shown.index("story-3-c") < shown.index("story-1-a")
    assert shown.count("<section>") == 2
    assert re.search(r"Made <time .*>\d{4}-\d\d-\d\d \d\d:\d\d UTC</time>; 3 notebooks took\n1 min 11 s\.", shown)
    for part in ("1. A &amp; b", "1 min 2 s ·", "x = &#39;&lt;1&gt;&#39;", 'href="2-b.ipynb"', '"error">cell 3 failed'):
        assert part in shown
    for name in ("duoviz", "torch", "transformers", "plotly", "pandas", "Python"):
        assert re.search(rf"{name} \d+\.\d", shown)
