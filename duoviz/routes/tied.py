"""Layers that choose together, and layers that do not choose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .route import LETTERS, from_text

Groups = tuple[tuple[int, ...], ...]
"""The layers of each group, in the order of their first layers."""


def tied(
    layers: int, groups: int | Sequence[Sequence[int]] | None, free: Sequence[int] | None, held: str
) -> tuple[Groups | None, tuple[int, ...] | None, str]:
    """Check groups, free layers and the choices of held layers, and bring them into the form that a `Space` keeps.

    Raises:
        ValueError: as there.
    """
    every = tuple(range(layers))
    free = every if free is None else tuple(sorted(free))
    if not free or len(set(free)) < len(free) or set(free) - set(every):
        raise ValueError(f"free layers {list(free)}: name some of 0..{layers - 1}, each once")
    if isinstance(groups, int):
        if not 1 <= groups <= len(free):
            raise ValueError(f"{groups} groups of {len(free)} layers: ask for 1..{len(free)}")
        groups = [part.tolist() for part in np.array_split(free, groups)]
    elif groups is None:
        groups = [[layer] for layer in free]
    made = tuple(sorted(tuple(sorted(group)) for group in groups))
    if sorted(layer for group in made for layer in group) != list(free) or () in made:
        raise ValueError(f"groups {groups!r}: each of the layers {list(free)} must be in one of them, and in no other")
    route = from_text(held * layers if len(held) == 1 else held, layers=layers)
    if free == every:
        return (None if len(made) == layers else made), None, "B"
    return made, free, "".join("B" if layer in free else LETTERS[choice] for layer, choice in enumerate(route))


def said(layers: int, groups: Groups, held: str) -> list[str]:
    """Describe groups and held layers in words, for example `10 groups`, or `groups 0+4 1-3` and `held .BB.`."""
    free = sorted(layer for group in groups for layer in group)
    parts = []
    if len(groups) < len(free):
        runs = tied(layers, len(groups), free, held)[0] == groups
        parts.append(f"{len(groups)} groups" if runs else f"groups {' '.join(map(_run, groups))}")
    if len(free) < layers:
        parts.append("held " + "".join("." if layer in free else held[layer] for layer in range(layers)))
    return parts


def _run(group: Sequence[int]) -> str:
    """Layers as text: `3-5`, or `3+7`."""
    run = len(group) > 1 and list(group) == list(range(group[0], group[-1] + 1))
    return f"{group[0]}-{group[-1]}" if run else "+".join(map(str, group))
