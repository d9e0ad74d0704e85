"""Which choice each layer makes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .. import style
from . import look

MOST_GLYPHS = 500
"""Cells up to which every one is labelled: plotly becomes slow beyond."""


def routing_heatmap(usage: pd.DataFrame, *, title: str) -> go.Figure:
    """Which layers do the chosen routes make big (or keep), and where in the text? One row of panels per source, one
    column per budget; layer upwards, position to the right; blue never, vermilion always, no colour where nothing is scored.

    Args:
        usage: columns source, panel, layer, position, share, n.
        title: of the figure.

    Raises:
        ValueError: no rows, or a column is missing.

    Paper: arXiv 2410.10846, figures 2 and 3.
    """
    look.needed(usage, ["source", "panel", "layer", "position", "share", "n"])
    sources, kinds = list(dict.fromkeys(usage["source"])), list(dict.fromkeys(usage["panel"]))
    figure = look.panels(
        [f"{kind}, {source}" for source in sources for kind in kinds],
        rows=len(sources),
        cols=len(kinds),
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=0.09,
    )
    for row, source in enumerate(sources, 1):
        for column, kind in enumerate(kinds, 1):
            part = usage[(usage["source"] == source) & (usage["panel"] == kind)]
            grid = part.pivot(index="layer", columns="position", values="share")
            figure.add_heatmap(
                z=grid.to_numpy(np.float32),
                x=grid.columns.to_numpy(),
                y=grid.index.to_numpy(),
                coloraxis="coloraxis",
                row=row,
                col=column,
                hovertemplate="layer %{y}, position %{x}: %{z:.2f}<extra></extra>",
            )
    bar = {"title": {"text": "share big", "font": {"size": 13}}, "thickness": 12}
    figure.update_layout(coloraxis={"colorscale": style.SHARE_SCALE, "cmin": 0, "cmax": 1, "colorbar": bar})
    figure.update_xaxes(title="position", row=len(sources))
    figure.update_yaxes(title="layer", col=1)
    figure.update_yaxes(dtick=2)
    note = f"share over up to {int(usage['n'].max())} texts per cell"
    figure = look.finish(figure, title=title, note=note, height=150 + 200 * len(sources))
    return figure.update_annotations(font={"size": 12})


def route_maps(
    routes: Sequence[tuple[str, np.ndarray]], labels: Sequence[str], *, title: str, window: int = 64
) -> go.Figure:
    """Which choice did each layer make for each token of one text? Grey skip, blue small, vermilion big; layer upwards; no
    colour where nothing is scored. Short texts also carry the letters `-`, `S`, `B`.

    Args:
        routes: a name and int8 `[position, layer]` for each panel, drawn one below the other.
        labels: the input token of each position.
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
        drawn = np.where(chosen.T < 0, np.nan, chosen.T).astype(np.float32)
        letters = {"text": np.array([*style.GLYPHS, ""])[chosen.T], "texttemplate": "%{text}"}
        figure.add_heatmap(
            z=drawn,
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            row=row,
            col=1,
            hovertemplate="position %{x}, layer %{y}: %{z} (0 skip, 1 small, 2 big)<extra></extra>",
            **(letters if drawn.size <= MOST_GLYPHS else {}),
        )
    steps = [[(i + d) / 3, colour] for i, colour in enumerate(style.CHOICE_COLOURS) for d in (0, 1)]
    bar = {"tickvals": [0, 1, 2], "ticktext": ["- skip", "S small", "B big"], "thickness": 14}
    figure.update_layout(coloraxis={"colorscale": steps, "cmin": -0.5, "cmax": 2.5, "colorbar": bar}, dragmode="pan")
    figure.update_xaxes(range=[-0.5, min(window, len(labels)) - 0.5], showgrid=False)
    figure.update_xaxes(
        tickvals=np.arange(len(labels)),
        ticktext=[style.token_text(piece, limit=12) for piece in labels],
        tickangle=-90,
        tickfont={"size": 10, "family": "monospace"},
        row=len(routes),
        title="input token",
    )
    figure.update_yaxes(title="layer", dtick=3)
    shown = min(window, len(labels))
    note = f"one text, first {shown} of {len(labels)} positions{'; drag for more' if shown < len(labels) else ''}"
    return look.finish(figure, title=title, note=note, height=160 + 190 * len(routes)).update_layout(margin={"b": 120})
