"""The matrix products of a search by themselves: the rate at which this machine could do its work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from ..branching import Trie
from ..model import LanguageModel, attention_widths
from ..model import products as maps
from ..oracle import leaves
from ..oracle.leaves import ANCHORS
from ..routes import BIG, SMALL

BOUNDING = ANCHORS + 1
"""Columns of the head that bounds: tangent planes, and the target."""
SAMPLED = 400
"""Products of a search that are timed again by themselves."""


def trie_products(lm: LanguageModel, trie: Trie, *, texts: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The matrix products of one position of some texts: projections, FFNs and the bounding head."""
    config, d = lm.model.config, lm.model.config.hidden_size
    h, g = attention_widths(config)
    width, narrow = lm.model.family.ffn_width(config), config.small_intermediate_size
    parents = [1, *(len(nodes) for nodes in trie.choices[:-1])]
    make = partial(torch.randn, device=lm.device)
    for above, choices in zip(parents, trie.choices):
        ffns = [((choices == BIG).sum(), width), ((choices == SMALL).sum(), narrow)]
        shapes = [(above, d, h), (above, d, g), (above, d, g), (above, h, d)]
        shapes += [shape for n, f in ffns for shape in ((n, d, f), (n, d, f), (n, f, d))]
        for n, inner, outer in shapes:
            yield make(texts * int(n), inner), make(outer, inner)
    yield make(texts * len(trie.routes), d), make(BOUNDING, d)


@contextmanager
def noted() -> Iterator[list[tuple[int, ...]]]:
    """The sizes of all linear maps that are computed meanwhile on the CPU by a search: rows, inner and outer width."""
    shapes: list[tuple[int, ...]] = []

    def note(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        shapes.append((x.numel() // x.shape[-1], x.shape[-1], len(weight)))
        return product(x, weight, *rest)

    product = maps.product
    with ExitStack() as stack:
        for place in (maps, leaves):
            stack.enter_context(patch.object(place, "product", note))
        yield shapes


def sample(shapes: list[tuple[int, ...]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Matrices of some of these sizes, drawn evenly."""
    drawn = np.random.default_rng(0).choice(len(shapes), min(SAMPLED, len(shapes)), replace=False)
    return [(torch.randn(rows, inner), torch.randn(outer, inner)) for rows, inner, outer in (shapes[i] for i in drawn)]


def work_of(products: list[tuple[torch.Tensor, torch.Tensor]]) -> int:
    """FLOPs of some products."""
    return sum(2 * len(one) * other.numel() for one, other in products)


def ways(products: list[tuple[torch.Tensor, torch.Tensor]]) -> list[Callable[[], None]]:
    """All of them, by each way there is: PyTorch's own library, oneDNN, and oneDNN with matrices laid out before."""
    laid_out: dict[int, torch.Tensor | None] = {id(other): None for _, other in products}
    libraries = torch.nn.functional.linear, maps.product, partial(maps.product, laid_out=laid_out)
    return [partial(multiply, products, by) for by in libraries]


def multiply(products: list[tuple[torch.Tensor, torch.Tensor]], by: Callable[..., torch.Tensor]) -> None:
    """All of them, by a function that takes two matrices and no bias."""
    for one, other in products:
        for part in one.split(16_384):
            by(part, other, None)


def timed(sides: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Median seconds of each side; the sides alternate, after one round that does not count."""
    seconds = np.zeros((rounds + 1, len(sides)))
    for turn in seconds:
        for place, side in enumerate(sides):
            began = time.perf_counter()
            side()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            turn[place] = time.perf_counter() - began
    return np.median(seconds[1:], axis=0).tolist()
