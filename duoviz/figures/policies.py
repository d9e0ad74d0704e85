"""Figures that compare policies: losses, gains and gaps over the budget."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .. import style
from . import look

AXES = {"perplexity": "perplexity", "loss_nats": "loss (nats per token)"}


def budget_curve(
    summary: pd.DataFrame, *, y: str = "perplexity", title: str = "Perplexity against big layers"
) -> go.Figure:
    """How good is each policy with k big layers per token? One panel per source, each with its own scale; bars are 95 %
    intervals of the difference to all big, which is the level line (of the oracle, in its first context). Where a policy
    comes in several contexts, the first is solid, the others have other dashes and open marks; the null control is dotted,
    because its targets are others.

    Args:
        summary: as of `frames.curve_summary`.
        y: `perplexity` or `loss_nats`.
        title: of the figure.

    Raises:
        ValueError: another y, no rows, or a column is missing.

    Paper: arXiv 2410.10846, figure 4b.
    """
    if y not in AXES:
        raise ValueError(f"y={y!r}: allowed are {list(AXES)}")
    look.needed(summary, ["source", "policy", "context", "budget", "realised_big", y, "apart_low", "apart_high"])
    figure, parts = look.by_source(summary, one_scale=False)
    for column, _, inside in parts:
        seen = dict.fromkeys(summary["policy"], 0)
        for (policy, context), group in inside.groupby(["policy", "context"], sort=False, observed=True):
            several = inside.loc[inside["policy"] == policy, "context"].nunique() > 1
            name = look.policy_name(policy) + (f", {style.escape(context)}" if several else "")
            dashes = ("dot", "longdashdot") if policy == "null" else ("solid", "dash", "dashdot")
            place = min(seen[policy], len(dashes) - 1)
            seen[policy] += 1
            mark = style.policy_mark(policy)
            marks = (mark, f"{mark.removesuffix('-open')}-open", f"{mark.removesuffix('-open')}-open-dot")
            part = group.sort_values("realised_big")
            ends = part[["apart_low", "apart_high"]]
            bars = part.assign(**(np.exp(ends) if y == "perplexity" else ends))
            colour = style.policy_colour(policy)
            figure.add_scatter(
                x=part["realised_big"],
                y=part[y],
                error_y={**look.errors(bars, y, "apart_low", "apart_high"), "thickness": 1, "width": 2},
                name=name,
                mode="lines+markers",
                line={"color": colour, "dash": dashes[place]},
                marker={"symbol": marks[place], "size": 7},
                **look.in_panel(column, name),
            )
        _level(figure, inside[inside["policy"] == "oracle"], y, column=column)
    figure.update_xaxes(title="big layers per token (realised)")
    figure.update_yaxes(title=AXES[y], col=1)
    note = f"{look.counted(summary)}; bars: 95 % intervals of the difference to all big (level line)"
    return look.finish(figure, title=title, note=note, height=460)


def _level(figure: go.Figure, oracle: pd.DataFrame, y: str, *, column: int) -> None:
    """A level line at the oracle's last budget, all big, in its first context."""
    if len(oracle):
        first = oracle[oracle["context"] == oracle["context"].iloc[0]].sort_values("budget")
        line = {"dash": "dot", "color": style.INK, "width": 1.5}
        figure.add_hline(y=float(first[y].iloc[-1]), line=line, row=1, col=column)


def policy_bars(summary: pd.DataFrame, *, title: str) -> go.Figure:
    """How do the policies compare at one budget? One panel per source, each with its own scale, one bar per policy with
    its 95 % interval.

    Args:
        summary: rows of `frames.curve_summary` at one budget.
        title: of the figure.

    Raises:
        ValueError: no rows, or a column is missing.

    Paper: arXiv 2410.10846, figure 4a.
    """
    look.needed(summary, ["source", "policy", "perplexity", "perplexity_low", "perplexity_high"])
    figure, parts = look.by_source(summary, one_scale=False)
    for column, source, part in parts:
        figure.add_bar(
            x=[look.policy_name(policy) for policy in part["policy"]],
            y=part["perplexity"],
            name=style.escape(source),
            error_y=look.errors(part, "perplexity", "perplexity_low", "perplexity_high", colour=style.INK),
            marker={"color": [style.policy_colour(policy) for policy in part["policy"]]},
            showlegend=False,
            row=1,
            col=column,
        )
    figure.update_xaxes(title="policy", tickangle=-30)
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title="perplexity", col=1)
    return look.finish(figure, title=title, note=f"{look.counted(summary)}; bars: 95 % intervals", height=460)


def gain_curve(gains: pd.DataFrame, *, title: str = "How much of the oracle's gain is luck?") -> go.Figure:
    """What is left of the oracle's gain over all big when the target is a token the model made up itself? Gain against big
    layers; where the null control lies on the oracle, the oracle has found nothing about the text.

    Args:
        gains: as of `frames.gains`.
        title: of the figure.

    Raises:
        ValueError: no rows, or a column is missing.
    """
    look.needed(gains, ["source", "policy", "budget", "gain_nats", "low_nats", "high_nats"])
    named: set[str] = set()
    figure, parts = look.by_source(gains)
    for column, _, inside in parts:
        for policy in dict.fromkeys(inside["policy"]):
            part = inside[inside["policy"] == policy]
            bars = look.errors(part, "gain_nats", "low_nats", "high_nats")
            data = {"x": part["budget"], "y": part["gain_nats"], "error_y": bars}
            name = look.policy_name(policy)
            look.policy_line(figure, policy, name=name, column=column, shown=policy not in named, **data)
            named.add(policy)
    figure.add_hline(y=0, line={"color": style.INK, "width": 1})
    figure.update_xaxes(title="big layers per token")
    figure.update_yaxes(title="gain over all big (nats per token)", col=1)
    return look.finish(figure, title=title, note=f"{look.counted(gains)}; bars: 95 % intervals", height=440)


def gap_closed(gaps: pd.DataFrame, *, title: str = "How much of the gap do the routers close?") -> go.Figure:
    """How far does a router get from the best fixed route (0) towards the oracle (1), and towards the label-free policy,
    which also does without the answer? One panel per source; bars are 95 % intervals; a point is missing where the gap
    itself may be 0.

    Args:
        gaps: as of `frames.gaps`.
        title: of the figure.

    Raises:
        ValueError: no rows, or a column is missing.
    """
    kinds: dict[str, tuple[str, str]] = {
        "gap_closed": ("oracle", "towards the oracle"),
        "label_free_gap_closed": ("label-free", "towards the label-free policy"),
    }
    bounds = [f"{kind}{end}" for kind in kinds for end in ("", "_low", "_high")]
    look.needed(gaps, ["source", "realised_big", *bounds])
    figure, parts = look.by_source(gaps, along="realised_big")
    for column, _, part in parts:
        for mean, (policy, label) in kinds.items():
            bars = look.errors(part, mean, f"{mean}_low", f"{mean}_high")
            data = {"x": part["realised_big"], "y": part[mean], "error_y": bars}
            look.policy_line(figure, policy, name=label, column=column, shown=column == 1, **data)
    for level in (0, 1):
        figure.add_hline(y=level, line={"color": style.INK, "width": 1, "dash": "dot" if level else "solid"})
    figure.update_xaxes(title="big layers per token (realised)")
    figure.update_yaxes(title="share of the gap closed", col=1)
    missing = int(gaps[list(kinds)].isna().to_numpy().sum())
    note = f"{look.counted(gaps)}; bars: 95 % intervals; {missing} of {2 * len(gaps)} points missing: the gap may be 0"
    return look.finish(figure, title=title, note=note, height=440)


def gap_dumbbell(gains: pd.DataFrame, *, title: str = "What there is to gain, and who gets it") -> go.Figure:
    """How far do router, label-free policy and oracle get from the best fixed route (0)? One row for each budget, with a mark and
    its 95 % interval for each policy; the grey bar is what the null control gains, so that only what lies beyond it is more
    than the luck of a minimum. One panel per source, each with its own scale.

    Args:
        gains: as of `frames.over_fixed`.
        title: of the figure.

    Raises:
        ValueError: no rows, or a column is missing.
    """
    look.needed(gains, ["source", "policy", "realised_big", "gain_nats", "gain_nats_low", "gain_nats_high"])
    figure, parts = look.by_source(gains)
    for column, _, inside in parts:
        rows = {asked: place for place, asked in enumerate(sorted(inside["asked"].unique()))}
        null = inside[inside["policy"] == "null"]
        figure.add_bar(
            x=null["gain_nats"],
            y=null["asked"].map(rows),
            orientation="h",
            width=0.6,
            name="null control: what luck gives",
            marker={"color": style.LINE},
            **look.in_panel(column, "null"),
        )
        for policy, part in inside[inside["policy"] != "null"].groupby("policy", sort=False):
            figure.add_scatter(
                x=part["gain_nats"],
                y=part["asked"].map(rows),
                error_x={
                    **look.errors(part, "gain_nats", "gain_nats_low", "gain_nats_high"),
                    "thickness": 1.5,
                    "width": 3,
                },
                mode="markers",
                marker={"symbol": style.policy_mark(policy), "color": style.policy_colour(policy), "size": 11},
                name=look.policy_name(policy),
                **look.in_panel(column, policy),
            )
        figure.add_vline(x=0, line={"color": style.POLICY_COLOURS["fixed"], "width": 2}, row=1, col=column)
        real = inside.drop_duplicates("asked").set_index("asked")["realised_big"]
        named = [f"{asked} big" + (f" ({real[asked]:.1f})" if column == 1 else "") for asked in rows]
        figure.update_yaxes(
            tickvals=list(rows.values()), ticktext=named, showgrid=False, zeroline=False, row=1, col=column
        )
    figure.update_yaxes(title="budget asked for (realised)", col=1)
    figure.update_xaxes(title="gain over the best fixed route (nats per token)")
    figure.update_layout(barmode="overlay")
    note = f"{look.counted(gains)}; bars: 95 % intervals; the line at 0 is the best fixed route"
    figure = look.finish(figure, title=title, note=note, height=190 + 46 * gains["asked"].nunique())
    legend = {"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom", "x": 0}
    return figure.update_layout(legend=legend, margin={"b": 100})


def intervals(table: pd.DataFrame, *, x: str, title: str) -> go.Figure:
    """How do a few named things compare? A dot with its 95 % interval for each name and source.

    Args:
        table: columns name, source, mean, low, high, positions, documents.
        x: what the axis shows, with its unit.
        title: of the figure.

    Raises:
        ValueError: no rows, or a column is missing.

    Paper: arXiv 2410.10846, figure 4c.
    """
    look.needed(table, ["name", "source", "mean", "low", "high", "positions", "documents"])
    figure = go.Figure()
    named = table.rename(columns={"low": "mean_low", "high": "mean_high"})
    for number, source in enumerate(dict.fromkeys(table["source"])):
        part = named[named["source"] == source]
        look.dots(figure, part, [style.escape(name) for name in part["name"]], number=number, value="mean")
    figure.update_xaxes(title=style.escape(x))
    figure.update_yaxes(autorange="reversed", automargin=True)
    rows = table["name"].nunique()
    height = 170 + (45 if rows <= 16 else 22) * rows
    figure = look.finish(figure, title=title, note=f"{look.counted(table)}; bars: 95 % intervals", height=height)
    return figure.update_layout(scattermode="group", title={"xref": "container", "pad": {"l": 20}})


def realised_budget(table: pd.DataFrame) -> go.Figure:
    """Do the routers keep the budget they were trained for? Realised share of big with its 95 % interval against the share
    asked for; the pointer shows a router's name.

    Args:
        table: columns name, source, asked, mean, low, high (of the realised share), positions, documents.

    Raises:
        ValueError: no rows, or a column is missing.
    """
    look.needed(table, ["name", "source", "asked", "mean", "low", "high", "positions", "documents"])
    figure = go.Figure()
    for number, source in enumerate(dict.fromkeys(table["source"])):
        part, (symbol, colour) = table[table["source"] == source], look.SOURCES[number % len(look.SOURCES)]
        figure.add_scatter(
            x=part["asked"],
            y=part["mean"],
            name=style.escape(source),
            mode="markers",
            text=[style.escape(name) for name in part["name"]],
            marker={"symbol": symbol, "size": 10, "color": colour},
            error_y=look.errors(part, "mean", "low", "high"),
            hovertemplate="%{text}: asked %{x:.2f}, realised %{y:.2f}<extra></extra>",
        )
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="asked = realised", line={"dash": "dot", "color": style.INK}
    )
    figure.update_xaxes(title="share of big asked for", range=[0, 1])
    figure.update_yaxes(title="share of big realised", range=[0, 1])
    note = f"{look.counted(table)}; bars: 95 % intervals; thresholds set on other text"
    return look.finish(figure, title="Do the routers keep their budgets?", note=note)
