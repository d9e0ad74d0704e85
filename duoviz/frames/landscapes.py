"""Tables of some positions of each text, and their means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np
import pandas as pd
from jaxtyping import Float

from .. import metrics
from ..records import Luck, Tokens


def sampled(
    tokens: Tokens,
    positions: Sequence[int],
    values: Mapping[str, Float[np.ndarray, "seq position"]],
    **same: object,
) -> pd.DataFrame:
    """One row per sampled scored position: seq, position, a column for each of the values, and columns that are the same
    in all rows."""
    seqs, numbers = np.nonzero(tokens.scored[:, positions])
    table = pd.DataFrame({"seq": seqs.astype(np.int32), "position": np.array(positions, np.int32)[numbers]})
    return table.assign(**{name: each[seqs, numbers] for name, each in values.items()}, **same)


def means(table: pd.DataFrame, tokens: Tokens, *, by: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """One row per group: source, the columns of the group, and for each of the values its mean and `<value>_low` and
    `<value>_high` (95 %, over documents); positions, documents.

    Args:
        table: rows with seq and position; a group holds a position at most once.
        tokens: the texts.
        by: columns that make a group.
        values: columns to average.
    """
    rows = []
    for key, part in table.groupby(list(by), sort=False, observed=True):
        row: dict[str, object] = {"source": tokens.source, **dict(zip(by, key))}
        for name in values:
            dense = np.full(tokens.scored.shape, np.nan)
            dense[part["seq"], part["position"]] = part[name]
            mean = metrics.mean_interval(dense, tokens.documents)
            row |= mean.columns(name)
        rows.append(row | {"positions": mean.positions, "documents": mean.documents})
    return pd.DataFrame(rows)


def luck_losses(found: Luck, tokens: Tokens, positions: Sequence[int]) -> pd.DataFrame:
    """One row per sampled scored position and number of big layers: seq, position, budget and the losses of `records.Luck`."""
    names = [field.name for field in fields(found) if field.name not in ("budgets", "temperature")]
    parts = [
        sampled(tokens, positions, {name: getattr(found, name)[k] for name in names}, budget=budget)
        for k, budget in enumerate(found.budgets.tolist())
    ]
    return pd.concat(parts, ignore_index=True).assign(temperature=found.temperature)


def luck_gains(table: pd.DataFrame, tokens: Tokens) -> pd.DataFrame:
    """What the best route gains over the mean route of its budget and over all big, and what it gains on made-up tokens: one
    row for each reference (`over`: mean, big) and budget, with `true`, `free`, `null`, `matched` and the paired differences
    `true_less_null` and `true_less_matched`, each with its bounds, in nats; source, positions, documents.

    Args:
        table: of `luck_losses`.
        tokens: the texts.
    """
    place = ["seq", "position"]
    big = table[table["budget"] == table["budget"].max()].set_index(place)
    at = pd.MultiIndex.from_frame(table[place])
    rows = []
    for over in ("mean", "big"):
        gains = table[[*place, "budget"]].copy()
        for target in ("true", "null", "matched"):
            reference = table[f"{target}_mean"] if over == "mean" else big[f"{target}_best"].loc[at].to_numpy()
            gains[target] = reference - table[f"{target}_best"]
            if target == "true":
                gains["free"] = reference - table["free"]
        for null in ("null", "matched"):
            gains[f"true_less_{null}"] = gains["true"] - gains[null]
        values = [name for name in gains if name not in (*place, "budget")]
        rows.append(means(gains, tokens, by=["budget"], values=values).assign(over=over))
    return pd.concat(rows, ignore_index=True)


def regrets(methods: pd.DataFrame, candidates: pd.DataFrame, tokens: Tokens) -> pd.DataFrame:
    """How far from the best route each method ends, and after how many routes: `means` of regret_nats and routes by space
    and method, with the random draws of `candidates` as method `random-K` in the space `free`.

    Args:
        methods, candidates: tables of `Study.landscapes`.
        tokens: the texts.
    """
    best = candidates.groupby(["seq", "position"])["true_nats"].transform("max")
    random = pd.DataFrame(
        {
            "seq": candidates["seq"],
            "position": candidates["position"],
            "regret_nats": best - candidates["true_nats"],
            "routes": candidates["candidates"].astype(float),
            "method": "random-" + candidates["candidates"].astype(str),
            "space": "free",
        }
    )
    known = pd.concat([methods, random[candidates["candidates"] < candidates["candidates"].max()]])
    return means(known, tokens, by=["space", "method"], values=["regret_nats", "routes"])


SEARCHES = ("paths-1", "paths-2", "paths-4", "paths-8", "descent-0")
"""Methods of which `searched` gives the regret."""


def searched(tables: Mapping[str, pd.DataFrame], tokens: Tokens) -> pd.DataFrame:
    """How additive route losses are, and the regret of searches that do not enumerate.

    Columns: source, measure (additive and pairwise: R squared; a search: its regret in nats, averaged over the numbers of big
    layers), `value` with its bounds, positions, documents.

    Args:
        tables: of `Study.landscapes`.
        tokens: the texts.
    """
    fits = tables["additivity"].melt(["seq", "position"], ["additive", "pairwise"], "measure")
    methods = tables["methods"]
    some = methods[(methods["space"] == "each budget") & methods["method"].isin(SEARCHES)]
    regrets_ = some.rename(columns={"method": "measure", "regret_nats": "value"})
    parts = [means(part, tokens, by=["measure"], values=["value"]) for part in (fits, regrets_)]
    return pd.concat(parts, ignore_index=True)
