"""Shared by all figures: template, panels, notes, names of policies, and the check of a table's columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .. import style

NAMES = {
    "null": "null control (sampled targets)",
    "sampled": "null control's routes on true targets",
    "random-100": "best of 100 random",
    "fixed": "best fixed route",
    "label-free, mean teacher": "label-free (teacher: mean over routes)",
    "agree_big": "keeps all big's likeliest token",
    "entropy": "least entropy",
}
QUANTITIES = {
    "small_nats": "loss, all small",
    "small_minus_big_nats": "all small - all big",
    "label_free_difficulty_nats": "label-free difficulty",
}
"""Columns whose name alone does not say what they are."""
SOURCES = (("circle", "#D55E00"), ("square", "#0072B2"), ("diamond", "#009E73"), ("cross", "#CC79A7"))
"""Mark and colour of the first, second, ... source where a figure tells sources, not policies, apart."""
NAMED = 300
"""Tokens up to which an axis names each."""


_AXIS = {"automargin": True, "title": {"standoff": 15}, "zerolinewidth": 2}
TEMPLATE = {"layout": {"hovermode": "closest", "autotypenumbers": "strict", "xaxis": _AXIS, "yaxis": _AXIS}}
"""What figures take of plotly's own template; the whole is larger than most of them, in every saved notebook."""


def needed(table: pd.DataFrame, columns: Iterable[str]) -> None:
    """Check that a table has rows and the columns a figure draws.

    Raises:
        ValueError: if not, with what it has.
    """
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(f"a table without {missing}: this figure draws {list(columns)}, the table has {list(table)}")
    if not len(table):
        raise ValueError(f"a table of no rows: there is nothing to draw of {list(columns)}")


def finish(figure: go.Figure, *, title: str, note: str = "", height: int = 420) -> go.Figure:
    """Title with a note below it, transparent background, grey inks; room above for the titles of panels."""
    subtitle = {"text": style.escape(note), "font": {"size": 12}} if note else None
    figure.layout.template = TEMPLATE  # assigned, because an update is merged into plotly's own
    figure.update_layout(
        title={
            "text": style.escape(title),
            "subtitle": subtitle,
            "x": 0.0,
            "xref": "paper",
            "y": 1.0,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 16},
            "font": {"size": 16},
        },
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "Helvetica, Arial, sans-serif", "size": 13, "color": style.INK},
        height=height,
        margin={"l": 70, "r": 20, "t": 96, "b": 60},
        legend={"orientation": "v"},
        hoverlabel={"font": {"family": "monospace"}},
    )
    axes = {"gridcolor": style.LINE, "zerolinecolor": style.LINE, "linecolor": style.LINE, "title_font_size": 14}
    figure.update_xaxes(**axes)
    figure.update_yaxes(**axes)
    return figure.update_annotations(font={"size": 13})


def nothing(*, title: str, note: str, height: int = 440) -> go.Figure:
    """A figure that holds its place and says in its note why it is empty."""
    figure = finish(go.Figure(), title=title, note=note, height=height)
    return figure.update_xaxes(visible=False).update_yaxes(visible=False)


def counted(table: pd.DataFrame) -> str:
    """How much a summary rests on."""
    parts = table[["source", "documents", "positions"]].drop_duplicates("source")
    if len(parts) > 1 and len(parts[["documents", "positions"]].drop_duplicates()) == 1:
        return f"{parts['documents'].iloc[0]} documents, {parts['positions'].iloc[0]:,} positions each"
    return "; ".join(f"{r.source}: {r.documents} documents, {r.positions:,} positions" for r in parts.itertuples())


def panels(titles: Sequence[str], *, rows: int = 1, cols: int | None = None, **options: Any) -> go.Figure:
    """Panels with their titles, side by side unless `rows` says otherwise."""
    shape = {"rows": rows, "cols": cols or len(titles)}
    return make_subplots(**shape, subplot_titles=[style.escape(title) for title in titles], **options)


def by_source(
    table: pd.DataFrame, *, one_scale: bool = True, along: str | None = None, **options: Any
) -> tuple[go.Figure, list[tuple[int, str, pd.DataFrame]]]:
    """A panel for each source of a table, side by side, on one scale or each with its own; and each panel's column, its source
    and the rows of that, in the order of a column if it is named."""
    sources = list(dict.fromkeys(table["source"]))
    ways = {"shared_yaxes": one_scale, "horizontal_spacing": 0.04 if one_scale else 0.07, **options}
    rows = table if along is None else table.sort_values(along)
    parts = [(column, source, rows[rows["source"] == source]) for column, source in enumerate(sources, 1)]
    return panels(sources, **ways), parts


def in_panel(column: int, group: str) -> dict[str, Any]:
    """Places a trace in a panel of `by_source`; the legend has one entry for all traces of a group."""
    return {"legendgroup": group, "showlegend": column == 1, "row": 1, "col": column}


def token_ticks(pieces: Sequence[str], places: np.ndarray, *, title: str) -> dict[str, Any]:
    """An axis that names the token at each place; of a long text the place only: a browser takes 48 s to draw 2,048 names."""
    named = {"tickvals": places, "ticktext": [style.token_text(piece, limit=12) for piece in pieces], "tickangle": -90}
    axis = {"tickfont": {"size": 10, "family": "monospace"}, "title": title}
    return axis | named if len(pieces) <= NAMED else {"title": f"{title} (position)"}


def layer_step(layers: int) -> int:
    """Layers from one tick to the next where a panel is low."""
    return 3 * -(-layers // 16)


def policy_name(policy: str) -> str:
    """A policy's name in a legend, escaped."""
    name, replayed, _ = policy.partition(", replayed")
    return style.escape(NAMES.get(policy, NAMES.get(name, name) + replayed))


def quantity_name(column: str) -> str:
    """A column's name in a legend or at an axis, without its unit, escaped."""
    return style.escape(QUANTITIES.get(column, column.removesuffix("_nats").replace("_", " ")))


def quantity_axis(column: str) -> str:
    """A column's name with its unit, escaped."""
    return f"{quantity_name(column)} (nats)" if column.endswith("_nats") else quantity_name(column)


def policy_line(figure: go.Figure, policy: str, *, name: str, column: int, shown: bool, **data: Any) -> None:
    """A policy's line with its marks in one panel; the null control's is dotted, because its targets are others.

    Args:
        figure: panels in one row.
        policy: gives colour, mark and dash.
        name: in the legend, escaped.
        column: of the panel.
        shown: whether the legend has an entry for it; panels share their entries.
        **data: x, y and error_y.
    """
    figure.add_scatter(
        name=name,
        mode="lines+markers",
        line={"color": style.policy_colour(policy), "dash": "dot" if policy == "null" else "solid"},
        marker={"symbol": style.policy_mark(policy), "size": 8},
        legendgroup=policy,
        showlegend=shown,
        row=1,
        col=column,
        **data,
    )


def errors(part: pd.DataFrame, mean: str, low: str, high: str, *, colour: str | None = None) -> dict[str, Any]:
    """Error bars from a mean and its bounds."""
    bars = {"array": part[high] - part[mean], "arrayminus": part[mean] - part[low]}
    return bars | ({"color": colour} if colour else {})


def dots(figure: go.Figure, part: pd.DataFrame, names: Sequence[str], *, number: int, value: str, **place: Any) -> None:
    """A source's means with their intervals, to the right, one below the other.

    Args:
        figure: to which they are added.
        part: rows of one source, with its name and the value with its bounds, `<value>_low` and `<value>_high`.
        names: of the rows, escaped.
        number: of the source, for its mark and colour.
        value: column that is drawn.
        **place: row and column, legend.
    """
    symbol, colour = SOURCES[number % len(SOURCES)]
    figure.add_scatter(
        x=part[value],
        y=names,
        name=style.escape(part["source"].iloc[0]),
        mode="markers",
        orientation="h",  # so that the marks of several sources in one row are drawn beside each other
        marker={"symbol": symbol, "size": 10, "color": colour},
        error_x=errors(part, value, f"{value}_low", f"{value}_high"),
        **place,
    )
