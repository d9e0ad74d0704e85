"""One function per question: a table in, a plotly figure out. Nothing is computed here and nothing is shown.

Every figure says its unit on each axis and, below the title, how many positions and documents it rests on; bands and bars
are 95 % intervals over documents. Backgrounds are transparent and inks grey, so that figures read in light and dark.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from . import style

POLICY_MARKS = {
    "oracle": "circle",
    "label-free": "square",
    "null": "x",
    "random-100": "diamond",
    "fixed": "triangle-up",
    "router": "star",
}
NAMES = {"null": "null control (sampled targets)", "random-100": "best of 100 random", "fixed": "best fixed route"}


def _figure(figure: go.Figure, *, title: str, note: str = "", height: int = 420) -> go.Figure:
    """The house's look: title with a note below it, transparent background, grey inks."""
    subtitle = {"text": note, "font": {"size": 12}} if note else None
    figure.update_layout(
        title={"text": title, "subtitle": subtitle, "x": 0.0, "xref": "paper", "font": {"size": 16}},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "Helvetica, Arial, sans-serif", "size": 13, "color": style.INK},
        height=height,
        margin={"l": 70, "r": 20, "t": 90, "b": 60},
        legend={"orientation": "v"},
        hoverlabel={"font": {"family": "monospace"}},
    )
    figure.update_xaxes(gridcolor=style.LINE, zerolinecolor=style.LINE, linecolor=style.LINE)
    figure.update_yaxes(gridcolor=style.LINE, zerolinecolor=style.LINE, linecolor=style.LINE)
    return figure


def _n(table: pd.DataFrame) -> str:
    """How much a summary rests on."""
    parts = table[["source", "documents", "positions"]].drop_duplicates("source")
    return "; ".join(f"{r.source}: {r.documents} documents, {r.positions:,} positions" for r in parts.itertuples())


def _panels(count: int, titles: Sequence[str], **kwargs: object) -> go.Figure:
    return make_subplots(rows=1, cols=count, subplot_titles=[style.escape(t) for t in titles], **kwargs)


def training_curves(log: pd.DataFrame) -> go.Figure:
    """How do big and small learn together? Holdout loss against training tokens, all big and all small, one panel per
    source; the training loss (random routes) in grey.

    Args:
        log: columns tokens, loss, `eval_<source>_<big|small|random>`.
    """
    sources = [
        c.removeprefix("eval_").removesuffix("_big") for c in log if c.startswith("eval_") and c.endswith("_big")
    ]
    figure = _panels(len(sources), sources, shared_yaxes=True, horizontal_spacing=0.04)
    seen = log.dropna(subset=["loss"])
    for column, source in enumerate(sources, 1):
        figure.add_scatter(
            x=seen["tokens"],
            y=seen["loss"].astype(float),
            name="training, both sources",
            mode="lines",
            line={"color": style.LINE, "width": 1},
            legendgroup="train",
            showlegend=column == 1,
            row=1,
            col=column,
        )
        for name, colour, dash in (
            ("small", style.CHOICE_COLOURS[1], "dot"),
            ("random", "#009E73", "dash"),
            ("big", style.CHOICE_COLOURS[2], "solid"),
        ):
            held = log.dropna(subset=[f"eval_{source}_{name}"])
            label = {"small": "all small", "big": "all big", "random": "random, p = 0.5"}[name]
            figure.add_scatter(
                x=held["tokens"],
                y=held[f"eval_{source}_{name}"].astype(float),
                name=label,
                mode="lines+markers",
                line={"color": colour, "dash": dash},
                legendgroup=name,
                showlegend=column == 1,
                row=1,
                col=column,
            )
    figure.update_xaxes(title="training tokens")
    figure.update_yaxes(title="loss (nats per token)", col=1)
    return _figure(
        figure,
        title="Stage 1: holdout loss while training with random routes",
        note="64 holdout rows of 256 tokens per source",
    )


def routing_heatmap(usage: pd.DataFrame, *, title: str, of: str = "big") -> go.Figure:
    """Which layers do the chosen routes make big (or keep), and where in the text? One row of panels per source, one
    column per budget; layer upwards, position to the right; blue never, vermilion always.

    Args:
        usage: columns source, panel, layer, position, share, n.
        title: of the figure.
        of: what the share is of, for the colour bar.

    Paper: arXiv 2410.10846, figures 2 and 3.
    """
    sources, panels = list(dict.fromkeys(usage["source"])), list(dict.fromkeys(usage["panel"]))
    figure = make_subplots(
        rows=len(sources),
        cols=len(panels),
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=0.09,
        subplot_titles=[style.escape(f"{p}, {s}") for s in sources for p in panels],
    )
    for row, source in enumerate(sources, 1):
        for column, panel in enumerate(panels, 1):
            part = usage[(usage["source"] == source) & (usage["panel"] == panel)]
            grid = part.pivot(index="layer", columns="position", values="share")
            figure.add_heatmap(
                z=grid.to_numpy(np.float32),
                x=grid.columns.to_numpy(),
                y=grid.index.to_numpy(),
                coloraxis="coloraxis",
                row=row,
                col=column,
                hovertemplate="layer %{y}, position %{x}: %{z:.2f}<extra></extra>",
            )
    figure.update_layout(
        coloraxis={
            "colorscale": style.SHARE_SCALE,
            "cmin": 0,
            "cmax": 1,
            "colorbar": {"title": f"share {of}", "thickness": 12},
        }
    )
    figure.update_xaxes(title="position", row=len(sources))
    figure.update_yaxes(title="layer", col=1)
    figure.update_yaxes(dtick=2)
    figure = _figure(
        figure,
        title=title,
        note=f"share over {int(usage['n'].max())} documents per source",
        height=150 + 200 * len(sources),
    )
    figure.update_annotations(font={"size": 12})
    return figure


def budget_curve(
    summary: pd.DataFrame, *, y: str = "perplexity", title: str = "Perplexity against big layers"
) -> go.Figure:
    """How good is each policy with k big layers per token? One panel per source; bands are 95 % intervals; the dotted line
    is all big.

    Args:
        summary: as of `frames.curve_summary`.
        y: `perplexity` or `loss_nats`.
        title: of the figure.

    Paper: arXiv 2410.10846, figure 4b.
    """
    low, high = ("perplexity_low", "perplexity_high") if y == "perplexity" else ("low_nats", "high_nats")
    sources = list(dict.fromkeys(summary["source"]))
    figure = _panels(len(sources), sources, shared_yaxes=True, horizontal_spacing=0.04)
    for column, source in enumerate(sources, 1):
        inside = summary[summary["source"] == source]
        for policy in dict.fromkeys(inside["policy"]):
            part = inside[inside["policy"] == policy].sort_values("realised_big")
            colour = style.policy_colour(policy)
            figure.add_scatter(
                x=np.concatenate([part["realised_big"], part["realised_big"][::-1]]),
                y=np.concatenate([part[high], part[low][::-1]]),
                fill="toself",
                fillcolor=colour,
                opacity=0.15,
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                legendgroup=policy,
                row=1,
                col=column,
            )
            figure.add_scatter(
                x=part["realised_big"],
                y=part[y],
                name=NAMES.get(policy, policy),
                mode="lines+markers",
                line={"color": colour, "dash": "dash" if policy == "null" else "solid"},
                marker={"symbol": POLICY_MARKS.get(policy, "circle"), "size": 8},
                legendgroup=policy,
                showlegend=column == 1,
                row=1,
                col=column,
            )
        full = inside[(inside["policy"] == "oracle")].sort_values("budget")
        if len(full):
            figure.add_hline(
                y=float(full[y].iloc[-1]), line={"dash": "dot", "color": style.INK, "width": 1}, row=1, col=column
            )
    figure.update_xaxes(title="big layers per token (realised)")
    figure.update_yaxes(title="perplexity" if y == "perplexity" else "loss (nats per token)", col=1)
    return _figure(figure, title=title, note=f"{_n(summary)}; bands: 95 %; dotted: all big", height=460)


def policy_bars(summary: pd.DataFrame, *, title: str) -> go.Figure:
    """How do the policies compare at one budget? One bar per policy and source, with 95 % intervals.

    Args:
        summary: rows of `frames.curve_summary` at one budget.
        title: of the figure.

    Paper: arXiv 2410.10846, figure 4a.
    """
    figure = go.Figure()
    for source, pattern in zip(dict.fromkeys(summary["source"]), ("", "/", "x", ".")):
        part = summary[summary["source"] == source]
        figure.add_bar(
            x=[NAMES.get(p, p) for p in part["policy"]],
            y=part["perplexity"],
            name=source,
            error_y={
                "array": part["perplexity_high"] - part["perplexity"],
                "arrayminus": part["perplexity"] - part["perplexity_low"],
                "color": style.INK,
            },
            marker={"color": [style.policy_colour(p) for p in part["policy"]], "pattern": {"shape": pattern}},
        )
    figure.update_yaxes(title="perplexity", rangemode="tozero")
    return _figure(figure, title=title, note=f"{_n(summary)}; bars: 95 %")


def gain_curve(gains: pd.DataFrame, *, title: str = "How much of the oracle's gain is luck?") -> go.Figure:
    """What is left of the oracle's gain over all big when the target is a token the model made up itself? Gain against big
    layers; where the null control lies on the oracle, the oracle has found nothing about the text.

    Args:
        gains: as of `frames.gains`.
        title: of the figure.
    """
    sources = list(dict.fromkeys(gains["source"]))
    figure = _panels(len(sources), sources, shared_yaxes=True, horizontal_spacing=0.04)
    for column, source in enumerate(sources, 1):
        inside = gains[gains["source"] == source]
        for policy in dict.fromkeys(inside["policy"]):
            part = inside[inside["policy"] == policy]
            figure.add_scatter(
                x=part["budget"],
                y=part["gain_nats"],
                name=NAMES.get(policy, policy),
                mode="lines+markers",
                error_y={
                    "array": part["high_nats"] - part["gain_nats"],
                    "arrayminus": part["gain_nats"] - part["low_nats"],
                },
                line={"color": style.policy_colour(policy), "dash": "dash" if policy == "null" else "solid"},
                marker={"symbol": POLICY_MARKS.get(policy, "circle"), "size": 8},
                legendgroup=policy,
                showlegend=column == 1,
                row=1,
                col=column,
            )
    figure.add_hline(y=0, line={"color": style.INK, "width": 1})
    figure.update_xaxes(title="big layers per token")
    figure.update_yaxes(title="gain over all big (nats per token)", col=1)
    return _figure(figure, title=title, note=f"{_n(gains)}; bars: 95 %", height=440)


def intervals(table: pd.DataFrame, *, x: str, title: str) -> go.Figure:
    """How do a few named things compare? A dot with its 95 % interval for each name and source.

    Args:
        table: columns name, source, mean, low, high, positions, documents.
        x: what the axis shows, with its unit.
        title: of the figure.

    Paper: arXiv 2410.10846, figure 4c.
    """
    figure = go.Figure()
    for source, symbol, colour in zip(
        dict.fromkeys(table["source"]), ("circle", "square", "diamond"), ("#D55E00", "#0072B2", "#009E73")
    ):
        part = table[table["source"] == source]
        figure.add_scatter(
            x=part["mean"],
            y=part["name"],
            name=source,
            mode="markers",
            marker={"symbol": symbol, "size": 10, "color": colour},
            error_x={"array": part["high"] - part["mean"], "arrayminus": part["mean"] - part["low"]},
        )
    figure.update_xaxes(title=x)
    figure.update_yaxes(autorange="reversed")
    figure = _figure(figure, title=title, note=f"{_n(table)}; bars: 95 %", height=160 + 45 * table["name"].nunique())
    return figure.update_layout(margin={"l": 190}, scattermode="group")


def token_losses(table: pd.DataFrame, *, title: str, window: int = 64) -> go.Figure:
    """Which tokens are hard, and which of them does compute help? One line per policy over the tokens of one text; hard
    tokens stand high, and where oracle and small part, compute helps.

    Args:
        table: one text's rows of `frames.token_losses`: position, target and columns `<name>_nats`.
        title: of the figure.
        window: first so many positions; the rest is reached by dragging.

    Paper: arXiv 2410.10846, figure 5.
    """
    figure = go.Figure()
    colours = {
        "small": style.CHOICE_COLOURS[1],
        "big": "#222222",
        "label_free": "#009E73",
        "null": "#CC79A7",
        "oracle": style.CHOICE_COLOURS[2],
    }
    colours["big"] = style.INK
    for column in [c for c in table if c.endswith("_nats")]:
        name = column.removesuffix("_nats")
        figure.add_scatter(
            x=table["position"],
            y=table[column],
            name=name.replace("_", "-"),
            mode="lines+markers",
            line={
                "color": colours.get(name, style.INK),
                "dash": "dot" if name in ("null", "label_free") else "solid",
                "width": 1.5,
            },
            marker={"size": 5},
            hovertemplate="%{y:.2f} nats",
        )
    labels = [style.token_text(piece) for piece in table["target"]]
    figure.update_xaxes(
        tickvals=table["position"],
        ticktext=labels,
        tickangle=-90,
        tickfont={"size": 10, "family": "monospace"},
        range=[-0.5, min(window, len(table)) - 0.5],
        title="predicted token",
    )
    figure.update_yaxes(title="loss (nats)", rangemode="tozero")
    name, shown = style.escape(str(table["document"].iloc[0])), min(window, len(table))
    note = f"document {name}, first {shown} of {len(table)} positions; drag for more"
    figure = _figure(figure, title=title, note=note, height=480)
    return figure.update_layout(hovermode="x unified", dragmode="pan", margin={"b": 120})


def distribution(table: pd.DataFrame, columns: Sequence[str], *, x: str, title: str) -> go.Figure:
    """How is a quantity spread over tokens? Left a histogram, right the share of tokens below each value.

    Args:
        table: one row per position; the columns are drawn.
        columns: `<name>_nats`.
        x: what the axis shows, with its unit.
        title: of the figure.
    """
    figure = make_subplots(rows=1, cols=2, subplot_titles=["tokens", "share of tokens below"], horizontal_spacing=0.1)
    low, high = np.nanpercentile(table[list(columns)], [0.5, 99.5])
    edges = np.linspace(low, high, 41)
    palette = ("#D55E00", "#CC79A7", "#009E73", "#0072B2")
    for column, colour in zip(columns, palette):
        values = table[column].dropna().to_numpy()
        label = column.removesuffix("_nats").replace("_", " ")
        counts, _ = np.histogram(values, edges)
        figure.add_scatter(
            x=edges[:-1], y=counts, name=label, line={"color": colour, "shape": "hv"}, legendgroup=column, row=1, col=1
        )
        ordered = np.quantile(values, np.linspace(0, 1, 201))
        figure.add_scatter(
            x=ordered,
            y=np.linspace(0, 1, 201),
            name=label,
            line={"color": colour},
            legendgroup=column,
            showlegend=False,
            row=1,
            col=2,
        )
    figure.update_xaxes(title=x, range=[edges[0], edges[-1]])
    return _figure(figure, title=title, note=f"{len(table):,} positions")


def route_maps(routes: Sequence[tuple[str, np.ndarray]], labels: Sequence[str], *, title: str) -> go.Figure:
    """Which choice did each layer make for each token of one text? Grey skip, blue small, vermilion big; layer upwards.

    Args:
        routes: a name and int8 `[position, layer]` for each panel, drawn one below the other.
        labels: the input token of each position.
        title: of the figure.

    Paper: arXiv 2410.10846, figure 7.
    """
    figure = make_subplots(
        rows=len(routes),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.08,
        subplot_titles=[style.escape(n) for n, _ in routes],
    )
    steps = [[(i + d) / 3, colour] for i, colour in enumerate(style.CHOICE_COLOURS) for d in (0, 1)]
    for row, (_, chosen) in enumerate(routes, 1):
        figure.add_heatmap(
            z=chosen.T,
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            row=row,
            col=1,
            hovertemplate="position %{x}, layer %{y}: %{z}<extra></extra>",
        )
    figure.update_layout(
        coloraxis={
            "colorscale": steps,
            "cmin": -0.5,
            "cmax": 2.5,
            "colorbar": {"tickvals": [0, 1, 2], "ticktext": ["skip", "small", "big"], "thickness": 14},
        }
    )
    places = np.arange(len(labels))
    figure.update_xaxes(
        tickvals=places,
        ticktext=[style.token_text(p) for p in labels],
        tickangle=-90,
        tickfont={"size": 9, "family": "monospace"},
        row=len(routes),
        title="input token",
    )
    figure.update_yaxes(title="layer", dtick=3)
    return _figure(figure, title=title, height=140 + 190 * len(routes)).update_layout(margin={"b": 110})


def realised_budget(table: pd.DataFrame) -> go.Figure:
    """Do the routers keep the budget they were trained for? Realised share of big against the share asked for.

    Args:
        table: columns name, asked, realised, source.
    """
    figure = go.Figure()
    for source, symbol, colour in zip(dict.fromkeys(table["source"]), ("circle", "square"), ("#D55E00", "#0072B2")):
        part = table[table["source"] == source]
        figure.add_scatter(
            x=part["asked"],
            y=part["realised"],
            name=source,
            mode="markers",
            text=part["name"],
            marker={"symbol": symbol, "size": 10, "color": colour},
        )
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="asked = realised", line={"dash": "dot", "color": style.INK}
    )
    figure.update_xaxes(title="share of big asked for", range=[0, 1])
    figure.update_yaxes(title="share of big realised", range=[0, 1])
    return _figure(figure, title="Do the routers keep their budgets?", note="thresholds set on other text")
