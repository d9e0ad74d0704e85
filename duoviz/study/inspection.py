"""The `Engine` of the token inspector: it answers the inspector's questions with a study's model and stored results."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int8

from .. import corpus, oracle, routes
from ..inspector import Analysis, Question
from ..inspector.analysis import Routed
from ..model.routing import SCOPE, holding
from ..oracle import AUTO_EXHAUSTIVE
from ..progress import Watch
from ..records import Curve, Landscape, Predictions, Tokens

if TYPE_CHECKING:
    from .study import Study

BATCH = 16
KEPT = ("results", "fresh")
"""Fields of a study that say where its results lie, not what they are."""
DRAWN = 4_096
"""Routes that are drawn to stand for a landscape that is not enumerated."""


class Inspection:
    """Answers the inspector's questions about a study's model: the `Engine` of `duoviz.inspector`."""

    def __init__(self, study: Study) -> None:
        self.study, self.lm = study, study.lm
        self._own_scope = study.lm.skip_scope

    @property
    def choices(self) -> str:
        """Letters of the choices the model has."""
        return self.lm.choices

    @property
    def routers(self) -> tuple[str, ...]:
        """Names of the model's routers."""
        return tuple(self.study.routers())

    @property
    def opened(self) -> str:
        """Python that makes the study."""
        shown = {each.name: getattr(self.study, each.name) for each in fields(self.study) if each.name not in KEPT}
        given = {each.name: each.default for each in fields(self.study)}
        return f"Study({', '.join(f'{name}={value!r}' for name, value in shown.items() if value != given[name])})"

    def analyse(self, question: Question, watch: Watch) -> Analysis:
        """The policies at every budget; those of a corpus source are looked up where they are stored.

        Raises:
            ValueError: a text without anything to predict, a part it does not have; other choices than a pair with B; context
                uniform; what `oracle.survey` refuses.
        """
        with _scoped(question):
            tokens, parts = self._own(question) if question.text else (self.study.tokens(question.source), 1)
            found = self._survey(question, tokens, watch)
            history = None
            if question.context != "committed":
                route = oracle.reference_routes(self.lm, question.context)
                history = oracle.same_for_all(tokens, route)
        return Analysis(question, tokens, found["nll"], found["expected"], found["null"], history, parts)

    def _own(self, question: Question) -> tuple[Tokens, int]:
        """The asked part of one's own text, and into how many parts the model's context cuts it."""
        encode = partial(corpus.encode, self.lm.tokenizer, bos=self.study.bos)
        whole = encode(question.text)
        size = self.lm.context - int(whole.special.sum())  # every part begins as a text does
        (own,) = np.nonzero(~whole.special[0])
        parts = max(1, -(-(len(own) - 1) // size))  # one token that is left alone predicts nothing
        if not 0 <= question.part < parts:
            raise ValueError(f"part {question.part} of this text: there are 0..{parts - 1}")
        if parts == 1:
            return self.lm.check(whole.cut(self.lm.context)), 1
        first, *_, last = whole.offsets[0, own[question.part * size :][:size]].tolist()
        return self.lm.check(encode(question.text[first[0] : last[1]]).cut(self.lm.context)), parts

    def _survey(self, question: Question, tokens: Tokens, watch: Watch) -> dict[str, Curve]:
        if len(question.choices) != 2 or routes.LETTERS[routes.BIG] not in question.choices:
            raise ValueError(
                f"choices {question.choices!r}: give SB or -B, so that a budget says how many layers are not big"
            )
        if question.context == "uniform":
            raise ValueError("context 'uniform' has no landscape of one token: take committed or reference:<route>")
        setting = oracle.Setting(batch_size=BATCH, watch=watch, quiet=True)
        ways: dict[str, Any] = {
            "context": question.context,
            "method": self.study.method(question.choices, question.context),
        }
        own_scope = question.skip_scope == self._own_scope or "-" not in question.choices
        if question.text or not own_scope:  # what is stored has the model's own scope
            space = self.study.space(question.choices)
            return oracle.survey(self.lm, tokens, choices=space, setting=setting, seed=self.study.seed, **ways)
        ways |= {"choices": question.choices, "setting": setting}
        return self.study.survey(question.source, **ways)

    def routed(self, analysis: Analysis, router: str) -> Routed:
        """What a router does on the texts.

        Raises:
            FileNotFoundError: the model has no such router.
        """
        with _scoped(analysis.question):
            return self.study.router(router).run(self.lm, analysis.tokens, batch_size=BATCH)

    def replay(
        self, analysis: Analysis, document: int, routes: Int8[np.ndarray, "position layer"]
    ) -> Float32[np.ndarray, " position"]:
        """Losses in nats of one text in one ordinary forward pass."""
        with _scoped(analysis.question):
            return self.lm.score(analysis.tokens[document : document + 1], routes[None])[0]

    def landscape(
        self, analysis: Analysis, document: int, position: int, taken: Int8[np.ndarray, "position layer"]
    ) -> Landscape:
        """Every route's loss, or that of 4,096 drawn at random where there are more than a search enumerates."""
        space = self.study.space(analysis.question.choices)
        count = space.count()
        with _scoped(analysis.question):
            if count <= AUTO_EXHAUSTIVE:
                tokens = analysis.tokens
                every = oracle.landscape(self.lm, tokens, space, seq=document, position=position, context=taken)
                return Landscape(space.enumerate(), every, count)
            drawn = space.sample(DRAWN, seed=self.study.seed)
            return Landscape(drawn, self._predict(analysis, document, position, taken, drawn).loss_nats, count)

    def predict(
        self,
        analysis: Analysis,
        document: int,
        position: int,
        taken: Int8[np.ndarray, "position layer"],
        routes: Int8[np.ndarray, "route layer"],
    ) -> tuple[Predictions, list[list[str]]]:
        """What is predicted under each route, and the characters of the likeliest tokens."""
        with _scoped(analysis.question):
            found = self._predict(analysis, document, position, taken, routes)
        return found, [self.lm.tokenizer.batch_decode(ids[:, None]) for ids in found.top_ids]

    def _predict(
        self, analysis: Analysis, document: int, position: int, taken: np.ndarray, candidates: np.ndarray
    ) -> Predictions:
        tokens = analysis.tokens
        return oracle.predict(self.lm, tokens, candidates, seq=document, position=position, context=taken)


def _scoped(question: Question) -> AbstractContextManager[None]:
    """The model skips what the question says, in this thread."""
    return holding(SCOPE, question.skip_scope)
