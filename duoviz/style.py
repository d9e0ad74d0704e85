"""Colours, glyphs and text for display; the one place that escapes text for HTML and plotly.

Colours are those of Okabe and Ito, which the colour-blind can tell apart; backgrounds are transparent and inks are middle
greys, so that figures read on white and on black.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CHOICE_COLOURS = ("#999999", "#0072B2", "#D55E00")
"""Of skip, small and big."""
GLYPHS = "-SB"
POLICY_COLOURS = {
    "oracle": "#D55E00",
    "label-free": "#009E73",
    "label-free, mean teacher": "#6B8E23",
    "agree_big": "#4F81BD",
    "entropy": "#C2577B",
    "null": "#CC79A7",
    "sampled": "#8C6BB1",
    "oracle, replayed": "#A0603C",
    "oracle, mean budget": "#A0603C",
    "label-free, mean budget": "#4F81BD",
    "random-100": "#E69F00",
    "fixed": "#56B4E9",
    "router": "#0072B2",
    "all big": "#888888",
    "all small": "#BBBBBB",
    "user": "#A08F00",
}
"""The same colour for a policy in every figure; `user` is a route that somebody typed or clicked."""
POLICY_MARKS = {
    "oracle": "circle",
    "label-free": "square",
    "label-free, mean teacher": "square-open",
    "agree_big": "diamond",
    "entropy": "hourglass",
    "null": "x",
    "sampled": "cross",
    "oracle, replayed": "pentagon",
    "oracle, mean budget": "circle-open",
    "label-free, mean budget": "square-open",
    "random-100": "diamond",
    "fixed": "triangle-up",
    "router": "star",
    "user": "hexagon",
}
SEQUENTIAL = "Viridis"
DIVERGING = [[0.0, "#0072B2"], [0.5, "rgba(127,127,127,0.08)"], [1.0, "#D55E00"]]
"""For signed values: draw it with a range that is symmetric about 0, so that no gain and no loss have no colour."""
SHARE_SCALE = [[0.0, "#0072B2"], [0.5, "#E8E4DC"], [1.0, "#D55E00"]]
"""From never (small, blue) over half to always (big, vermilion)."""
INK, LINE = "#7f7f7f", "rgba(127,127,127,0.35)"
CONFIG = {"showSendToCloud": False, "displaylogo": False, "responsive": True}
"""For `Figure.show(config=...)`: no upload of what is drawn."""
VISIBLE = str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"})
ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;", "$": "&#36;"})
"""Quotes as numbers: plotly would show `&quot;` as it stands. `$`, because pairs of it start MathJax where that is loaded."""


def escape(text: str) -> str:
    """Text as it must be written into HTML or a plotly label: shown, never run or read as markup or as a formula."""
    return text.translate(ENTITIES)


def token_text(piece: str, *, limit: int | None = None) -> str:
    """A token's characters with its spaces and newlines visible, escaped; an empty piece (part of a character) is `∅`.

    Characters that cannot be seen, or that would reorder the text around them, are shown as their code: `\\u202e`.

    Args:
        piece: the characters.
        limit: the most characters shown before `…`; None for all.
    """
    shown = "".join(c if c.isprintable() else _code(c) for c in piece.translate(VISIBLE))
    if limit is not None and len(shown) > limit:
        shown = f"{shown[: limit - 1]}…"
    return escape(shown) or "∅"


def _code(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def policy_colour(name: str) -> str:
    """The colour of a policy, whatever a remark in brackets adds to its name; grey for one that has none."""
    return _of_policy(name, POLICY_COLOURS, INK)


def policy_mark(name: str) -> str:
    """The mark of a policy, as plotly names it."""
    return _of_policy(name, POLICY_MARKS, "circle")


def _of_policy(name: str, table: dict[str, str], default: str) -> str:
    """A replayed policy without an entry of its own has that of the policy."""
    name = name.partition(" (")[0]
    return table.get(name, table.get(name.removesuffix(", replayed"), default))


def token_chips(pieces: Sequence[str], values: np.ndarray, *, title: str, unit: str = "nats") -> str:
    """Text as coloured tokens: HTML with a legend.

    The viewer sees the text as written, line breaks kept; each token's background tells its value, from none (no colour) to
    the largest (vermilion, and underlined from half of it on); negative values are blue, and then the legend goes below 0.
    NaN (not scored) has no colour. The number appears when the pointer rests on a token.

    Args:
        pieces: characters of each token.
        values: one number per token.
        title: what the colour means.
        unit: of the values.

    Raises:
        ValueError: as many values as pieces are needed; an infinite value.
    """
    values = np.asarray(values, float)
    if values.shape != (len(pieces),):
        raise ValueError(f"{values.shape} values for {len(pieces)} tokens: give one for each")
    if np.isinf(values).any():
        raise ValueError(f"{np.isinf(values).sum()} infinite values: give finite ones, or NaN where nothing is scored")
    known = values[np.isfinite(values)]
    largest = float(np.abs(known).max(initial=0.0)) or 1.0
    spans = "".join(_chip(piece, value, largest, unit) for piece, value in zip(pieces, values))
    steps = [-1.0, -0.5] if known.min(initial=0.0) < -0.005 * largest else []
    legend = "".join(
        f'<span style="background:{_shade(part)}{_underline(part)};padding:0 .7em">{part * largest:.1f}</span>'
        for part in [*steps, 0.0, 0.25, 0.5, 0.75, 1.0]
    )
    return (
        f'<div style="font-family:sans-serif;font-size:13px;margin:.4em 0">{escape(title)} ({escape(unit)}): {legend}</div>'
        '<pre style="white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.75;margin:0;'
        'background:none;color:inherit;font-family:monospace">'
        f"{spans}</pre>"
    )


def _chip(piece: str, value: float, largest: float, unit: str) -> str:
    part = 0.0 if np.isnan(value) else value / largest
    label = "not scored" if np.isnan(value) else f"{value:.2f} {unit}"
    return f'<span title="{escape(label)}" style="background:{_shade(part)}{_underline(part)}">{escape(piece)}</span>'


def _underline(part: float) -> str:
    return ";text-decoration:underline" if abs(part) >= 0.5 else ""


def _shade(part: float) -> str:
    """Background of a value between -1 and 1."""
    colour = "213,94,0" if part >= 0 else "0,114,178"
    return f"rgba({colour},{0.65 * min(1.0, abs(part)):.2f})"
