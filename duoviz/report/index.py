"""The first page of a report: its story in a few figures, a card for each notebook, and what the report was made with."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version

import nbformat
from nbconvert.filters import markdown2html

from .. import style
from .page import FIGURES, PLOTLY, Page, Story, drawn

PACKAGES = ("duoviz", "torch", "transformers", "plotly", "pandas")
STORY = "story-"
"""Tag of the cell whose figure the first page shows, with its place there; what is told beside it is the first paragraph of the
next Markdown that the notebook prints."""


def story(notebook: nbformat.NotebookNode) -> Story | None:
    """What a notebook adds to the first page; None if it has no figure for it."""
    begun, place, figure = False, 0, None
    for cell in notebook.cells:
        tags = [tag for tag in cell.metadata.get("tags", []) if tag.startswith(STORY)]
        if tags:
            begun, place = True, int(tags[0].removeprefix(STORY))
        for output in cell.get("outputs", []) if begun else []:
            data = output.get("data", {})
            figure = figure or data.get(PLOTLY)
            if figure and "text/markdown" in data:
                return Story(place, drawn(figure), markdown2html(data["text/markdown"].strip().partition("\n\n")[0]))
    return None


def index(pages: Sequence[Page], note: str = "") -> str:
    """The page that links to all others; it needs nothing but `plotly.min.js` beside it. A note is shown near its top."""
    now, ran = datetime.now(UTC), sum(not page.absent for page in pages)
    versions = {"Python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    models = dict.fromkeys(str(page.parameters["model"]) for page in pages if "model" in page.parameters)
    told = sorted((page for page in pages if page.story), key=lambda page: page.story.place)  # type: ignore[union-attr]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>duoviz report</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
{FIGURES}<style>{_STYLE}</style></head><body>
<h1>duoviz report</h1>
<p>Adaptive computation in a language model whose every layer has a big FFN, a small FFN and a skip
(after Duo-LLM, arXiv 2410.10846). Studied here: {style.escape(", ".join(models)) or "no model"}.</p>
{f'<p class="facts">{style.escape(note)}.</p>' if note else ""}
{"".join(map(_told, told))}<h2>All notebooks</h2>
<main>
{"".join(map(_card, pages))}</main>
<footer>Made <time datetime="{now:%Y-%m-%dT%H:%MZ}">{now:%Y-%m-%d %H:%M} UTC</time>; {ran} notebooks took
{_duration(sum(page.seconds for page in pages))}.
{style.escape(", ".join(f"{name} {number}" for name, number in versions.items()))}.</footer>
</body></html>
"""


def _told(page: Page) -> str:
    """One figure of the story, with what is told beside it."""
    link, figure = style.escape(page.name), f"story-{style.escape(page.name)}"
    assert page.story is not None, "others are left out"
    return f"""<section>
<h2><a href="{link}.html">{style.escape(page.title)}</a></h2>
{page.story.told}
<div class="scrolled"><div id="{figure}" class="plotly-figure"></div></div>
<script>duoviz("{figure}", {page.story.drawn})</script>
</section>
"""


def _card(page: Page) -> str:
    link, number = style.escape(page.name), page.name.partition("-")[0]
    title, question = style.escape(f"{number}. {page.title}"), style.escape(page.question)
    if page.absent:
        return f"""<article>
<h3>{title}</h3>
<p>{question}</p>
<p class="facts">does not apply: {style.escape(page.absent)}</p>
</article>
"""
    error = f'<p class="error">{style.escape(page.error)}</p>\n' if page.error else ""
    parameters = style.escape("\n".join(f"{name} = {value!r}" for name, value in page.parameters.items()))
    return f"""<article>
<h3><a href="{link}.html">{title}</a></h3>
<p>{question}</p>
{error}<p class="facts">{_duration(page.seconds)} · <a href="{link}.ipynb">executed notebook</a></p>
<details><summary>parameters</summary><pre>{parameters}</pre></details>
</article>
"""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


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
section { margin: 2.2rem 0; }
.scrolled { overflow-x: auto; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: .7rem 0 .3rem; }
h3 { font-size: 1.05rem; line-height: 1.3; margin: .2rem 0 .3rem; }
p { margin: .3rem 0; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
.facts, details, footer { font-size: .875rem; }
.error { color: var(--error); font-weight: 600; }
pre { overflow-x: auto; margin: .4rem 0 0; overflow-wrap: normal; }
footer { border-top: 1px solid var(--line); padding-top: .8rem; }
"""
