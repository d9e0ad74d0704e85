"""Routes as numbers and as text.

A *choice* is `SKIP`, `SMALL` or `BIG`; a *route* is one choice per layer, int8 `[layer]`, layer 0 first. As text a route
is a string over `-SB`, which is also its id in tables.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int8
from numpy.typing import ArrayLike

SKIP, SMALL, BIG = 0, 1, 2
LETTERS = "-SB"
NAMES = ("skip", "small", "big")
Routes = Any
"""Routes in any form that `parse` reads."""


def from_text(text: str, *, layers: int | None = None) -> Int8[np.ndarray, " layer"]:
    """The route that a text such as `"SSB-BSSSBBSS"` names.

    Raises:
        ValueError: an unknown letter, or a length other than `layers`.
    """
    unknown = sorted(set(text) - set(LETTERS))
    if unknown:
        raise ValueError(
            f"route {text!r} holds {unknown}: each letter must be one of '-' (skip), 'S' (small), 'B' (big)"
        )
    if layers is not None and len(text) != layers:
        raise ValueError(f"route {text!r} has {len(text)} letters: the model has {layers} layers, give one letter each")
    return np.array([LETTERS.index(letter) for letter in text], np.int8)


def to_text(route: ArrayLike) -> str:
    """The text of a route `[layer]`: its id in tables. `from_text(to_text(r))` is `r`.

    Raises:
        ValueError: a value that is no choice, such as the -1 of an unscored position.
    """
    return "".join(LETTERS[choice] for choice in _one(route))


def to_texts(routes: Int8[np.ndarray, "*any layer"]) -> np.ndarray:
    """Texts of many routes: str `[*any]`; a route that holds -1 (an unscored position) becomes `""`."""
    routes = np.asarray(routes, np.int8)
    letters = np.array(["", *LETTERS])[routes + 1]
    flat = ["".join(row) for row in letters.reshape(-1, routes.shape[-1])]
    return np.array(flat, dtype=object).reshape(routes.shape[:-1])


def parse(routes: Routes, *, layers: int) -> Int8[np.ndarray, "*any layer"]:
    """Routes in any form that people write them, as int8 with the last axis of length `layers`.

    Args:
        routes: a text such as `"BBSS"` or a name (`"all-big"`, `"all-small"`, `"all-skip"`): `[layer]`; a list of texts:
            `[text, layer]`; or integers `[..., layer]` as nested lists, an array or a tensor.
        layers: of the model.

    Raises:
        ValueError: a letter or value that is no choice, values that are no integers, or a wrong length.
    """
    if isinstance(routes, str):
        name = routes.removeprefix("all-")
        return np.full(layers, NAMES.index(name), np.int8) if name in NAMES else from_text(routes, layers=layers)
    if isinstance(routes, list | tuple) and routes and all(isinstance(one, str) for one in routes):
        return np.stack([parse(one, layers=layers) for one in routes])
    if hasattr(routes, "detach"):  # a tensor, maybe on another device
        routes = routes.detach().cpu()
    try:
        array = np.asarray(routes)
    except ValueError as error:
        raise ValueError(f"routes {routes!r:.80}: their rows differ in length ({error})") from None
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"routes of dtype {array.dtype}: give integers, 0 (skip), 1 (small), 2 (big)")
    if array.ndim == 0 or array.shape[-1] != layers:
        raise ValueError(f"routes of shape {array.shape}: the last axis must hold {layers} layers")
    if array.size and (array.min() < -1 or array.max() > BIG):
        raise ValueError(
            f"routes hold values {array.min()}..{array.max()}: allowed are 0 (skip), 1 (small), 2 (big), -1 (not scored)"
        )
    return array.astype(np.int8)


def _one(route: ArrayLike) -> Int8[np.ndarray, " layer"]:
    """A single route, every layer of which makes a choice."""
    array = np.asarray(route)
    if array.ndim != 1 or not np.isin(array, (SKIP, SMALL, BIG)).all():
        raise ValueError(f"route {array.tolist()}: give one of 0 (skip), 1 (small), 2 (big) for each layer")
    return array.astype(np.int8)
