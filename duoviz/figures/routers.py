"""Routers beside one another: what each kind gains, and whether it knew."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from .. import style
from . import look

KINDS = {
    "budget": ("star", "#0072B2"),
    "straight-through": ("diamond", "#7B61C9"),
    "policy": ("cross", "#CC79A7"),
    "distil": ("circle", "#D55E00"),
    "pairwise": ("square", "#7A6A38"),
    "threshold": ("triangle-up", "#419AD9"),
}
"""Mark and colour of each kind of router; all others are controls, in grey."""
CONTROL_DASHES = ("dot", "dash", "dashdot", "longdash")
APART = 0.05
"""Layers between the marks of two kinds with the same budget, so that their bars do not cover each other."""


def router_gains(judged: pd.DataFrame, policies: pd.DataFrame, *, title: str = "Do routers find it?") -> go.Figure:
    """What does each kind of router gain over the best fixed route with as many big layers? One line a kind, controls in grey;
    above them the label-free policy, which like a router does without the answer. One panel per source; bars are 95 %
    intervals.

    Args:
        judged: columns source, name, asked_big, realised_big, over_fixed_nats with its bounds, positions, documents.
        policies: as of `frames.over_fixed`, of the same texts.
        title: of the figure.

    Raises:
        ValueError: no rows, or a column is missing.
    """
    gain = ["over_fixed_nats", "over_fixed_nats_low", "over_fixed_nats_high"]
    look.needed(judged, ["source", "name", "asked_big", "realised_big", *gain, "positions", "documents"])
    look.needed(policies, ["source", "policy", "realised_big", "gain_nats", "gain_nats_low", "gain_nats_high"])
    figure, parts = look.by_source(judged, along="asked_big")
    for column, source, _ in parts:
        free = policies[(policies["source"] == source) & (policies["policy"] == "label-free")]
        bars = look.errors(free, "gain_nats", "gain_nats_low", "gain_nats_high")
        data: dict[str, Any] = {"x": free["realised_big"], "y": free["gain_nats"], "error_y": bars}
        look.policy_line(figure, "label-free", name="label-free policy", column=column, shown=column == 1, **data)
    _lines(figure, parts, "over_fixed_nats", hover="%{customdata:.2f} big: %{y:.3f} nats")
    figure.update_yaxes(title="gain over the best fixed route (nats per token)", col=1)
    note = f"{look.counted(judged)}; bars: 95 % intervals; marks of one budget are set apart; grey: controls"
    return look.finish(figure, title=title, note=note, height=480)


def router_gaps(judged: pd.DataFrame, *, title: str = "How much of what can be known do routers find?") -> go.Figure:
    """What share of the gap from the best fixed route to the label-free policy does each kind of router close? One line a kind,
    controls in grey; nothing is drawn where the gap itself may be 0. One panel per source; bars are 95 % intervals.

    Args:
        judged: columns source, name, asked_big, realised_big, label_free_gap_closed with its bounds, gap_positions,
            gap_documents.
        title: of the figure.

    Raises:
        ValueError: no rows, or a column is missing.
    """
    closed = [f"label_free_gap_closed{end}" for end in ("", "_low", "_high")]
    look.needed(judged, ["source", "name", "asked_big", "realised_big", *closed, "gap_positions", "gap_documents"])
    judged = judged.assign(positions=judged["gap_positions"], documents=judged["gap_documents"])
    figure, parts = look.by_source(judged, along="asked_big")
    _lines(figure, parts, closed[0], hover="%{customdata:.2f} big: %{y:.0%}")
    figure.add_hline(y=1, line={"color": style.policy_colour("label-free"), "width": 2})
    figure.update_yaxes(title="share of the label-free gap that is closed", tickformat=".0%", col=1)
    note = (
        f"{look.counted(judged)}; bars: 95 % intervals; 0 %: best fixed route, 100 %: label-free policy; grey: controls"
    )
    return look.finish(figure, title=title, note=note, height=480)


def _lines(figure: go.Figure, parts: Sequence[tuple[int, str, pd.DataFrame]], value: str, *, hover: str) -> None:
    """A line for each kind of router in each panel, over the big layers that it realises."""
    given = list(dict.fromkeys(name for _, _, inside in parts for name in inside["name"]))
    names = [*(name for name in KINDS if name in given), *(name for name in given if name not in KINDS)]
    for (column, _, inside), (place, name) in product(parts, enumerate(names)):
        part = inside[inside["name"] == name]
        mark, colour = KINDS.get(name, ("line-ew-open", style.INK))
        dash = "solid" if name in KINDS else CONTROL_DASHES[(place - len(KINDS)) % len(CONTROL_DASHES)]
        figure.add_scatter(
            x=part["realised_big"] + APART * (place - (len(names) - 1) / 2),
            y=part[value],
            error_y={**look.errors(part, value, f"{value}_low", f"{value}_high"), "thickness": 1, "width": 2},
            name=style.escape(name),
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 2 if name in KINDS else 1.2},
            marker={"symbol": mark, "size": 8},
            customdata=part["realised_big"],
            hovertemplate=hover,
            **look.in_panel(column, name),
        )
    figure.add_hline(y=0, line={"color": style.POLICY_COLOURS["fixed"], "width": 2})
    figure.update_xaxes(title="big layers per token (realised)")


def gain_calibration(
    parts: pd.DataFrame, layers: pd.DataFrame, *, title: str = "Does a router know what a layer gains?"
) -> go.Figure:
    """Do predicted gains come true? Above, a dot for each twentieth of all tokens' layers: on the diagonal, what was predicted
    was realised. Below, how much of each layer's gains is foreseen. One column per source.

    Args:
        parts: as of `frames.calibration`.
        layers: as of `frames.explained`.
        title: of the figure.

    Raises:
        ValueError: no rows, or a column is missing.
    """
    gains, shares = ([f"{name}{end}" for end in ("", "_low", "_high")] for name in ("realised_nats", "explained"))
    look.needed(parts, ["source", "predicted_nats", *gains])
    look.needed(layers, ["source", "layer", *shares])
    sources = list(dict.fromkeys(parts["source"]))
    figure = look.panels([*sources, *[""] * len(sources)], rows=2, cols=len(sources), shared_yaxes=True)
    colour = style.policy_colour("router")
    shared: dict[str, Any] = {"showlegend": False, "marker": {"color": colour, "symbol": style.policy_mark("router")}}
    for column, source in enumerate(sources, 1):
        part, share = (table[table["source"] == source] for table in (parts, layers))
        ends = [part["predicted_nats"].min(), part["predicted_nats"].max()]
        diagonal = {"color": style.INK, "width": 1, "dash": "dot"}
        figure.add_scatter(x=ends, y=ends, mode="lines", line=diagonal, showlegend=False, row=1, col=column)
        of_parts = {"x": part["predicted_nats"], "y": part[gains[0]], "error_y": look.errors(part, *gains)}
        of_layers = {"x": share["layer"], "y": share[shares[0]], "error_y": look.errors(share, *shares)}
        figure.add_scatter(**of_parts, mode="markers", **shared, row=1, col=column)
        figure.add_scatter(**of_layers, mode="markers", **shared, row=2, col=column)
        figure.add_hline(y=0, line={"color": style.INK, "width": 1}, row=2, col=column)
    figure.update_xaxes(title="predicted gain (nats)", row=1)
    figure.update_xaxes(title="layer", dtick=1 if layers["layer"].max() < 16 else 5, row=2)
    figure.update_yaxes(title="realised gain (nats)", row=1, col=1)
    figure.update_yaxes(title="share explained (R\u00b2)", row=2, col=1)
    note = f"each dot above: {look.counted(parts)}; below: {look.counted(layers)}; bars: 95 % intervals"
    return look.finish(figure, title=title, note=note, height=640)
