"""Routers of every kind for one model: trained with several seeds, judged on the same texts, the best of each kind kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import corpus, evaluation, frames, places, router, training
from ..model import configuration
from ..records import Curve
from .study import Study
from .training import train_router

BUDGETS = (1, 2, 4, 6)
KINDS: dict[str, dict[str, Any]] = {
    "budget": {"kind": "budget"},
    "straight-through": {"kind": "straight-through", "units": 64},
    "policy": {"kind": "policy", "units": 64},
    "distil": {"kind": "distil", "units": 64},
    "pairwise": {"kind": "pairwise", "units": 64},
    "threshold": {"kind": "threshold", "reads": "entropy"},
    "shuffled labels": {"kind": "distil", "units": 64, "shuffled": True},
    "position alone": {"kind": "distil", "units": 64, "reads": "position"},
    "token alone": {"kind": "distil", "units": 64, "reads": "token"},
}
"""What is trained, as arguments of `router.Stage3`; the last three are controls, which do not see the state of the model."""
CONTROLS = tuple(KINDS)[6:]


def train(
    model: str,
    out: Path,
    *,
    budgets: Sequence[int] = BUDGETS,
    kinds: Mapping[str, Mapping[str, Any]] = KINDS,
    seeds: int = 5,
    tokens: int = 1_000_000,
    sources: Sequence[str] = corpus.PYTHON,
    say: Callable[[str], None] = print,
) -> None:
    """Train routers of every kind, budget and seed into folders `out/<kind>-<budget>/<seed>`; repeated, it goes on from where it
    was cut off.

    Args:
        model: folder or Hub id.
        out: folder of the routers.
        budgets: big layers of a token.
        kinds: arguments of `router.Stage3` by name.
        seeds: how many of each; one of the kind `threshold`, which draws nothing, and of the controls.
        tokens: training tokens of each.
        sources: text.
        say: is told which training begins.

    Raises:
        ValueError: as `train_router`, or a folder that holds a router which was trained in another way.
    """
    layers = configuration(places.found(model)).num_hidden_layers
    for (name, ways), big, seed in product(kinds.items(), budgets, range(seeds)):
        folder = out / f"{name}-{big}" / str(seed)
        alone = ways["kind"] == "threshold" or name in CONTROLS
        if seed and alone:
            continue
        if (folder / "router.json").is_file():
            _check(folder, {"seed": seed, **ways}, tokens)
            continue
        say(f"{name}, {big} big, seed {seed}")
        mixture = router.Mixture.from_budget(big, layers)
        train_router(model, folder, mixture=mixture, tokens=tokens, sources=sources, seed=seed, **ways)


def _check(folder: Path, ways: Mapping[str, Any], tokens: int) -> None:
    """Check that a finished router was trained as it would be now.

    Raises:
        ValueError: if not.
    """
    facts = router.load(folder).facts
    step = facts["rows"] * training.ROW  # tokens are whole steps; `threshold` needs one
    wrong = {name: (facts.get(name), way) for name, way in ways.items() if facts.get(name) != way}
    if ways["kind"] != "threshold" and abs(facts["tokens"] - tokens) >= step:
        wrong["tokens"] = (facts["tokens"], tokens)
    if wrong:
        raise ValueError(f"{folder} holds another router, (kept, asked) = {wrong}: give another folder")


def judged(study: Study, out: Path, *, context: str = "committed") -> dict[str, pd.DataFrame]:
    """What those routers are worth on the texts of a study.

    Offsets are set on calibration text of the same source, without its labels. Tables: `judged` (see `evaluation.routers`, with
    the name of `KINDS`) and `policies` (what label-free policy and oracle gain: see `frames.over_fixed`).

    Args:
        study: its documents are judged.
        out: as of `train`.
        context: of the oracle and of the label-free policy.

    Raises:
        ValueError: no router in the folder, or one of another model.
    """
    made = {
        f"{path.parts[-3]}/{path.parts[-2]}": router.load(path.parent) for path in sorted(out.glob("*/*/router.json"))
    }
    if not made:
        raise ValueError(f"{out} holds no routers: train some first")
    texts = {source: study.tokens(source) for source in study.sources}
    known = {source: _known(study, source, context) for source in study.sources}
    meet = {source: study.calibration(source) for source in study.sources}
    firsts = {name: one for name, one in made.items() if name.endswith("/0")}
    others = {name: one for name, one in made.items() if name not in firsts}
    parts = [
        evaluation.routers(study.lm, list(texts.values()), some, known=known, controls=controls, meet=meet)
        for some, controls in ((firsts, evaluation.CONTROLS), (others, ("",)))
        if some
    ]
    table = pd.concat(parts, ignore_index=True)
    names = table["router"].str.partition("/")[0].str.rpartition("-")[0]
    asked = sorted({round(one.mixture.big * study.lm.layers) for one in made.values()})
    policies = [
        frames.over_fixed(
            _at(curves["label-free"], asked), {name: curves[name] for name in ("fixed", "oracle")}, tokens
        )
        for curves, tokens in ((known[source], tokens) for source, tokens in texts.items())
    ]
    return {"judged": table.assign(name=names), "policies": pd.concat(policies, ignore_index=True)}


def _known(study: Study, source: str, context: str) -> dict[str, Curve]:
    """The curves that routers are compared with."""
    found = study.survey(source, ("nll", "expected"), context=context)
    return {"fixed": study.fixed(source), "oracle": found["nll"], "label-free": found["expected"]}


def _at(curve: Curve, budgets: Sequence[int]) -> Curve:
    """Some budgets of a curve."""
    places_ = [curve.place(budget) for budget in budgets]
    return Curve(curve.name, curve.context, curve.budgets[places_], curve.loss_nats[places_], curve.routes[places_])


def keep(study: Study, out: Path, folder: Path) -> list[Path]:
    """Copy the best router of each kind and budget, controls aside, to `folder/<kind>-<budget>`: that of the seed whose loss on
    the calibration texts is least. Returns the copies.

    Raises:
        ValueError: as `judged`.
    """
    tokens, kept = study.calibration(), []
    for group in sorted(path for path in out.glob("*-*") if path.name.rpartition("-")[0] not in CONTROLS):
        seeds = sorted(path.parent for path in group.glob("*/router.json"))
        losses = [np.nanmean(router.load(seed).losses(study.lm, tokens)) for seed in seeds]
        router.save(router.load(seeds[int(np.argmin(losses))]), folder / group.name)
        kept.append(folder / group.name)
    return kept
