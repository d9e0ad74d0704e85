"""Figures of the token inspector: the landscape of one token's routes, and how policies use the layers."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from .. import style
from . import look

LOOKS = {"small": "all small", "skip": "all small", "big": "all big", "yours": "user"}
"""Policies of the inspector by the names that colours and marks have."""


def landscape(spread: pd.DataFrame, marks: pd.DataFrame, *, title: str, counted: str = "") -> go.Figure:
    """What is every route of one token worth? A box for each number of big layers, from the least loss over quartiles to
    the largest, and marks for the policies' routes.

    Args:
        spread: as of `frames.spread`.
        marks: columns policy, big, route, loss_nats.
        title: of the figure.
        counted: which routes are shown, and how many.

    Raises:
        ValueError: no rows, or a column is missing.
    """
    look.needed(spread, ["big", "routes", "least", "lower", "median", "upper", "most"])
    look.needed(marks, ["policy", "big", "route", "loss_nats"])
    figure = go.Figure()
    figure.add_box(
        x=spread["big"],
        lowerfence=spread["least"],
        q1=spread["lower"],
        median=spread["median"],
        q3=spread["upper"],
        upperfence=spread["most"],
        name="all routes",
        line={"color": style.INK, "width": 1.2},
        fillcolor="rgba(127,127,127,0.18)",
        whiskerwidth=0.6,
    )
    for policy, part in marks.groupby("policy", sort=False):
        name = LOOKS.get(policy, policy)
        figure.add_scatter(
            x=part["big"],
            y=part["loss_nats"],
            name=style.escape(f"all {policy}" if name.startswith("all") else policy),
            mode="markers",
            marker={
                "symbol": style.policy_mark(name),
                "size": 17 if name == "user" else 11,
                "color": "rgba(0,0,0,0)" if name == "user" else style.policy_colour(name),
                "line": {"width": 2 if name == "user" else 0, "color": style.policy_colour(name)},
            },
            text=part["route"],
            hovertemplate="%{text}: %{y:.3f} nats<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(
        title="big layers of the route",
        dtick=1 if len(spread) <= 14 else None,
        range=[spread["big"].min() - 0.6, spread["big"].max() + 0.6],
    )
    figure.update_yaxes(title="loss (nats)", rangemode="tozero")
    shown = counted or f"{int(spread['routes'].sum()):,} routes"
    note = f"{shown}; box: quartiles, whiskers: least and largest"
    return look.finish(figure, title=title, note=note, height=440)


def layer_usage(usage: pd.DataFrame, *, title: str) -> go.Figure:
    """Which layers are made big, and how often? One line per policy.

    Args:
        usage: as of `frames.layer_usage`.
        title: of the figure.

    Raises:
        ValueError: no rows, or a column is missing.
    """
    look.needed(usage, ["policy", "layer", "share", "n"])
    figure = go.Figure()
    for place, (policy, part) in enumerate(usage.groupby("policy", sort=False)):
        name = LOOKS.get(policy.removeprefix("A: "), policy.removeprefix("A: "))
        figure.add_scatter(
            x=part["layer"],
            y=part["share"],
            name=style.escape(policy),
            mode="lines+markers",
            line={"color": style.policy_colour(name), "dash": "dash" if place else "solid"},
            marker={"symbol": style.policy_mark(name), "size": 8},
        )
    figure.update_xaxes(title="layer", dtick=1 if usage["layer"].max() < 16 else None)
    figure.update_yaxes(title="share of tokens with a big FFN", range=[-0.02, 1.02])
    return look.finish(figure, title=title, note=f"{int(usage['n'].max()):,} positions", height=380)
