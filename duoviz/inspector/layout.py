"""The layout of the inspector's controls, text and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ipywidgets as ipw

from .. import style

if TYPE_CHECKING:
    from .widget import View


def laid_out(view: View) -> list[ipw.Widget]:
    """Controls in groups; below them the text with the selected token's routes and losses, beside it the pictures in tabs."""
    control = view.controls

    def row(*parts: str | ipw.Widget) -> ipw.Box:
        children = [control[part] if isinstance(part, str) else part for part in parts]
        return ipw.Box(children, layout={"flex_flow": "row wrap", "align_items": "center"})

    def group(name: str, *names: str) -> ipw.Box:
        made = row(ipw.HTML(f'<b style="font:600 12px sans-serif;opacity:.7">{name}</b>'), *names)
        made.layout.margin, made.layout.border_left = "0 14px 0 0", f"3px solid {style.LINE}"
        made.layout.padding = "0 0 0 6px"
        return made

    layers = row(ipw.Label("your route"), *view.layers)
    token = [view.chips, view.token, layers, row("use oracle", "use router", "use big", "use small")]
    token += [row("best", "undo", "everywhere"), view.effect]
    pictures = ipw.Tab(
        [
            ipw.VBox([row("left", "right"), view.plots["routes"]]),
            ipw.VBox([view.plots["landscape"], ipw.HTML("<b>Best routes of all</b>"), view.best]),
            ipw.VBox([row("by"), view.plots["slices"]]),
            view.plots["usage"],
            view.python,
        ],
        titles=["Route map", "All routes", "Tokens", "Layers", "Python"],
    )
    # beside each other where there are 1,000 pixels for both, else one below the other
    halves = [ipw.VBox(token), ipw.VBox([pictures])]
    for half in halves:
        half.layout.flex, half.layout.min_width, half.layout.max_width = "1 1 490px", "0", "100%"
    return [
        row("text", "analyse", "next", "cancel", view.progress),
        row(
            group("what", "document", "context", "searched", "scope"),
            group("who", "router", "budget"),
            group("look", "statistic", "most", "pin", "unpin", "against_pin"),
        ),
        view.status,
        ipw.Box(halves, layout={"flex_flow": "row wrap", "width": "100%", "grid_gap": "12px"}),
    ]
