"""Heatmaps and maps of routes: which choice each layer makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .. import style
from . import look

MOST_GLYPHS = 500
"""Cells up to which every one is labelled: plotly becomes slow beyond."""
WINDOW = 80
"""Positions of a comparison that are shown at a time."""


def routing_heatmap(usage: pd.DataFrame, *, title: str, relative: bool = False) -> go.Figure:
    """Which layers do the chosen routes make big (or keep), and where in the text? One row of panels per source, one
    column per budget; layer upwards, position to the right; no colour where nothing is scored. To the right of each panel, bars
    give the share of each layer over all positions; the dotted line is the mean of all layers, which the budget fixes.

    Args:
        usage: as of `frames.usage`.
        title: of the figure.
        relative: draw how far each share is from the mean: vermilion above, blue below. Else the shares: dark none, light all.

    Raises:
        ValueError: no rows, or a column is missing.

    Paper: arXiv 2410.10846, figures 2 and 3.
    """
    look.needed(usage, ["source", "panel", "layer", "position", "share", "n", "by_layer", "mean"])
    sources, kinds = list(dict.fromkeys(usage["source"])), list(dict.fromkeys(usage["panel"]))
    figure = look.panels(
        [text for source in sources for kind in kinds for text in (f"{kind}, {source}", "layers")],
        rows=len(sources),
        cols=2 * len(kinds),
        column_widths=[1, 0.22] * len(kinds),
        shared_yaxes=True,
        horizontal_spacing=0.012,
        vertical_spacing=0.3 / (len(sources) + 1),
    )
    for row, source in enumerate(sources, 1):
        for column, kind in enumerate(kinds):
            part = usage[(usage["source"] == source) & (usage["panel"] == kind)]
            place = {"row": row, "col": 2 * column + 1}
            _panel(figure, part, f"{kind}, {source}", relative=relative, last=row == len(sources), **place)
    figure.update_yaxes(dtick=2, zeroline=False, showgrid=False)
    figure.update_yaxes(title="layer", col=1)
    figure.update_layout(coloraxis=_shares(usage, relative), bargap=0.15)
    firsts = np.sort(usage["position"].unique())
    width = int(firsts[1] - firsts[0]) if len(firsts) > 1 else 1
    cells = f"bins of {width} positions" if width > 1 else "every position by itself"
    least, most = int(usage["n"].min()), int(usage["n"].max())
    note = f"{cells}, {least if least == most else f'{least} to {most}'} tokens in each; bars: all positions, dotted: their mean"
    figure = look.finish(figure, title=title, note=note, height=150 + 210 * len(sources))
    return figure.update_annotations(font={"size": 11})


def _panel(figure: go.Figure, part: pd.DataFrame, name: str, *, relative: bool, last: bool, row: int, col: int) -> None:
    """One heatmap, and to the right of it its bars; the last row tells what the axis shows."""
    mean, bars = float(part["mean"].iloc[0]), {"row": row, "col": col + 1}
    grid = part.pivot(index="layer", columns="position", values="share")
    figure.add_heatmap(
        z=grid.to_numpy(np.float32) - (mean if relative else 0),
        x=grid.columns.to_numpy(np.int32),
        y=grid.index.to_numpy(np.int32),
        coloraxis="coloraxis",
        hovertemplate=f"layer %{{y}}, position %{{x}}: %{{z:{'+' * relative}.2f}}<extra></extra>",
        row=row,
        col=col,
    )
    layers = part.drop_duplicates("layer")
    figure.add_bar(
        x=layers["by_layer"],
        y=layers["layer"],
        orientation="h",
        name=style.escape(f"{name}: by layer"),
        marker={"color": style.INK},
        showlegend=False,
        hovertemplate="layer %{y}: %{x:.3f}<extra></extra>",
        **bars,
    )
    figure.add_vline(x=mean, line={"color": style.POLICY_COLOURS["oracle"], "width": 1.5, "dash": "dot"}, **bars)
    figure.update_xaxes(showticklabels=False, showgrid=False, rangemode="tozero", **bars)
    figure.update_xaxes(title="position" if last else "", showgrid=False, zeroline=False, row=row, col=col)


def _shares(usage: pd.DataFrame, relative: bool) -> dict[str, Any]:
    """Colours of shares, or of their distance from the mean."""
    bar = {"title": {"text": "share", "font": {"size": 13}}, "thickness": 12}
    if not relative:
        return {"colorscale": style.SEQUENTIAL, "cmin": 0, "cmax": 1, "colorbar": bar}
    far = float((usage["share"] - usage["mean"]).abs().max()) or 1.0
    bar["title"] = {"text": "share,<br>less mean", "font": {"size": 13}}
    return {"colorscale": style.DIVERGING, "cmin": -far, "cmax": far, "colorbar": bar | {"tickformat": "+.1f"}}


def route_maps(
    routes: Sequence[tuple[str, np.ndarray]], labels: Sequence[str], *, title: str, window: int = 64
) -> go.Figure:
    """Which choice did each layer make for each token of one text? Grey skip, blue small, vermilion big; layer upwards; no
    colour where nothing is scored. Short texts also carry the letters `-`, `S`, `B`.

    Args:
        routes: a name and int8 `[position, layer]` for each panel, drawn one below the other.
        labels: the input token of each position; the axis names up to 300, of more it shows the positions.
        title: of the figure.
        window: first so many positions; the rest is reached by dragging.

    Raises:
        ValueError: no routes, or another number of labels than of positions.

    Paper: arXiv 2410.10846, figure 7.
    """
    if not routes or any(len(chosen) != len(labels) for _, chosen in routes):
        raise ValueError(
            f"routes of {[len(c) for _, c in routes]} positions for {len(labels)} labels: give one for each"
        )
    figure = look.panels(
        [name for name, _ in routes], rows=len(routes), cols=1, shared_xaxes=True, vertical_spacing=0.08
    )
    for row, (_, chosen) in enumerate(routes, 1):
        letters = {"text": np.array([*style.GLYPHS, ""])[chosen.T], "texttemplate": "%{text}"}
        figure.add_heatmap(
            z=chosen.T.astype(np.int8),  # one byte a cell, as JSON too: 33 kB for 12 layers x 2,048 positions
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            row=row,
            col=1,
            hovertemplate="position %{x}, layer %{y}: %{z} (0 skip, 1 small, 2 big, -1 not scored)<extra></extra>",
            **(letters if chosen.size <= MOST_GLYPHS else {}),
        )
    figure.update_layout(coloraxis=_choices(any((chosen < 0).any() for _, chosen in routes)), dragmode="pan")
    figure.update_xaxes(range=[-0.5, min(window, len(labels)) - 0.5], showgrid=False)
    places = np.arange(len(labels), dtype=np.int32)
    figure.update_xaxes(**look.token_ticks(labels, places, title="input token"), row=len(routes))
    figure.update_yaxes(title="layer", dtick=look.layer_step(routes[0][1].shape[1]))
    shown = min(window, len(labels))
    note = f"one text, first {shown} of {len(labels)} positions{'; drag for more' if shown < len(labels) else ''}"
    return look.finish(figure, title=title, note=note, height=160 + 190 * len(routes)).update_layout(margin={"b": 120})


def route_comparison(
    one: tuple[str, np.ndarray],
    other: tuple[str, np.ndarray],
    labels: Sequence[str],
    *,
    title: str,
    selected: int | None = None,
) -> go.Figure:
    """Where do two sets of routes of one text differ? Three panels over one axis of positions, layer upwards: the first
    routes, the other, and what the other spends more (vermilion) or less (blue) than the first; no colour where they agree.
    A frame stands around the selected token.

    Args:
        one, other: a name and int8 `[position, layer]`; -1 where nothing is scored.
        labels: the token that each position predicts.
        title: of the figure.
        selected: position of the selected token.

    Raises:
        ValueError: routes of different shapes, or another number of labels than of positions.
    """
    (name, first), (name_of_other, second) = one, other
    if first.shape != second.shape or len(first) != len(labels):
        raise ValueError(
            f"routes of {first.shape} and {second.shape} (position, layer) for {len(labels)} labels: give one for each"
        )
    more = np.where((first < 0) | (second < 0), 0, second - first).astype(np.int8)
    titles = [name, name_of_other, f"{name_of_other} less {name}"]
    figure = look.panels(titles, rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.07)
    choice = "%{z} (0 skip, 1 small, 2 big, -1 not scored)"
    panels = [(first, "coloraxis", choice), (second, "coloraxis", choice), (more, "coloraxis2", "%{z:+d} steps")]
    for row, (values, axis, text) in enumerate(panels, 1):
        hover = f"%{{x}}, layer %{{y}}: {text}<extra></extra>"
        figure.add_heatmap(z=values.T, coloraxis=axis, xgap=1, ygap=1, hovertemplate=hover, row=row, col=1)
    choices, far = _choices(bool(min(first.min(), second.min()) < 0)), int(np.abs(more).max(initial=1))
    choices["colorbar"] |= {"len": 0.64, "y": 1.0, "yanchor": "top"}
    bar = {"tickvals": [-far, 0, far], "ticktext": ["less", "same", "more"], "thickness": 14}
    bar |= {"len": 0.3, "y": 0.0, "yanchor": "bottom"}
    signed = {"colorscale": style.DIVERGING, "cmin": -far, "cmax": far, "colorbar": bar}
    figure.update_layout(coloraxis=choices, coloraxis2=signed, dragmode="pan", shapes=frame(selected))
    figure.update_xaxes(range=around(selected, len(labels)), showgrid=False)
    places = np.arange(len(labels), dtype=np.int32)
    figure.update_xaxes(**look.token_ticks(labels, places, title="predicted token"), row=3)
    figure.update_yaxes(
        dtick=look.layer_step(first.shape[1]), showgrid=False, zeroline=False, title="layer", fixedrange=True
    )
    note = f"one text of {len(labels)} positions{'; drag for more' if len(labels) > WINDOW else ''}"
    return look.finish(figure, title=title, note=note, height=500).update_layout(margin={"b": 110})


def around(selected: int | None, positions: int) -> list[float]:
    """Ends of an axis that shows as many positions as can be read, the selected one among them."""
    first = 0 if selected is None else int(np.clip(selected - WINDOW // 2, 0, max(0, positions - WINDOW)))
    return [first - 0.5, min(first + WINDOW, positions) - 0.5]


def frame(selected: int | None) -> list[dict]:
    """A frame around the selected position in every panel."""
    if selected is None:
        return []
    line = {"color": style.POLICY_COLOURS["user"], "width": 2}
    ends = {"x0": selected - 0.5, "x1": selected + 0.5, "xref": "x", "y0": 0, "y1": 1, "yref": "paper"}
    return [{"type": "rect", "line": line, **ends}]


def _choices(gaps: bool) -> dict[str, Any]:
    """The colours of the choices, and none for -1 where there are gaps."""
    colours = ["rgba(0,0,0,0)", *style.CHOICE_COLOURS] if gaps else style.CHOICE_COLOURS
    steps = [[(number + edge) / len(colours), colour] for number, colour in enumerate(colours) for edge in (0, 1)]
    names = ["not scored", "- skip", "S small", "B big"]
    bar = {"tickvals": [-1, 0, 1, 2][4 - len(colours) :], "ticktext": names[4 - len(colours) :], "thickness": 14}
    return {"colorscale": steps, "cmin": 2.5 - len(colours), "cmax": 2.5, "colorbar": bar}
