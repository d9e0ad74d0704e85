"""Expand the routes of one position of several texts over the keys and values of the tokens before it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor
from transformers import DynamicCache

from ..model import DuoFFN, LanguageModel
from ..model.memory import keep_freed
from ..model.products import Products
from ..model.routing import in_this_thread
from ..routes import BIG, SKIP, SMALL
from .attention import Lockstep, Prefix, Scattered, branch_attention
from .fused import Fused, applies, turned_back
from .trie import Trie, Work

Rows = slice | Int64[Tensor, " row"]
"""Rows of a text; a slice takes no copy."""
At = tuple[slice, Rows] | slice
"""Which texts and which of their rows, or which texts."""
PIECE = 2**22
"""Largest intermediate result, in elements, where it can be split (16 MB in float32). Smaller pieces take more calls; larger ones
are mapped anew by the C library each time (see `duoviz.model.memory`)."""


def _same(x: Tensor) -> Tensor:
    return x


class _LeaveOut:
    """Routing that leaves the FFN out of a layer and keeps its input."""

    def __init__(self, products: Products) -> None:
        self.products = products
        self.ffn: DuoFFN | None = None
        self.ffn_input: Tensor | None = None

    def at_ffn(self, ffn: DuoFFN, layer: int, x: Tensor) -> Tensor:
        self.ffn, self.ffn_input = ffn, x
        return x.new_zeros(()).expand_as(x)

    def at_layer_end(self, layer: int, before: Tensor, after: Tensor) -> Tensor:
        return after

    def outputs(self, before: Tensor, skipped: Tensor, skip_scope: str) -> dict[int, Callable[[At], Tensor]]:
        """The layer's output under each choice, as a function of the texts and rows it is wanted for.

        Args:
            before: the layer's input `[text, row, hidden]`.
            skipped: its output without the FFN.
            skip_scope: what a skip leaves out.
        """
        ffn, x = self.ffn, self.ffn_input
        assert ffn is not None, "the layer has run"
        assert x is not None, "the layer has run"
        x = x.view_as(before)
        untouched = before if skip_scope == "block" else skipped
        ways = self.products, x, skipped, ffn.residual_factor
        small, big = (partial(_through, run, *ways) for run in (ffn.narrow, ffn.big))
        return {SKIP: lambda at: untouched[at], SMALL: small, BIG: big}


def _through(
    run: Callable[[Tensor], Tensor], products: Products, x: Tensor, skipped: Tensor, factor: float, at: At
) -> Tensor:
    """The output of a layer for some texts and rows, from its FFN's input and what it is without the FFN."""
    with products:
        out = run(x[at].contiguous())
    return torch.add(skipped[at], out, alpha=factor)


class _Take:
    """Routing of a single branch per text: int8 `[text, layer]`."""

    def __init__(self, routes: Tensor, *, skip_scope: str) -> None:
        self.routes, self.skip_scope = routes, skip_scope

    def at_ffn(self, ffn: DuoFFN, layer: int, x: Tensor) -> Tensor:
        return ffn.dispatch(x, self.routes[:, layer])

    def at_layer_end(self, layer: int, before: Tensor, after: Tensor) -> Tensor:
        if self.skip_scope == "ffn":
            return after
        return torch.where((self.routes[:, layer] == SKIP)[:, None, None], before, after)


class Branches:
    """Texts read in lockstep, whose routes at one position at a time are expanded over the keys and values before it.

    Args:
        lm: the model.
        ids: the texts; all are as long.
        routes: routes of all input tokens, whose keys and values make the first prefix: int8 `[text, token, layer]`.
        width: nodes held at one time, over all texts; expansion is breadth-first up to it and depth-first below. A node
            takes about `4 * (6 * hidden + 3 * big width)` bytes.

    Attributes:
        work: what was computed for branches so far.

    `commit` replaces the keys and values of a position by those of another route. What is stored for later positions is not
    recomputed; later calls use the new ones.
    """

    def __init__(
        self,
        lm: LanguageModel,
        ids: Int64[np.ndarray, "text token"],
        routes: Int8[np.ndarray, "text token layer"],
        *,
        width: int,
    ) -> None:
        self.lm, self.width = lm, width
        self.layers: list[Any] = list(lm.model.decoder_layers)
        self._piece = max(1, PIECE // lm.model.family.ffn_width(lm.model.config))  # rows of an FFN at one time
        self._fused = [Fused(layer, skip_scope=lm.skip_scope) for layer in self.layers] if applies(lm.model) else []
        self._products = Products(lm.model)
        keep_freed()
        cache = DynamicCache()  # without the configuration, which may have it forget what leaves a sliding window
        # of every layer, since Gemma 3 rotates those with a window by another base
        places = _calls(self.layers, ("position_embeddings", "position_ids"))
        with torch.no_grad(), _calls(self.layers[:1]) as first, places as self._kwargs:
            lm.model(
                torch.from_numpy(ids).to(lm.device),
                duo_routes=torch.from_numpy(routes).to(lm.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self.work = Work()
        self.inputs = first[0]["hidden_states"]
        written: list[Any] = cache.layers
        self.keys = [layer.keys.clone() for layer in written]
        self.values = [layer.values.clone() for layer in written]

    @torch.no_grad()
    def leaves(
        self, position: int, trie: Trie, then: Callable[[Tensor], Tensor] = _same
    ) -> Iterator[tuple[slice, Float[Tensor, "text leaf hidden"]]]:
        """The last layer's output of every route at a position, chunk by chunk in the order of `trie.routes`.

        Args:
            position: which.
            trie: the routes.
            then: is applied to each part of it while that is in cache.
        """
        prefixes = [self._seen(level, position) for level in range(len(self.layers))]
        yield from self._expand(trie, prefixes, 0, (0, 1), self.inputs[:, position : position + 1], then)

    @torch.no_grad()
    def scattered(
        self,
        texts: Int64[np.ndarray, " row"],
        positions: Int64[np.ndarray, " row"],
        routes: Int8[np.ndarray, "row layer"],
    ) -> Iterator[tuple[slice, Float[Tensor, "row hidden"]]]:
        """The last layer's output of routes that are each at their own text and position, chunk by chunk.

        Args:
            texts, positions, routes: different from each other, ascending by text, then position, then route.
        """
        for start in range(0, len(texts), self.width):
            rows = slice(start, start + self.width)
            yield rows, self._forest(texts[rows], positions[rows], routes[rows])

    @torch.no_grad()
    def commit(self, position: int, routes: Int8[np.ndarray, "text layer"]) -> None:
        """Let a position take these routes: what comes after sees their keys and values."""
        taken = torch.from_numpy(routes).to(self.lm.device)
        routing = _Take(taken, skip_scope=self.lm.skip_scope)
        x = self.inputs[:, position : position + 1]
        for index in range(len(self.layers)):
            x = self._run(index, [position], x, self._lockstep(index, position, write=True), routing)

    def _lockstep(self, layer: int, position: int, *, write: bool = False) -> Lockstep:
        return Lockstep(self.keys[layer], self.values[layer], position, write)

    def _seen(self, layer: int, position: int) -> Lockstep:
        """What branches at a position attend to, for the layer that will run them."""
        prefix = self._lockstep(layer, position)
        return turned_back(prefix, *self._kwargs[layer]["position_embeddings"]) if self._fused else prefix

    def _run(self, layer: int, positions: list[int] | Tensor, x: Tensor, prefix: Prefix, routing: Any) -> Tensor:
        """One decoder layer over branches `[batch, branch, hidden]`, all at one position, or each at its own."""
        kwargs = dict(self._kwargs[layer])
        if "position_embeddings" in kwargs:
            kwargs["position_embeddings"] = tuple(part[..., positions, :] for part in kwargs["position_embeddings"])
        if "position_ids" in kwargs:
            kwargs["position_ids"] = kwargs["position_ids"][..., positions]
        with branch_attention(), self._products:
            return self.layers[layer](x, attention_mask=prefix, duo_routing=routing, **kwargs)

    def _expand(
        self,
        trie: Trie,
        prefixes: list[Lockstep],
        level: int,
        nodes: tuple[int, int],
        x: Tensor,
        then: Callable[[Tensor], Tensor],
    ) -> Iterator[tuple[slice, Tensor]]:
        """All leaves below some nodes of one level."""
        first, last = nodes
        while level < len(self.layers):
            below = int(trie.children[level][first]), int(trie.children[level][last])
            if (below[1] - below[0]) * len(x) > self.width and last - first > 1:
                middle = (first + last) // 2
                yield from self._expand(trie, prefixes, level, (first, middle), x[:, : middle - first], then)
                yield from self._expand(trie, prefixes, level, (middle, last), x[:, middle - first :], then)
                return
            parents, choices = trie.parents[level][slice(*below)] - first, trie.choices[level][slice(*below)]
            after = then if level == len(self.layers) - 1 else _same
            x = self._children(level, [prefixes[level].length], x, prefixes[level], parents, choices, after)
            (first, last), level = below, level + 1
        yield slice(first, last), x

    def _forest(self, texts: np.ndarray, positions: np.ndarray, routes: np.ndarray) -> Tensor:
        """All leaves of the tries of some texts and positions, breadth-first."""
        starts, roots = np.unique(texts * self.inputs.shape[1] + positions, return_index=True, return_inverse=True)[1:]
        trie, device = Trie(routes, roots), self.inputs.device
        text, place = (torch.from_numpy(each[starts]).to(device) for each in (texts, positions))
        x = self.inputs[text, place][None]
        for level, (parents, choices) in enumerate(zip(trie.parents, trie.choices)):
            prefix = Scattered(self.keys[level], self.values[level], text, place)
            x = self._children(level, place, x, prefix, parents, choices)
            of = torch.from_numpy(parents).to(device)
            text, place = text[of], place[of]
        return x[0]

    def _children(
        self,
        level: int,
        positions: list[int] | Tensor,
        x: Tensor,
        prefix: Prefix,
        parents: np.ndarray,
        choices: np.ndarray,
        then: Callable[[Tensor], Tensor] = _same,
    ) -> Tensor:
        """Run one layer; for each child node, its parent's output under that child's choice."""
        x = x.to(self.keys[level].device)
        if self._fused and isinstance(prefix, Lockstep):
            outputs = self._fused[level](x, prefix)
        else:
            routing = _LeaveOut(self._products)
            skipped = self._run(level, positions, x, prefix, routing)
            outputs = routing.outputs(x, skipped, self.lm.skip_scope)
        texts, nodes = x.shape[:2]
        made: Tensor | None = None
        seen = int(torch.as_tensor(positions).sum()) * (nodes if len(positions) == 1 else 1)
        bigs, smalls = ((choices == choice).sum() for choice in (BIG, SMALL))
        self.work += Work(*(float(texts * number) for number in (nodes, seen, bigs, smalls)))
        for choice, output in outputs.items():
            children = np.flatnonzero(choices == choice)
            together = max(1, self._piece // max(1, len(children)))  # texts
            for some in [slice(text, text + together) for text in range(0, texts, together)]:
                for start in range(0, len(children), self._piece):
                    piece = children[start : start + self._piece]
                    part = then(output((some, _rows(parents[piece], x.device))))
                    made = part.new_empty(texts, len(parents), part.shape[-1]) if made is None else made
                    made[some, _rows(piece, x.device)] = part
        assert made is not None, "a layer has children"
        return made


def _rows(rows: Int64[np.ndarray, " row"], device: torch.device) -> Rows:
    """The same rows, as a slice where they are evenly spaced."""
    step = int(rows[1] - rows[0]) if len(rows) > 1 else 1
    if step > 0 and (np.diff(rows) == step).all():
        return slice(int(rows[0]), int(rows[-1]) + 1, step)
    return torch.from_numpy(rows).to(device)


@torch.no_grad()
def uniform_leaves(
    lm: LanguageModel, ids: Int64[np.ndarray, "text token"], trie: Trie
) -> Iterator[tuple[int, Float[Tensor, "text token hidden"]]]:
    """The last layer's output when all tokens take one route, leaf by leaf: whole texts, beginnings of routes shared."""
    layers: list[Any] = list(lm.model.decoder_layers)
    scope, products = lm.skip_scope, Products()
    with _calls(layers) as calls:
        lm.model(torch.from_numpy(ids).to(lm.device), use_cache=False, logits_to_keep=1)
    x = calls[0]["hidden_states"]

    def below(level: int, node: int, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        if level == len(layers):
            yield node, x
            return
        routing = _LeaveOut(products)
        with products:
            skipped = layers[level](**{**calls[level], "hidden_states": x, "duo_routing": routing})
        outputs = routing.outputs(x, skipped, scope)
        for child in range(int(trie.children[level][node]), int(trie.children[level][node + 1])):
            yield from below(level + 1, child, outputs[int(trie.choices[level][child])](slice(None)).view(x.shape))

    yield from below(0, 0, x)


@contextmanager
def _calls(layers: Sequence[Any], names: tuple[str, ...] = ()) -> Iterator[list[dict[str, Any]]]:
    """What each of some decoder layers is called with, by name: hidden states, positions and masks, whatever the family; those
    of some names alone where they are given."""
    calls: list[dict[str, Any]] = []

    @in_this_thread
    def keep(layer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        bound = inspect.signature(layer.dense_forward).bind_partial(*args, **kwargs).arguments
        call = {**bound.pop("kwargs", {}), **bound}
        calls.append({name: call[name] for name in names or call if name in call})

    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
