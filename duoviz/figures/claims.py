"""A forest plot of a page's claims, and tables behind a click."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .. import claims, style
from . import look

STATES = {
    claims.HOLDS: ("#009E73", "circle"),
    claims.OPEN: ("#888888", "circle-open"),
    claims.FAILS: ("#D55E00", "x"),
}
"""Colour and mark of each state; what cannot be said has no interval, and the ink's colour."""
UNSAID = (style.INK, "line-ns-open")
ROW, LETTER = 22, 6.4
"""Pixels of a line, and about those of a letter."""


def forest(table: pd.DataFrame, *, title: str = "What holds?") -> go.Figure:
    """Which claims hold? Each claim is a line of text above a row for each source: a dot at its mean with its 95 % interval,
    green and filled where it holds, grey and open where it is undecided, a vermilion cross where it does not hold; the numbers
    stand to the right. It holds right of the line at 0. A triangle marks what the paper says. One panel for each unit.

    Args:
        table: as of `claims.table`.
        title: of the figure.

    Raises:
        ValueError: no rows, or a column is missing.
    """
    look.needed(
        table, ["claim", "source", "paper", "state", "mean", "low", "high", "unit", "p", "documents", "positions"]
    )
    units = list(dict.fromkeys(table["unit"]))
    parts = [_placed(table[table["unit"] == unit]) for unit in units]
    counts = [int(part.index[-1]) + 1 for part in parts]
    lines = sum(counts)
    left = 24 + LETTER * max(map(len, table["source"]))
    figure = look.panels([""] * len(units), rows=len(units), cols=1, vertical_spacing=0)
    gap = 58 / (58 * (len(units) - 1) + ROW * lines)  # room for an axis below each panel
    bottom = 1.0
    shown: set[str] = set()
    for row, (unit, part) in enumerate(zip(units, parts), 1):
        _marks(figure, part, row, shown)
        _texts(figure, part, row, left)
        height = (1 - gap * (len(units) - 1)) * counts[row - 1] / lines
        figure.update_yaxes(
            tickvals=list(part.index),
            ticktext=[f"<i>{style.escape(source)}</i>" for source in part["source"]],
            automargin=False,
            range=[counts[row - 1] - 0.5, -0.5],
            domain=[max(0.0, bottom - height), bottom],
            zeroline=False,
            showgrid=False,
            showline=False,
            row=row,
            col=1,
        )
        figure.update_xaxes(title=style.escape(unit), row=row, col=1, zeroline=False, showgrid=False)
        figure.add_vline(x=0, line={"color": style.INK, "width": 1.5}, row=row, col=1)
        bottom -= height + gap
    corrected = f"states after Holm's correction over {len(table)} claims" if len(table) > 1 else "one claim"
    paper = "; ▸ the paper says so" if table["paper"].any() else ""
    note = f"{_counted(table)}; bars: 95 % intervals; {corrected}{paper}"
    height = 190 + ROW * lines + 58 * (len(units) - 1)
    figure = look.finish(figure, title=title, note=note, height=height)
    legend = {"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom", "x": 0}
    return figure.update_layout(
        margin={"r": 180, "b": 90, "l": left}, legend=legend, title={"xref": "container", "x": 0.02}
    )


def _marks(figure: go.Figure, part: pd.DataFrame, row: int, shown: set[str]) -> None:
    """The claims of one panel, with their numbers to the right; `shown` are the states that the legend has."""
    for state, group in part.groupby("state", sort=False):
        kind = str(state).partition(" (")[0]
        colour, mark = STATES.get(kind, UNSAID)
        figure.add_scatter(
            x=group["mean"],
            y=group.index,
            error_x=look.errors(group, "mean", "low", "high", colour=colour),
            mode="markers",
            marker={"symbol": mark, "size": 10, "color": colour, "line": {"width": 2, "color": colour}},
            name=kind,
            legendgroup=kind,
            showlegend=kind not in shown,
            text=[_about(one) for one in group.to_dict("records")],
            hovertemplate="%{text}<extra></extra>",
            row=row,
            col=1,
        )
        shown.add(kind)


def _placed(part: pd.DataFrame) -> pd.DataFrame:
    """The claims of one panel, indexed by their lines: a line is left free above the first row of each."""
    begins = part["claim"] != part["claim"].shift()
    return part.set_axis(np.arange(len(part)) + begins.cumsum())


def _texts(figure: go.Figure, part: pd.DataFrame, row: int, left: float) -> None:
    """The text of each claim above its rows, from the figure's left edge on, and the numbers to the right of them."""
    number, last = str(row) if row > 1 else "", None
    ways = {"xref": f"x{number} domain", "yref": f"y{number}", "showarrow": False, "xanchor": "left"}
    for line, one in part.iterrows():
        if one["claim"] != last:
            text = f"{'▸ ' if one['paper'] else ''}{style.escape(one['claim'])}"
            figure.add_annotation(text=text, x=0, xshift=12 - left, y=line - 1, **ways)
        text = f"{one['mean']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
        figure.add_annotation(text=text, x=1.01, y=line, **ways)
        last = one["claim"]


def _about(row: dict[Hashable, Any]) -> str:
    """What the pointer shows."""
    about = style.escape(f"{row['claim']} {row['source']}")
    counted = f"{row['documents']} documents, {row['positions']:,} positions"
    return f"{about}<br>{row['state']}, p = {row['p']:.2g} by itself<br>{counted}"


def _counted(table: pd.DataFrame) -> str:
    """How many documents the claims rest on."""
    low, high = int(table["documents"].min()), int(table["documents"].max())
    return f"{low} documents" if low == high else f"{low} to {high} documents"


@dataclass(frozen=True)
class Folded:
    """A table that is shown when its title is clicked on, and printed whole where there is nothing to click."""

    table: pd.DataFrame
    title: str

    def __repr__(self) -> str:
        return f"{self.title}\n{self.table.to_string(index=False)}"

    def _repr_html_(self) -> str:
        # a row of the table is a line, so that a saved page can be compared with another line by line
        rows = re.sub(r"\n\s*(?=<t[dh]|</tr)", "", self.table.to_html(index=False, border=0))
        return f"<details><summary>{style.escape(self.title)}</summary>{rows}</details>"


def folded(table: pd.DataFrame, title: str, *, digits: int = 3) -> Folded:
    """A table behind a click, its numbers rounded; what is in its index is shown too, if it has names."""
    if any(table.index.names):
        table = table.reset_index()
    return Folded(table.round(digits), title)
