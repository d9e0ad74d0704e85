"""What the training of a router has done so far.

Routers that learn from searched losses collect them along their own routes in rounds, and at the end of each learn from those of
all rounds, so that they know the states which they meet (DAgger, Ross et al., arXiv 1011.0686).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..model.checkpoint import Log

MOST_BYTES = 2**31
"""What a memory may take: of the shipped model 660,000 positions (while it is learned from, it takes as much again)."""


class Memory(nn.Module):
    """Inputs and losses of positions that a router has learned from; of too many, the oldest are forgotten. A module, so that a
    checkpoint holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[tuple[Tensor, ...]] = []

    def add(self, *part: Tensor) -> None:
        """Remember some positions, the first axis of each tensor."""
        self.parts.append(tuple(one.cpu() for one in part))
        while len(self.parts) > 1 and sum(one.nbytes for some in self.parts for one in some) > MOST_BYTES:
            del self.parts[0]

    def again(self, epochs: int, size: int, draw: torch.Generator) -> Iterator[tuple[float, list[Tensor]]]:
        """All that is remembered, so many times, each time in random order and in parts of so many positions; and how much of
        it is done."""
        whole = [torch.cat(same) for same in zip(*self.parts)]
        parts = -(-len(whole[0]) // size)
        for epoch in range(epochs):
            for place, rows in enumerate(torch.randperm(len(whole[0]), generator=draw).split(size)):
                yield (epoch + place / parts) / epochs, [one[rows] for one in whole]

    def get_extra_state(self) -> Any:
        """For `state_dict`."""
        return self.parts

    def set_extra_state(self, state: Any) -> None:
        """For `load_state_dict`."""
        self.parts = [tuple(part) for part in state]


@dataclass
class Past:
    """What a training has done so far.

    Attributes:
        steps: of the whole training.
        log: a record of each step.
        memory: of kinds that learn from searched losses.
    """

    steps: int
    log: Log = field(default_factory=list)
    memory: Memory = field(default_factory=Memory)

    def round_ends(self, rounds: int) -> bool:
        """Whether one of so many rounds ends with the step that comes next."""
        step = len(self.log)
        return (step + 1) * rounds // self.steps > step * rounds // self.steps
