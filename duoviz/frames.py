"""Records to tidy tables and back: the only place that names columns, dtypes and units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from . import metrics, routes
from .records import Curve, Effort, Found, Tokens
from .routes import BIG


def positions(tokens: Tokens) -> pd.DataFrame:
    """One row per scored position: source, document, seq, position, input, target (their characters), target_id."""
    seqs, places = np.nonzero(tokens.scored)
    pieces = [tokens.pieces(seq) for seq in range(len(tokens))]
    return pd.DataFrame(
        {
            "source": pd.Categorical([tokens.source] * len(seqs)),
            "document": pd.Categorical([tokens.documents[seq] for seq in seqs]),
            "seq": seqs.astype(np.int32),
            "position": places.astype(np.int32),
            "input": [pieces[seq][place] for seq, place in zip(seqs, places)],
            "target": [pieces[seq][place + 1] for seq, place in zip(seqs, places)],
            "target_id": tokens.ids[seqs, places + 1].astype(np.int32),
        }
    )


def token_losses(tokens: Tokens, losses: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """`positions` with one column `<name>_nats` for each losses `[seq, position]`."""
    table = positions(tokens)
    for name, values in losses.items():
        table[f"{name}_nats"] = values[tokens.scored]
    return table


def curve(record: Curve, tokens: Tokens) -> pd.DataFrame:
    """One row per budget and scored position: policy, context, budget, seq, position, loss_nats, margin_nats, route,
    replay_error_nats (of the budget)."""
    rows = []
    seqs, places = np.nonzero(tokens.scored)
    for k, budget in enumerate(record.budgets):
        margin = record.margin_nats[k][tokens.scored] if record.margin_nats is not None else np.nan
        error = record.replay_error[k] if len(record.replay_error) else np.nan
        rows.append(
            pd.DataFrame(
                {
                    "budget": np.int16(budget),
                    "seq": seqs.astype(np.int32),
                    "position": places.astype(np.int32),
                    "loss_nats": record.loss_nats[k][tokens.scored],
                    "margin_nats": margin,
                    "route": routes.to_texts(record.routes[k][tokens.scored]),
                    "replay_error_nats": error,
                }
            )
        )
    table = pd.concat(rows, ignore_index=True)
    table.insert(0, "policy", pd.Categorical([record.name] * len(table)))
    table.insert(1, "context", pd.Categorical([record.context] * len(table)))
    return table.astype({"route": "category"})


def curve_from_frame(table: pd.DataFrame, tokens: Tokens) -> Curve:
    """The record of `curve`.

    Raises:
        ValueError: a table of other texts.
    """
    budgets = np.sort(table["budget"].unique()).astype(np.int64)
    shape = (len(budgets), *tokens.scored.shape)
    _check_rows(table, int(tokens.scored.sum()) * len(budgets))
    place = np.searchsorted(budgets, table["budget"]), table["seq"].to_numpy(), table["position"].to_numpy()
    has_margin = bool(table["margin_nats"].notna().any())
    errors = table.groupby("budget")["replay_error_nats"].first().to_numpy()
    return Curve(
        name=str(table["policy"].iloc[0]),
        context=str(table["context"].iloc[0]),
        budgets=budgets,
        loss_nats=_dense(shape, place, table["loss_nats"]),
        routes=_dense_routes(shape, place, table["route"]),
        margin_nats=_dense(shape, place, table["margin_nats"]) if has_margin else None,
        replay_error=errors if np.isfinite(errors).any() else np.zeros(0),
    )


def found(record: Found, tokens: Tokens) -> pd.DataFrame:
    """One row per scored position: seq, position, loss_nats, margin_nats, route; what was searched in the other columns."""
    seqs, places = np.nonzero(tokens.scored)
    table = pd.DataFrame(
        {
            "seq": seqs.astype(np.int32),
            "position": places.astype(np.int32),
            "loss_nats": record.loss_nats[tokens.scored],
            "margin_nats": record.margin_nats[tokens.scored],
            "route": routes.to_texts(record.routes[tokens.scored]),
            "replay_error_nats": record.replay_error,
            "evaluated": record.effort.routes if record.effort else np.nan,
        }
    )
    for name in ("space", "context", "objective", "method"):
        table[name] = getattr(record, name)
    return table.astype(dict.fromkeys(("route", "space", "context", "objective", "method"), "category"))


def found_from_frame(table: pd.DataFrame, tokens: Tokens) -> Found:
    """The record of `found`.

    Raises:
        ValueError: a table of other texts.
    """
    _check_rows(table, int(tokens.scored.sum()))
    place, shape, first = (table["seq"].to_numpy(), table["position"].to_numpy()), tokens.scored.shape, table.iloc[0]
    return Found(
        routes=_dense_routes(shape, place, table["route"]),
        loss_nats=_dense(shape, place, table["loss_nats"]),
        margin_nats=_dense(shape, place, table["margin_nats"]),
        replay_error=float(first["replay_error_nats"]),
        effort=Effort(float(first["evaluated"])),
        **{name: str(first[name]) for name in ("space", "context", "objective", "method")},
    )


def curve_summary(curves: Sequence[Curve], tokens: Tokens) -> pd.DataFrame:
    """One row per policy and budget: source, policy, context, budget, realised_big (mean big layers), loss_nats with low
    and high (95 %, documents drawn anew), perplexity with the same, replay_error_nats, positions, documents."""
    rows = []
    for record in curves:
        for k, budget in enumerate(record.budgets):
            mean = metrics.mean_interval(record.loss_nats[k], tokens.documents)
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
                    "perplexity": metrics.perplexity(mean.mean),
                    "perplexity_low": metrics.perplexity(mean.low),
                    "perplexity_high": metrics.perplexity(mean.high),
                    "replay_error_nats": record.replay_error[k] if len(record.replay_error) else np.nan,
                    "positions": mean.positions,
                    "documents": mean.documents,
                }
            )
    return pd.DataFrame(rows)


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
            row |= {name: mean.mean, f"{name}_low": mean.low, f"{name}_high": mean.high}
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
            row |= {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}
        rows.append(row | {"positions": values["regret_nats"].positions, "documents": values["regret_nats"].documents})
    return pd.DataFrame(rows)


def tidy(table: pd.DataFrame, tokens: Tokens) -> pd.DataFrame:
    """A table of `curve` or `found` with the texts beside it, for export: the columns of `positions` first, then its own,
    then `big` and `skip`, the numbers of big and of skipped layers of each route.

    Raises:
        ValueError: a table of other texts.
    """
    joined = positions(tokens).merge(table, on=["seq", "position"], how="inner", validate="one_to_many")
    _check_rows(joined, len(table))
    texts = joined["route"].astype("category")
    for name, letter in (("big", routes.LETTERS[routes.BIG]), ("skip", routes.LETTERS[routes.SKIP])):
        counts = np.array([text.count(letter) for text in texts.cat.categories], np.int16)
        joined[name] = counts[texts.cat.codes]
    return joined.assign(route=texts)


def usage(chosen: np.ndarray, *, source: str, panel: str, choice: int = BIG) -> pd.DataFrame:
    """The share of a choice for each layer and position: source, panel, layer, position, share, n (texts)."""
    shares = metrics.share_by_layer(chosen, choice)
    counted = metrics.scored(chosen).sum(0)
    places, layers = np.indices(shares.shape)
    return pd.DataFrame(
        {
            "source": source,
            "panel": panel,
            "layer": layers.ravel(),
            "position": places.ravel(),
            "share": shares.ravel(),
            "n": counted[places.ravel()],
        }
    )


def difficulty(tokens: Tokens, oracle: Curve, label_free: Curve, null: Curve, *, budget: int) -> pd.DataFrame:
    """`positions` with losses at one budget and the difficulties made of them, all in nats.

    Columns: small, big, oracle, label_free, null; difficulty (small - oracle), label_free_difficulty, null_difficulty (both
    terms on the sampled target), small_minus_big; and `enough`, the big layers that are within 0.05 nats of the best.

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
    }
    table = token_losses(tokens, losses)
    table["enough"] = metrics.enough(oracle.loss_nats)[tokens.scored]
    return table


def distribution(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """How the values of some columns are spread: quantity (the column), part, value (in the column's unit), amount.

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
        rows.append(pd.DataFrame({"quantity": column, "part": "histogram", **bars}))
        rows.append(
            pd.DataFrame({"quantity": column, "part": "below", "value": np.quantile(values, shares), "amount": shares})
        )
    return pd.concat(rows, ignore_index=True)


def _check_rows(table: pd.DataFrame, wanted: int) -> None:
    if len(table) != wanted:
        raise ValueError(f"a stored table of {len(table)} rows: these texts have {wanted}; it belongs to other texts")


def _dense(shape: tuple[int, ...], place: tuple, values: pd.Series) -> np.ndarray:
    dense = np.full(shape, np.nan, np.float32)
    dense[place] = values.to_numpy(np.float32)
    return dense


def _dense_routes(shape: tuple[int, ...], place: tuple, texts: pd.Series) -> np.ndarray:
    codes = texts.astype("category").cat
    known = np.stack([routes.from_text(text) for text in codes.categories])
    dense = np.full((*shape, known.shape[1]), -1, np.int8)
    dense[place] = known[codes.codes.to_numpy()]
    return dense
