"""How fast the inspector answers, measured in the kernel from the click to the last message to the page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from ..inspector.widget import View
from ..study import Study
from .table import Row

ACTIONS = 50
TEXTS = 10
TOKENS = 64


def latencies(folder: str) -> Iterator[Row]:
    """A click on a token whose numbers are known, a first click, a changed layer, a new text with every budget.

    Args:
        folder: of the model.
    """
    study = Study(model=folder, documents=8, length=TOKENS + 1)
    inspector = study.inspector("shipped-prose", context="reference:big")
    view, tokens = View(inspector), range(1, ACTIONS + 1)
    click = view.chips._handle_custom_msg  # as when the page sends one
    clicks = [partial(click, {"token": token}, []) for token in tokens]
    yield from _rows("first click on a token", _timed(clicks))
    assert inspector.status.startswith("ready"), inspector.status  # a callback shows its errors, it does not raise them
    yield from _rows("click", _timed(clicks), limit=0.1)
    changes = []
    for token in tokens:
        click({"token": token}, [])
        changes += _timed([view.layers[token % inspector.layers].click])
        assert inspector.status.startswith("ready"), inspector.status
    yield from _rows("changed layer", changes, limit=0.15)
    texts = study.tokens("shipped-code")
    parts = [texts.text[number % 8][: texts.offsets[number % 8][-2, 1]] for number in range(TEXTS)]
    asked = [partial(inspector.analyse, inspector.ask(text=text)) for text in parts]
    yield from _rows(f"text of {TOKENS} tokens, every budget, reference:big", _timed(asked), limit=3)


def _timed(actions: Sequence[Callable[[], object]]) -> list[float]:
    """Seconds of each."""
    found = []
    for action in actions:
        began = time.perf_counter()
        action()
        found.append(time.perf_counter() - began)
    return found


def _rows(name: str, seconds: list[float], *, limit: float = np.nan) -> Iterator[Row]:
    unit, scale = ("s", 1.0) if limit > 1 else ("ms", 1e3)
    for kind, value in (("median", np.median(seconds)), ("95 %", np.quantile(seconds, 0.95))):
        against = "" if np.isnan(limit) else f"limit: {limit * scale:.0f} {unit}"
        measure = f"inspector: {name}, {kind} of {len(seconds)}"
        yield Row(measure, float(value) * scale, unit, float(value) / limit, against)
