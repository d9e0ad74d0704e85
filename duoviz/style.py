"""Colours, glyphs and text for display; the one place that escapes text for HTML and plotly.

Colours are those of Okabe and Ito, which the colour-blind can tell apart; their light ones (grey, orange, sky blue) are
darkened, so that each has a contrast of at least 3 on white and on a dark page. Backgrounds are transparent and inks are
middle greys, so that figures read on both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CHOICE_COLOURS = ("#888888", "#0072B2", "#D55E00")
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
    "random-100": "#7A6A38",
    "fixed": "#419AD9",
    "router": "#0072B2",
    "all big": "#888888",
    "all small": "#5F7F95",
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
    "all big": "star-triangle-up",
    "all small": "star-triangle-down",
    "user": "hexagon",
}
SEQUENTIAL = "Viridis"
"""For shares and other values of one sign."""
DIVERGING = [[0.0, "#0072B2"], [0.5, "rgba(127,127,127,0.08)"], [1.0, "#D55E00"]]
"""For signed values: draw it with a range that is symmetric about 0, so that no gain and no loss have no colour."""
DIVERGING_SOLID = [DIVERGING[0], [0.5, "#F2EFE9"], DIVERGING[2]]
"""The same for cells that carry numbers, which need paper of their own on a dark page."""
WRONG = "#D23B3B"
"""Of what went wrong: read on light and on dark pages."""
INK, LINE = "#7f7f7f", "rgba(127,127,127,0.35)"
CONFIG = {"showSendToCloud": False, "displaylogo": False, "responsive": True}
"""For `Figure.show(config=...)`: no upload of what is drawn."""
JOINERS = "\u200c\u200d"
"""Characters that cannot be seen alone and shape those beside them: in families of emoji and Persian words."""
DROPPED = "dropped by the tokenizer"
BEGIN = "⊢"
"""Stands for a special token, which has no characters."""
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
    shown = visible(piece)
    if limit is not None and len(shown) > limit:
        shown = f"{shown[: limit - 1]}…"
    return escape(shown)


def visible(piece: str) -> str:
    """`token_text` before it is escaped: for where text cannot be markup."""
    joined = JOINERS if len(piece) > 1 else ""
    return "".join(c if c.isprintable() or c in joined else _code(c) for c in piece.translate(VISIBLE)) or "∅"


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


Chip = tuple[str, tuple[int, ...]]
"""Characters and the tokens that hold them, as of `Tokens.chips`."""


def token_chips(
    chips: Sequence[Chip], values: np.ndarray, *, title: str, unit: str = "nats", selected: int | None = None
) -> str:
    """Text as coloured tokens: HTML with a legend.

    The viewer sees the text as written, line breaks kept; each token's background tells its value, from none (no colour) to
    the largest (vermilion, and underlined from half of it on); negative values are blue (and underlined with dots from a
    tenth of it on), and then the legend goes below 0. NaN (not scored) has no colour. A character that is cut into several
    tokens has the colour of their sum; one that the tokenizer drops is struck out. The numbers appear when the pointer rests
    on a token.

    Args:
        chips: characters of each chip, and its tokens.
        values: one number per token.
        title: what the colour means.
        unit: of the values.
        selected: a token that gets a frame.

    Raises:
        ValueError: tokens without a value; an infinite value.
    """
    values = np.asarray(values, float)
    if values.ndim != 1 or len(values) <= max((max(tokens) for _, tokens in chips if tokens), default=-1):
        raise ValueError(f"{values.shape} values for these tokens: give one for each")
    if np.isinf(values).any():
        raise ValueError(f"{np.isinf(values).sum()} infinite values: give finite ones, or NaN where nothing is scored")
    sums = chip_values(chips, values)
    spans = []
    for (text, tokens), css in zip(chips, chip_styles(chips, sums)):
        said = " + ".join(chip_label(values[token], unit) for token in tokens) or DROPPED
        frame = f";outline:2px solid {POLICY_COLOURS['user']}" if selected in tokens else ""
        spans.append(f'<span title="{escape(said)}" style="{css}{frame}">{escape(text) or BEGIN}</span>')
    legend = "".join(f'<span style="{css};padding:0 .7em">{text}</span>' for text, css in chip_legend(sums))
    return (
        f'<div style="font-family:sans-serif;font-size:13px;margin:.4em 0">{escape(title)} ({escape(unit)}): {legend}</div>'
        '<pre style="white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.75;margin:0;'
        'background:none;color:inherit;font-family:monospace">'
        f"{''.join(spans)}</pre>"
    )


def chip_values(chips: Sequence[Chip], values: np.ndarray) -> np.ndarray:
    """The sum of the values of each chip's tokens; NaN where none has a value."""
    parts = [values[list(tokens)] for _, tokens in chips]
    return np.array([np.nan if np.isnan(part).all() else np.nansum(part) for part in parts], float)


def chip_styles(chips: Sequence[Chip], sums: np.ndarray) -> list[str]:
    """CSS of each chip's background and underline, as in `token_chips`; `sums` as of `chip_values`."""
    parts = np.nan_to_num(sums / _largest(sums))
    return [
        f"background:{_shade(part)}{_underline(part)}" if tokens else "opacity:.5;text-decoration:line-through"
        for (_, tokens), part in zip(chips, parts)
    ]


def chip_legend(sums: np.ndarray) -> list[tuple[str, str]]:
    """Numbers and the CSS that stands for them, from the least to the largest."""
    largest = _largest(sums)
    lowest = float(np.nanmin(sums, initial=0.0)) / largest
    steps = [step for step, above in ((-1.0, -0.5), (-0.5, -0.25), (-0.25, -0.005)) if lowest < above]
    parts = [*steps, 0.0, 0.25, 0.5, 0.75, 1.0]
    digits = 1 if largest >= 1 else 2
    return [(f"{part * largest:.{digits}f}", f"background:{_shade(part)}{_underline(part)}") for part in parts]


def chip_label(value: float, unit: str) -> str:
    """A token's number in words."""
    return "not scored" if np.isnan(value) else f"{value:.2f} {unit}"


def _largest(values: np.ndarray) -> float:
    return float(np.nanmax(np.abs(values), initial=0.0)) or 1.0


def _underline(part: float) -> str:
    """Size and sign for those who do not see the colours."""
    return ";text-decoration:underline" if part >= 0.5 else ";text-decoration:underline dotted" if part <= -0.1 else ""


def _shade(part: float) -> str:
    """Background of a value between -1 and 1."""
    colour = "213,94,0" if part >= 0 else "0,114,178"
    return f"rgba({colour},{0.65 * min(1.0, abs(part)):.2f})"
