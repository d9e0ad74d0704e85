"""Summary tables, one for each question that a figure answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd

from .. import metrics
from ..records import Curve, Tokens
from ..routes import BIG
from .stored import token_losses


def curve_summary(curves: Sequence[Curve], tokens: Tokens) -> pd.DataFrame:
    """One row per policy and budget: source, policy, context, budget, realised_big (mean big layers), loss_nats with low
    and high (95 %, over documents), perplexity with the same, replay_error_nats, positions, documents.

    `apart_low` and `apart_high` are the loss and the 95 % interval of its difference to all big, paired by position: far
    narrower, because texts differ more than policies do. All big is a curve's own last budget, or, where it ends before, that of
    the first curve that has it; NaN where none has.
    """
    ends = [record.loss_nats[-1] for record in curves if record.budgets[-1] == record.routes.shape[-1]]
    rows = []
    for record in curves:
        own = record.budgets[-1] == record.routes.shape[-1]
        big = record.loss_nats[-1] if own or not ends else ends[0]
        for k, budget in enumerate(record.budgets):
            mean = metrics.mean_interval(record.loss_nats[k], tokens.documents)
            apart = metrics.difference_interval(record.loss_nats[k], big, tokens.documents)
            half = (apart.high - apart.low) / 2 if own or ends else np.nan
            rows.append(
                {
                    "source": tokens.source,
                    "policy": record.name,
                    "context": record.context,
                    "budget": int(budget),
                    "realised_big": metrics.share(record.routes[k], BIG) * record.routes.shape[-1],
                    "loss_nats": mean.mean,
                    "low_nats": mean.low,
                    "high_nats": mean.high,
                    "apart_low": mean.mean - half,
                    "apart_high": mean.mean + half,
                    "perplexity": metrics.perplexity(mean.mean),
                    "perplexity_low": metrics.perplexity(mean.low),
                    "perplexity_high": metrics.perplexity(mean.high),
                    "replay_error_nats": record.replay_error[k] if len(record.replay_error) else np.nan,
                    "positions": mean.positions,
                    "documents": mean.documents,
                }
            )
    return pd.DataFrame(rows)


def interval_table(summary: pd.DataFrame) -> pd.DataFrame:
    """A summary to read: one row per source and budget, one column per policy, cells `mean [low, high]` of the loss in nats;
    empty where a policy was not asked for a budget."""
    cells = [f"{r.loss_nats:.3f} [{r.low_nats:.3f}, {r.high_nats:.3f}]" for r in summary.itertuples()]
    wide = summary.assign(cell=cells).pivot(index=["source", "budget"], columns="policy", values="cell")
    return wide[list(dict.fromkeys(summary["policy"]))].rename_axis(columns=None).fillna("")


def gains(curves: Mapping[str, Curve], tokens: Tokens) -> pd.DataFrame:
    """Gain over all big at every budget: source, policy, context, budget, gain_nats with low and high, positions, documents.

    A curve's own last budget (all layers big) is what it gains over, so the null control gains over all big on its own
    sampled targets.
    """
    rows = []
    for name, record in curves.items():
        for k, budget in enumerate(record.budgets[:-1]):
            gain = metrics.difference_interval(record.loss_nats[-1], record.loss_nats[k], tokens.documents)
            rows.append(
                {
                    "source": tokens.source,
                    "policy": name,
                    "context": record.context,
                    "budget": int(budget),
                    "gain_nats": gain.mean,
                    "low_nats": gain.low,
                    "high_nats": gain.high,
                    "positions": gain.positions,
                    "documents": gain.documents,
                }
            )
    return pd.DataFrame(rows)


def luck(curves: Mapping[str, Curve], tokens: Tokens) -> pd.DataFrame:
    """What of the oracle's gain over all big is left without luck, at every budget but all big.

    Columns: source, context, budget, and each with `_low` and `_high` (95 %), in nats: oracle, null (gains over all big on
    their own targets), oracle_less_null (paired by position), label_free, label_luck; positions, documents.

    Args:
        curves: `oracle`, `null` and `label-free` on the same texts and in the same context.
        tokens: the texts.
    """
    gain = {name: curves[name].loss_nats[-1] - curves[name].loss_nats for name in ("oracle", "null", "label-free")}
    rows = []
    for k, budget in enumerate(curves["oracle"].budgets[:-1]):
        values = {
            "oracle": gain["oracle"][k],
            "null": gain["null"][k],
            "oracle_less_null": gain["oracle"][k] - gain["null"][k],
            "label_free": gain["label-free"][k],
            "label_luck": metrics.label_luck(curves["label-free"].loss_nats[k], curves["oracle"].loss_nats[k]),
        }
        row: dict[str, object] = {"source": tokens.source, "context": curves["oracle"].context, "budget": int(budget)}
        for name, value in values.items():
            mean = metrics.mean_interval(value, tokens.documents)
            row |= mean.columns(name)
        rows.append(row | {"positions": mean.positions, "documents": mean.documents})
    return pd.DataFrame(rows)


def gaps(router: Curve, found: Mapping[str, Curve], tokens: Tokens) -> pd.DataFrame:
    """What a router closes of the gap from the best fixed route to the oracle, and to the label-free policy.

    Columns: source, policy, asked, realised_big (mean big layers), and each with `<column>_low` and `<column>_high` (95 %):
    regret_nats (against the oracle), over_fixed_nats (fixed less router), gap_closed, label_free_gap_closed; positions,
    documents. The other policies are interpolated linearly in loss to the realised budget.

    Args:
        router: the router's curve.
        found: curves `fixed`, `oracle` and `label-free` on the same texts.
        tokens: the texts.

    Raises:
        ValueError: a curve is missing, or does not reach the realised budget.
    """
    missing = {"fixed", "oracle", "label-free"} - set(found)
    if missing:
        raise ValueError(f"curves {sorted(found)}: {sorted(missing)} are needed too")
    rows = []
    for k, budget in enumerate(router.budgets):
        loss, real = router.loss_nats[k], metrics.share(router.routes[k], BIG) * router.routes.shape[-1]
        at = {name: metrics.at_budget(found[name].budgets, found[name].loss_nats, real) for name in found}
        values = {
            "regret_nats": metrics.mean_interval(metrics.regret(loss, at["oracle"]), tokens.documents),
            "over_fixed_nats": metrics.difference_interval(at["fixed"], loss, tokens.documents),
            "gap_closed": metrics.gap_interval(loss, at["fixed"], at["oracle"], tokens.documents),
            "label_free_gap_closed": metrics.gap_interval(loss, at["fixed"], at["label-free"], tokens.documents),
        }
        row = {"source": tokens.source, "policy": router.name, "asked": int(budget), "realised_big": real}
        for name, value in values.items():
            row |= value.columns(name)
        rows.append(row | {"positions": values["regret_nats"].positions, "documents": values["regret_nats"].documents})
    return pd.DataFrame(rows)


def over_fixed(
    router: Curve, found: Mapping[str, Curve], tokens: Tokens, *, null_fixed: Curve | None = None
) -> pd.DataFrame:
    """What each policy gains over the best fixed route at the budgets that a router realises: source, policy, asked,
    realised_big, gain_nats with `_low` and `_high` (95 %, paired by position), positions, documents.

    Args:
        router: the router's curve.
        found: curves `fixed`, and those to compare; interpolated linearly in loss to the realised budget.
        tokens: the texts.
        null_fixed: fixed routes on the null control's targets, over which the null control gains; left out without it.

    Raises:
        ValueError: `fixed` is missing, or a curve does not reach the realised budget.
    """
    if "fixed" not in found:
        raise ValueError(f"curves {sorted(found)}: 'fixed' is needed too")
    fixed = {"null": null_fixed}
    rows = []
    for k, budget in enumerate(router.budgets):
        real = metrics.share(router.routes[k], BIG) * router.routes.shape[-1]
        for name, curve in {router.name: router, **found}.items():
            base = fixed.get(name, found["fixed"])
            if name == "fixed" or base is None:
                continue
            at = metrics.at_budget(base.budgets, base.loss_nats, real)
            own = router.loss_nats[k] if curve is router else metrics.at_budget(curve.budgets, curve.loss_nats, real)
            gain = metrics.difference_interval(at, own, tokens.documents)
            row = {"source": tokens.source, "policy": name, "asked": int(budget), "realised_big": real}
            rows.append(row | gain.columns("gain_nats") | {"positions": gain.positions, "documents": gain.documents})
    return pd.DataFrame(rows)


def usage(chosen: np.ndarray, *, source: str, panel: str, choice: int = BIG, bin: int = 1) -> pd.DataFrame:
    """The share of a choice for each layer and position: source, panel, layer, position, share, n (tokens), by_layer (the share
    of the layer over all positions) and mean (over all layers and positions).

    Args:
        chosen: routes int8 `[seq, position, layer]`; -1 where not scored.
        source, panel: columns that are the same in all rows.
        choice: which choice.
        bin: so many positions together, named by their first.
    """
    counted = metrics.scored(chosen).sum(0)
    taken = np.nan_to_num(metrics.share_by_layer(chosen, choice)) * counted[:, None]
    starts = np.arange(0, len(counted), bin)
    n, taken = np.add.reduceat(counted, starts), np.add.reduceat(taken, starts, axis=0)
    shares = taken / np.where(n > 0, n, np.nan)[:, None]
    by_layer = taken.sum(0) / n.sum()
    places, layers = np.indices(shares.shape)
    return pd.DataFrame(
        {
            "source": source,
            "panel": panel,
            "layer": layers.ravel(),
            "position": starts[places.ravel()],
            "share": shares.ravel(),
            "n": n[places.ravel()],
            "by_layer": by_layer[layers.ravel()],
            "mean": by_layer.mean(),
        }
    )


def difficulty(tokens: Tokens, oracle: Curve, label_free: Curve, null: Curve, *, budget: int) -> pd.DataFrame:
    """`positions` with losses at one budget and the difficulties made of them, all in nats.

    Columns: small, big, oracle, label_free, null; difficulty (small - oracle), label_free_difficulty, null_difficulty (both
    terms on the sampled target), small_minus_big, expected_gain (what the label-free policy expects to gain over all small,
    known without the target); and `enough`, the big layers that are within 0.05 nats of the best.

    Args:
        tokens: the texts.
        oracle, label_free, null: curves over all budgets; budget 0 is all small, the last all big.
        budget: of oracle, label-free policy and null control.
    """
    small, big, best = oracle.loss_nats[0], oracle.loss_nats[-1], oracle.at(budget)[0]
    free, luck = label_free.at(budget)[0], null.at(budget)[0]
    losses = {
        "small": small,
        "big": big,
        "oracle": best,
        "label_free": free,
        "null": luck,
        "difficulty": metrics.difficulty(small, best),
        "label_free_difficulty": metrics.difficulty(small, free),
        "null_difficulty": metrics.difficulty(null.loss_nats[0], luck),
        "small_minus_big": metrics.difficulty(small, big),
        "expected_gain": _expected_gain(label_free, budget),
    }
    table = token_losses(tokens, losses)
    table["enough"] = metrics.enough(oracle.loss_nats, oracle.budgets)[tokens.scored]
    return table


def rank_agreement(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """How alike some columns rank the tokens of a document: source, one, other (columns), mean, low, high (Spearman's rank
    correlation within each document, averaged over documents), positions, documents.

    Args:
        table: one row per position, with source and seq.
        columns: every pair of them is compared.
    """
    rows = []
    for source, part in table.groupby("source", sort=False, observed=True):
        each = np.stack([text[list(columns)].corr("spearman").to_numpy() for _, text in part.groupby("seq")])
        for one, other in product(range(len(columns)), repeat=2):
            values = each[:, one, other, None]
            known = np.isfinite(values).any()  # a column that is the same everywhere ranks nothing
            mean = metrics.mean_interval(values) if known else metrics.Interval(np.nan, np.nan, np.nan, 0, len(values))
            ends = {"mean": mean.mean, "low": mean.low, "high": mean.high}
            named = {"source": source, "one": columns[one], "other": columns[other]}
            rows.append({**named, **ends, "positions": len(part), "documents": mean.documents})
    return pd.DataFrame(rows)


def distribution(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """How the values of some columns are spread: quantity (the column), part, value (in the column's unit), amount,
    positions (values of the column in all).

    Part `histogram`: how many values lie between this value and the next row's, in 40 bins that leave out the outermost half
    per cent of all columns together on each side; a last row of none closes them. Part `below`: the share of values that
    lie below, in steps of half a per cent.

    Args:
        table: one row per position; NaN is left out.
        columns: which of its columns.

    Raises:
        ValueError: a column that holds no number.
    """
    known = {column: table[column].dropna().to_numpy() for column in columns}
    if empty := [column for column, values in known.items() if not len(values)]:
        raise ValueError(f"columns {empty} hold no number: there is nothing to spread, leave them out")
    low, high = np.percentile(np.concatenate(list(known.values())), [0.5, 99.5])
    edges, shares, rows = np.linspace(low, high, 41), np.linspace(0, 1, 201), []
    for column, values in known.items():
        bars = {"value": edges, "amount": np.append(np.histogram(values, edges)[0], 0)}
        below = {"value": np.quantile(values, shares), "amount": shares}
        for part, points in (("histogram", bars), ("below", below)):
            rows.append(pd.DataFrame({"quantity": column, "part": part, **points, "positions": len(values)}))
    return pd.concat(rows, ignore_index=True)


def _expected_gain(label_free: Curve, budget: int) -> np.ndarray:
    """NaN where the curve did not keep what it minimised."""
    if label_free.minimised is None:
        return np.full_like(label_free.loss_nats[0], np.nan)
    return label_free.minimised[0] - label_free.minimised[label_free.place(budget)]
