"""Routers of every kind for one model: trained with several seeds, judged on the same texts, the best of each kind kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import corpus, evaluation, frames, places, router, store, training
from ..model import configuration
from ..oracle import Keep
from ..records import Curve
from .study import Study
from .survey import about
from .training import train_router

BUDGETS = (1, 2, 4, 6)
"""Big layers of a token that routers are trained for."""
JUDGED = (1, 2, 3, 4, 6, 8)
"""Those that they are judged at."""
SEARCHED = 48
"""Documents of each source that the oracle and the label-free policy are searched on."""
KINDS: dict[str, dict[str, Any]] = {
    "budget": {"kind": "budget", "tokens": 1_000_000},
    "straight-through": {"kind": "straight-through", "units": 64, "tokens": 1_000_000},
    "policy": {"kind": "policy", "units": 64, "tokens": 500_000},
    "distil": {"kind": "distil", "units": 64, "tokens": 250_000},
    "pairwise": {"kind": "pairwise", "units": 64, "tokens": 250_000},
    "threshold": {"kind": "threshold", "reads": "entropy", "tokens": 1},
    "shuffled labels": {"kind": "distil", "units": 64, "shuffled": True, "tokens": 250_000},
    "position alone": {"kind": "distil", "units": 64, "reads": "position", "tokens": 250_000},
    "token alone": {"kind": "distil", "units": 64, "reads": "token", "tokens": 250_000},
}
"""What is trained, as arguments of `router.Stage3`; the last three are controls, which do not see the state of the model.
`policy` draws four routes of each text, `distil` and `pairwise` learn from losses of several routes of each token: they read less
text in the same time."""
CONTROLS = tuple(KINDS)[6:]
FORWARD = ("budget", "straight-through", "policy")
"""Kinds that learn from forward passes, which may be in bfloat16."""
TABLES = ("judged", "policies")


def train(
    model: str,
    out: Path,
    *,
    budgets: Sequence[int] = BUDGETS,
    kinds: Mapping[str, Mapping[str, Any]] = KINDS,
    seeds: int = 5,
    tokens: int | None = None,
    bf16: bool = False,
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
        tokens: training tokens of each; those of its kind if not given.
        bf16: see `router.Stage3`; for the kinds that can.
        sources: text.
        say: is told which training begins.

    Raises:
        ValueError: as `train_router`, or a folder that holds a router which was trained in another way.
    """
    layers = configuration(places.found(model)).num_hidden_layers
    for (name, own), big, seed in product(kinds.items(), budgets, range(seeds)):
        folder, asked = out / f"{name}-{big}" / str(seed), {**own, "seed": seed}
        asked |= ({"tokens": tokens} if tokens else {}) | ({"bf16": True} if bf16 and own["kind"] in FORWARD else {})
        if seed and (own["kind"] == "threshold" or name in CONTROLS):
            continue
        if (folder / "router.json").is_file():
            _check(folder, asked)
            continue
        say(f"{name}, {big} big, seed {seed}")
        train_router(model, folder, mixture=router.Mixture.from_budget(big, layers), sources=sources, **asked)


def _check(folder: Path, asked: Mapping[str, Any]) -> None:
    """Check that a finished router was trained as it would be now.

    Raises:
        ValueError: if not.
    """
    facts = router.load(folder).facts
    wrong = {name: (facts.get(name), way) for name, way in asked.items() if facts.get(name) != way}
    # tokens are whole steps; `threshold` needs one
    near = abs(facts["tokens"] - asked.get("tokens", facts["tokens"])) < facts["rows"] * training.ROW
    if asked["kind"] == "threshold" or near:
        wrong.pop("tokens", None)
    if wrong:
        raise ValueError(f"{folder} holds another router, (kept, asked) = {wrong}: give another folder")


def judged(
    study: Study,
    out: Path,
    *,
    budgets: Sequence[int] = JUDGED,
    searched: int = SEARCHED,
    context: str = "committed",
) -> dict[str, pd.DataFrame]:
    """What those routers are worth on the texts of a study.

    Offsets are set on calibration text of the same source, without its labels; at a budget that no router of a kind was trained
    for, those of the one with the nearest budget. Tables: `judged` (see `evaluation.routers`, with the name of `KINDS`) and
    `policies` (what label-free policy and oracle gain: see `frames.over_fixed`).

    Args:
        study: its documents are judged.
        out: as of `train`.
        budgets: big layers of a token.
        searched: documents of each source, the first ones, on which oracle and label-free policy are searched.
        context: of these.

    Raises:
        ValueError: no router in the folder, or one of another model.
    """
    made, few = _aimed(out, budgets, study.lm.layers), replace(study, documents=min(searched, study.documents))
    tables, policies = [], []
    for source in study.sources:
        best = _best(few, source, context)
        other = {name: best[name] for name in ("fixed", "oracle")}
        policies.append(frames.over_fixed(_at(best["label-free"], budgets), other, few.tokens(source)))
        known = {**best, "fixed": study.fixed(source)}
        tables += [_of_kind(study, source, made[name], known, context).assign(name=name) for name in made]
    return {name: pd.concat(parts, ignore_index=True) for name, parts in zip(TABLES, (tables, policies))}


def _of_kind(
    study: Study, source: str, made: Mapping[str, router.Router], known: Mapping[str, Curve], context: str
) -> pd.DataFrame:
    """The judge's table of the routers of one kind on one source; it is kept, so that a contest that was cut off goes on."""
    tokens = study.tokens(source)
    ways: dict[str, Any] = {"known": {source: known}, "meet": {source: study.calibration(source)}}
    asked = {"routers": {name: evaluation.identity(one) for name, one in made.items()}, "context": context}
    searched = len(known["oracle"].loss_nats[0])

    def compute(_: Keep) -> dict[str, pd.DataFrame]:
        firsts = {name: one for name, one in made.items() if name.endswith("/0")}
        others = {name: one for name, one in made.items() if name not in firsts}
        tables = [evaluation.routers(study.lm, [tokens], firsts, **ways)]
        tables += [evaluation.routers(study.lm, [tokens], others, controls=("",), **ways)] if others else []
        return {"judged": pd.concat(tables, ignore_index=True)}

    return study.cached("judged", {**about(tokens), **asked, "searched": searched}, compute)["judged"]


def _aimed(out: Path, budgets: Sequence[int], layers: int) -> dict[str, dict[str, router.Router]]:
    """By kind, for each budget and seed the router that was trained for the nearest budget, the smaller of two; as
    `<kind>-<budget>/<seed>`."""
    trained: dict[tuple[str, str], dict[int, router.Router]] = {}
    for path in sorted(out.glob("*/*/router.json")):
        name, _, number = path.parts[-3].rpartition("-")
        trained.setdefault((name, path.parts[-2]), {})[int(number)] = router.load(path.parent)
    if not trained:
        raise ValueError(f"{out} holds no routers: train some first")
    made: dict[str, dict[str, router.Router]] = {}
    for ((name, seed), some), big in product(trained.items(), budgets):
        nearest = min(some, key=lambda own: (abs(own - big), own))
        made.setdefault(name, {})[f"{name}-{big}/{seed}"] = some[nearest].aimed(router.Mixture.from_budget(big, layers))
    return made


def _best(study: Study, source: str, context: str) -> dict[str, Curve]:
    """The curves that routers are compared with."""
    found = study.survey(source, ("nll", "expected"), context=context)
    return {"fixed": study.fixed(source), "oracle": found["nll"], "label-free": found["expected"]}


def _at(curve: Curve, budgets: Sequence[int]) -> Curve:
    """Some budgets of a curve."""
    places_ = [curve.place(budget) for budget in budgets]
    return Curve(curve.name, curve.context, curve.budgets[places_], curve.loss_nats[places_], curve.routes[places_])


def keep(study: Study, out: Path, tables: Mapping[str, pd.DataFrame], folder: Path) -> list[Path]:
    """Copy the best router of each kind and budget, controls aside, to `folder/<kind>-<budget>`: that of the seed whose loss on
    the calibration texts is least; and the tables of `judged`, as `read` finds them. Returns the copies.

    Raises:
        ValueError: as `judged`.
    """
    tokens, kept = study.calibration(), []
    for group in sorted(path for path in out.glob("*-*") if path.name.rpartition("-")[0] not in CONTROLS):
        seeds = sorted(path.parent for path in group.glob("*/router.json"))
        losses = [np.nanmean(router.load(seed).losses(study.lm, tokens)) for seed in seeds]
        router.save(router.load(seeds[int(np.argmin(losses))]), folder / group.name)
        kept.append(folder / group.name)
    store.write_tables(dict(tables), folder / "tables")
    return kept


def read(folder: Path | str) -> dict[str, pd.DataFrame]:
    """The tables of `judged` that `keep` left beside a model's routers.

    Args:
        folder: of the routers.

    Raises:
        FileNotFoundError: there are none.
    """
    return store.read_tables(Path(folder) / "tables", TABLES)
