"""One executed notebook as a page that opens offline, in light and dark."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import nbformat
from nbconvert import HTMLExporter
from nbconvert.preprocessors import Preprocessor
from traitlets.config import Config

from .. import style

PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
Notebook = TypeVar("Notebook", bound=dict)


@dataclass(frozen=True)
class Story:
    """What a notebook adds to a report's first page.

    Attributes:
        place: among the others.
        drawn: its figure, as arguments of the JavaScript function `duoviz`.
        told: what it says, as HTML.
    """

    place: int
    drawn: str
    told: str


@dataclass(frozen=True)
class Page:
    """One notebook of a report.

    Attributes:
        name: file name without ending.
        title: its first heading.
        question: the paragraph below the heading.
        seconds: how long it ran.
        error: what went wrong; empty if nothing did. Cells are counted from 1.
        parameters: the parameters it ran with.
        story: what the first page shows of it; None if nothing.
        absent: why it does not apply to the model, and was not run; empty if it was.
    """

    name: str
    title: str
    question: str
    seconds: float
    error: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    story: Story | None = None
    absent: str = ""


def without_widgets(notebook: Notebook) -> Notebook:
    """A notebook without live widgets, which nothing can draw once their kernel is gone; their twins in HTML or text stay.

    Args:
        notebook: of format 4, as nbformat reads it or as Jupyter hands it to a hook; it is not changed.
    """
    clean = copy.deepcopy(notebook)
    clean["metadata"].pop("widgets", None)
    for cell in clean["cells"]:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if output.get("data") != {}]
    return clean


def keep_twins(*, model: dict[str, Any], **_: Any) -> None:
    """For `ContentsManager.pre_save_hook`: JupyterLab saves notebooks `without_widgets`, so that one that is opened again
    shows the twins, not that a model was not found."""
    if model["type"] == "notebook" and model.get("content"):
        model["content"] = without_widgets(model["content"])


def figures(notebook: nbformat.NotebookNode) -> Iterator[dict]:
    """Data of the outputs that hold a plotly figure."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if PLOTLY in output.get("data", {}):
                yield output["data"]


def javascript(*values: Any) -> str:
    """Values as arguments of a call inside a `<script>`: "</" would end the element."""
    return ", ".join(json.dumps(value, separators=(",", ":")) for value in values).replace("</", "<\\/")


def drawn(figure: dict[str, Any]) -> str:
    """A plotly figure as arguments of the JavaScript function `duoviz`. The house's configuration goes over its own, so that
    none offers to upload what it shows."""
    return javascript([figure["data"], figure["layout"], {**figure.get("config", {}), **style.CONFIG}])


class _PlotlyToHtml(Preprocessor):
    """Each plotly figure becomes a `<div>` with a fixed id and a script that draws it with the report's plotly.js."""

    def preprocess(self, nb: nbformat.NotebookNode, resources: dict) -> tuple[nbformat.NotebookNode, dict]:
        for number, data in enumerate(figures(nb)):
            figure, name = drawn(data.pop(PLOTLY)), f"figure-{number}"
            data.clear()
            data["text/html"] = (
                f'<div id="{name}" class="plotly-figure"></div><script>duoviz("{name}", {figure})</script>'
            )
        return nb, resources


def html(notebook: nbformat.NotebookNode, *, title: str, links: Mapping[str, str] | None = None) -> str:
    """One executed notebook as a page that needs nothing but `plotly.min.js` beside it.

    Args:
        notebook: it is not changed.
        title: of the page.
        links: address -> text of the links above the notebook.
    """
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
    body, _ = exporter.from_notebook_node(without_widgets(notebook), resources={"metadata": {"name": title}})
    shown = "".join(f'<a href="{style.escape(to)}">{style.escape(text)}</a>' for to, text in (links or {}).items())
    nav = f'<nav class="report">{shown}{_SWITCH}</nav>'
    body = re.sub(r"<body[^>]*>", lambda found: found[0] + nav, body, count=1)
    return body.replace("</head>", _HEAD + "</head>", 1)


_SWITCH = """<label><input type="checkbox" id="show-code"> show code</label><script>
{ const box = document.getElementById("show-code"), kept = "duoviz-show-code";
  box.checked = localStorage.getItem(kept) === "yes";
  box.addEventListener("change", () => localStorage.setItem(kept, box.checked ? "yes" : "no")); }
</script>"""
"""Code is hidden until it is asked for; what was asked for on one page holds for all."""
FIGURES = """
<script src="plotly.min.js"></script>
<script>
function duoviz(id, [data, layout, config]) {
  const dark = matchMedia("screen and (prefers-color-scheme: dark)"), draw = () => {
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
.plotly-figure { min-height: 320px; min-width: 640px; } /* on a narrow screen a figure scrolls; squeezed it cannot be read */
</style>
"""
"""What a page needs in its head to draw figures by `duoviz(id, [data, layout, config])`, in light and dark."""
_HEAD = (
    f"{FIGURES}"
    """
<style>
:root { color-scheme: light dark; }
body.jp-Notebook, body { max-width: 1100px; margin: 0 auto; }
.jp-OutputArea-output { overflow-x: auto; }
[data-mime-type="application/vnd.jupyter.stderr"] { background: #8882 !important; }
nav.report { display: flex; flex-wrap: wrap; gap: .3rem 1.5rem; font: 15px/1.5 system-ui, sans-serif;
  padding: .8rem 10px; border-bottom: 1px solid #8885; }
nav.report a { color: #0a66b0; text-decoration: none; }
nav.report a:hover { text-decoration: underline; }
nav.report a:first-child { margin-right: auto; }
body:not(:has(#show-code:checked)) .jp-CodeCell .jp-Cell-inputWrapper { display: none; }
@media print { nav.report { display: none; } }
@media screen and (prefers-color-scheme: dark) {
  :root, body { --jp-layout-color0: #15171a; --jp-layout-color1: #15171a; --jp-layout-color2: #22252a;
    --jp-content-font-color0: #f0f0f0; --jp-content-font-color1: #e6e6e6; --jp-content-link-color: #7db8ea;
    --jp-ui-font-color0: #f0f0f0; --jp-ui-font-color1: #e6e6e6; --jp-cell-editor-background: #1d2025;
    --jp-cell-editor-border-color: #333; --jp-border-color2: #333; --jp-rendermime-table-row-background: #1b1d21;
    --jp-rendermime-table-row-hover-background: #2a2d33; --jp-mirror-editor-keyword-color: #7fc77f;
    --jp-mirror-editor-string-color: #e0a08a; --jp-mirror-editor-operator-color: #c9a0ff;
    --jp-mirror-editor-number-color: #8fd0a0; --jp-mirror-editor-comment-color: #9ab;
    --jp-mirror-editor-variable-color: #dcdfe4; --jp-mirror-editor-punctuation-color: #9fc1e8;
    --jp-mirror-editor-builtin-color: #7fc77f; --jp-mirror-editor-property-color: #9fc1e8; }
  .highlight { color: #dcdfe4; }
  body { background: #15171a; color: #e6e6e6; }
  nav.report a { color: #7db8ea; }
}
</style>
"""
)
