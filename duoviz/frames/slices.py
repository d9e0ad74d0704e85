"""Means over groups of tokens (by class, position, loss or frequency), and the tokens with extreme values as text."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Int
from scipy.stats import gaussian_kde

from ..records import Tokens
from .landscapes import means

CLASSES = ("newline", "whitespace", "number", "punctuation", "keyword", "identifier", "word", "continuation")
BY = ("class", "position", "loss", "frequency")
FREQUENCIES = ("0", "below 1", "1 to 10", "10 to 100", "over 100")
"""How often a token occurs in 10,000."""
STRETCHES = 8
BEFORE = 40
KEYWORDS = frozenset([*keyword.kwlist, *keyword.softkwlist])
STATEMENT = re.compile(
    rf"\s*(?:(?:{'|'.join([*keyword.kwlist, 'match', 'case'])})\b|[@#)\]}}]|[\w.]+\(|[\w.\[\]]+(?:, [\w.]+)*\s*[-+*/|&]?=)"
)
IN_CODE, IN_PROSE = re.compile(r"\w+"), re.compile(r"\w+(?:['’]\w+)*")
"""A word of each kind of text; an apostrophe is part of a word of prose only."""


def looks_like_python(text: str) -> bool:
    """Whether at least 45 % of the characters stand in lines that start as a line of Python does: with a keyword, a call, an
    assignment, a decorator, a comment or a closing bracket."""
    # Characters, not lines: documentation has few long lines of prose around many short ones of code. Of 144 shipped
    # passages 1 exceeds 45 % (a call in every paragraph), of 144 pieces of shipped code all do.
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    code = sum(len(line) for line in lines if STATEMENT.match(line))
    return 100 * code >= 45 * max(1, sum(map(len, lines)))


def token_classes(tokens: Tokens) -> np.ndarray:
    """What each token is in its text: names of `CLASSES`, str objects `[seq, token]`. Its own characters decide.

    A token of white space is `newline` if it holds a line break, else `whitespace`. One without letter, digit or underscore
    is `punctuation`. Of the others the first such character decides. A digit is a `number`, unless it stands inside a word
    (`x2`). A character inside a word makes its token a `continuation`. The start of a word is in Python code (see
    `looks_like_python`) a `keyword` or an `identifier`, as the whole word says, in other text a `word`. An empty token
    (padding, the first bytes of a split character, or no text at all) is a `continuation`.
    """
    classes = np.full(tokens.ids.shape, "continuation", object)
    for seq, text in enumerate(tokens.text):
        code = looks_like_python(text)
        words = {
            place: word for word in (IN_CODE if code else IN_PROSE).finditer(text) for place in range(*word.span())
        }
        starts = tokens.offsets[seq, :, 0].tolist()
        classes[seq] = [_class(*each, words=words, code=code) for each in zip(tokens.pieces(seq), starts)]
    return classes


def _class(piece: str, start: int, *, words: dict[int, re.Match[str]], code: bool) -> str:
    """The class of one token, given the word at each character of its text."""
    if not piece:
        return "continuation"
    if piece.isspace():
        return "newline" if len(piece.splitlines()) > 1 or piece.splitlines()[0] != piece else "whitespace"
    first = next((place for place in range(start, start + len(piece)) if place in words), None)
    if first is None:
        return "punctuation"
    word, inside = words[first][0], first - words[first].start()
    if word[inside].isdigit() and word[0].isdigit():
        return "number"
    if inside:
        return "continuation"
    return ("keyword" if word in KEYWORDS else "identifier") if code else "word"


def target_classes(table: pd.DataFrame, tokens: Tokens) -> np.ndarray:
    """The class (`token_classes`) of the target of each row of a table with seq and position."""
    return token_classes(tokens)[table["seq"], table["position"] + 1]


def slices(
    table: pd.DataFrame,
    tokens: Tokens,
    *,
    by: str,
    values: Sequence[str],
    counts: Int[np.ndarray, " vocab"] | None = None,
) -> pd.DataFrame:
    """Means over parts of the tokens: source, by, slice, and for each of the values its mean with `<value>_low` and
    `<value>_high` (95 %, over documents); positions, documents. Slices in their natural order, empty ones left out.

    Args:
        table: one row per position, with seq, position, target_id and the values (`token_losses`, `difficulty`).
        tokens: the texts.
        by: `class` of the target (`token_classes`); `position`, in 8 equal stretches of the text; `loss`, in fifths of
            small_nats, or of the first column in nats where that is not there; `frequency` of the target.
        values: columns to average.
        counts: how often each token of the vocabulary occurs; for `frequency`.

    Raises:
        ValueError: another `by`; `frequency` without counts, or with counts of another vocabulary; no column in nats.
    """
    if by not in BY:
        raise ValueError(f"by={by!r}: allowed are {', '.join(BY)}")
    if by == "class":
        places, names = pd.Categorical(target_classes(table, tokens), CLASSES).codes, list(CLASSES)
    elif by == "position":
        places, names = _by_position(table["position"], tokens.scored.shape[1])
    elif by == "loss":
        places, names = _by_loss(table)
    else:
        places, names = _by_frequency(table["target_id"], counts)
    parts = table.assign(slice=pd.Categorical.from_codes(places, names)).sort_values("slice", kind="stable")
    made = means(parts, tokens, by=["slice"], values=values)
    made.insert(1, "by", by)
    return made


def _by_position(positions: pd.Series, length: int) -> tuple[np.ndarray, list[str]]:
    edges = np.unique(np.ceil(np.linspace(0, length, STRETCHES + 1)).astype(int))
    return np.digitize(positions, edges[1:-1]), [f"{a}-{b - 1}" for a, b in zip(edges, edges[1:])]


def _by_loss(table: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    """Fifths whose borders are the rounded ones of their labels."""
    known = [column for column in ("small_nats", *table) if column in table and column.endswith("_nats")]
    if not known:
        raise ValueError(f"by='loss': the table has no column in nats, only {list(table)}")
    losses = table[known[0]]
    edges = np.unique(np.quantile(losses, np.linspace(0, 1, 6)).round(2))
    names = [f"{a:.2f} to {b:.2f} nats" for a, b in zip(edges, edges[1:])] or [f"{edges[0]:.2f} nats"]
    return np.digitize(losses, edges[1:-1]), names


def _by_frequency(targets: pd.Series, counts: np.ndarray | None) -> tuple[np.ndarray, list[str]]:
    if counts is None:
        raise ValueError(
            "by='frequency': give counts, how often each token of the vocabulary occurs (np.bincount of their ids)"
        )
    if targets.max() >= len(counts) or not counts.sum():
        raise ValueError(
            f"counts of {len(counts)} tokens, {counts.sum()} in all, for ids up to {targets.max()}: give those of this vocabulary"
        )
    rates = counts[targets] / counts.sum() * 10_000
    return np.where(rates > 0, np.digitize(rates, [1, 10, 100]) + 1, 0), list(FREQUENCIES)


def medians(table: pd.DataFrame, *, x: str, y: str, parts: int = 10) -> pd.DataFrame:
    """How one column goes with another: source, part, the medians of x and y in the part, positions. Each source's rows are
    divided by x into so many parts of equal size; parts that would hold the same x are one.

    Args:
        table: one row per position, with source.
        x, y: columns; rows without either are left out.
        parts: how many; 10 are deciles.
    """
    rows = []
    for source, known in table.dropna(subset=[x, y]).groupby("source", sort=False, observed=True):
        places = pd.qcut(known[x], parts, labels=False, duplicates="drop")
        for part, inside in known.groupby(places):
            middle = {x: float(inside[x].median()), y: float(inside[y].median())}
            rows.append({"source": source, "part": int(part), **middle, "positions": len(inside)})
    return pd.DataFrame(rows)


def density(table: pd.DataFrame, *, x: str, y: str, bins: tuple[int, int] = (32, 24)) -> pd.DataFrame:
    """How many rows lie where: source, x and y (middles of the cells), positions. One grid for all sources; it leaves out the
    outermost half per cent of each column on each side.

    Args:
        table: one row per position, with source.
        x, y: columns; rows without either are left out.
        bins: cells along x and y.
    """
    known = table.dropna(subset=[x, y])
    ends = [np.percentile(known[name], [0.5, 99.5]) for name in (x, y)]
    edges = [np.linspace(low, high, size + 1) for (low, high), size in zip(ends, bins)]
    middles = [(side[1:] + side[:-1]) / 2 for side in edges]
    across, up = (side.ravel() for side in np.meshgrid(*middles, indexing="ij"))
    parts = [
        pd.DataFrame({"source": source, x: across, y: up, "positions": counts.ravel().astype(int)})
        for source, inside in known.groupby("source", sort=False, observed=True)
        for counts in [np.histogram2d(inside[x], inside[y], edges)[0]]
    ]
    return pd.concat(parts, ignore_index=True)


def ridges(table: pd.DataFrame, value: str, *, by: str, least: int = 30) -> pd.DataFrame:
    """How a value is spread in each part of the tokens: source, the part (named as `by`), value, density (a kernel estimate, per
    unit of the value), and, in all rows of a part, its median, q1, q3 and positions. Parts in the order of their medians over
    all sources, the largest first.

    Args:
        table: one row per position, with source, the value and the parts.
        value: a column; its outermost half per cent on each side is left out of the estimate's range.
        by: the column of the parts.
        least: parts with fewer tokens of a source are left out there; the largest part of each source stays.
    """
    known = table.dropna(subset=[value])
    first, last = np.percentile(known[value], [0.5, 99.5])
    places = np.linspace(first, last, 101)
    order = known.groupby(by, observed=True)[value].median().sort_values(ascending=False).index
    rows = []
    for source, inside in known.groupby("source", sort=False, observed=True):
        most = inside[by].value_counts().max()
        for part in order:
            values = inside.loc[inside[by] == part, value].to_numpy(float)
            if len(values) < min(least, most) or np.ptp(values) == 0:  # of equal values there is no density
                continue
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
            about = {"source": source, by: part, "median": middle, "q1": low, "q3": high, "positions": len(values)}
            rows.append(pd.DataFrame({"value": places, "density": gaussian_kde(values)(places), **about}))
    columns = ["source", by, "value", "density", "median", "q1", "q3", "positions"]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def extremes(table: pd.DataFrame, tokens: Tokens, column: str, *, number: int = 10) -> pd.DataFrame:
    """The tokens with the highest and the lowest values, as text: kind (`highest`, `lowest`, most extreme first), before
    (up to 40 characters of the text in front of the target), target, the column, and small_nats where the table has it.

    Args:
        table: one row per position of these texts, with seq, position, target and the column.
        tokens: the texts.
        column: by which they are ordered.
        number: of each kind.

    Raises:
        ValueError: the table has no such column.
    """
    if column not in table:
        raise ValueError(f"column {column!r}: the table has {list(table)}")
    known = table.dropna(subset=[column])
    ends = {"highest": known.nlargest(number, column), "lowest": known.nsmallest(number, column)}
    found = pd.concat([part.assign(kind=kind) for kind, part in ends.items()], ignore_index=True)
    starts = tokens.offsets[found["seq"], found["position"] + 1, 0].tolist()
    found["before"] = [tokens.text[seq][max(0, at - BEFORE) : at] for seq, at in zip(found["seq"], starts)]
    shown = ["kind", "before", "target", column, "small_nats"]
    return found[[name for name in dict.fromkeys(shown) if name in found]]
