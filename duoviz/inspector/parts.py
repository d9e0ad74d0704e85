"""The parts of the widget that have a script of their own."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import ipywidgets as ipw
import plotly
import plotly.graph_objects as go
from ipywidgets import widget_serialization
from traitlets import Bytes, Dict, Instance, Int, List, Unicode

from .. import style
from . import static

if TYPE_CHECKING:
    from .state import State


class Chips(anywidget.AnyWidget):
    """The text as tokens. Sends what was asked for: `token`, `step`, `layer`, `release` or `cycle`.

    Attributes:
        pieces, tokens, breaks: characters of each chip, its tokens, and after which chips a line ends.
        styles: CSS of each chip.
        labels: what is said of each token.
        meaning, legend: what the colours stand for.
        selected: the selected token, or -1.
        hint: what is said when there is none.
    """

    _esm = Path(__file__).with_name("chips.js")
    _css = Path(__file__).with_name("chips.css")
    pieces = List(Unicode()).tag(sync=True)
    tokens: List = List().tag(sync=True)
    breaks = List(Int()).tag(sync=True)
    styles = List(Unicode()).tag(sync=True)
    labels = List(Unicode()).tag(sync=True)
    meaning = Unicode("").tag(sync=True)
    legend: List = List().tag(sync=True)
    selected = Int(-1).tag(sync=True)
    hint = Unicode(
        "click a token; left and right: the next token; up and down: a layer; space: change it; Escape: release; ?: these keys"
    ).tag(sync=True)


class Library(ipw.Widget):  # type: ignore[misc]
    """plotly.js of the installed package, once for all figures of a kernel."""

    source = Bytes().tag(sync=True)


@cache
def library() -> Library:
    """The kernel's one copy."""
    return Library(source=(Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_bytes())


class Plot(anywidget.AnyWidget):
    """A figure. Sends the point that was clicked: `x` and `y`.

    A `plotly.graph_objects.FigureWidget` would send plotly.js for each figure, keep the width it had before it had a place,
    and take its changes trace by trace.

    Attributes:
        figure: the figure as JSON.
        moved: changes of its layout that were made since.
    """

    _esm = Path(__file__).with_name("plot.js")
    figure = Unicode().tag(sync=True)
    moved: Dict = Dict().tag(sync=True)
    config: Dict = Dict(style.CONFIG).tag(sync=True)
    library = Instance(ipw.Widget).tag(sync=True, **widget_serialization)

    def __init__(self, figure: go.Figure) -> None:
        super().__init__(figure=figure.to_json(), library=library(), layout={"width": "100%"})


class Box(ipw.VBox):  # type: ignore[misc]
    """The whole; where there is no kernel its static twin stands in its place."""

    def __init__(self, inspector: State, children: list[ipw.Widget]) -> None:
        super().__init__(children, layout={"width": "100%", "max_width": "1200px", "overflow": "hidden"})
        self._inspector = inspector

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        twin = {
            "text/html": static.Static(self._inspector).html,
            "text/plain": f"the inspector: {self._inspector.question}",
        }
        return {**super()._repr_mimebundle_(**kwargs), **twin}
