"""Random routes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..routes import BIG, SKIP, SMALL


@dataclass(frozen=True)
class RandomPolicy:
    """Independent random choices for every token and layer: stage 1.

    Attributes:
        big, small, skip: probabilities of the three choices; they sum to 1.
        any_share: draw for every text anew, evenly between 0 and 1, the probability of big; the others share the rest as they
            would without it. A model trained so knows routes of every budget.
        seed: the draw; the same seed, text (its number) and token give the same route.
        first: number of the batch's first text; the others count on from there.

    Paper: arXiv 2410.10846, section 2, stage 1 (0.5, 0.5, 0).

    Raises:
        ValueError: probabilities that are negative or NaN, or do not sum to 1.
    """

    big: float = 0.5
    small: float = 0.5
    skip: float = 0.0
    seed: int = 0
    any_share: bool = False
    first: int = 0

    def __post_init__(self) -> None:
        shares = (self.big, self.small, self.skip)
        if not (min(shares) >= 0 and abs(sum(shares) - 1) <= 1e-6):  # so that NaN fails too
            raise ValueError(f"random policy big, small, skip = {shares}: give probabilities that sum to 1")

    def routes(self, batch: int, tokens: int, layers: int) -> Int[Tensor, "batch token layer"]:
        """Drawn routes, int8 `[batch, token, layer]`, on the CPU."""
        # a stream for each text, token by token: longer texts or more of them change none of the routes
        numbers = range(self.first, self.first + batch)
        streams = [self._stream(number) for number in numbers]
        draw = torch.from_numpy(np.stack([stream.random((tokens, layers), np.float32) for stream in streams]))
        big = torch.full((batch, 1, 1), self.big, dtype=torch.float64)
        if self.any_share:  # a stream of its own, so that a text's length changes nothing here either
            big[:, 0, 0] = torch.tensor([self._stream(2**63 + number).random() for number in numbers])
        rest = self.small + self.skip
        small = (1 - big) * (self.small / rest if rest else 0.0)
        routes = torch.full(draw.shape, BIG, dtype=torch.int8)
        routes[draw >= big] = SMALL
        routes[draw >= big + small] = SKIP
        return routes

    def _stream(self, number: int) -> np.random.Generator:
        key = np.array([self.seed % 2**64, number], np.uint64)  # a tuple with a number above 2^63 would become float64
        return np.random.Generator(np.random.Philox(key=key))
