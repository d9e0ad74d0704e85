"""Records as tables that are stored, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from .. import routes
from ..records import Curve, Effort, Found, Tokens


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
    """One row per budget and scored position: policy, context, budget, seq, position, loss_nats, margin_nats (to three
    digits), minimised (in the unit of what was; left out where it is the loss), route, replay_error_nats (of the budget)."""
    rows = []
    seqs, places = np.nonzero(tokens.scored)
    own = record.minimised is not None and not np.array_equal(record.minimised, record.loss_nats, equal_nan=True)
    for k, budget in enumerate(record.budgets):
        margin, least = (
            np.nan if each is None else each[k][tokens.scored] for each in (record.margin_nats, record.minimised)
        )
        error = record.replay_error[k] if len(record.replay_error) else np.nan
        rows.append(
            pd.DataFrame(
                {
                    "budget": np.int16(budget),
                    "seq": seqs.astype(np.int32),
                    "position": places.astype(np.int32),
                    "loss_nats": record.loss_nats[k][tokens.scored],
                    "margin_nats": _rounded(margin),
                    **({"minimised": least} if own else {}),
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
    optional: dict[str, Any] = {}
    if table["margin_nats"].notna().any():  # it was searched
        least = table["minimised" if "minimised" in table else "loss_nats"]
        optional = {"margin_nats": _dense(shape, place, table["margin_nats"]), "minimised": _dense(shape, place, least)}
    errors = table.groupby("budget")["replay_error_nats"].first().to_numpy()
    return Curve(
        name=str(table["policy"].iloc[0]),
        context=str(table["context"].iloc[0]),
        budgets=budgets,
        loss_nats=_dense(shape, place, table["loss_nats"]),
        routes=_dense_routes(shape, place, table["route"]),
        replay_error=errors if np.isfinite(errors).any() else np.zeros(0),
        **optional,
    )


def found(record: Found, tokens: Tokens) -> pd.DataFrame:
    """One row per scored position: seq, position, loss_nats, margin_nats, route; what was searched in the other columns."""
    seqs, places = np.nonzero(tokens.scored)
    table = pd.DataFrame(
        {
            "seq": seqs.astype(np.int32),
            "position": places.astype(np.int32),
            "loss_nats": record.loss_nats[tokens.scored],
            "margin_nats": _rounded(record.margin_nats[tokens.scored]),
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


def _rounded(margin: Any) -> Any:
    """To the digits of float16, which take half the room on disk."""
    return np.float16(margin).astype(np.float32)


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
