"""Figures of tokens: which are hard, and which of them compute helps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
SLICED = {
    "class": ("class", "class of the predicted token"),
    "position": ("position", "position in the text"),
    "loss": ("loss", "fifths of the tokens by loss"),
    "frequency": ("in 10,000", "occurrences of the predicted token in 10,000"),
}
"""What the slices of `frames.slices` are, at the axis and in the note."""
COUNTED = {0: 0.0, 1: 0.2, 3: 0.4, 10: 0.6, 30: 0.8}
"""How opaque a cell with so many tokens is; the fullest is wholly. In steps of a factor, for counts differ by factors."""
PALETTE = ("#D55E00", "#CC79A7", "#009E73", "#0072B2", "#7A6A38", "#419AD9")


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
    figure, pieces = go.Figure(), [style.token_text(piece) for piece in table["target"]]
    for column in [c for c in table if c.endswith("_nats")]:
        name = column.removesuffix("_nats")
        dash = "dot" if name in ("null", "label_free") else "solid"
        figure.add_scatter(
            x=table["position"],
            y=table[column].astype(np.float32),
            name=style.escape(name.replace("_", "-")),
            mode="lines+markers",
            line={"color": COLOURS.get(name, style.INK), "dash": dash, "width": 1.5},
            marker={"size": 5},
            text=pieces if not figure.data else None,
            hovertemplate="%{y:.2f} nats" if figure.data else "%{y:.2f} nats on %{text}",
        )
    first, shown = int(table["position"].iloc[0]), min(window, len(table))
    figure.update_xaxes(
        **look.token_ticks(list(table["target"]), table["position"].to_numpy(), title="predicted token"),
        range=[first - 0.5, first + shown - 0.5],
        showgrid=False,
    )
    figure.update_yaxes(title="loss (nats)", rangemode="tozero")
    more = "; drag for more" if shown < len(table) else ""
    note = f"document {table['document'].iloc[0]}, first {shown} of {len(table)} positions{more}"
    figure = look.finish(figure, title=title, note=note, height=480)
    return figure.update_layout(hovermode="x unified", dragmode="pan", margin={"b": 120})


def distribution(table: pd.DataFrame, columns: Sequence[str], *, x: str, title: str) -> go.Figure:
    """How is a quantity spread over tokens? Left a histogram, right the share of tokens below each value; the legend
    says how many tokens each line rests on. The axis leaves out the outermost half per cent on each side.

    Args:
        table: one row per position; what is drawn is `frames.distribution` of the columns.
        columns: `<name>_nats`; or names as they are, for example those of `table.pivot(columns="class", values=...)`.
        x: what the axis shows, with its unit.
        title: of the figure.

    Raises:
        ValueError: no rows, or a column is missing or holds no number.
    """
    look.needed(table, columns)
    spread = frames.distribution(table, columns)
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.1)
    for number, column in enumerate(columns):
        dash = "solid" if number < len(PALETTE) else "dash"
        for panel, (part, shape) in enumerate((("histogram", "hv"), ("below", "linear")), 1):
            points = spread[(spread["quantity"] == column) & (spread["part"] == part)]
            figure.add_scatter(
                x=points["value"],
                y=points["amount"],
                name=f"{look.quantity_name(column)} (n = {points['positions'].iloc[0]:,})",
                mode="lines",
                line={"color": PALETTE[number % len(PALETTE)], "shape": shape, "dash": dash},
                legendgroup=column,
                showlegend=panel == 1,
                row=1,
                col=panel,
            )
    known, shown = int(table[columns].notna().any(axis=1).sum()), spread.loc[spread["part"] == "histogram", "value"]
    figure.update_xaxes(title=style.escape(x), range=[shown.min(), shown.max()])
    figure.update_yaxes(title="tokens", col=1)
    figure.update_yaxes(title="share of tokens below", col=2)
    return look.finish(figure, title=title, note=f"{known:,} positions; 99 % of the values shown")


def ridges(table: pd.DataFrame, by: str, *, x: str, title: str) -> go.Figure:
    """Which kinds of token have high values? A hill for each kind, as high as its tokens are dense there; below it a bar from
    the first to the third quartile with a dot at the median, whose number stands to the right. One panel per source, one scale.

    Args:
        table: as of `frames.ridges`.
        by: the column of the kinds.
        x: what the axis shows, with its unit.
        title: of the figure.

    Raises:
        ValueError: no rows, or a column is missing.
    """
    look.needed(table, ["source", by, "value", "density", "median", "q1", "q3", "positions"])
    kinds, highest = list(dict.fromkeys(table[by])), float(table["density"].max())
    figure, parts = look.by_source(table, shared_xaxes=True, horizontal_spacing=0.1)
    for column, _, inside in parts:
        figure.add_vline(x=0, line={"color": style.INK, "width": 1}, row=1, col=column)
        for number, kind in enumerate(kinds):
            if len(part := inside[inside[by] == kind]):
                _hill(figure, part, kind, floor=len(kinds) - 1 - number, highest=highest, number=number, column=column)
    figure.update_yaxes(tickvals=list(range(len(kinds)))[::-1], ticktext=[style.escape(kind) for kind in kinds])
    figure.update_yaxes(range=[-0.4, len(kinds)], showgrid=False, zeroline=False)
    figure.update_yaxes(title=style.escape(by), col=1)
    figure.update_xaxes(title=style.escape(x))
    counted = table.drop_duplicates(["source", by]).groupby("source", sort=False)["positions"].sum()
    note = "; ".join(f"{source}: {number:,} positions" for source, number in counted.items())
    note = f"{note}; bars: first to third quartile, dots and numbers: medians"
    return look.finish(figure, title=title, note=note, height=170 + 62 * len(kinds))


def _hill(
    figure: go.Figure, part: pd.DataFrame, kind: str, *, floor: int, highest: float, number: int, column: int
) -> None:
    """The density of one kind above its floor, its quartiles below, and its median as a number."""
    colour, one = PALETTE[number % len(PALETTE)], part.iloc[0]
    shared = {"row": 1, "col": column, "showlegend": False}
    figure.add_scatter(
        # arrays of float32 are a third of what numbers written out take in a saved notebook
        x=np.concatenate([part["value"], part["value"][::-1]]).astype(np.float32),
        y=np.concatenate([floor + 0.75 * part["density"] / highest, np.full(len(part), floor)]).astype(np.float32),
        mode="lines",
        fill="toself",
        line={"color": colour, "width": 1.5},
        hoverinfo="skip",
        name=style.escape(kind),
        **shared,
    )
    figure.add_scatter(
        x=[one["q1"], one["median"], one["q3"]],
        y=[floor - 0.1] * 3,
        mode="lines+markers",
        line={"color": colour, "width": 3},
        marker={"color": colour, "size": [0, 9, 0]},
        name=style.escape(f"{kind}: quartiles"),
        hovertemplate="%{x:.2f}",
        **shared,
    )
    axis = "" if column == 1 else str(column)
    where = {"x": 1, "xref": f"x{axis} domain", "xanchor": "right", "y": floor + 0.3, "yref": f"y{axis}"}
    figure.add_annotation(text=f"<b>{one['median']:.2f}</b>  n = {one['positions']:,}", showarrow=False, **where)


def agreement(table: pd.DataFrame, *, title: str, of: str = "quantity", measure: str = "rank correlation") -> go.Figure:
    """Do several quantities rank the tokens of a document alike, or several policies choose alike? A number for every pair, one
    panel per source.

    Args:
        table: as of `frames.rank_agreement` or `frames.route_agreement`.
        title: of the figure.
        of: what is compared.
        measure: what the numbers are.

    Raises:
        ValueError: no rows, or a column is missing.
    """
    look.needed(table, ["source", "one", "other", "mean", "low", "high"])
    figure, parts = look.by_source(table)
    for column, _, part in parts:
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
            colorscale=style.DIVERGING_SOLID,
            text=mean,
            texttemplate="%{text:.2f}",
            customdata=np.stack([low, high], -1),
            hovertemplate="%{y}, %{x}: %{z:.2f} [%{customdata[0]:.2f}, %{customdata[1]:.2f}]<extra></extra>",
            colorbar={"title": measure},
            showscale=column == len(parts),
            row=1,
            col=column,
        )
    figure.update_xaxes(title=of, tickangle=-30, showgrid=False)
    figure.update_yaxes(autorange="reversed", automargin=True, showgrid=False)
    figure.update_yaxes(title=of, col=1)
    note = f"{look.counted(table)}; within each document, averaged; 95 % intervals at the pointer"
    return look.finish(figure, title=title, note=note, height=480)


def slices(table: pd.DataFrame, value: str, *, title: str) -> go.Figure:
    """Which kinds of token stand out? A dot with its 95 % interval for each slice, one panel per source; beside a slice's
    name the number of its tokens. A slice that lies in a single document has no interval.

    Args:
        table: as of `frames.slices`.
        value: which of its values.
        title: of the figure.

    Raises:
        ValueError: no rows, or a column is missing.
    """
    look.needed(table, ["source", "by", "slice", value, f"{value}_low", f"{value}_high", "positions", "documents"])
    parts = dict(list(table.groupby("source", sort=False, observed=True)))
    sizes = [len(part) for part in parts.values()]
    figure = look.panels(
        list(parts),
        rows=len(parts),
        cols=1,
        row_heights=sizes,
        shared_xaxes=True,
        vertical_spacing=min(0.5, 30 / sum(sizes) / 28),
    )
    for number, part in enumerate(parts.values()):
        names = [f"{style.escape(r.slice)} (n = {r.positions:,})" for r in part.itertuples()]
        look.dots(figure, part, names, number=number, value=value, row=number + 1, col=1, showlegend=False)
    figure.update_xaxes(title=look.quantity_axis(value), row=len(parts))
    axis, by = SLICED[table["by"].iloc[0]]
    figure.update_yaxes(autorange="reversed", title=axis)
    totals = table.groupby("source", sort=False, observed=True).agg({"documents": "max", "positions": "sum"})
    note = f"{look.counted(totals.reset_index())}; by {by}; bars: 95 % intervals"
    return look.finish(figure, title=title, note=note, height=160 + 30 * len(parts) + 28 * sum(sizes))


def difficulty_against_loss(table: pd.DataFrame, *, title: str) -> go.Figure:
    """Are the tokens with a high loss those that compute helps? Difficulty against the loss with all layers small, coloured
    where tokens are (`frames.density`), one panel per source; the line joins the medians of the tenths of the tokens by
    loss (`frames.medians`). No difficulty lies above the dotted line, where the oracle's routes take all of the loss away.

    Args:
        table: columns source, document, small_nats, difficulty_nats (`frames.difficulty`).
        title: of the figure.

    Raises:
        ValueError: no rows, or a column is missing.

    Paper: arXiv 2410.10846, figures 5 and 6.
    """
    look.needed(table, ["source", "document", "small_nats", "difficulty_nats"])
    middle = frames.medians(table, x="small_nats", y="difficulty_nats")
    cells = frames.density(table, x="small_nats", y="difficulty_nats")
    end, most = float(cells["small_nats"].max()), int(cells["positions"].max())
    figure, parts = look.by_source(table, shared_xaxes=True)
    for column, source, _ in parts:
        line = middle[middle["source"] == source]
        grid = cells[cells["source"] == source].pivot(index="difficulty_nats", columns="small_nats", values="positions")
        figure.add_heatmap(
            x=grid.columns.to_numpy(np.float32),
            y=grid.index.to_numpy(np.float32),
            z=grid.to_numpy(np.int16),
            zmin=0,
            zmax=most,
            colorscale=_counted_colours(most),
            colorbar={"title": "tokens", "thickness": 12, "len": 0.6, "y": 0, "yanchor": "bottom"},
            showscale=column == 1,
            hovertemplate="loss %{x:.2f}, difficulty %{y:.2f}: %{z} tokens<extra></extra>",
            row=1,
            col=column,
        )
        figure.add_scatter(
            x=line["small_nats"],
            y=line["difficulty_nats"],
            name="median of each tenth",
            mode="lines+markers",
            line={"color": COLOURS["oracle"], "width": 2.5},
            **look.in_panel(column, "median"),
        )
        bound = {"mode": "lines", "line": {"color": style.INK, "width": 1, "dash": "dot"}}
        bound |= look.in_panel(column, "bound")
        figure.add_scatter(x=[0, end], y=[0, end], name="all of the loss", **bound)
    figure.update_xaxes(title=look.quantity_axis("small_nats"))
    figure.update_xaxes(range=[0, end], showgrid=False)
    figure.update_yaxes(range=[cells["difficulty_nats"].min(), cells["difficulty_nats"].max()], showgrid=False)
    figure.update_yaxes(title=look.quantity_axis("difficulty_nats"), col=1)
    totals = [
        {"source": source, "documents": part["document"].nunique(), "positions": len(part)} for _, source, part in parts
    ]
    note = f"{look.counted(pd.DataFrame(totals))}; 99 % of the values shown"
    return look.finish(figure, title=title, note=note, height=460)


def _counted_colours(most: int) -> list[list[Any]]:
    """A colour scale of counts up to the largest."""
    steps = {number: alpha for number, alpha in COUNTED.items() if number < most} | {most: 1.0}
    return [[number / most, f"rgba(0,114,178,{alpha})"] for number, alpha in steps.items()]
