"""The numbers and figures that the inspector shows, derived from the analysis, the selection and the user's routes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float32, Float64, Int8
from traitlets import Bool, Enum, HasTraits, Instance, Int, Unicode

from .. import figures, frames, metrics, style
from ..records import Landscape, Tokens
from ..routes import LETTERS, SMALL
from .analysis import Analysis, Engine, Question

STATISTICS = {
    "difficulty": ("difficulty_nats", "gain of the oracle over all small"),
    "difficulty without the answer": ("label_free_difficulty_nats", "gain of the label-free policy over all small"),
    "difficulty of the null control": ("null_difficulty_nats", "the same gain on a token the model made up"),
    "loss small": ("small_nats", "loss, all small"),
    "loss big": ("big_nats", "loss, all big"),
    "loss oracle": ("oracle_nats", "loss under the oracle's routes"),
    "loss router": ("router_nats", "loss under the router's routes"),
    "regret": ("regret_nats", "loss of the router on its own routes less the oracle's at the router's mean budget"),
    "margin": ("margin_nats", "how much worse the second best route of this budget is"),
    "big layers, router": ("router_big", "big layers that the router uses"),
    "big layers that are enough": ("enough", "big layers within 0.05 nats of the best budget"),
    "effect of your changes": ("effect_nats", "loss with your routes less the loss before"),
}
"""What colours the tokens: column and meaning. What is not in nats is a number of layers."""
POLICIES = ("small", "big", "oracle", "label-free", "router", "yours")


@dataclass(frozen=True)
class Pin:
    """A view that was kept to be compared with: its texts, its numbers and its routes.

    Attributes:
        label: what was looked at.
        tokens: the texts.
        table: as of `State.table`.
        routes: of the policies, `[seq, position, layer]` each.
    """

    label: str
    tokens: Tokens
    table: pd.DataFrame
    routes: dict[str, np.ndarray]

    def like(self, tokens: Tokens) -> bool:
        """Whether these texts are as long."""
        return self.tokens.ids.shape[1] == tokens.ids.shape[1]


class Reading(HasTraits):
    """The inspector's traits, and every number that follows from them; each is computed on demand, and once.

    Args:
        engine: the model.
        **traits: see the traits.
    """

    document = Int(0, help="which text")
    token = Int(None, allow_none=True, help="which token, from 1; it is predicted at position token - 1")
    layer = Int(None, allow_none=True, help="which layer of its route")
    budget = Int(4, help="big layers of the oracle and the label-free policy")
    router = Unicode("", help="a router of the model; empty for none")
    statistic = Enum(list(STATISTICS), "difficulty", help="what colours the tokens")
    left = Unicode("oracle", help="routes of the first panel")
    right = Unicode("router", help="routes of the second panel")
    by = Enum(list(frames.BY), "class", help="how the tokens are sliced")
    against_pin = Bool(False, help="tokens are coloured by the difference to the pinned view")
    analysis = Instance(Analysis, allow_none=True, help="what is looked at")
    pinned = Instance(Pin, allow_none=True, help="what it is compared with")
    edits = Int(0, help="counts changes of your routes")
    status = Unicode("", help="what happened last; an error begins with its kind")

    def __init__(self, engine: Engine, **traits: Any) -> None:
        super().__init__(**traits)
        self.engine = engine
        self._kept: dict[Any, Any] = {}
        self._yours: dict[int, np.ndarray] = {}

    @property
    def question(self) -> Question:
        """What is looked at."""
        assert self.analysis is not None, "made with a question"
        return self.analysis.question

    @property
    def layers(self) -> int:
        """Number of the model's layers."""
        return self._found.layers

    @property
    def documents(self) -> tuple[str, ...]:
        """Names of the texts."""
        return self._found.tokens.documents

    def routes(self, policy: str, document: int | None = None) -> Int8[np.ndarray, "position layer"]:
        """Routes that a policy takes in a document; a pinned view's are called `A: oracle` and so on.

        Raises:
            ValueError: another name, or a pinned text of another length.
        """
        number = self.document if document is None else document
        if policy in self.panels and policy.startswith("A: "):
            return self._pin(number).routes[policy.removeprefix("A: ")][number]
        if policy == "yours":
            given = self._yours.get(number)
            return self._found.taken(self.budget)[number] if given is None else given
        if policy in self.policies:
            return self._policy(policy)[number]
        raise ValueError(f"routes {policy!r}: there are {', '.join(self.panels)}")

    @property
    def policies(self) -> tuple[str, ...]:
        """The policies there are."""
        named = (self.cheapest if name == "small" else name for name in POLICIES)
        return tuple(name for name in named if name != "router" or self.router)

    @property
    def cheapest(self) -> str:
        """The cheaper choice: small, or skip if small is not searched."""
        return "small" if LETTERS[SMALL] in self.question.choices else "skip"

    @property
    def panels(self) -> tuple[str, ...]:
        """Names of all routes that can be shown."""
        pinned = [] if self.pinned is None else [f"A: {name}" for name in self.pinned.routes]
        return (*self.policies, *pinned)

    @property
    def position(self) -> int:
        """The position that predicts the selected token.

        Raises:
            ValueError: none is selected.
        """
        if self.token is None:
            raise ValueError("no token is selected: click one, or select(token=...)")
        return self.token - 1

    def table(self) -> pd.DataFrame:
        """One row per scored position of all documents: `frames.inspected`, and effect_nats of your changes."""
        made = self._keep(("table", self.budget, self.router), self._table)
        dense = np.zeros(self._found.tokens.scored.shape, np.float32)
        for document in self._yours:
            dense[document] = self.effect(document)
        return made.assign(effect_nats=dense[self._found.tokens.scored])

    def values(self) -> Float64[np.ndarray, " token"]:
        """The statistic of every token of the document, NaN where it has none; less the pinned view's if `against_pin`.

        Raises:
            ValueError: the pinned view has no such text.
        """
        column, tokens = self.described[0], self._found.tokens
        found = _of_document(self.table(), column, self.document, tokens.ids.shape[1])
        if self.compared:
            found = found - _of_document(self._pin(self.document).table, column, self.document, tokens.ids.shape[1])
        return found

    @property
    def compared(self) -> bool:
        """Whether the tokens are coloured by the difference to a pinned view."""
        return self.against_pin and self.pinned is not None

    @property
    def described(self) -> tuple[str, str, str]:
        """Column, meaning and unit of the statistic."""
        column, meaning = STATISTICS[self.statistic]
        unit = "nats" if column.endswith("_nats") else "layers"
        return column, meaning.replace("all small", f"all {self.cheapest}"), unit

    def chips(self) -> list[style.Chip]:
        """The document in pieces that cut no character, each with its tokens."""
        return self._found.tokens.chips(self.document)

    def pieces(self) -> list[str]:
        """The characters of each token of the document."""
        return self._found.tokens.pieces(self.document)

    def losses(self, document: int | None = None) -> Float32[np.ndarray, " position"]:
        """Losses in nats of a document when all its tokens take your routes: one ordinary forward pass."""
        number = self.document if document is None else document
        return self._replayed(number, self.routes("yours", number))

    def effect(self, document: int | None = None) -> Float32[np.ndarray, " position"]:
        """What your changes do to the loss of every position of a document, in nats; below 0 they help."""
        number = self.document if document is None else document
        before = self._found.taken(self.budget)[number]
        return self.losses(number) - self._replayed(number, before)

    def landscape(self) -> Landscape:
        """Every route of the selected token with its loss; earlier tokens take your routes."""
        taken, at = self.routes("yours"), (self.document, self.position)
        kept = ("landscape", *at, taken[: self.position].tobytes())
        return self._keep(kept, lambda: self.engine.landscape(self._found, *at, taken))

    def choices(self) -> pd.DataFrame:
        """What each policy chooses for the selected token and what is predicted then: `frames.policies`."""
        position = self.position
        routes = np.stack([self.routes(name)[position] for name in self.policies])
        whole = np.stack([self._replayed(self.document, self.routes(name))[position] for name in self.policies])
        found, tops = self._predict(position, routes)
        return frames.policies(list(self.policies), found, tops, whole)

    def row(self) -> pd.Series:
        """The selected token's row of the table."""
        table = self.table()
        return table[(table["seq"] == self.document) & (table["position"] == self.position)].iloc[0]

    def slices(self) -> pd.DataFrame:
        """The statistic's mean in slices of all documents' tokens: `frames.slices`."""
        tokens, column = self._found.tokens, self.described[0]
        counts = np.bincount(tokens.ids[:, 1:][tokens.scored], minlength=int(tokens.ids.max()) + 1)
        return frames.slices(self.table(), tokens, by=self.by, values=[column], counts=counts)

    def usage(self) -> pd.DataFrame:
        """The share of big of each layer over all documents, for the routes of both panels."""
        every = range(len(self._found.tokens))
        names = dict.fromkeys((self.left, self.right))
        return frames.layer_usage({name: np.stack([self.routes(name, number) for number in every]) for name in names})

    @property
    def shows_yours(self) -> bool:
        """Whether the figures depend on your routes."""
        return "yours" in (self.left, self.right) or self.described[0] == "effect_nats"

    def agreement(self) -> float:
        """The share of layers of this document in which the two panels choose alike."""
        return metrics.agreement(self.routes(self.left), self.routes(self.right))

    @property
    def _found(self) -> Analysis:
        assert self.analysis is not None, "made with a question"
        return self.analysis

    def _table(self) -> pd.DataFrame:
        found = self._found
        return frames.inspected(
            found.tokens,
            found.oracle,
            found.label_free,
            found.null,
            budget=self.budget,
            routed=self._routed() if self.router else None,
        )

    def _routed(self) -> tuple[np.ndarray, np.ndarray]:
        return self._keep(("router", self.router), lambda: self.engine.routed(self._found, self.router))

    def _policy(self, name: str) -> Int8[np.ndarray, "seq position layer"]:
        """Routes of a policy in all documents."""
        found = self._found
        if name == "router":
            return self._routed()[0]
        if name == self.cheapest:
            return found.oracle.routes[0]
        curve, budget = {
            "big": (found.oracle, int(found.oracle.budgets[-1])),
            "oracle": (found.oracle, self.budget),
            "label-free": (found.label_free, self.budget),
        }[name]
        return curve.at(budget)[1]

    def _pin(self, number: int) -> Pin:
        """The pinned view, to be compared with a document.

        Raises:
            ValueError: it has no such text, or texts of another length.
        """
        assert self.pinned is not None, "asked for where there is one"
        here, there = self._found.tokens, self.pinned.tokens
        if not self.pinned.like(here) or number >= len(there):
            raise ValueError(
                f"text {number} of {here.ids.shape} (texts, tokens) and A of {there.ids.shape}: compare texts of one length"
            )
        return self.pinned

    def _replayed(self, number: int, routes: np.ndarray) -> Float32[np.ndarray, " position"]:
        kept = ("replay", number, routes.tobytes())
        return self._keep(kept, lambda: self.engine.replay(self._found, number, routes))

    def _predict(self, position: int, routes: np.ndarray) -> Any:
        taken = self.routes("yours")
        kept = ("predict", self.document, position, taken[:position].tobytes(), routes.tobytes())
        return self._keep(kept, lambda: self.engine.predict(self._found, self.document, position, taken, routes))

    def _keep(self, key: Any, compute: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]

    # figures

    def routes_figure(self) -> go.Figure:
        """`figures.route_comparison` of both panels' routes of the document."""
        one, other = ((name, self.routes(name)) for name in (self.left, self.right))
        return figures.route_comparison(
            one,
            other,
            self.pieces()[1:],
            title=f"Text {self.document}: {self.left} and {self.right} agree in {self.agreement():.0%} of the layers",
            selected=None if self.token is None else self.position,
        )

    def framed(self) -> dict[str, Any]:
        """What changes of `routes_figure` when another token is selected."""
        position = None if self.token is None else self.position
        ends = figures.around(position, len(self.pieces()) - 1)
        return {"shapes": figures.frame(position), "xaxis3.range": ends}

    def landscape_figure(self) -> go.Figure:
        """`figures.landscape` of the selected token, with the policies' routes."""
        land, table = self.landscape(), self.choices()
        drawn = "all" if len(land.routes) == land.count else f"{len(land.routes):,}, drawn at random, of"
        drawn = f"{drawn} {land.count:,} routes of {' and '.join(self.question.choices)}"
        title = f"Routes of token {self.token}"
        return figures.landscape(frames.spread(land), table, title=title, counted=drawn)

    def slices_figure(self) -> go.Figure:
        """`figures.slices` of the statistic."""
        column, meaning, _ = self.described
        return figures.slices(
            self.slices(), column, title=f"{meaning[0].upper()}{meaning[1:]}, by {self.by} in these texts"
        )

    def usage_figure(self) -> go.Figure:
        """`figures.layer_usage` of both panels' routes over all documents."""
        return figures.layer_usage(self.usage(), title="Which layers are big?")


def _of_document(table: pd.DataFrame, column: str, document: int, length: int) -> Float64[np.ndarray, " token"]:
    """A column's values at the tokens of one document."""
    part, found = table[table["seq"] == document], np.full(length, np.nan)
    found[1 + part["position"].to_numpy()] = part[column]
    return found
