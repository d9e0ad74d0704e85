"""Figures of the losses of all routes of a token: luck, and the regret of searches."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .. import style
from . import look

KINDS = {
    "true_nats": ("oracle", "the true next token"),
    "null_nats": ("null", "a token the model made up (null control)"),
}
TARGETS = {
    "true": ("oracle", "solid", "oracle, on the true next token"),
    "null": ("null", "dot", "null control, on every token the model could make up"),
    "matched": ("sampled", "dash", "the same, as unsure as the model is wrong"),
    "free": ("label-free", "solid", "label-free, on the true next token"),
}
"""Policy that gives the colour, dash and name of what `luck_curve` draws."""
OVER = {"mean": "over the mean route of the budget", "big": "over all big"}
METHODS = {
    "paths": ("star", "#7B61C9"),
    "descent": ("circle", "#D55E00"),
    "surrogate": ("square", "#0072B2"),
    "beam": ("diamond", "#009E73"),
    "mcts": ("triangle-up", "#CC79A7"),
    "random": ("x", "#888888"),
}
"""Mark and colour of a method that does not enumerate."""
FLOOR = 1e-5
"""Nats below which a regret is drawn at the lower edge: losses are not more exact."""


def candidates_curve(table: pd.DataFrame, *, title: str = "How much does the best of K routes gain?") -> go.Figure:
    """What does a minimum over more and more random routes gain over all big, on the true next token and on one that the
    model made up? Where both rise alike, the rise is luck. One panel per source.

    Args:
        table: columns source, candidates, true_nats and null_nats with their bounds, positions, documents
            (`frames.means`).
        title: of the figure.

    Raises:
        ValueError: no rows, or a column is missing.
    """
    look.needed(table, ["source", "candidates", *(f"{kind}{end}" for kind in KINDS for end in ("", "_low", "_high"))])
    figure, parts = look.by_source(table, along="candidates")
    for column, _, part in parts:
        for kind, (policy, label) in KINDS.items():
            bars = look.errors(part, kind, f"{kind}_low", f"{kind}_high")
            data = {"x": part["candidates"], "y": part[kind], "error_y": bars}
            look.policy_line(figure, policy, name=label, column=column, shown=column == 1, **data)
    figure.add_hline(y=0, line={"color": style.INK, "width": 1})
    figure.update_xaxes(title="random routes to choose from", type="log", dtick=1)
    figure.update_yaxes(title="gain over all big (nats per token)", col=1)
    return look.finish(figure, title=title, note=f"{look.counted(table)}; bars: 95 % intervals", height=440)


def luck_curve(table: pd.DataFrame, *, title: str = "How much of the oracle's gain is luck?") -> go.Figure:
    """What does the best route gain, and what would it gain were the next token one that the model made up? Where the lines lie
    on each other, nothing is left beyond luck. A row of panels for each reference, a column for each source.

    Args:
        table: as of `frames.luck_gains`.
        title: of the figure.

    Raises:
        ValueError: no rows, or a column is missing.
    """
    look.needed(
        table, ["source", "over", "budget", *(f"{name}{end}" for name in TARGETS for end in ("", "_low", "_high"))]
    )
    sources = list(dict.fromkeys(table["source"]))
    titles = [f"{source}, {words}" for words in OVER.values() for source in sources]
    shared: dict[str, Any] = {"shared_xaxes": "all", "shared_yaxes": "rows", "horizontal_spacing": 0.04}
    figure = look.panels(titles, rows=len(OVER), cols=len(sources), vertical_spacing=0.12, **shared)
    for (row, over), (column, source) in product(enumerate(OVER, 1), enumerate(sources, 1)):
        part = table[(table["source"] == source) & (table["over"] == over)].sort_values("budget")
        for shift, (name, (policy, dash, label)) in enumerate(TARGETS.items()):
            figure.add_scatter(
                x=part["budget"] + 0.08 * (shift - 1.5),  # bars beside each other
                y=part[name],
                error_y=look.errors(part, name, f"{name}_low", f"{name}_high") | {"thickness": 1, "width": 0},
                name=label,
                mode="lines+markers",
                line={"color": style.policy_colour(policy), "dash": dash},
                marker={"symbol": style.policy_mark(policy), "size": 7},
                customdata=part["budget"],
                hovertemplate="%{customdata} big: %{y:.3f} nats<extra>" + label + "</extra>",
                legendgroup=name,
                showlegend=(row, column) == (1, 1),
                row=row,
                col=column,
            )
    figure.add_hline(y=0, line={"color": style.INK, "width": 1})
    figure.update_xaxes(title="big layers per token", row=len(OVER))
    figure.update_yaxes(title="gain (nats per token)", col=1)
    figure = look.finish(figure, title=title, note=f"{look.counted(table)}; bars: 95 % intervals", height=720)
    return figure.update_layout(
        legend={"orientation": "h", "yref": "container", "y": 0.0, "yanchor": "bottom"}, margin_b=110
    )


def regret_curve(table: pd.DataFrame, *, title: str = "How near do searches come that do not enumerate?") -> go.Figure:
    """How far from the best route does each method end, and how many routes has it looked at? One row of panels per space,
    one column per source, both axes logarithmic; a regret below 0.00001 nats is drawn at the lower edge.

    Args:
        table: as of `frames.regrets`.
        title: of the figure.

    Raises:
        ValueError: no rows, or a column is missing.
    """
    look.needed(table, ["source", "space", "method", "regret_nats", "regret_nats_low", "regret_nats_high", "routes"])
    sources, spaces = (list(dict.fromkeys(table[name])) for name in ("source", "space"))
    titles = [f"{source}, {space}" for space in spaces for source in sources]
    shared: dict[str, Any] = {"shared_xaxes": "all", "shared_yaxes": "all", "horizontal_spacing": 0.04}
    figure = look.panels(titles, rows=len(spaces), cols=len(sources), vertical_spacing=0.12, **shared)
    families = table["method"].str.partition("-")[0]
    for (source, space, family), part in table.groupby(["source", "space", families], sort=False):
        symbol, colour = METHODS.get(family, ("cross", style.INK))
        points = part.sort_values("routes")
        figure.add_scatter(
            x=points["routes"],
            y=points["regret_nats"].clip(lower=FLOOR),
            name=style.escape(family),
            mode="lines+markers",
            text=[style.escape(method) for method in points["method"]],
            customdata=np.stack([points["regret_nats"], points["regret_nats_low"], points["regret_nats_high"]], -1),
            hovertemplate="%{text}: %{customdata[0]:.5f} nats [%{customdata[1]:.5f}, %{customdata[2]:.5f}],"
            " %{x:.0f} routes<extra></extra>",
            line={"color": colour},
            marker={"symbol": symbol, "size": 8},
            legendgroup=family,
            showlegend=(source, space) == (sources[0], spaces[0]),
            row=spaces.index(space) + 1,
            col=sources.index(source) + 1,
        )
    figure.update_xaxes(type="log", dtick=1)
    figure.update_xaxes(title="routes looked at", row=len(spaces))
    figure.update_yaxes(type="log", dtick=1, exponentformat="none", range=[np.log10(FLOOR) - 0.1, 0])
    figure.update_yaxes(title="regret (nats per token)", col=1)
    note = f"{look.counted(table)}; intervals at the pointer; lower edge: below {FLOOR:.5f} nats"
    return look.finish(figure, title=title, note=note, height=260 + 250 * len(spaces))
