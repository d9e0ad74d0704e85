"""Tables of one token and its routes: what the inspector shows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int8

from .. import metrics, routes
from ..records import Curve, Landscape, Predictions, Tokens
from .summaries import difficulty


def inspected(
    tokens: Tokens,
    oracle: Curve,
    label_free: Curve,
    null: Curve,
    *,
    budget: int,
    routed: tuple[np.ndarray, np.ndarray] | None = None,
) -> pd.DataFrame:
    """`difficulty` with margin_nats (of the oracle), and of a router router_nats, regret_nats (against the oracle at the
    router's mean number of big layers) and router_big (its big layers); NaN without a router.

    Args:
        tokens, oracle, label_free, null, budget: as in `difficulty`.
        routed: routes and losses of a router.
    """
    table = difficulty(tokens, oracle, label_free, null, budget=budget)
    table["margin_nats"] = np.nan
    if oracle.margin_nats is not None:
        margin = oracle.margin_nats[oracle.place(budget)][tokens.scored]
        table["margin_nats"] = np.where(np.isinf(margin), np.nan, margin)  # a route that is alone has no second
    if routed is None:
        return table.assign(router_nats=np.nan, regret_nats=np.nan, router_big=np.nan)
    chosen, losses = routed
    realised = metrics.share(chosen) * chosen.shape[-1]
    best = metrics.at_budget(oracle.budgets, oracle.loss_nats, realised)
    table["router_nats"] = losses[tokens.scored]
    table["regret_nats"] = metrics.regret(losses, best)[tokens.scored]
    table["router_big"] = (chosen == routes.BIG).sum(-1)[tokens.scored].astype(float)
    return table


def spread(land: Landscape) -> pd.DataFrame:
    """How a landscape's losses are spread, by number of big layers: big, routes, and in nats least, lower (quartile), median,
    upper (quartile), most."""
    bigs = (land.routes == routes.BIG).sum(1)
    rows = []
    for big in np.unique(bigs):
        losses = land.loss_nats[bigs == big]
        numbers = np.quantile(losses, [0, 0.25, 0.5, 0.75, 1])
        rows.append(
            {"big": big, "routes": len(losses), **dict(zip(("least", "lower", "median", "upper", "most"), numbers))}
        )
    return pd.DataFrame(rows)


def best_routes(land: Landscape, *, number: int = 10) -> pd.DataFrame:
    """The best routes of a landscape, best first: route, big, skip, loss_nats."""
    order = np.argsort(land.loss_nats, kind="stable")[:number]
    return _named(land.routes[order]).assign(loss_nats=land.loss_nats[order])


def policies(
    names: list[str], found: Predictions, tops: list[list[str]], whole: Float32[np.ndarray, " route"]
) -> pd.DataFrame:
    """What one token's policies choose and what that is worth: policy, route, big, skip, loss_nats (this token alone takes
    the route), text_nats (every token takes the policy's), rank and share (of the true next token), top (the likeliest next
    tokens with their probabilities).

    Args:
        names: of the policies.
        found: what is predicted under each.
        tops: characters of the likeliest tokens.
        whole: loss in nats of the token in the forward pass in which all tokens take the policy's routes.
    """
    table = _named(found.routes)
    table.insert(0, "policy", names)
    return table.assign(
        loss_nats=found.loss_nats,
        text_nats=whole,
        rank=found.rank,
        share=np.exp(-found.loss_nats),
        top=[list(zip(texts, shares.tolist())) for texts, shares in zip(tops, found.top_shares)],
    )


def layer_usage(chosen: Mapping[str, Int8[np.ndarray, "*any layer"]]) -> pd.DataFrame:
    """The share of big for each layer: policy, layer, share, n (positions)."""
    parts = []
    for name, each in chosen.items():
        known = each[metrics.scored(each)]
        shares = (known == routes.BIG).mean(0)
        parts.append(pd.DataFrame({"policy": name, "layer": np.arange(len(shares)), "share": shares, "n": len(known)}))
    return pd.concat(parts, ignore_index=True)


def _named(chosen: Int8[np.ndarray, "route layer"]) -> pd.DataFrame:
    """Text of routes with their numbers of big and skipped layers."""
    big, skip = ((chosen == choice).sum(1) for choice in (routes.BIG, routes.SKIP))
    return pd.DataFrame({"route": routes.to_texts(chosen), "big": big, "skip": skip})
