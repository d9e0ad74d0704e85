"""Tables of routers: what they foresee, and several seeds as one."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int8
from scipy.stats import t

from .. import metrics
from ..records import Tokens
from ..routes import BIG, SKIP, SMALL


def calibration(gains: pd.DataFrame, *, parts: int = 20) -> pd.DataFrame:
    """How far predicted gains come true: of equal parts of all layers' positions, in the order of what was predicted.

    A row for each source and part: predicted_nats (mean), realised_nats with `_low` and `_high` (95 %, over documents), positions
    (a layer's each) and documents.

    Args:
        gains: as of `evaluation.predicted_gains`.
        parts: how many.
    """
    rows = []
    for source, table in gains.groupby("source", sort=False):
        order = table["predicted_nats"].rank(method="first") / len(table)
        for _, part in table.groupby(np.ceil(order * parts)):
            mean = metrics.mean_interval(part[["realised_nats"]].to_numpy(), part["document"].tolist())
            row = {"source": source, "predicted_nats": part["predicted_nats"].mean(), **mean.columns("realised_nats")}
            rows.append(row | {"positions": mean.positions, "documents": mean.documents})
    return pd.DataFrame(rows)


def explained(gains: pd.DataFrame) -> pd.DataFrame:
    """How much of each layer's gains a router foresees: a row for each source and layer, with R squared as explained, `_low` and
    `_high` (95 %, over documents), positions and documents.

    Args:
        gains: as of `evaluation.predicted_gains`.
    """
    rows = []
    for (source, layer), table in gains.groupby(["source", "layer"], sort=False):
        said, true = (table[[name]].to_numpy() for name in ("predicted_nats", "realised_nats"))
        found = metrics.explained(said, true, table["document"].tolist())
        row = {"source": source, "layer": layer, **found.columns("explained")}
        rows.append(row | {"positions": found.positions, "documents": found.documents})
    return pd.DataFrame(rows)


def over_seeds(judged: pd.DataFrame) -> pd.DataFrame:
    """Routers that differ in their seeds alone as one row: the mean, with an interval for other documents and other seeds.

    The columns of `evaluation.routers` but router and seed, and seeds, how many there are. The half width of an interval is the
    root of two squares: the mean half width over documents, which all seeds share, and that of the t interval over the seeds.

    Args:
        judged: as of `evaluation.routers`.

    Raises:
        ValueError: two routers that differ in nothing, seed included.
    """
    same = ["source", "control", "kind", "units", "reads", "shuffled", "trained_big", "asked_big"]
    if judged.duplicated([*same, "seed"]).any():
        raise ValueError("two routers of one kind, budget and seed: judge them apart")
    ends = [column.removesuffix("_low") for column in judged if column.endswith("_low")]
    rows = []
    for _, part in judged.groupby(same, sort=False):
        row: dict[str, Any] = {**part.drop(columns=["router", "seed"]).iloc[0], "seeds": len(part)}
        row |= {name: part[name].mean() for name in ("realised_big", "mflop")}
        for name in ends:
            documents, seeds = (part[f"{name}_high"] - part[name]).mean(), 0.0
            if len(part) > 1:
                seeds = float(t.ppf(0.975, len(part) - 1) * part[name].std() / np.sqrt(len(part)))
            half, mean = float(np.hypot(documents, seeds)), part[name].mean()
            row |= {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}
        rows.append(row)
    return pd.DataFrame(rows)


def route_agreement(chosen: Mapping[str, Int8[np.ndarray, "seq position layer"]], tokens: Tokens) -> pd.DataFrame:
    """How alike some policies route the tokens: source, one, other (policies), mean, low, high (95 %, over documents), positions,
    documents.

    Cohen's kappa: the share of layers with the same choice, less what it would be if both drew each layer's choice independently
    with the shares that they have there, over the most that this can be. 1 is the same routes, 0 chance.

    Args:
        chosen: routes by policy.
        tokens: the text.
    """
    rows = []
    for one, other in product(chosen, repeat=2):
        a, b = chosen[one], chosen[other]
        both = metrics.scored(a) & metrics.scored(b)
        chance = sum(float(((a[both] == c).mean(0) * (b[both] == c).mean(0)).mean()) for c in (SKIP, SMALL, BIG))
        same = np.where(both, (a == b).mean(-1), np.nan)
        found = metrics.mean_interval((same - chance) / max(1 - chance, 1e-9), tokens.documents)
        ends = {"mean": found.mean, "low": found.low, "high": found.high}
        counts = {"positions": found.positions, "documents": found.documents}
        rows.append({"source": tokens.source, "one": one, "other": other, **ends, **counts})
    return pd.DataFrame(rows)
