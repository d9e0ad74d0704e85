"""What the inspector needs of a model: the `Engine` protocol, and the `Analysis` with which it answers a `Question`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int8

from ..progress import Watch
from ..records import Curve, Landscape, Predictions, Tokens


class Cancelled(Exception):
    """An analysis was ended by the person who had asked for it."""


@dataclass(frozen=True)
class Question:
    """What is analysed.

    Attributes:
        text: characters of one's own; empty for the documents of the source.
        source: a corpus source.
        context: how earlier tokens are routed: committed or reference:<route>.
        choices: letters of the choices that are searched.
        skip_scope: what a skip leaves out: ffn or block.
        part: which part of a text that is longer than the model's context, counted from 0.
    """

    text: str = ""
    source: str = "shipped-prose"
    context: str = "committed"
    choices: str = "SB"
    skip_scope: str = "ffn"
    part: int = 0

    def __str__(self) -> str:
        scope = f", skip leaves out {self.skip_scope}" if "-" in self.choices else ""
        text = f"own text {self.text[:20]!r}" if self.text else self.source
        return f"{text}, {self.context}, {self.choices}{scope}"


@dataclass(frozen=True)
class Analysis:
    """The answer to a question, for every budget.

    Attributes:
        question: what was asked.
        tokens: the texts.
        oracle, label_free, null: the policies at every number of big layers.
        history: routes of the earlier tokens under a reference context; None: those of the oracle at the budget.
        parts: into how many parts the model's context cuts the text; one of them is analysed.
    """

    question: Question
    tokens: Tokens
    oracle: Curve
    label_free: Curve
    null: Curve
    history: Int8[np.ndarray, "seq position layer"] | None
    parts: int = 1

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.oracle.routes.shape[-1]

    def taken(self, budget: int) -> Int8[np.ndarray, "seq position layer"]:
        """The routes that the context gives to all tokens."""
        return self.oracle.at(budget)[1] if self.history is None else self.history


Routed = tuple[Int8[np.ndarray, "seq position layer"], Float32[np.ndarray, "seq position"]]
"""Routes of a router and its losses in nats, in one forward pass of its own."""


@runtime_checkable
class Engine(Protocol):
    """A model that answers the inspector's questions. Whatever it raises is shown in the status line.

    Attributes:
        choices: letters of the choices the model has.
        routers: names of its routers.
        opened: Python that makes the study it belongs to.
    """

    @property
    def choices(self) -> str: ...

    @property
    def routers(self) -> tuple[str, ...]: ...

    @property
    def opened(self) -> str: ...

    def analyse(self, question: Question, watch: Watch) -> Analysis:
        """The answer to a question."""

    def routed(self, analysis: Analysis, router: str) -> Routed:
        """What a router does on the texts."""

    def replay(
        self, analysis: Analysis, document: int, routes: Int8[np.ndarray, "position layer"]
    ) -> Float32[np.ndarray, " position"]:
        """Losses in nats of one text in one ordinary forward pass with these routes."""

    def landscape(
        self, analysis: Analysis, document: int, position: int, taken: Int8[np.ndarray, "position layer"]
    ) -> Landscape:
        """What every route of one position is worth when the text's other tokens take the given routes."""

    def predict(
        self,
        analysis: Analysis,
        document: int,
        position: int,
        taken: Int8[np.ndarray, "position layer"],
        routes: Int8[np.ndarray, "route layer"],
    ) -> tuple[Predictions, list[list[str]]]:
        """What is predicted when one position takes each of some routes, and the characters of the likeliest tokens."""
