"""A survey (the best routes of some texts, for every budget) as a request: what is computed, and how it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .. import oracle, records, routes
from ..model import LanguageModel

Request = dict[str, Any]
"""All that a stored result depends on."""
RANDOM = "random-100"
"""The paper's best of 100 random routes."""
PASSES = ("fixed-losses", "replayed", "judged")
"""Results that are kept but not shipped: forward passes give them again. Not so those on drawn targets, of which another
machine's rounding may draw others."""
UNIFORM_FLOPS = 2e14
"""Up to which all routes are tried, each as the route of whole texts."""
UNIFORM = "random-20"
"""What is tried instead: on SmolLM2-135M a route of 48 texts of 128 tokens takes 7 s of a core."""


@dataclass(frozen=True)
class Survey:
    """Best routes for every budget of big layers, for each objective.

    Attributes:
        lm, tokens, space: model, texts, and the routes that they may take.
        objectives: see `duoviz.oracle.objectives`.
        context, method, seed: as in `oracle.survey`.
    """

    lm: LanguageModel
    tokens: records.Tokens
    space: routes.Space
    objectives: tuple[str, ...]
    context: str
    method: str
    seed: int

    @property
    def parts(self) -> list[tuple[str, ...]]:
        """The objectives of each stored result: those that share a pass (see `oracle.survey`) share a result, so that an
        interrupted survey keeps the others."""
        return [(name,) for name in self.objectives] if self.context == "committed" else [self.objectives]

    def asked(self, names: tuple[str, ...]) -> Request:
        """What the result of some objectives depends on, the model aside."""
        drawn = self.method != "exhaustive" or any(name.startswith(oracle.SAMPLED) for name in names)
        ways = {"context": self.context, "method": self.method, "choices": self.space.choices, "objectives": names}
        return {**about(self.tokens, self.space), **ways, "seed": self.seed if drawn else None}

    def search(
        self, names: tuple[str, ...], some: records.Tokens, setting: oracle.Setting, keep: oracle.Keep
    ) -> dict[str, records.Curve]:
        """The best routes of some of the texts; arguments and errors as in `oracle.survey`."""
        ways: dict[str, Any] = {"context": self.context, "method": self.method, "choices": self.space}
        return oracle.survey(self.lm, some, objectives=names, setting=setting, seed=self.seed, keep=keep, **ways)


def about(tokens: records.Tokens, space: routes.Space | None = None) -> Request:
    """What a request says of its text, whose ids are part of it as a source may change under its name, and of tied layers."""
    shape = {"documents": len(tokens), "length": tokens.ids.shape[1]}
    ties = {} if space is None or space.groups is None else {"ties": str(space)}
    return {"source": tokens.source, "text": tokens.fingerprint, **shape, **ties}


def dear(lm: LanguageModel, tokens: records.Tokens, space: routes.Space) -> bool:
    """Whether one forward pass of the texts for each route is too much."""
    return oracle.estimate(lm, tokens, space, context="uniform") > UNIFORM_FLOPS
