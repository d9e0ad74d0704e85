"""Routers of every kind for one model: trained with several seeds, judged on the same texts, the best of each kind kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import claims, corpus, evaluation, frames, metrics, places, router, store, training
from ..model import configuration
from ..oracle import Keep
from ..records import Curve, whole
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
    "straight-through": {"kind": "straight-through", "units": 64, "tokens": 500_000},
    "policy": {"kind": "policy", "units": 64, "tokens": 250_000},
    "distil": {"kind": "distil", "units": 64, "tokens": 500_000},
    "pairwise": {"kind": "pairwise", "units": 64, "tokens": 250_000},
    "threshold": {"kind": "threshold", "reads": "entropy", "tokens": 1},
    "shuffled labels": {"kind": "distil", "units": 64, "shuffled": True, "tokens": 125_000},
    "position alone": {"kind": "distil", "units": 64, "reads": "position", "tokens": 125_000},
    "token alone": {"kind": "distil", "units": 64, "reads": "token", "tokens": 125_000},
}
"""What is trained, as arguments of `router.Stage3`; the last three are controls, which do not see the state of the model. On the
shipped model with two big layers, `distil` gained 0.033 nats over the best fixed route on prose after 8,000 tokens, 0.040 after
33,000 and 0.051 after 120,000, with 64 units and one seed."""
CONTROLS = tuple(KINDS)[6:]
FORWARD = ("budget", "straight-through", "policy")
"""Kinds that learn from forward passes, which may be in bfloat16."""
TABLES = ("judged", "policies")
GAIN = {1: 0.055, 2: 0.055, 4: 0.03}
"""What a good router should gain over the best fixed route, in nats, by its big layers of 12."""
CLOSED = {1: 0.8, 2: 0.8, 3: 0.8}
"""What share of the label-free gap it should close."""
NEAR_BIG = 6
"""With how many it should lose no more than 0.01 nats against all big."""
MEASURED = ("over_fixed_nats", "label_free_gap_closed", "over_big_nats")
Made = Mapping[str, Mapping[str, router.Router]]
"""Routers by the name of their kind, each as `<router>/<seed>`."""


def check(study: Study, budgets: Sequence[int], *, tokens: int | None, searched: int) -> None:
    """Refuse, before hours of training, what `train` or `judged` would.

    Raises:
        ValueError: numbers below 1, budgets that leave nothing to choose, an unknown source.
    """
    whole(searched=searched, **({} if tokens is None else {"tokens": tokens}))
    for source in study.sources:
        corpus.check(source)
    for big in budgets:
        router.Mixture.from_budget(big, study.lm.layers)


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
        asked |= ({} if tokens is None else {"tokens": tokens}) | (
            {"bf16": True} if bf16 and own["kind"] in FORWARD else {}
        )
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
    study: Study, made: Made, *, searched: int = SEARCHED, context: str = "committed"
) -> dict[str, pd.DataFrame]:
    """What routers are worth on the texts of a study.

    Offsets are set on calibration text of the same source, without its labels. Tables: `judged` (see `evaluation.routers`; `name`
    is the kind) and `policies` (what label-free policy and oracle gain: see `frames.over_fixed`).

    Args:
        study: its documents are judged.
        made: the routers, as of `trained` or `own`.
        searched: documents of each source, the first ones, on which oracle and label-free policy are searched.
        context: of these.

    Raises:
        ValueError: a router of another model.
    """
    few = replace(study, documents=min(searched, study.documents))
    budgets = sorted({round(one.mixture.big * study.lm.layers) for some in made.values() for one in some.values()})
    tables, policies = [], []
    for source in study.sources:
        best = _best(few, source, context)
        other = {name: best[name] for name in ("fixed", "oracle")}
        policies.append(frames.over_fixed(_at(best["label-free"], budgets), other, few.tokens(source)))
        known = {**best, "fixed": study.fixed(source)}
        tables += [_of_kind(study, source, some, known, context).assign(name=name) for name, some in made.items()]
    return {name: pd.concat(parts, ignore_index=True) for name, parts in zip(TABLES, (tables, policies))}


def _of_kind(
    study: Study, source: str, made: Mapping[str, router.Router], known: Mapping[str, Curve], context: str
) -> pd.DataFrame:
    """The judge's table of the routers of one kind on one source; it is kept, so that a contest that was cut off goes on."""
    tokens = study.tokens(source)
    ways: dict[str, Any] = {"known": {source: known}, "meet": {source: study.calibration(source)}}
    asked: dict[str, Any] = {
        "routers": {name: evaluation.identity(one) for name, one in made.items()},
        "context": context,
    }
    asked |= {"searched": len(known["oracle"].loss_nats[0]), "seed": study.seed, **about(tokens, study.space())}

    def compute(_: Keep) -> dict[str, pd.DataFrame]:
        firsts = {name: one for name, one in made.items() if name.endswith("/0")}
        others = {name: one for name, one in made.items() if name not in firsts}
        tables = [evaluation.routers(study.lm, [tokens], firsts, **ways)]
        tables += [evaluation.routers(study.lm, [tokens], others, controls=("",), **ways)] if others else []
        return {"judged": pd.concat(tables, ignore_index=True)}

    return study.cached("judged", asked, compute)["judged"]


def trained(out: Path, *, layers: int, budgets: Sequence[int] = JUDGED) -> Made:
    """The routers of `train`: for each kind, budget and seed the one that was trained for the nearest budget, the smaller of two.

    Args:
        out: as of `train`.
        layers: of the model.
        budgets: big layers of a token.

    Raises:
        ValueError: no router in the folder.
    """
    found: dict[tuple[str, str], dict[int, router.Router]] = {}
    for path in sorted(out.glob("*/*/router.json")):
        name, _, number = path.parts[-3].rpartition("-")
        found.setdefault((name, path.parts[-2]), {})[int(number)] = router.load(path.parent)
    if not found:
        raise ValueError(f"{out} holds no routers: train some first")
    made: dict[str, dict[str, router.Router]] = {}
    for ((name, seed), some), big in product(found.items(), budgets):
        nearest = min(some, key=lambda own: (abs(own - big), own))
        made.setdefault(name, {})[f"{name}-{big}/{seed}"] = some[nearest].aimed(router.Mixture.from_budget(big, layers))
    return made


def own(study: Study) -> Made:
    """The routers that belong to a study's model and were trained for a number of big layers, as the study's searches are."""
    made: dict[str, dict[str, router.Router]] = {}
    for name, mixture in study.routers().items():
        big = mixture.big * study.lm.layers
        if mixture.letters == study.choices and abs(big - round(big)) < 1e-3:
            one = study.router(name)
            made.setdefault(one.facts.get("kind", "budget"), {})[f"{name}/0"] = one
    return made


def _best(study: Study, source: str, context: str) -> dict[str, Curve]:
    """The curves that routers are compared with."""
    found = study.survey(source, ("nll", "expected"), context=context)
    return {"fixed": study.fixed(source), "oracle": found["nll"], "label-free": found["expected"]}


def _at(curve: Curve, budgets: Sequence[int]) -> Curve:
    """A curve at some budgets, or the nearest that it has."""
    places_ = sorted({int(abs(curve.budgets - budget).argmin()) for budget in budgets})
    return Curve(curve.name, curve.context, curve.budgets[places_], curve.loss_nats[places_], curve.routes[places_])


def leading(judged: pd.DataFrame) -> pd.DataFrame:
    """Of each budget the rows of the learned kind that gains most, on average over the sources.

    Args:
        judged: as of `frames.over_seeds`, without controls.
    """
    learned = judged[~judged["name"].isin([*CONTROLS, "threshold"])]
    gains = learned.groupby(["asked_big", "name"])["over_fixed_nats"].mean()
    best = set(gains.groupby("asked_big").idxmax())
    return learned[[pair in best for pair in zip(learned["asked_big"], learned["name"])]].sort_values("asked_big")


def targets(judged: pd.DataFrame) -> list[claims.Claim]:
    """Whether the best learned kind gains and closes what `GAIN`, `CLOSED` and `NEAR_BIG` ask for, source by source.

    Args:
        judged: as of `leading`.
    """
    said = []
    for row in judged.to_dict("records"):
        k, about = round(row["asked_big"]), {"source": row["source"]}
        gain, closed, over = (metrics.Interval.of(row, name) for name in MEASURED)
        who = f"{k} big: {row['name']}"
        if k in GAIN:
            said.append(claims.Claim(f"{who} gains {GAIN[k]} nats over fixed", gain.above(GAIN[k]), **about))
        if k in CLOSED and np.isfinite(closed.mean):
            closed = replace(closed, positions=row["gap_positions"], documents=row["gap_documents"])
            text = f"{who} closes {CLOSED[k]:.0%} of the label-free gap"
            said.append(claims.Claim(text, closed.above(CLOSED[k]), unit="share", **about))
        if k == NEAR_BIG:
            said.append(claims.Claim(f"{who} is within 0.01 nats of all big", over.above(-0.01), **about))
    return said


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


def compared(study: Study, *, context: str = "committed") -> dict[str, pd.DataFrame]:
    """The tables that `keep` left beside the routers of a study's model; where there are none, `judged` of its own routers."""
    try:
        return read(Path(study.folder) / "routers")
    except FileNotFoundError:
        return judged(study, own(study), context=context)
