"""How the model was trained."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from .. import style
from . import look

POLICIES = {
    "small": ("all small", style.CHOICE_COLOURS[1], "dot"),
    "random": ("random routes", style.POLICY_COLOURS["label-free"], "dash"),
    "big": ("all big", style.CHOICE_COLOURS[2], "solid"),
}

FEW = 12
"""Points up to which each is marked, so that a short log can be seen."""


def training_curves(log: pd.DataFrame) -> go.Figure:
    """How do big and small learn together? Holdout loss against training tokens, all big, all small and random routes, one
    panel per source; the training loss (random routes, all sources) in grey. A log without holdout losses gives one panel
    with the training loss, and its note says so.

    Args:
        log: columns tokens, loss, `eval_<source>_<big|small|random>`; NaN where a row holds only the other kind.

    Raises:
        ValueError: no rows, or no column of tokens or loss.
    """
    look.needed(log, ["tokens", "loss"])
    held = [c for c in log if c.startswith("eval_") and c.endswith("_big")]
    sources = [c.removeprefix("eval_").removesuffix("_big") for c in held]
    figure = look.panels(sources or ["training"], shared_yaxes=True, horizontal_spacing=0.04)
    for column, source in enumerate(sources or [None], 1):
        _line(figure, log, "loss", column, name="training loss", line={"color": style.INK, "width": 1})
        for policy, (label, colour, dash) in POLICIES.items():
            if f"eval_{source}_{policy}" in log:
                line = {"color": colour, "dash": dash}
                _line(figure, log, f"eval_{source}_{policy}", column, name=label, line=line)
    figure.update_xaxes(title="training tokens")
    figure.update_yaxes(title="loss (nats per token)", col=1)
    if not sources:
        return look.finish(
            figure, title="Stage 1: loss while training with random routes", note="this log holds no holdout losses"
        )
    number = int(log[held[0]].notna().sum())
    return look.finish(
        figure,
        title="Stage 1: holdout loss while training with random routes",
        note=f"{number} evaluations per source; no interval: one run",
    )


def _line(figure: go.Figure, log: pd.DataFrame, column: str, panel: int, *, name: str, line: dict) -> None:
    known = log.dropna(subset=[column])
    figure.add_scatter(
        x=known["tokens"],
        y=known[column].astype(float),
        name=name,
        mode="lines" if len(known) > FEW else "lines+markers",
        line=line,
        marker={"size": 5},
        legendgroup=name,
        showlegend=panel == 1,
        row=1,
        col=panel,
    )
