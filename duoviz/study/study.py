"""The whole study, top to bottom: the file to read first.

    text --corpus--> tokens --oracle, router--> routes and losses --frames--> tables --store--> parquet

`Study` names what is studied (a model, its texts, a seed); each of its methods is one question and computes its answer at
most once: results are looked up in the shipped ones, then among those computed earlier, and only then computed.

Paper: arXiv 2410.10846; the figures are named at the methods.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import corpus, frames, oracle, places, progress, records, router, routes, store, training
from ..inspector import Inspector, Question
from ..model import DuoConfig, LanguageModel, configuration, is_adapter, load, place_of_base
from ..oracle.methods import parse as parse_method
from ..router import Mixture
from . import landscapes
from .inspection import Inspection
from .survey import PASSES, RANDOM, UNIFORM, Request, Survey, about, dear

CALIBRATION = 16
"""Calibration documents on which fixed routes and the routers' thresholds are chosen: 16 x 127 positions."""
Tables = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Study:
    """A model and the texts it is studied on.

    Attributes:
        model: folder (here, or a shipped one) or Hub id.
        sources: corpus sources.
        documents: documents of each source.
        length: tokens of a document's block.
        seed: of every draw.
        skip_scope: what a skip leaves out, if not what the model's configuration says.
        results: folder in which results are looked for and kept, such as that of a sweep; `places.runs() / "results"` if "".
        bos: which special tokens a text begins with, as in `corpus.tokenize`.
        groups, free: layers that choose together, and those that choose at all, as in `routes.Space`; every search keeps to
            them.
        fresh: compute everything again, once. The environment variable DUOVIZ_FRESH, a time in seconds since 1970, has
            all studies compute again what was stored before.
    """

    model: str = "data/duo-tiny"
    sources: tuple[str, ...] = corpus.SHIPPED
    documents: int = 16
    length: int = 128
    seed: int = 0
    skip_scope: str | None = None
    results: Path | str = ""
    bos: corpus.Bos = "auto"
    groups: int | tuple[tuple[int, ...], ...] | None = None
    free: tuple[int, ...] | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        records.whole(documents=self.documents, length=self.length)

    @property
    def kept(self) -> Path:
        """Where new results are kept."""
        return Path(self.results or places.runs() / "results")

    @cached_property
    def folder(self) -> str:
        """The model's folder or Hub id: a folder is looked for here, then among the shipped ones."""
        return places.found(self.model)

    @cached_property
    def lm(self) -> LanguageModel:
        """The model; of a dense one the layers can be skipped."""
        dense = not isinstance(configuration(self.folder), DuoConfig)
        return load(self.folder, choices="-B" if dense else None, skip_scope=self.skip_scope)

    @cached_property
    def store(self) -> store.Store:
        return store.results(self.kept, since=time.time() if self.fresh else float(os.environ.get("DUOVIZ_FRESH", "0")))

    def tokens(self, source: str) -> records.Tokens:
        """The texts of one source."""
        _warn_once(self.folder, source)
        return corpus.blocks(self.lm.tokenizer, source, documents=self.documents, length=self.length, bos=self.bos)

    def losses(self, source: str, route: str | np.ndarray) -> np.ndarray:
        """Losses in nats `[seq, position]` with one route for all tokens."""
        return self.lm.score(self.tokens(source), route)

    def survey(
        self,
        source: str,
        objectives: tuple[str, ...] = (),
        *,
        setting: oracle.Setting = oracle.Setting(batch_size=16),
        before: Callable[[], None] = lambda: None,
        **ways: str | None,
    ) -> dict[str, records.Curve]:
        """Best routes for every budget of big layers, for each objective (figures 2, 4).

        `ways` are context, method and choices, as in `asked`; `before` is called when something has to be computed.
        """
        asked, tables = self.asked(source, objectives, **ways), Tables()

        def compute(number: int, keep: oracle.Keep) -> Tables:
            before()
            own = replace(setting, watch=progress.part(setting.watch, number, len(asked.parts)))
            found = asked.search(asked.parts[number], asked.tokens, own, keep)
            return {name.replace(":", "-"): frames.curve(curve, asked.tokens) for name, curve in found.items()}

        for number, names in enumerate(asked.parts):
            tables |= self.cached("survey", asked.asked(names), partial(compute, number))
        return {n: frames.curve_from_frame(tables[n.replace(":", "-")], asked.tokens) for n in asked.objectives}

    def asked(
        self,
        source: str,
        objectives: tuple[str, ...],
        *,
        context: str | None = None,
        method: str | None = None,
        choices: str | None = None,
    ) -> Survey:
        """A survey as it is asked for; if not given, `committed`, all objectives that the notebooks draw, the study's choices and
        its method: under `uniform`, `UNIFORM` where all routes cannot be enumerated or are too dear (`UNIFORM_FLOPS`)."""
        tokens, space, context = self.tokens(source), self.space(choices), context or "committed"
        if method is None:
            method = self.method(choices, context)
            if context == "uniform" and (method != "exhaustive" or dear(self.lm, tokens, space)):
                method = UNIFORM  # the other searches follow one token's routes, not a whole text's
        every = oracle.OBJECTIVES if context == "committed" else oracle.CARRIED
        return Survey(self.lm, tokens, space, objectives or every, context, method, self.seed)

    def live(
        self, source: str, space: routes.Space, *, documents: int, positions: int, context: str = "committed"
    ) -> records.Found:
        """A search that is never looked up: the first positions of the first documents."""
        few = self.tokens(source)[:documents].cut(positions + 1)
        return oracle.search(self.lm, few, space, context=context, method="auto")

    def fixed_routes(self, source: str) -> np.ndarray:
        """For every budget, in ascending order, the one route that is best on average on the source's calibration texts: int8
        `[k, layer]`; of all routes, or of those that `paths` tries where they are too many or too dear (`UNIFORM_FLOPS`)."""
        space, tokens = self.space(), self.calibration(source)
        few = self.method() == "exhaustive" and not dear(self.lm, tokens, space)
        asked: dict[str, Any] = {} if few else {"method": "paths-1", "seed": self.seed}

        def compute(_: oracle.Keep) -> Tables:
            chosen = oracle.fixed(self.lm, tokens, choices=space, **asked)
            return {"fixed": pd.DataFrame({"budget": range(len(chosen)), "route": routes.to_texts(chosen)})}

        table = self.cached("fixed", {**asked, "choices": space.choices, **about(tokens, space)}, compute)["fixed"]
        return np.stack([routes.from_text(text) for text in table.sort_values("budget")["route"]])

    def calibration(self, source: str = "") -> records.Tokens:
        """Texts that nothing is trained or scored on: of this source, or (your own text has no such split) of both shipped."""
        names = (source,) if source in corpus.SHIPPED + corpus.PYTHON else corpus.SHIPPED
        ways: dict[str, Any] = {"length": min(128, self.lm.context), "split": "calibration", "bos": self.bos}
        ways["documents"] = CALIBRATION // len(names)
        return records.Tokens.joined([corpus.blocks(self.lm.tokenizer, name, **ways) for name in names])

    def fixed(self, source: str, *, null: bool = False) -> records.Curve:
        """The fixed routes, scored on a source (figure 4), or on the targets drawn for its null control."""
        tokens, chosen = self.tokens(source), self.fixed_routes(source)

        def scored(_: oracle.Keep) -> Tables:
            every = np.stack([oracle.same_for_all(tokens, route) for route in chosen])
            targets = oracle.sample_targets(self.lm, tokens, seed=self.seed) if null else None
            losses = np.stack([self.lm.score(tokens, route, targets=targets) for route in chosen])
            curve = records.Curve("fixed", "uniform", (chosen == routes.BIG).sum(1), losses, every)
            return {"curve": frames.curve(curve, tokens)}

        asked = {**about(tokens), "routes": routes.to_texts(chosen).tolist(), **({"seed": self.seed} if null else {})}
        found = self.cached("fixed-null" if null else "fixed-losses", asked, scored)
        return frames.curve_from_frame(found["curve"], tokens)

    def curves(self, source: str, *, context: str = "committed") -> list[records.Curve]:
        """Every policy over the number of big layers, beside each other (figure 4b). Where routes are too many to enumerate, the
        oracle is what `method` finds: its loss is an upper bound."""
        found = self.survey(source, context=context)
        random = self.survey(source, ("nll",), context=context, method=RANDOM)
        return [replace(found.pop("nll"), name="oracle"), *found.values(), *random.values(), self.fixed(source)]

    def landscapes(self, source: str, *, positions: int = 32) -> Tables:
        """What all routes of some evenly spaced positions say under `reference:big` (see `landscapes.measured`)."""
        asked = {**landscapes.asked(self.space()), "seed": self.seed}
        return self._at_positions("landscapes", source, positions, partial(landscapes.measured, seed=self.seed), asked)

    def luck(self, source: str, *, positions: int = 16) -> pd.DataFrame:
        """What the best route gains there on the true next token, and on all that the model could have made up: a table of
        `frames.luck_losses`."""
        return self._at_positions("luck", source, positions, landscapes.luck, {"choices": self.choices})["luck"]

    def _at_positions(self, what: str, source: str, positions: int, measure: Any, asked: Request) -> Tables:
        tokens, space = self.tokens(source), self.space()
        asked = {**about(tokens, space), "positions": positions, **asked}
        return self.cached(what, asked, lambda _: measure(self.lm, tokens, space, positions=positions))

    def replayed(self, source: str, curve: records.Curve) -> records.Curve:
        """What the routes of a curve are worth in one ordinary forward pass, whatever context they were chosen in."""
        tokens = self.tokens(source)

        def scored(_: oracle.Keep) -> Tables:
            losses = np.stack([self.lm.score(tokens, chosen) for chosen in curve.routes])
            return {"curve": frames.curve(records.Curve("replayed", "", curve.budgets, losses, curve.routes), tokens)}

        asked = {**about(tokens), "routes": sha256(curve.routes.tobytes()).hexdigest()[:12]}
        found = frames.curve_from_frame(self.cached("replayed", asked, scored)["curve"], tokens)
        return replace(found, name=f"{curve.name}, replayed", context=f"from {curve.context}")

    def skipping(self, source: str, *, skip: int, context: str = "committed") -> records.Found:
        """Best routes with exactly so many layers skipped and the others big (figure 2d)."""
        return self._search(source, [self.space("-B", skip=skip)], context, {"skip": skip})

    def schedule(self, source: str, first: int, last: int, *, context: str = "committed") -> records.Found:
        """Best routes under a budget that changes along the text (figure 4c); where layers are tied, the nearest that there
        is."""
        every = routes.by_big(self.lm.layers, self.space())
        there = np.array([space.big for space in every])
        budgets = routes.ramp(first, last, positions=self.length - 1)
        spaces = [every[np.abs(there - budget).argmin()] for budget in budgets]
        return self._search(source, spaces, context, {"first": first, "last": last})

    def _search(self, source: str, spaces: list[routes.Space], context: str, asked: dict[str, Any]) -> records.Found:
        tokens = self.tokens(source)

        def compute(keep: oracle.Keep) -> Tables:
            given = spaces[0] if len(spaces) == 1 else spaces
            found = oracle.search(self.lm, tokens, given, context=context, method="auto", keep=keep)
            return {"found": frames.found(found, tokens)}

        request = {**about(tokens, self.space()), "context": context, **asked}
        return frames.found_from_frame(self.cached("search", request, compute)["found"], tokens)

    def difficulty(self, source: str, *, budget: int, context: str = "committed") -> pd.DataFrame:
        """Losses and difficulties of every token (figures 5, 6), columns as of `frames.difficulty`."""
        found = self.survey(source, context=context)
        return frames.difficulty(self.tokens(source), *(found[name] for name in oracle.OBJECTIVES), budget=budget)

    def inspector(
        self,
        source: str,
        *,
        budget: int = 4,
        context: str = "committed",
        router: str | None = None,
        statistic: str = "difficulty",
    ) -> Inspector:
        """The texts of a source to look at and to play with, token by token (see `duoviz.inspector`).

        Args:
            source: a corpus source.
            budget: big layers per token of the oracle and the label-free policy.
            context: how earlier tokens are routed.
            router: one of `routers`; the first of them if not given.
            statistic: what colours the tokens.
        """
        question = Question(source=source, context=context, choices=self.choices, skip_scope=self.lm.skip_scope)
        return Inspector(Inspection(self), question, budget=budget, router=router, statistic=statistic)

    @property
    def choices(self) -> str:
        """The choices whose routes are searched: small and big where the model has small FFNs."""
        return "SB" if "S" in self.lm.choices else "-B"

    @property
    def cheapest(self) -> str:
        """What the route without a big layer is called."""
        return "all small" if self.choices == "SB" else "all skipped"

    def method(self, choices: str | None = None, context: str = "reference:big") -> str:
        """How all budgets are searched, as `auto` picks it: exhaustive, or without enumeration where routes are too many."""
        return parse_method("auto", self.space(choices), curve=context != "committed")[0]

    def space(self, choices: str | None = None, **budgets: int | str | None) -> routes.Space:
        """The routes of some choices, the study's own if not given, and of budgets `big` and `skip`."""
        given: dict[str, Any] = {"groups": self.groups, "free": self.free, **budgets}
        return routes.Space(self.lm.layers, choices or self.choices, **given)

    @property
    def dense(self) -> Study:
        """The same study of the dense model that an adapter adds small FFNs to; this one, if the model is no adapter."""
        return replace(self, model=place_of_base(self.folder)) if is_adapter(self.folder) else self

    @property
    def converted(self) -> Study | None:
        """The same study of the same model with small FFNs (see `train_small`): this one of an adapter; else of MODEL-duo, if
        that lies beside the model."""
        if is_adapter(self.folder):
            return self
        other = replace(self, model=f"{self.model.rstrip('/')}-duo")
        return other if Path(other.folder).is_dir() else None

    def training_log(self) -> pd.DataFrame:
        """The log of stage 1.

        Raises:
            FileNotFoundError: the model's folder holds none.
        """
        if (path := Path(self.folder) / "training-log.parquet").is_file():
            return pd.read_parquet(path)
        raise FileNotFoundError(f"{path}: this model came without a training log")

    def router(self, name: str) -> router.Router:
        """A router that belongs to the model, for example `budget-4` or `big-50-skip-50` (see `router.standard`)."""
        return router.load(Path(self.folder) / "routers" / name)

    def routed(self, source: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Routes `[seq, position, layer]` and losses `[seq, position]` of a router."""
        return self.router(name).run(self.lm, self.tokens(source))

    def routers(self) -> dict[str, Mixture]:
        """What each of the model's routers was trained for, by folder name (see `router.trained`)."""
        return router.trained(Path(self.folder) / "routers", layers=self.lm.layers)

    def router_curve(self, source: str) -> records.Curve | None:
        """The trained routers over their budgets (figures 4b, 3); None for a model without."""
        numbers = [name.removeprefix("budget-") for name in self.routers() if name.startswith("budget-")]
        budgets = sorted(int(number) for number in numbers if number.isdecimal())
        if not budgets:
            return None
        chosen, losses = zip(*(self.routed(source, f"budget-{k}") for k in budgets))
        return records.Curve("router", "own", np.array(budgets), np.stack(losses), np.stack(chosen))

    def cached(self, what: str, asked: dict[str, Any], compute: Callable[[oracle.Keep], Tables]) -> Tables:
        """The stored result of a request: the model, its dtype and all that was asked.

        `compute` is given what keeps its parts until it is done.
        """
        request = self.request(what, asked)
        return self.store.cached(request, partial(compute, partial(self.store.part, request)), note=what not in PASSES)

    def request(self, what: str, asked: Request) -> Request:
        """All that a stored result of the model depends on."""
        return {"what": what, "model": self.lm.fingerprint, "dtype": str(self.lm.model.dtype), **asked}


_warn_once = cache(training.warn_of_split)  # texts are asked for again and again
