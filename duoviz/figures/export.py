"""Figures as files: what is drawn as a table, a page that works offline, pictures for a paper."""

from __future__ import annotations

import base64
import html
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .. import style

PICTURES = (".svg", ".pdf", ".png")
ENDINGS = (".csv", ".html", ".json", *PICTURES)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
"""Of which one draws the pictures, where the environment variable BROWSER_PATH names none."""
SHOWN_INTERVAL = re.compile(r"\[%\{customdata\[(\d)\][^}]*\}, %\{customdata\[(\d)\]")
"""How the figures write an interval at the pointer."""


def drawn(figure: go.Figure) -> pd.DataFrame:
    """Exactly what a figure draws, as a tidy table; text as it reads on the screen.

    Columns: trace (the name in the legend), panel (its title), kind (`scatter`, `bar`, `box`, `heatmap`), x, y (of
    a box: its median), and where they exist: label (what the axis writes at x), value (of a heatmap's cell, one row each),
    low and high (ends of an error bar, a box's whiskers or an interval at the pointer), q1 and q3 (quartiles of a
    box), text (at the mark or the pointer).

    Raises:
        ValueError: a trace of another kind.
    """
    made, figure = [], go.Figure(_decoded(figure.to_dict()))
    for trace in figure.data:
        if trace.type not in KINDS:
            raise ValueError(f"a trace of kind {trace.type!r}: a table can be made of {', '.join(KINDS)}")
        table = KINDS[trace.type](trace)
        axis = _ticks(figure, trace.xaxis)
        if axis.ticktext is not None:
            names = dict(zip(np.asarray(axis.tickvals).tolist(), _read(axis.ticktext)))
            table["label"] = table["x"].map(names)
        made.append(
            table.assign(trace=html.unescape(trace.name or ""), panel=_panel(figure, trace.xaxis), kind=trace.type)
        )
    columns = ["trace", "panel", "kind", "x", "y", "label", "value", "low", "q1", "q3", "high", "text"]
    table = pd.concat(made, ignore_index=True) if made else pd.DataFrame(columns=columns[:5])
    return table[[column for column in columns if column in table]]


def write(figure: go.Figure, path: str | Path, *, width: int = 1000) -> Path:
    """Write a figure to a file; its ending says as what.

    `.csv`: the table of `drawn`. `.html`: one page with everything in it, which works offline. `.json`: the figure, for
    plotly. `.svg`, `.pdf`, `.png`: a picture with a white background, for which kaleido and a Chromium are needed.

    Args:
        figure: what is written.
        path: the file.
        width: of a picture, in pixels.

    Returns:
        The path.

    Raises:
        ValueError: another ending.
        ModuleNotFoundError: a picture without kaleido.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(
            f"{path.name!r}: a figure is written as one of {', '.join(ENDINGS)}; the file's name says which"
        )
    if ending in PICTURES:
        path.write_bytes(_picture(figure, ending.removeprefix("."), width))
    elif ending == ".csv":
        drawn(figure).to_csv(path, index=False)
    elif ending == ".html":
        figure.write_html(path, include_plotlyjs=True, config=style.CONFIG, div_id="figure")
    else:
        figure.write_json(path)
    return path


def _picture(figure: go.Figure, form: str, width: int) -> bytes:
    try:
        import kaleido
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"a figure as .{form} needs kaleido: pip install kaleido==1.5.0") from error
    white = {"paper_bgcolor": "#ffffff", "plot_bgcolor": "#ffffff", "font": {"color": "#333333"}}
    options = {"format": form, "width": width, "height": figure.layout.height}
    browser = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, BROWSERS)), None)
    found = {"path": browser} if browser else {}  # else kaleido looks for one, and says what to do where there is none
    return kaleido.calc_fig_sync(
        go.Figure(figure).update_layout(white), opts=options, kopts={"mathjax": False, **found}
    )


def _decoded(value: Any) -> Any:
    """Parts of a figure with their arrays, which plotly writes as base64."""
    if isinstance(value, dict) and "bdata" in value:
        array = np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"])
        return array.reshape([int(size) for size in value.get("shape", str(array.size)).split(",")])
    if isinstance(value, dict):
        return {name: _decoded(part) for name, part in value.items()}
    return [_decoded(part) for part in value] if isinstance(value, (list, tuple)) else value


def _points(trace: Any) -> pd.DataFrame:
    """Marks, lines or bars, with their error bars or the intervals at the pointer."""
    table = pd.DataFrame({"x": _read(trace.x), "y": _read(trace.y)})
    for axis in ("x", "y"):
        bars = trace[f"error_{axis}"]
        if bars.array is not None:
            table["low"] = np.asarray(trace[axis], float) - bars.arrayminus
            table["high"] = np.asarray(trace[axis], float) + bars.array
    if trace.text is not None and not isinstance(trace.text, str):
        table["text"] = _read(trace.text)
    return _with_interval(table, trace)


def _cells(trace: Any) -> pd.DataFrame:
    """One row for each cell of a heatmap."""
    values = np.asarray(trace.z)
    rows, columns = np.indices(values.shape)
    x, y = (
        np.arange(size) if at is None else np.array(_read(at)) for at, size in zip((trace.x, trace.y), values.T.shape)
    )
    table = pd.DataFrame({"x": x[columns.ravel()], "y": y[rows.ravel()], "value": values.ravel()})
    return _with_interval(table, trace)


def _boxes(trace: Any) -> pd.DataFrame:
    ends = {"low": trace.lowerfence, "q1": trace.q1, "q3": trace.q3, "high": trace.upperfence}
    return pd.DataFrame({"x": _read(trace.x), "y": trace.median, **ends})


def _with_interval(table: pd.DataFrame, trace: Any) -> pd.DataFrame:
    shown = SHOWN_INTERVAL.search(trace.hovertemplate or "")
    if shown is None or trace.customdata is None:
        return table
    held = np.asarray(trace.customdata).reshape(len(table), -1)
    return table.assign(low=held[:, int(shown[1])], high=held[:, int(shown[2])])


def _read(values: Iterable[Any]) -> list[Any]:
    """Values with escaped text as it reads."""
    plain = values.tolist() if isinstance(values, np.ndarray) else values
    return [html.unescape(value) if isinstance(value, str) else value for value in plain]


def _ticks(figure: go.Figure, axis: str | None) -> Any:
    """The x axis of a trace, or the one that it shares its labels with."""
    own = figure.layout["xaxis" + (axis or "x")[1:]]
    return figure.layout["xaxis" + own.matches[1:]] if own.matches and own.ticktext is None else own


def _panel(figure: go.Figure, axis: str | None) -> str:
    """The title of a trace's panel; panels and their titles are numbered alike."""
    titles = [note.text for note in figure.layout.annotations if note.xref == "paper" and note.text]
    number = int((axis or "x")[1:] or 1)
    several = len(list(figure.select_xaxes())) > 1
    return html.unescape(titles[number - 1]) if number <= len(titles) else str(number) if several else ""


KINDS = {"scatter": _points, "bar": _points, "box": _boxes, "heatmap": _cells}
"""How each kind of trace becomes a table."""
