"""Which tokens are hard, and which of them compute helps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .. import frames, style
from . import look

COLOURS = {
    "small": style.CHOICE_COLOURS[1],
    "big": style.INK,
    "oracle": style.CHOICE_COLOURS[2],
    "label_free": style.POLICY_COLOURS["label-free"],
    "null": style.POLICY_COLOURS["null"],
}
PALETTE = ("#D55E00", "#CC79A7", "#009E73", "#0072B2", "#E69F00", "#56B4E9")


def token_losses(table: pd.DataFrame, *, title: str, window: int = 64) -> go.Figure:
    """Which tokens are hard, and which of them does compute help? One line per policy over the tokens of one text; hard
    tokens stand high, and where oracle and small part, compute helps. The null is the loss on a sampled target, not on the
    token that is written below it.

    Args:
        table: one text's rows of `frames.token_losses`: document, position, target and columns `<name>_nats`.
        title: of the figure.
        window: first so many positions; the rest is reached by dragging.

    Raises:
        ValueError: no rows, a column is missing, or the rows are of several texts.

    Paper: arXiv 2410.10846, figure 5.
    """
    look.needed(table, ["document", "position", "target"])
    if table["position"].duplicated().any():
        raise ValueError(
            "several rows for one position: give the rows of one text, for example table[table['seq'] == 0]"
        )
    figure = go.Figure()
    for column in [c for c in table if c.endswith("_nats")]:
        name = column.removesuffix("_nats")
        dash = "dot" if name in ("null", "label_free") else "solid"
        figure.add_scatter(
            x=table["position"],
            y=table[column],
            name=style.escape(name.replace("_", "-")),
            mode="lines+markers",
            line={"color": COLOURS.get(name, style.INK), "dash": dash, "width": 1.5},
            marker={"size": 5},
            hovertemplate="%{y:.2f} nats",
        )
    first, shown = int(table["position"].iloc[0]), min(window, len(table))
    figure.update_xaxes(
        tickvals=table["position"],
        ticktext=[style.token_text(piece, limit=12) for piece in table["target"]],
        tickangle=-90,
        tickfont={"size": 10, "family": "monospace"},
        range=[first - 0.5, first + shown - 0.5],
        showgrid=False,
        title="predicted token",
    )
    figure.update_yaxes(title="loss (nats)", rangemode="tozero")
    more = "; drag for more" if shown < len(table) else ""
    note = f"document {table['document'].iloc[0]}, first {shown} of {len(table)} positions{more}"
    figure = look.finish(figure, title=title, note=note, height=480)
    return figure.update_layout(hovermode="x unified", dragmode="pan", margin={"b": 120})


def distribution(table: pd.DataFrame, columns: Sequence[str], *, x: str, title: str) -> go.Figure:
    """How is a quantity spread over tokens? Left a histogram, right the share of tokens below each value. The axis leaves
    out the outermost half per cent on each side.

    Args:
        table: one row per position; what is drawn is `frames.distribution` of the columns.
        columns: `<name>_nats`.
        x: what the axis shows, with its unit.
        title: of the figure.

    Raises:
        ValueError: no rows, or a column is missing or holds no number.
    """
    look.needed(table, columns)
    spread = frames.distribution(table, columns)
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.1)
    for number, column in enumerate(columns):
        for panel, (part, shape) in enumerate((("histogram", "hv"), ("below", "linear")), 1):
            points = spread[(spread["quantity"] == column) & (spread["part"] == part)]
            figure.add_scatter(
                x=points["value"],
                y=points["amount"],
                name=look.quantity_name(column),
                mode="lines",
                line={"color": PALETTE[number % len(PALETTE)], "shape": shape},
                legendgroup=column,
                showlegend=panel == 1,
                row=1,
                col=panel,
            )
    shown = spread.loc[spread["part"] == "histogram", "value"]
    figure.update_xaxes(title=style.escape(x), range=[shown.min(), shown.max()])
    figure.update_yaxes(title="tokens", col=1)
    figure.update_yaxes(title="share of tokens below", col=2)
    return look.finish(figure, title=title, note=f"{len(table):,} positions; 99 % of the values shown")


def rank_agreement(table: pd.DataFrame, *, title: str) -> go.Figure:
    """Do several quantities rank the tokens of a document alike? Rank correlation of every pair, one panel per source.

    Args:
        table: as of `frames.rank_agreement`.
        title: of the figure.

    Raises:
        ValueError: no rows, or a column is missing.
    """
    look.needed(table, ["source", "one", "other", "mean", "low", "high"])
    sources = list(dict.fromkeys(table["source"]))
    figure = look.panels(sources, shared_yaxes=True, horizontal_spacing=0.04)
    for column, source in enumerate(sources, 1):
        part = table[table["source"] == source]
        order = list(dict.fromkeys(part["one"]))
        wide = [part.pivot(index="one", columns="other", values=name) for name in ("mean", "low", "high")]
        mean, low, high = (each.loc[order, order].to_numpy() for each in wide)
        names = [look.quantity_name(name) for name in order]
        figure.add_heatmap(
            x=names,
            y=names,
            z=mean,
            zmin=-1,
            zmax=1,
            colorscale=style.SHARE_SCALE,
            text=mean,
            texttemplate="%{text:.2f}",
            customdata=np.stack([low, high], -1),
            hovertemplate="%{y}, %{x}: %{z:.2f} [%{customdata[0]:.2f}, %{customdata[1]:.2f}]<extra></extra>",
            colorbar={"title": "rank correlation"},
            showscale=column == len(sources),
            row=1,
            col=column,
        )
    figure.update_xaxes(title="quantity", tickangle=-30, showgrid=False)
    figure.update_yaxes(autorange="reversed", automargin=True, showgrid=False)
    figure.update_yaxes(title="quantity", col=1)
    note = f"{look.counted(table)}; within each document, averaged; 95 % intervals at the pointer"
    return look.finish(figure, title=title, note=note, height=480)
