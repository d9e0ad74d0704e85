"""The notebooks, run headlessly by papermill, and made into one folder that opens offline.

`runs/report/index.html` lists them; `runs/report/<notebook>.html` shows each, `<notebook>.ipynb` is the executed notebook.
plotly.js is written once, from the installed package.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter
from nbconvert.preprocessors import Preprocessor
from traitlets.config import Config

from . import style

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
PLOTLY = "application/vnd.plotly.v1+json"
ADDED = {"injected-parameters", "papermill-error-cell-tag"}
"""Tags of the cells that papermill adds to a notebook."""


@dataclass(frozen=True)
class Page:
    """One notebook of a report.

    Attributes:
        name: file name without ending.
        title: its first heading.
        question: the sentence below the heading.
        seconds: how long it ran.
        error: the notebook's cell that failed, counted from 1, and why; empty if none did.
        parameters: the parameters it ran with.
    """

    name: str
    title: str
    question: str
    seconds: float
    error: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)


def notebooks(only: Sequence[str] = ()) -> list[Path]:
    """The suite's notebooks in order, or those whose number or name is asked for.

    Raises:
        ValueError: a number or name that no notebook has.
    """
    found = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    for asked in only:
        if not any(asked in (path.stem, path.stem.partition("-")[0]) for path in found):
            raise ValueError(f"notebook {asked!r}: there are {', '.join(path.stem for path in found)}")
    return [path for path in found if not only or {path.stem, path.stem.partition("-")[0]} & set(only)]


def build(
    out: Path,
    *,
    only: Sequence[str] = (),
    parameters: dict[str, Any] | None = None,
    fresh: bool = False,
    say: Callable[[str], None] = print,
) -> list[Page]:
    """Run notebooks and write the report; one that fails, or whose kernel dies, is reported and the others still run.

    Args:
        out: folder of the report.
        only: numbers or names of notebooks; all if empty.
        parameters: values for the `parameters` cells; each notebook takes those it has.
        fresh: compute every stored result again.
        say: is told about progress.

    Raises:
        ValueError: a notebook or a parameter that does not exist, or a value of another type than the notebook's own.
    """
    chosen, parameters = notebooks(only), parameters or {}
    defaults = {path: _parameters(path) for path in chosen}
    _check(parameters, defaults)
    out.mkdir(parents=True, exist_ok=True)
    _plotly_js(out)  # first: a page can be read as soon as it is there
    pages = []
    with _environment(fresh=fresh):
        for number, path in enumerate(chosen, 1):
            say(f"[{number}/{len(chosen)}] {path.stem} ...")
            page = _run(path, out, {k: v for k, v in parameters.items() if k in defaults[path]})
            say(f"[{number}/{len(chosen)}] {path.stem}: {page.error or f'{page.seconds:.0f} s'}")
            pages.append(page)
    (out / "index.html").write_text(_index(pages), encoding="utf-8")
    return pages


def _parameters(path: Path) -> dict[str, Any]:
    """Names and default values of a notebook's parameters."""
    from papermill import inspect_notebook

    return {name: ast.literal_eval(entry["default"]) for name, entry in inspect_notebook(str(path)).items()}


def _check(asked: Mapping[str, Any], defaults: Mapping[Path, Mapping[str, Any]]) -> None:
    """That the notebooks have these parameters, with values of these types.

    Raises:
        ValueError: if not.
    """
    for name, value in asked.items():
        found = {path.stem: known[name] for path, known in defaults.items() if name in known}
        if not found:
            offered = sorted({name for known in defaults.values() for name in known})
            raise ValueError(f"parameter {name!r}: the notebooks have {', '.join(offered)}")
        for notebook, default in found.items():
            if _kind(value) != _kind(default):
                raise ValueError(
                    f"parameter {name}={value!r} is of type {_kind(value)}: notebook {notebook} takes {_kind(default)},"
                    f" for example {name}={json.dumps(default)}"
                )


def _kind(value: Any) -> str:
    """The type of a parameter: `int`, `str`, `list of int`, ..."""
    if not isinstance(value, list):
        return type(value).__name__
    return f"list of {' and '.join(sorted({_kind(item) for item in value})) or 'nothing'}"


@contextmanager
def _environment(*, fresh: bool) -> Iterator[None]:
    """`DUOVIZ_FRESH`, the time before which results are too old, for kernels that start inside, if asked for; afterwards the
    variable is what it was."""
    before = os.environ.get("DUOVIZ_FRESH")
    if fresh:
        os.environ["DUOVIZ_FRESH"] = str(time.time())
    try:
        yield
    finally:
        os.environ.pop("DUOVIZ_FRESH", None)
        if before is not None:
            os.environ["DUOVIZ_FRESH"] = before


def _run(path: Path, out: Path, parameters: dict[str, Any]) -> Page:
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook

    executed, began, error = out / path.name, time.monotonic(), ""
    try:
        execute_notebook(
            str(path),
            str(executed),
            parameters=parameters,
            cwd=str(NOTEBOOKS),
            kernel_name="python3",
            progress_bar=False,
            store_widget_state=False,
            extra_arguments=["--log-level=ERROR"],  # a kernel's warning about its transport is not the reader's
        )
    except PapermillExecutionError as failure:
        error = f"{failure.ename}: {failure.evalue}"
    except DeadKernelError as failure:
        error = f"{type(failure).__name__}: {failure} (out of memory?)"
    notebook = nbformat.read(executed, as_version=4)
    error = error and f"cell {_last_cell(notebook)} failed: {error}"
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, executed)
    (out / f"{path.stem}.html").write_text(html(notebook, title=path.stem), encoding="utf-8")
    title, question = _heading(path)
    shown = {**_parameters(path), **parameters}
    return Page(path.stem, title, question, time.monotonic() - began, error, shown)


def _last_cell(executed: nbformat.NotebookNode) -> int:
    """Which cell of its source an executed notebook reached, counted from 1."""
    own = [cell for cell in executed.cells if not ADDED & set(cell.metadata.get("tags", []))]
    return max(number for number, cell in enumerate(own, 1) if cell.metadata.papermill.start_time)


def _heading(path: Path) -> tuple[str, str]:
    """Title and question of a notebook, read from its source: papermill puts its own cell above those of one that failed."""
    source = nbformat.read(path, as_version=4).cells[0].source
    lines = [line for line in source.splitlines() if line.strip()]
    return lines[0].lstrip("# "), lines[1] if len(lines) > 1 else ""


class _PlotlyToHtml(Preprocessor):
    """Each plotly figure becomes a `<div>` with a fixed id and a script that draws it with the report's plotly.js.

    The house's configuration goes over the figure's own, so that none offers to upload what it shows.
    """

    def preprocess(self, nb: nbformat.NotebookNode, resources: dict) -> tuple[nbformat.NotebookNode, dict]:
        for number, data in enumerate(_figures(nb)):
            figure = data.pop(PLOTLY)
            config = {**figure.get("config", {}), **style.CONFIG}
            # "</" would end the script element
            spec = json.dumps([figure["data"], figure["layout"], config]).replace("</", "<\\/")
            name = f"figure-{number}"
            data.clear()
            data["text/html"] = (
                f'<div id="{name}" class="plotly-figure"></div><script>duoviz("{name}", {spec})</script>'
            )
        return nb, resources


def _figures(notebook: nbformat.NotebookNode) -> Iterator[dict]:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if PLOTLY in output.get("data", {}):
                yield output["data"]


def html(notebook: nbformat.NotebookNode, *, title: str) -> str:
    """One executed notebook as a page that needs nothing but `plotly.min.js` beside it."""
    blank = dict.fromkeys(
        (
            "require_js_url",
            "mathjax_url",
            "jquery_url",
            "jupyter_widgets_base_url",
            "widget_renderer_url",
        ),
        "",
    )
    exporter = HTMLExporter(
        config=Config(HTMLExporter={**blank, "exclude_input_prompt": True, "exclude_output_prompt": True})
    )
    exporter.mermaid_js_url = exporter.mermaid_layout_elk_js_url = ""  # not configurable
    exporter.register_preprocessor(_PlotlyToHtml(), enabled=True)
    body, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    return body.replace("</head>", _HEAD + "</head>", 1)


def _plotly_js(out: Path) -> None:
    import plotly

    shutil.copyfile(Path(plotly.__file__).parent / "package_data" / "plotly.min.js", out / "plotly.min.js")


_HEAD = """
<script src="plotly.min.js"></script>
<script>
function duoviz(id, [data, layout, config]) {
  const dark = matchMedia("(prefers-color-scheme: dark)"), draw = () => {
    const ink = dark.matches ? "#e6e6e6" : "#222222", line = dark.matches ? "#555555" : "#d0d0d0";
    const axes = {};
    for (const key of Object.keys(layout)) if (/^[xy]axis/.test(key))
      axes[key] = {...layout[key], gridcolor: line, zerolinecolor: line, linecolor: line};
    Plotly.react(id, data, {...layout, ...axes, font: {...layout.font, color: ink}}, config);
  };
  draw(); dark.addEventListener("change", draw);
}
</script>
<style>
:root { color-scheme: light dark; }
body.jp-Notebook, body { max-width: 1100px; margin: 0 auto; }
.plotly-figure { min-height: 320px; }
@media (prefers-color-scheme: dark) {
  :root, body { --jp-layout-color0: #15171a; --jp-layout-color1: #15171a; --jp-layout-color2: #22252a;
    --jp-content-font-color0: #f0f0f0; --jp-content-font-color1: #e6e6e6; --jp-ui-font-color0: #f0f0f0;
    --jp-ui-font-color1: #e6e6e6; --jp-cell-editor-background: #1d2025; --jp-cell-editor-border-color: #333;
    --jp-border-color2: #333; --jp-rendermime-table-row-background: #1b1d21;
    --jp-rendermime-table-row-hover-background: #2a2d33; --jp-mirror-editor-keyword-color: #7fc77f;
    --jp-mirror-editor-string-color: #e0a08a; --jp-mirror-editor-operator-color: #c9a0ff;
    --jp-mirror-editor-number-color: #8fd0a0; --jp-mirror-editor-comment-color: #9ab;
    --jp-mirror-editor-variable-color: #dcdfe4; --jp-mirror-editor-punctuation-color: #9fc1e8;
    --jp-mirror-editor-builtin-color: #7fc77f; --jp-mirror-editor-property-color: #9fc1e8; }
  .highlight { color: #dcdfe4; }
  body { background: #15171a; color: #e6e6e6; }
}
</style>
"""


def _index(pages: Sequence[Page]) -> str:
    versions = {name: version(name) for name in ("torch", "transformers", "plotly", "pandas")}
    rows = "\n".join(
        f'<li><a href="{page.name}.html">{style.escape(page.title)}</a> <small>{page.seconds:.0f} s</small>'
        f"<p>{style.escape(page.question)}</p>"
        + (f'<p class="error">{style.escape(page.error)}</p>' if page.error else "")
        + "<details><summary>parameters</summary><pre>"
        + style.escape("\n".join(f"{name} = {value!r}" for name, value in page.parameters.items()))
        + "</pre></details></li>"
        for page in pages
    )
    listed = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>duoviz report</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 3rem auto; padding: 0 1rem; }}
li {{ margin: 1.2rem 0; }} li a {{ font-size: 1.15rem; }} p {{ margin: .2rem 0; }}
small, details {{ opacity: .75; }} .error {{ color: #d55e00; font-weight: 600; }}
</style></head><body>
<h1>duoviz report</h1>
<p>Adaptive computation in a language model whose every layer has a big FFN, a small FFN and a skip
(after Duo-LLM, arXiv 2410.10846).</p>
<ol>
{rows}
</ol>
<footer><small>{style.escape(listed)}</small></footer>
</body></html>
"""
