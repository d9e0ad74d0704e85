"""The first page of a report: a card for each notebook, drawn small, and what the report was made with."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version

import nbformat

from .. import style
from .page import PLOTLY, Page, figures, javascript

PACKAGES = ("duoviz", "torch", "transformers", "plotly", "pandas")
MOST_BYTES = 200_000
"""Of a thumbnail. The largest of the suite, 8 heatmaps of 12 layers and 127 positions, is 67 kB."""
DETAIL = ("colorbar", "customdata", "hoverinfo", "hovertemplate", "hovertext", "ids", "meta", "name", "text")
TEXTS = ("annotations", "font", "height", "hoverlabel", "legend", "sliders", "title", "updatemenus", "width")
LABELS = ("rangeselector", "rangeslider", "tickfont", "ticktext", "tickvals", "title")
"""What a trace, a layout and an axis lose in a thumbnail."""


def thumbnail(notebook: nbformat.NotebookNode) -> str:
    """A notebook's first figure that is small enough, without its words: arguments of a JavaScript function; or nothing."""
    drawn = (_small(data[PLOTLY]) for data in figures(notebook))
    return next((spec for spec in drawn if len(spec) <= MOST_BYTES), "")


def _small(figure: dict) -> str:
    layout = _without(figure["layout"], TEXTS)
    for name in layout:
        if name.startswith(("xaxis", "yaxis")):
            bare = {"showticklabels": False, "ticks": "", "automargin": False}
            layout[name] = {**_without(layout[name], LABELS), **bare}
        elif name.startswith("coloraxis"):
            layout[name] = {**_without(layout[name], DETAIL), "showscale": False}
    traces = [{**_without(trace, DETAIL), "showscale": False} for trace in figure["data"]]
    for trace in traces:
        if "marker" in trace:
            trace["marker"] = {**_without(trace["marker"], DETAIL), "showscale": False}
    return javascript(traces, {**layout, "showlegend": False, "margin": dict.fromkeys("lrtb", 8)})


def _without(entries: dict, names: Sequence[str]) -> dict:
    return {name: value for name, value in entries.items() if name not in names}


def index(pages: Sequence[Page]) -> str:
    """The page that links to all others; it needs nothing but `plotly.min.js` beside it."""
    now, ran = datetime.now(UTC), sum(not page.absent for page in pages)
    versions = {"Python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    drawn = "\n".join(f'thumbnail("{page.name}", {page.thumbnail});' for page in pages if page.thumbnail)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>duoviz report</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{_STYLE}</style></head><body>
<h1>duoviz report</h1>
<p>Adaptive computation in a language model whose every layer has a big FFN, a small FFN and a skip
(after Duo-LLM, arXiv 2410.10846).</p>
<main>
{"".join(map(_card, pages))}</main>
<footer>Made <time datetime="{now:%Y-%m-%dT%H:%MZ}">{now:%Y-%m-%d %H:%M} UTC</time>; {ran} notebooks took
{_duration(sum(page.seconds for page in pages))}.
{style.escape(", ".join(f"{name} {number}" for name, number in versions.items()))}.</footer>
<script src="plotly.min.js"></script>
<script>{_SCRIPT}{drawn}
</script>
</body></html>
"""


def _card(page: Page) -> str:
    link, number = style.escape(page.name), page.name.partition("-")[0]
    # twice the size it is seen at, so that lines and marks are half theirs; the link is the title's, for those who see none
    picture = f'<img id="{link}" alt="">' if page.thumbnail else f"<span>{style.escape(number)}</span>"
    error = f'<p class="error">{style.escape(page.error)}</p>\n' if page.error else ""
    parameters = style.escape("\n".join(f"{name} = {value!r}" for name, value in page.parameters.items()))
    if page.absent:
        return f"""<article>
<div class="thumbnail"><span>{style.escape(number)}</span></div>
<h2>{style.escape(f"{number}. {page.title}")}</h2>
<p>{style.escape(page.question)}</p>
<p class="facts">does not apply: {style.escape(page.absent)}</p>
</article>
"""
    return f"""<article>
<a class="thumbnail" href="{link}.html" tabindex="-1" aria-hidden="true">{picture}</a>
<h2><a href="{link}.html">{style.escape(f"{number}. {page.title}")}</a></h2>
<p>{style.escape(page.question)}</p>
{error}<p class="facts">{_duration(page.seconds)} · <a href="{link}.ipynb">executed notebook</a></p>
<details><summary>parameters</summary><pre>{parameters}</pre></details>
</article>
"""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


_SCRIPT = """
function thumbnail(id, data, layout) {
  Plotly.toImage({data, layout, config: {staticPlot: true}}, {format: "svg", width: 520, height: 300})
    .then(address => { document.getElementById(id).src = address; });
}
"""
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --ground: #ffffff; --card: #f6f7f9; --line: #d9dce1;
  --link: #0a66b0; --error: #b34700; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --ground: #15171a; --card: #1d2025; --line: #33373d; --link: #7db8ea; --error: #ff9d5c; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 72rem;
  margin: 2rem auto; padding: 0 1rem; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr)); gap: 1.2rem; margin: 1.5rem 0; }
article { min-width: 0; padding: .8rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  break-inside: avoid; overflow-wrap: anywhere; }
.thumbnail { display: grid; place-items: center; aspect-ratio: 520 / 300; background: var(--ground); border-radius: 4px;
  overflow: hidden; }
.thumbnail img { width: 100%; height: 100%; }
.thumbnail span { font-size: 3.5rem; opacity: .45; color: var(--ink); }
h2 { font-size: 1.1rem; line-height: 1.3; margin: .7rem 0 .3rem; }
p { margin: .3rem 0; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
.facts, details, footer { font-size: .875rem; }
.error { color: var(--error); font-weight: 600; }
pre { overflow-x: auto; margin: .4rem 0 0; overflow-wrap: normal; }
footer { border-top: 1px solid var(--line); padding-top: .8rem; }
"""
