"""Many routes of one token over one shared prefix: the trie of routes and its attention.

Routes that begin alike share their beginning, so a token's routes are expanded as a trie, layer by layer. A node runs its
family's own decoder layer once, with the FFN left out; its children add the big FFN, the small one or nothing. All branches
attend to one copy of the earlier tokens' keys and values and to their own key and value, merged by log-sum-exp: branches
are query rows, never an expanded batch. The attention is registered with transformers under the name `NAME`, so the
attention modules stay as they are.

Paper: arXiv 2410.10846, section 2, stage 2 (which enumerates routes one by one).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache

from .model import DuoCausalLM, DuoFFN, LanguageModel
from .routes import BIG, SKIP, SMALL

NAME = "duo_branches"
HEAD_ROWS = 512
"""Leaves whose logits exist at one time: 8 MB at a vocabulary of 4,096, which stays in cache; half the time of 2,048."""


class Trie:
    """The prefix tree of a set of routes.

    Attributes:
        routes: the routes, different from each other and in lexicographic order: the leaves.
        choices: per layer, the choice that leads to each node.
        parents: per layer, each node's parent among the nodes of the layer before (the root is 0).
        children: per layer, where each node's children begin in the next layer; one more entry closes the last.

    Raises:
        ValueError: routes that are not sorted, or repeat.
    """

    def __init__(self, routes: Int8[np.ndarray, "route layer"]) -> None:
        differs = routes[1:] != routes[:-1]
        first = differs.argmax(1)
        rows = np.arange(len(first))
        if len(first) and not (differs.any(1) & (routes[1:][rows, first] > routes[:-1][rows, first])).all():
            raise ValueError("the routes of a trie must be different and in lexicographic order")
        begins = np.ones(routes.shape, bool)
        begins[1:] = np.logical_or.accumulate(differs, axis=1)
        starts = [np.zeros(1, np.int64), *(np.flatnonzero(column) for column in begins.T)]
        self.routes = routes
        self.choices = [routes[start, layer] for layer, start in enumerate(starts[1:])]
        self.parents = [
            np.searchsorted(above, below, side="right") - 1 for above, below in zip(starts[:-1], starts[1:])
        ]
        self.children = [
            np.append(np.searchsorted(below, above), len(below)) for above, below in zip(starts[:-1], starts[1:])
        ]


class _LeaveOut:
    """Routing that leaves the FFN out of a layer and keeps its input."""

    def __init__(self) -> None:
        self.ffn_input: Tensor | None = None

    def at_ffn(self, ffn: DuoFFN, layer: int, x: Tensor) -> Tensor:
        self.ffn_input = x
        return torch.zeros_like(x)

    def at_layer_end(self, layer: int, before: Tensor, after: Tensor) -> Tensor:
        return after

    def outputs(
        self, ffn: DuoFFN, before: Tensor, skipped: Tensor, skip_scope: str
    ) -> dict[int, Callable[[Tensor], Tensor]]:
        """The layer's output under each choice, as a function of the rows `[row]` it is wanted for.

        Args:
            ffn: the layer's FFN.
            before: the layer's input `[text, row, hidden]`.
            skipped: its output without the FFN.
            skip_scope: what a skip leaves out.
        """
        assert self.ffn_input is not None, "the layer has run"
        x = self.ffn_input.reshape(before.shape)
        untouched = before if skip_scope == "block" else skipped
        return {
            SKIP: lambda rows: untouched.index_select(1, rows),
            SMALL: lambda rows: skipped.index_select(1, rows) + ffn.small(x.index_select(1, rows)),
            BIG: lambda rows: skipped.index_select(1, rows) + ffn.big(x.index_select(1, rows)),
        }


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

    Keys and values of a position can be replaced by those of another route (`commit`); positions after it do not see the
    difference until they are asked for.
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
        cache = DynamicCache(config=lm.model.config)
        with torch.no_grad(), _first_layer_call(self.layers[0]) as call:
            lm.model(
                torch.from_numpy(ids).to(lm.device),
                duo_routes=torch.from_numpy(routes).to(lm.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self.inputs = call["hidden_states"]
        self._kwargs = {name: call[name] for name in ("position_embeddings", "position_ids") if name in call}
        written: list[Any] = cache.layers
        self.keys = [layer.keys.clone() for layer in written]
        self.values = [layer.values.clone() for layer in written]

    @torch.no_grad()
    def leaves(self, position: int, trie: Trie) -> Iterator[tuple[slice, Float[Tensor, "text leaf hidden"]]]:
        """The last layer's output of every route at a position, chunk by chunk in the order of `trie.routes`."""
        with _attention(self.lm.model):
            yield from self._expand(trie, position, 0, (0, 1), self.inputs[:, position : position + 1])

    @torch.no_grad()
    def commit(self, position: int, routes: Int8[np.ndarray, "text layer"]) -> None:
        """Let a position take these routes: what comes after sees their keys and values."""
        taken = torch.from_numpy(routes).to(self.lm.device)
        routing = _Take(taken, skip_scope=self.lm.model.config.skip_scope)
        x = self.inputs[:, position : position + 1]
        with _attention(self.lm.model):
            for index in range(len(self.layers)):
                x = self._run(index, position, x, routing=routing, write=True)

    def _run(self, layer: int, position: int, x: Tensor, *, routing: Any, write: bool = False) -> Tensor:
        """One decoder layer over the branches of one position: `[text, branch, hidden]`."""
        at = slice(position, position + 1)
        kwargs = dict(self._kwargs)
        if "position_embeddings" in kwargs:
            kwargs["position_embeddings"] = tuple(part[..., at, :] for part in kwargs["position_embeddings"])
        if "position_ids" in kwargs:
            kwargs["position_ids"] = kwargs["position_ids"][..., at]
        prefix = self.keys[layer], self.values[layer], position, write
        return self.layers[layer](x, attention_mask=None, duo_routing=routing, duo_prefix=prefix, **kwargs)

    def _expand(
        self, trie: Trie, position: int, level: int, nodes: tuple[int, int], x: Tensor
    ) -> Iterator[tuple[slice, Tensor]]:
        """All leaves below some nodes of one level."""
        first, last = nodes
        while level < len(self.layers):
            below = int(trie.children[level][first]), int(trie.children[level][last])
            if (below[1] - below[0]) * len(x) > self.width and last - first > 1:
                middle = (first + last) // 2
                yield from self._expand(trie, position, level, (first, middle), x[:, : middle - first])
                yield from self._expand(trie, position, level, (middle, last), x[:, middle - first :])
                return
            x = self._children(trie, position, level, below, first, x)
            (first, last), level = below, level + 1
        yield slice(first, last), x

    def _children(self, trie: Trie, position: int, level: int, below: tuple[int, int], first: int, x: Tensor) -> Tensor:
        """Outputs of a layer for the children of its nodes."""
        routing = _LeaveOut()
        skipped = self._run(level, position, x, routing=routing)
        outputs = routing.outputs(self.layers[level].duo_ffn, x, skipped, self.lm.model.config.skip_scope)
        parents, choices = trie.parents[level][slice(*below)] - first, trie.choices[level][slice(*below)]
        made = x.new_empty(len(x), len(parents), x.shape[-1])
        for choice, output in outputs.items():
            rows = np.flatnonzero(choices == choice)
            if len(rows):
                of = torch.from_numpy(parents[rows]).to(x.device)
                made.index_copy_(1, torch.from_numpy(rows).to(x.device), output(of))
        return made


@torch.no_grad()
def uniform_leaves(
    lm: LanguageModel, ids: Int64[np.ndarray, "text token"], trie: Trie
) -> Iterator[tuple[int, Float[Tensor, "text token hidden"]]]:
    """The last layer's output when all tokens take one route, leaf by leaf: whole texts, beginnings of routes shared."""
    layers: list[Any] = list(lm.model.decoder_layers)
    scope = lm.model.config.skip_scope
    with _first_layer_call(layers[0]) as call:
        lm.model(torch.from_numpy(ids).to(lm.device), use_cache=False, logits_to_keep=1)
    x = call.pop("hidden_states")
    call.pop("duo_routing", None)
    everyone = torch.arange(ids.shape[1], device=lm.device)

    def below(level: int, node: int, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        if level == len(layers):
            yield node, x
            return
        routing = _LeaveOut()
        skipped = layers[level](x, duo_routing=routing, **call)
        outputs = routing.outputs(layers[level].duo_ffn, x, skipped, scope)
        for child in range(int(trie.children[level][node]), int(trie.children[level][node + 1])):
            yield from below(level + 1, child, outputs[int(trie.choices[level][child])](everyone))

    yield from below(0, 0, x)


def attend(
    module: nn.Module,
    query: Float[Tensor, "text head branch width"],
    key: Float[Tensor, "text kv_head branch width"],
    value: Float[Tensor, "text kv_head branch width"],
    attention_mask: None,
    *,
    scaling: float,
    duo_prefix: tuple[Tensor, Tensor, int, bool],
    **kwargs: Any,
) -> tuple[Float[Tensor, "text branch head width"], None]:
    """Attention of branches to the shared prefix and each to itself.

    Args:
        module: the family's attention module; not used.
        query, key, value: of the branches; grouped-query heads are folded into query rows.
        attention_mask: None; a branch sees the whole prefix.
        scaling: factor of the scores.
        duo_prefix: the layer's keys and values `[text, kv_head, token, width]`, how many tokens of them are the prefix,
            and whether to write the (single) branch's own behind them.
    """
    keys, values, length, write = duo_prefix
    if write:
        keys[:, :, length], values[:, :, length] = key[:, :, 0], value[:, :, 0]
    texts, heads, branches, width = query.shape
    groups = heads // key.shape[1]
    rows = query.reshape(texts, key.shape[1], groups * branches, width)
    own = torch.einsum("tkgbw,tkbw->tkgb", rows.view(texts, -1, groups, branches, width), key) * scaling
    own_value = value[:, :, None].expand(-1, -1, groups, -1, -1)
    if length == 0:
        out = own_value
    else:
        shared, lse = over_prefix(rows, keys[:, :, :length], values[:, :, :length], scaling)
        share = torch.sigmoid(own.float() - lse.view(own.shape))[..., None].to(query.dtype)
        out = torch.lerp(shared.view(own_value.shape), own_value, share)
    return out.reshape(texts, heads, branches, width).transpose(1, 2), None


def over_prefix(
    rows: Float[Tensor, "text kv_head row width"],
    keys: Float[Tensor, "text kv_head token width"],
    values: Float[Tensor, "text kv_head token width"],
    scaling: float,
) -> tuple[Float[Tensor, "text kv_head row width"], Float[Tensor, "text kv_head row"]]:
    """Attention of query rows to a prefix, with the log-sum-exp of the scores: the fused kernel on the CPU in float32,
    `portable_over_prefix` elsewhere."""
    if rows.device.type == "cpu" and rows.dtype == torch.float32:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(rows, keys, values, scale=scaling)
    return portable_over_prefix(rows, keys, values, scaling)


def portable_over_prefix(
    rows: Float[Tensor, "text kv_head row width"],
    keys: Float[Tensor, "text kv_head token width"],
    values: Float[Tensor, "text kv_head token width"],
    scaling: float,
) -> tuple[Float[Tensor, "text kv_head row width"], Float[Tensor, "text kv_head row"]]:
    """The same from matrix products: what `over_prefix` is tested against."""
    scores = (rows @ keys.transpose(2, 3)).float() * scaling
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp().to(values.dtype) @ values, lse


AttentionInterface.register(NAME, attend)


@contextmanager
def _attention(model: DuoCausalLM) -> Iterator[None]:
    """The model's attention modules call `attend`."""
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def _first_layer_call(layer: nn.Module) -> Iterator[dict[str, Any]]:
    """What the first decoder layer is called with: embeddings and positions, whatever the family."""
    seen: dict[str, Any] = {}

    def keep(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs, hidden_states=args[0] if args else kwargs["hidden_states"])

    hook = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()
