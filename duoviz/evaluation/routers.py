"""One judge for every kind of router: its gain over the best fixed route at the budget it realises, and its controls'."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int8

from .. import metrics
from ..model import LanguageModel, RandomPolicy, forward_flops, undisturbed
from ..oracle import Setting, flips
from ..records import Curve, Tokens
from ..router import Router, calibrate
from ..routes import BIG, SKIP, SMALL

CONTROLS = ("", "shuffled", "random")
"""The router itself; its routes permuted over the tokens, so that only its preference for layers is left; and random choices with
the shares that it realises."""
MET = 0.01
"""Mean big layers by which a router may miss its budget on the texts that it is calibrated on."""


@undisturbed
def routers(
    lm: LanguageModel,
    texts: Sequence[Tokens],
    made: Mapping[str, Router],
    *,
    known: Mapping[str, Mapping[str, Curve]],
    controls: Sequence[str] = CONTROLS,
    meet: Mapping[str, Tokens] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """A row for every source, router and control.

    Columns: source, router, control (empty for the router itself), kind, units, reads, shuffled, seed, trained_tokens,
    parameters, trained_big (mean big layers that it was trained for); asked_big and realised_big, mflop (a token's, the router's
    own included); loss_nats, over_fixed_nats (paired by position, at the realised budget), over_big_nats (gain over the last of
    the fixed routes, all big) and, where the curves are known, gap_closed and label_free_gap_closed, each with `_low` and `_high`
    (95 %, over documents; NaN where the gap itself may be 0); positions, documents; and of the gaps gap_positions, gap_documents.

    Args:
        lm: the model.
        texts: one for each source.
        made: routers by name, calibrated on other text.
        known: by source, the curve `fixed`, and `oracle` and `label-free` if there are any; these may be of the first
            documents alone, on which the gaps are measured then.
        controls: of `CONTROLS`.
        meet: by source, texts on which the offsets of each router are set anew, so that it meets its budget on that source;
            that takes no label. Their own offsets if not given.
        seed: of what controls draw.

    Raises:
        ValueError: a source without its fixed routes, an unknown control, a router of another model.
    """
    if unknown := set(controls) - set(CONTROLS):
        raise ValueError(f"controls {sorted(unknown)}: allowed are {', '.join(map(repr, CONTROLS))}")
    if missing := [tokens.source for tokens in texts if "fixed" not in known.get(tokens.source, {})]:
        raise ValueError(f"sources {missing} come without a curve 'fixed': gains are taken over the best fixed route")
    rows = []
    for tokens in texts:
        for name, router in made.items():
            own = router if meet is None else _met(router, lm, meet[tokens.source])
            for control, routes, loss in _runs(lm, tokens, own, controls, seed):
                row = {"source": tokens.source, "router": name, "control": control, **_about(own, lm)}
                rows.append(row | _judged(lm, tokens, routes, loss, router, known[tokens.source]))
    return pd.DataFrame(rows)


def _met(router: Router, lm: LanguageModel, tokens: Tokens) -> Router:
    """The router with offsets that meet its budget on these texts."""
    return calibrate(copy.deepcopy(router), lm, tokens, near=MET / lm.layers)


def _runs(
    lm: LanguageModel, tokens: Tokens, router: Router, controls: Sequence[str], seed: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Routes and losses of the router and of its controls."""
    routes, loss = router.run(lm, tokens)
    if "" in controls:
        yield "", routes, loss
    if "shuffled" in controls:
        mixed, scored = routes.copy(), tokens.scored
        mixed[scored] = routes[scored][np.random.default_rng(seed).permutation(int(scored.sum()))]
        yield "shuffled", mixed, lm.score(tokens, mixed)
    if "random" in controls:
        big, small, skip = (metrics.share(routes, choice) for choice in (BIG, SMALL, SKIP))
        seqs, positions = tokens.scored.shape
        drawn = RandomPolicy(big, small, skip, seed).routes(seqs, positions, lm.layers).numpy()
        drawn[~tokens.scored] = -1
        yield "random", drawn, lm.score(tokens, drawn)


def _about(router: Router, lm: LanguageModel) -> dict[str, Any]:
    """The columns that describe a router."""
    return {
        "kind": router.facts.get("kind", "budget"),
        "units": router.units,
        "reads": router.reads,
        "shuffled": router.facts.get("shuffled", False),
        "seed": router.facts.get("seed", 0),
        "trained_tokens": router.facts.get("tokens"),
        "parameters": sum(one.numel() for one in router.parameters()),
        "trained_big": router.facts.get("mixture", asdict(router.mixture))["big"] * lm.layers,
        "asked_big": router.mixture.big * lm.layers,
    }


def _judged(
    lm: LanguageModel,
    tokens: Tokens,
    routes: Int8[np.ndarray, "seq position layer"],
    loss: np.ndarray,
    router: Router,
    known: Mapping[str, Curve],
) -> dict[str, Any]:
    """The columns that are measured in one run."""
    real = metrics.share(routes, BIG) * lm.layers
    at = {name: metrics.at_budget(curve.budgets, curve.loss_nats, real) for name, curve in known.items()}
    found = {
        "loss_nats": metrics.mean_interval(loss, tokens.documents),
        "over_fixed_nats": metrics.difference_interval(at["fixed"], loss, tokens.documents),
        "over_big_nats": metrics.difference_interval(known["fixed"].loss_nats[-1], loss, tokens.documents),
    }
    whole = np.where(routes < 0, BIG, routes)
    flops = forward_flops(lm.model, whole) / whole[..., 0].size + router.flops(lm.vocab)
    row: dict[str, Any] = {"realised_big": real, "mflop": flops / 1e6}
    for name, column in (("oracle", "gap_closed"), ("label-free", "label_free_gap_closed")):
        if name in at:
            few = len(at[name])
            gap = metrics.gap_interval(loss[:few], at["fixed"][:few], at[name], tokens.documents[:few])
            found[column] = gap
            row |= {"gap_positions": gap.positions, "gap_documents": gap.documents}
    for column, interval in found.items():
        row |= interval.columns(column)
    return row | {"positions": found["loss_nats"].positions, "documents": found["loss_nats"].documents}


@undisturbed
def predicted_gains(
    lm: LanguageModel, tokens: Tokens, router: Router, *, objective: str = "expected", setting: Setting = Setting()
) -> pd.DataFrame:
    """What each layer gains by its larger choice along the router's own routes, and what the router says of it.

    A row for every scored position and layer: source, document, position, layer; predicted_nats, the difference of the router's
    two logits, which the kind `distil` learns in nats (of other kinds only the order says something); realised_nats, the
    difference of the losses while the token's other layers and all earlier tokens keep their routes (`oracle.flips`).

    Args:
        lm: the model.
        tokens: text that the router has not seen.
        router: of two choices.
        objective: see `duoviz.oracle.objectives`; what is realised of it.
        setting: batch and memory.

    Raises:
        ValueError: a router of three choices or of another model.
    """
    if len(router.choices) != 2:
        raise ValueError(
            f"a router with the choices {router.mixture.letters!r}: a gain is that of one choice over another"
        )
    routes, _ = router.run(lm, tokens)
    with torch.no_grad():
        logits = [lm.hidden_and_logits(tokens[rows], router)[1][:, :-1].cpu() for rows in lm.batches(tokens, 8)]
    letters, places = router.mixture.letters, np.nonzero(tokens.scored)
    losses = flips(lm, tokens, routes, objectives=(objective,), choices=letters, setting=setting)[0][places]
    said = torch.cat(logits).numpy()[places]
    layers = np.arange(lm.layers)
    return pd.DataFrame(
        {
            "source": tokens.source,
            "document": np.array(tokens.documents)[places[0]].repeat(lm.layers),
            "position": places[1].repeat(lm.layers),
            "layer": np.tile(layers, len(places[0])),
            "predicted_nats": (said[..., 1] - said[..., 0]).ravel(),
            "realised_nats": (losses[..., 0] - losses[..., 1]).ravel(),
        }
    )
