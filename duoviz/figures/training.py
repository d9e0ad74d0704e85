"""Figures of training runs."""

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

RUNS = {
    "duo": ("Duo, one model", style.POLICY_COLOURS["router"], "solid"),
    "dense": ("dense, a model for each", style.POLICY_COLOURS["oracle"], "dot"),
}
BEGINNINGS = {
    "duo": ("from scratch", style.INK),
    "frozen-random": ("big frozen, small random", style.POLICY_COLOURS["null"]),
    "frozen-neurons": ("big frozen, small its neurons", style.POLICY_COLOURS["fixed"]),
    "frozen-distilled": ("the same, distilled", style.POLICY_COLOURS["label-free"]),
    "together": ("neurons, all trained", style.POLICY_COLOURS["oracle"]),
}
FEW = 12
"""Points up to which each is marked, so that a short log can be seen."""


def training_curves(log: pd.DataFrame) -> go.Figure:
    """How do big and small learn together? Holdout loss against training tokens, all big, all small and random routes, one
    panel per source; the training loss (random routes, all sources) in grey, where that was what was minimised. A log without
    holdout losses gives one panel with the training loss, and its note says so.

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
    if not len(known):
        return
    figure.add_scatter(
        x=known["tokens"],
        y=known[column].astype(float),
        name=name,
        mode="lines" if len(known) > FEW else "lines+markers",
        line=line,
        marker={"size": 5},
        **look.in_panel(panel, name),
    )


def equal_flops(table: pd.DataFrame, *, title: str = "One Duo model and dense models of equal FLOPs") -> go.Figure:
    """What does a model for every budget cost? Loss against the share of big layers, taken at random: one Duo model, and, where
    the table has them, dense models that were each trained for that number of FLOPs alone. A panel per source, each with its
    own scale; bars are 95 % intervals.

    Args:
        table: columns run (duo or dense), share, mflop, source, loss_nats with bounds, documents, positions.
        title: of the figure.

    Raises:
        ValueError: no rows, or a column is missing.

    Paper: arXiv 2410.10846, figure 8a, b.
    """
    look.needed(table, ["run", "share", "mflop", "source", "loss_nats", "loss_nats_low", "loss_nats_high"])
    figure, parts = look.by_source(table, one_scale=False, along="share")
    for column, _, inside in parts:
        for run, (label, colour, dash) in RUNS.items():
            part = inside[inside["run"] == run]
            if not len(part):
                continue
            figure.add_scatter(
                x=part["share"],
                y=part["loss_nats"],
                error_y=look.errors(part, "loss_nats", "loss_nats_low", "loss_nats_high"),
                customdata=part["mflop"],
                hovertemplate="%{x:.0%} big, %{customdata:.2f} MFLOP a token: %{y:.3f} nats",
                name=label,
                mode="lines+markers",
                line={"color": colour, "dash": dash},
                **look.in_panel(column, run),
            )
    figure.update_xaxes(title="share of big layers (FLOPs rise with it)", tickformat=".0%")
    figure.update_yaxes(title="loss (nats per token)", col=1)
    figure.update_layout(showlegend=table["run"].nunique() > 1)
    note = f"{look.counted(table)}; bars: 95 % intervals"
    return look.finish(figure, title=title, note=note)


def beginnings(curves: pd.DataFrame, *, policy: str = "small") -> go.Figure:
    """How should small FFNs begin? Holdout loss against training tokens, a line for each way; a panel per source.

    Args:
        curves: columns run (of `BEGINNINGS`), tokens, source, policy, loss_nats.
        policy: small (every layer small) or random (half of them).

    Raises:
        ValueError: no rows, or a column is missing.

    Paper: arXiv 2410.10846, figure 8c.
    """
    look.needed(curves, ["run", "tokens", "source", "policy", "loss_nats"])
    curves = curves[curves["policy"] == policy]
    figure, parts = look.by_source(curves, along="tokens")
    for column, _, inside in parts:
        for run, (label, colour) in BEGINNINGS.items():
            part = inside[inside["run"] == run]
            figure.add_scatter(
                x=part["tokens"],
                y=part["loss_nats"],
                name=label,
                mode="lines+markers",
                line={"color": colour, "dash": "dash" if run == "duo" else "solid"},
                marker={"size": 5},
                **look.in_panel(column, run),
            )
    figure.update_xaxes(title="training tokens with small FFNs")
    figure.update_yaxes(title="holdout loss (nats per token)", col=1)
    routes = {"small": "all small", "random": "half of the layers big, at random"}[policy]
    number = int(curves.groupby(["source", "run"]).size().max())
    note = (
        f"{number} evaluations of each line; what the dense model read before is not counted; no interval: one run each"
    )
    return look.finish(figure, title=f"How should small FFNs begin? Loss with {routes}", note=note)
