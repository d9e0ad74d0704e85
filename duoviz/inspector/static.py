"""The inspector's view as HTML that needs neither kernel nor script."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .. import frames, style
from ..routes import LETTERS

if TYPE_CHECKING:
    from .state import State

TABLE = 'style="border-collapse:collapse;font:12px sans-serif;margin:.4em 0;color:inherit"'
NAMES = {"yours": "your route", "small": "all small", "big": "all big"}
"""Policies whose name says too little."""
CELL = 'style="padding:2px 5px;text-align:left;white-space:nowrap;border-bottom:1px solid rgba(127,127,127,.35)"'


class Static:
    """The inspector's twin: the coloured text, what was selected in it, and both panels' routes, as HTML.

    Args:
        inspector: whose view is written down, as it is now.
    """

    def __init__(self, inspector: State) -> None:
        self.html = _page(inspector)

    def _repr_html_(self) -> str:
        return self.html


def _page(inspector: State) -> str:
    parts = [f'<div style="font:13px sans-serif">{style.escape(about(inspector))}</div>', chips(inspector)]
    if inspector.token is not None:
        parts += [heading(inspector), policies(inspector.choices())]
        parts += [effect(inspector), "<div>best routes</div>", best(frames.best_routes(inspector.landscape()))]
    return f'<div class="duoviz-static tex2jax_ignore mathjax_ignore">{"".join(parts)}</div>'


def about(inspector: State) -> str:
    """What is looked at, in one line."""
    router = f", router {inspector.router}" if inspector.router else ""
    pinned = f"; A: {inspector.pinned.label}" if inspector.pinned else ""
    return (
        f"{inspector.question}, budget {inspector.budget}{router}; text {inspector.document};"
        f" {inspector.left} and {inspector.right} agree in {inspector.agreement():.0%} of its layers{pinned}"
    )


def meaning(inspector: State) -> tuple[str, str]:
    """What colours the tokens, and its unit."""
    _, text, unit = inspector.described
    return f"{text}{_less(inspector)}", unit


def _less(inspector: State) -> str:
    return ", difference to A" if inspector.compared else ""


def chips(inspector: State) -> str:
    """The document as coloured tokens."""
    title, unit = meaning(inspector)
    return style.token_chips(inspector.chips(), inspector.values(), title=title, unit=unit, selected=inspector.token)


def labels(inspector: State) -> list[str]:
    """What is said of each token of the document, not escaped; a token within a character is named by the whole."""
    pieces, table = inspector.pieces(), inspector.table()
    for text, tokens in inspector.chips():
        for place, token in enumerate(tokens, 1):
            if not pieces[token]:
                pieces[token] = f"{text} ({place} of {len(tokens)})" if text else style.BEGIN
    name, unit = f"{inspector.statistic}{_less(inspector)}", inspector.described[2]
    values = [style.chip_label(value, unit) for value in inspector.values()]
    found = [f"{n} {style.visible(piece)}  not scored" for n, piece in enumerate(pieces)]
    names = ["small", "big", "oracle", "label_free", *(["router"] if inspector.router else [])]
    shown = [inspector.cheapest, *(name.replace("_", "-") for name in names[1:])]
    part = table[table["seq"] == inspector.document]
    for position, *losses in part[["position", *(f"{name}_nats" for name in names)]].itertuples(index=False):
        token = int(position) + 1
        said = "  ".join(f"{policy} {loss:.2f}" for policy, loss in zip(shown, losses))
        found[token] = f"{token} {style.visible(pieces[token])}  {name}: {values[token]};  losses: {said}"
    return found


def heading(inspector: State) -> str:
    """The selected token and what stands before it."""
    pieces, token = inspector.pieces(), inspector.token or 0
    before = "".join(pieces[max(0, token - 8) : token])
    return (
        f'<div style="font:14px monospace;margin:.4em 0">token {token} <b>{style.token_text(pieces[token])}</b>'
        f" after {style.token_text(before[-40:])}</div>"
    )


def route(text: str) -> str:
    """A route's letters on the colours of their choices."""
    cells = "".join(
        f'<span style="background:{style.CHOICE_COLOURS[LETTERS.index(letter)]};color:#fff;padding:0 2px;'
        f'font-weight:600">{letter}</span>'
        for letter in text
    )
    return f'<span style="font-family:monospace;white-space:nowrap">{cells}</span>'


def policies(table: pd.DataFrame) -> str:
    """What each policy chooses for the token and what is predicted then; a table of `frames.policies`."""
    rows = []
    for row in table.itertuples():
        first, *_ = likeliest = [f"{style.token_text(text)} {share:.0%}" for text, share in row.top]
        rows.append(
            [
                style.escape(NAMES.get(row.policy, row.policy)),
                route(row.route),
                f"{row.big}",
                f"{row.loss_nats:.3f}",
                f"{row.text_nats:.3f}",
                f"{percent(row.share)} ({row.rank}.)",
                f'<span style="font-family:monospace" title="{"   ".join(likeliest)}">{first}</span>',
            ]
        )
    names = (
        "policy",
        "route",
        "big",
        "loss<br>(nats)",
        "if all did<br>this (nats)",
        "probability<br>(rank)",
        "likeliest",
    )
    return _table(names, rows)


def percent(share: float) -> str:
    """A probability in per cent, with two significant digits."""
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.3g} %"


def best(table: pd.DataFrame) -> str:
    """The best routes; a table of `frames.best_routes`."""
    rows = [[f"{n}", route(r.route), f"{r.big}", f"{r.loss_nats:.3f}"] for n, r in enumerate(table.itertuples(), 1)]
    return _table(("", "route", "big", "loss (nats)"), rows)


def effect(inspector: State) -> str:
    """What your changes did to this token, to later ones and to the text."""
    found, losses = inspector.effect(), inspector.losses()
    position, later = inspector.position, found[inspector.position + 1 :]
    after = f"{len(later)} later tokens {np.nansum(later):+.3f} nats in all" if len(later) else "no later token"
    return (
        f'<div style="font:13px sans-serif">your changes: this token {found[position]:+.3f} nats; {after};'
        f" the text {np.nanmean(losses - found):.3f} to {np.nanmean(losses):.3f} nats a token</div>"
    )


def _table(names: tuple[str, ...], rows: list[list[str]]) -> str:
    head = "".join(f"<th {CELL}>{name}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td {CELL}>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    table = f"<table {TABLE}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div style="overflow-x:auto">{table}</div>'
