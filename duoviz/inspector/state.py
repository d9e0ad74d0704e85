"""The inspector's state: the selection, the user's routes, and the methods that change them.

Every control of the widget calls a method that a test or a notebook can call as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int8
from traitlets import observe, validate

from .. import routes as routes_
from ..routes import LETTERS
from .analysis import Analysis, Engine, Question
from .reading import Pin, Reading


class State(Reading):
    """A model's routes on some texts, token by token, and what becomes of them when they are changed.

    The selection is a document, a token (the one that is predicted; None when nothing is selected) and a layer. The routes
    called *yours* begin as those that the context gives to all tokens; `force`, `use` and `best_change` change them. In
    `choices` and `landscape` the earlier tokens are on your routes; in `table` they are where the context has them.

    Args:
        engine: the model.
        question: what is analysed at once.
        budget, router, statistic: see the traits.
    """

    def __init__(
        self,
        engine: Engine,
        question: Question,
        *,
        budget: int = 4,
        router: str | None = None,
        statistic: str = "difficulty",
    ) -> None:
        router = router if router is not None else next(iter(engine.routers), "")
        other = "router" if router else "label-free"
        super().__init__(engine, budget=budget, router=router, statistic=statistic, right=other)
        self._undo: list[tuple[int, np.ndarray | None]] = []
        self._check_router(router)
        self.analyse(question)

    def analyse(self, question: Question, watch: Callable[[float], None] = lambda share: None) -> None:
        """Look at another text, or at the same in another way.

        Args:
            question: what.
            watch: told the share that is done; what it raises ends the work and leaves everything as it was.

        Raises:
            ValueError: a question that the engine refuses, or a budget the model does not have.
        """
        self.show(self.engine.analyse(question, watch))

    def show(self, found: Analysis) -> None:
        """Look at what was analysed; your changes of what was looked at before are gone, and so is the comparison with a
        pinned view whose texts have another length.

        Raises:
            ValueError: it does not hold the budget.
        """
        found.oracle.at(self.budget)
        with self.hold_trait_notifications():
            self._kept, self._yours, self._undo = {}, {}, []
            self.document, self.token, self.layer = 0, None, None
            if self.pinned is not None and not self.pinned.like(found.tokens):
                self._compare_with_nothing()
            self.analysis = found
            self._there()
        self.status = f"{found.question}: {len(found.tokens)} texts of {found.tokens.ids.shape[1]} tokens"
        if found.parts > 1:
            self.status += (
                f"; part {found.question.part + 1} of {found.parts}, as the text is longer than the model's context"
            )

    @property
    def parts(self) -> int:
        """Into how many parts the model's context cuts the text."""
        return self._found.parts

    def ask(self, **changes: Any) -> Question:
        """The question with other answers: text, source, context, choices, skip_scope, part."""
        return replace(self.question, **changes)

    # selection

    def select(self, *, document: int | None = None, token: int | None = None, layer: int | None = None) -> None:
        """Select a document, a token of it, a layer; what is not named stays, but another document begins without a token.

        Raises:
            ValueError: what is not there.
        """
        seqs, length = self._found.tokens.ids.shape
        for name, asked, low, high in (
            ("document", document, 0, seqs - 1),
            ("token", token, 1, length - 1),
            ("layer", layer, 0, self._found.layers - 1),
        ):
            if asked is not None and not low <= asked <= high:
                raise ValueError(f"{name} {asked}: there are {low}..{high}")
        number = self.document if document is None else document
        if token is not None and not self._found.tokens.scored[number, token - 1]:
            raise ValueError(f"token {token}: it is not scored (padding, or the first of a document)")
        with self.hold_trait_notifications():
            if document is not None and document != self.document:
                self.document, self.token = document, None
            self.token = self.token if token is None else token
            self.layer = self.layer if layer is None else layer

    def step(self, by: int) -> None:
        """Move the selection by so many tokens, as far as there are any; without a selection, to the first."""
        places = 1 + np.flatnonzero(self._found.tokens.scored[self.document])
        place = 0 if self.token is None else np.searchsorted(places, self.token) + by
        self.select(token=int(places[np.clip(place, 0, len(places) - 1)]))

    def release(self) -> None:
        """Select no token."""
        self.token = self.layer = None

    def obey(self, message: dict[str, Any]) -> None:
        """Do what a click or a key in the text asked for: `token`, `step`, `layer`, `cycle` or `release` (see `chips.js`)."""
        if "token" in message:
            self.select(token=message["token"])
        elif "step" in message:
            self.step(message["step"])
        elif "layer" in message:
            here = -1 if self.layer is None else self.layer
            self.select(layer=min(max(here + message["layer"], 0), self.layers - 1))
        elif "cycle" in message:
            self.cycle()
        else:
            self.release()

    def most(self) -> None:
        """Select the document's token of the largest value of the statistic.

        Raises:
            ValueError: no token has one.
        """
        values = self.values()
        if np.isnan(values).all():
            raise ValueError(f"{self.statistic!r}: no token of this text has a value")
        self.select(token=int(np.nanargmax(values)))

    # routes

    def force(self, route: str | np.ndarray) -> None:
        """Let the selected token take a route.

        Raises:
            ValueError: no token is selected, or a route that the model does not have.
        """
        taken = routes_.parse(route, layers=self._found.layers)
        if taken.ndim != 1 or taken.min() < 0:
            raise ValueError(
                f"route of shape {taken.shape}, values from {taken.min()}: give one choice 0, 1 or 2 a layer"
            )
        if unknown := {LETTERS[choice] for choice in taken.tolist()} - set(self.engine.choices):
            raise ValueError(f"the route chooses {sorted(unknown)}: this model has only {self.engine.choices!r}")
        changed = self.routes("yours").copy()
        changed[self.position] = taken
        self._change(changed)

    def cycle(self, layer: int | None = None) -> None:
        """Let a layer of the selected token, or its selected one, make the next choice: skip, small, big, skip."""
        self.select(layer=self.layer if layer is None else layer)
        if self.layer is None:
            raise ValueError("no layer is selected: select one")
        route = self.routes("yours")[self.position].copy()
        allowed = sorted(LETTERS.index(letter) for letter in self.engine.choices)
        route[self.layer] = allowed[(allowed.index(int(route[self.layer])) + 1) % len(allowed)]
        self.force(route)

    def use(self, policy: str, *, everywhere: bool = False) -> None:
        """Let the selected token, or every token of the text, take a policy's route.

        Raises:
            ValueError: as `routes`; no token is selected.
        """
        taken = self.routes(policy)
        if everywhere:
            self._change(taken.copy())
        else:
            self.force(taken[self.position])

    def best_change(self) -> None:
        """Change the one layer of the selected token that helps most; says so where none does."""
        route, position = self.routes("yours")[self.position], self.position
        allowed = [LETTERS.index(letter) for letter in self.engine.choices]
        changed = [(layer, c) for layer in range(len(route)) for c in allowed if c != route[layer]]
        candidates = np.stack([route, *(np.where(np.arange(len(route)) == at, c, route) for at, c in changed)])
        losses = self._predict(position, candidates.astype(np.int8))[0].loss_nats
        place = int(losses.argmin())
        if losses[place] >= losses[0] - 1e-6:
            self.status = f"no change of one layer lowers the loss of {losses[0]:.3f} nats"
            return
        layer, choice = changed[place - 1]
        self.force(candidates[place])
        self.select(layer=layer)
        self.status = f"layer {layer} to {LETTERS[choice]}: {losses[place] - losses[0]:+.3f} nats"

    def undo(self) -> None:
        """Take the last change back, in the document where it was made."""
        if not self._undo:
            self.status = "nothing to undo"
            return
        document, before = self._undo.pop()
        self._yours.pop(document, None)
        if before is not None:
            self._yours[document] = before
        self.select(document=document)
        self.edits += 1
        self.status = f"undone; {len(self._undo)} changes are left"

    def _change(self, routes: Int8[np.ndarray, "position layer"]) -> None:
        if np.array_equal(routes, self.routes("yours")):
            self.status = "these are your routes already"
            return
        self._undo.append((self.document, self._yours.get(self.document)))
        self._yours[self.document] = routes
        self.edits += 1

    def python(self) -> str:
        """Calls that make this view again; of your changes, those of the selected token."""
        question, taken = self.question, self._found.taken(self.budget)[self.document]
        given = {"budget": self.budget, "context": question.context, "router": self.router, "statistic": self.statistic}
        lines = [
            "from duoviz.study import Study",
            "",
            f"study = {self.engine.opened}",
            f"inspector = study.inspector({question.source!r}, {_named(given)})",
        ]
        asked = {"text": question.text, "choices": question.choices, "skip_scope": question.skip_scope}
        if question.text or question.choices != "SB":
            lines.append(f"inspector.analyse(inspector.ask({_named(asked)}, part={question.part}))")
        place = {"document": self.document, "token": self.token, "layer": self.layer}
        lines.append(f"inspector.select({_named({n: value for n, value in place.items() if value is not None})})")
        if (
            self.token is not None
            and (own := self.routes("yours")[self.position]).tolist() != taken[self.position].tolist()
        ):
            lines.append(f"inspector.force({routes_.to_text(own)!r})")
        return "\n".join([*lines, "inspector.widget()"])

    # comparison

    def pin(self) -> None:
        """Keep this view as A, to be compared with what is looked at later."""
        routes = {name: self._policy(name) for name in self.policies if name != "yours"}
        routes["yours"] = np.stack([self.routes("yours", number) for number in range(len(self._found.tokens))])
        label = f"{self.question}, budget {self.budget}, {self.router or 'no router'}"
        self.pinned = Pin(label, self._found.tokens, self.table(), routes)

    def unpin(self) -> None:
        """Compare with nothing."""
        with self.hold_trait_notifications():
            self._compare_with_nothing()
            self.pinned = None

    def _there(self) -> None:
        """Panels whose routes are gone show the oracle's."""
        self.left, self.right = (name if name in self.panels else "oracle" for name in (self.left, self.right))

    def _compare_with_nothing(self) -> None:
        self.against_pin = False
        self.left, self.right = (name.removeprefix("A: ") for name in (self.left, self.right))

    def _check_router(self, name: str) -> None:
        if name and name not in self.engine.routers:
            raise ValueError(f"router {name!r}: the model has {', '.join(self.engine.routers) or 'none'}")

    @validate("budget")
    def _budget_there(self, proposal: dict[str, Any]) -> int:
        if self.analysis is not None:
            self._found.oracle.at(proposal["value"])
        return int(proposal["value"])

    @observe("budget")
    def _budget_changed(self, change: dict[str, Any]) -> None:
        if self.analysis is not None and self._found.history is None and self._yours:
            self._yours, self._undo = {}, []  # the oracle's routes at another budget are another beginning
            self.status = "another budget gives the tokens other routes: your changes are gone"

    @observe("router")
    def _router_changed(self, change: dict[str, Any]) -> None:
        if self.analysis is not None:
            self._there()

    @validate("router")
    def _router_there(self, proposal: dict[str, Any]) -> str:
        if hasattr(self, "engine"):
            self._check_router(proposal["value"])
        return str(proposal["value"])


def _named(given: dict[str, Any]) -> str:
    """Arguments of a call."""
    return ", ".join(f"{name}={value!r}" for name, value in given.items())
