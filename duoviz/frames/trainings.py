"""Tables of models that were trained in different ways."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from .. import metrics
from ..records import Tokens


def held_losses(log: pd.DataFrame, *, run: str, before: int = 0) -> pd.DataFrame:
    """The holdout losses of a training, a row for each evaluation, source and policy.

    Columns: run, tokens (of this training), source, policy (big, small or random), loss_nats.

    Args:
        log: columns tokens and `eval_<source>_<policy>`, as `training` writes it.
        run: name of the training.
        before: tokens that an earlier training of the same model has read; its rows are left out.
    """
    held = [column for column in log if column.startswith("eval_")]
    own = log[log["tokens"] > before]
    long = own.melt("tokens", held, "column", "loss_nats").dropna(subset=["loss_nats"])
    named = long["column"].str.removeprefix("eval_").str.rpartition("_")
    table = long.assign(run=run, source=named[0], policy=named[2], tokens=long["tokens"] - before)
    return table[["run", "tokens", "source", "policy", "loss_nats"]].drop_duplicates().reset_index(drop=True)


def measured(losses: Mapping[str, np.ndarray], tokens: Tokens, **facts: object) -> pd.DataFrame:
    """Mean losses of several models on the same texts, and how much more than the first each loses, paired by position.

    Columns: the facts, run, source, loss_nats and more_nats, both with `_low` and `_high` (95 % over documents), documents,
    positions.

    Args:
        losses: nats `[seq, position]` by name of the model.
        tokens: the texts.
        **facts: what else is true of every row.
    """
    first, rows = next(iter(losses.values())), []
    for run, own in losses.items():
        mean = metrics.mean_interval(own, tokens.documents)
        more = metrics.difference_interval(own, first, tokens.documents)
        named = {**facts, "run": run, "source": tokens.source}
        counts = {"documents": mean.documents, "positions": mean.positions}
        rows.append({**named, **mean.columns("loss_nats"), **more.columns("more_nats"), **counts})
    return pd.DataFrame(rows)
