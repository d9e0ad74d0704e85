"""A Duo model with its tokenizer: scoring of routes, the head in float32, the fingerprint of the weights."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from accelerate.hooks import remove_hook_from_module
from jaxtyping import Float, Float32, Int8, Int64
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .. import corpus
from .. import routes as routes_
from ..records import Tokens
from .checkpoint import digest
from .duo import DuoCausalLM
from .head import Head
from .products import Products
from .routing import in_this_thread

T = TypeVar("T")
P = ParamSpec("P")
Text = Tokens | np.ndarray | str | list[str] | tuple[str, ...]
"""What a model reads."""
_TURN = threading.Lock()
_DEFAULTS: list[torch.dtype] = []
"""The default dtype that each call `as_it_is` has found, the first of those at work first: it is one for all threads."""
_NOT_THE_MODEL = ("_name_or_path", "architectures", "auto_map", "dtype", "transformers_version", "use_cache")
"""Fields of a configuration that say how a model was stored or is run, not what it is."""


def undisturbed(function: Callable[P, T]) -> Callable[P, T]:
    """A function whose first argument is a `LanguageModel`, run with it `as_it_is`."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        lm: Any = args[0] if args else kwargs["lm"]
        with lm.as_it_is():
            return function(*args, **kwargs)

    return run


class LanguageModel:
    """A Duo model, its tokenizer and what every study asks of them.

    Attributes:
        model: the model of transformers.
        tokenizer: its tokenizer; None where token ids are all there is.
        choices: letters of the choices that mean something for it: `"-SB"` for a Duo model, `"-B"` for a dense one.
        path: where it was loaded from.
    """

    def __init__(
        self,
        model: DuoCausalLM,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        choices: str = "-SB",
        path: str = "",
    ) -> None:
        self.model, self.choices, self.path = model.eval(), choices, path
        self.tokenizer: Any = tokenizer
        self._made: dict[str, tuple[Any, Any]] = {}
        self._users, self._was_training = 0, list[nn.Module]()

    @contextmanager
    def as_it_is(self) -> Iterator[None]:
        """Evaluation mode and the weights' own precision, without gradients, in the midst of training, autocast, inference mode
        or another default dtype; the last of several threads puts back what the first has found."""
        with _TURN:
            if self._users == 0:
                self._was_training = [module for module in self.model.modules() if module.training]
                for module in self._was_training:
                    module.training = False
            self._users += 1
            _DEFAULTS.append(torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
        try:
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                yield
        finally:
            with _TURN:
                self._users -= 1
                if len(_DEFAULTS) == 1:  # nobody else is at work, with this model or another
                    torch.set_default_dtype(_DEFAULTS[0])
                _DEFAULTS.pop()
                if self._users == 0:
                    for module in self._was_training:
                        module.training = True

    def __repr__(self) -> str:
        return f"LanguageModel({self.path or type(self.model).__name__}, {self.layers} layers)"

    @property
    def skip_scope(self) -> str:
        """What a skip leaves out: `"ffn"` or `"block"`."""
        return self.model.skip_scope

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return self.model.config.num_hidden_layers

    @property
    def vocab(self) -> int:
        """Size of the vocabulary."""
        return self.model.config.vocab_size

    @property
    def known(self) -> int:
        """How many ids, from 0 on, the tokenizer has tokens for; a model's vocabulary may be filled up with rows for none."""
        return self.vocab if self.tokenizer is None else min(self.vocab, len(self.tokenizer))

    @property
    def context(self) -> int:
        """Longest text in tokens."""
        return self.model.config.max_position_embeddings

    @property
    def device(self) -> torch.device:
        """Where token ids are taken; the weights too, unless a device map has spread them."""
        return self.model.get_input_embeddings().weight.device

    @property
    def head(self) -> Head:
        """The head in float32: that of the model's weights as they are now."""
        output, norm = self.model.get_output_embeddings(), self.model.final_norm
        return self._remembered("head", (output, norm), "", self._make_head)

    def _make_head(self) -> Head:
        output = self.model.get_output_embeddings()
        bias, config = getattr(output, "bias", None), self.model.config
        scale = self.model.family.logit_scale(config)
        weight = output.weight.detach().float()
        norm = remove_hook_from_module(copy.deepcopy(self.model.final_norm))  # one that would move its input
        return Head(
            norm.to(output.weight.device, torch.float32).requires_grad_(False),
            weight if scale == 1 else weight * scale,
            None if bias is None else bias.detach().float() * scale,
            getattr(config, "final_logit_softcapping", None),
        )

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with the configuration and with the weights.

        Weights are rounded to bfloat16 first, so that a checkpoint has one fingerprint whether it is loaded in float32 or
        in bfloat16; training of any kind changes millions of weights, some of them across a rounding boundary.
        """
        fields = {k: v for k, v in self.model.config.to_dict().items() if k not in _NOT_THE_MODEL}
        said = json.dumps(fields, sort_keys=True, default=str)
        return self._remembered("fingerprint", (self.model,), said, partial(self._digest, said))

    def _remembered(self, name: str, modules: tuple[nn.Module, ...], said: str, make: Callable[[], T]) -> T:
        """What was made of the weights of some modules and of what is `said`, made again where any of it has changed since.

        A tensor that is replaced has another address, one that is written to (by an optimizer, a `copy_`) another version. Only
        what is written through `.data` or numpy goes unseen.
        """
        weights = [*(p for m in modules for p in m.parameters()), *(b for m in modules for b in m.buffers())]
        seen = [(id(w), w.data_ptr(), w.dtype, tuple(w.shape), 0 if w.is_inference() else w._version) for w in weights]
        stamp = said, seen
        known = self._made.get(name)
        if known is None or known[0] != stamp:
            self._made[name] = known = stamp, make()
        return known[1]

    def _digest(self, said: str) -> str:
        """Without small FFNs that only hold the place."""
        state = self.model.state_dict()
        return digest({k: w for k, w in state.items() if self.model.has_small or ".small." not in k}, said)

    def check(self, tokens: Text) -> Tokens:
        """What is to be read as a record that this model can read.

        Args:
            tokens: `Tokens`, int64 `[seq, token]`, or a text or several, each of which becomes a sequence.

        Raises:
            ValueError: ids outside the vocabulary, a text without anything to predict or longer than the context.
        """
        if isinstance(tokens, str | list | tuple):
            tokens = corpus.encode(self.tokenizer, tokens)
        tokens = Tokens.of(tokens)
        low, high = int(tokens.ids.min()), int(tokens.ids.max())
        if low < 0 or high >= self.vocab:
            raise ValueError(f"token ids {low}..{high}: the model's vocabulary has ids 0..{self.vocab - 1}")
        if (length := tokens.ids.shape[1]) > self.context:
            raise ValueError(f"a text of {length} tokens: the model's context is {self.context}, give a shorter length")
        return tokens

    def spread(self, routes: routes_.Routes, tokens: Tokens) -> Int8[np.ndarray, "seq token layer"]:
        """Routes for every input token; the last token of a text, which predicts nothing, and unscored ones go big.

        Args:
            routes: `[layer]` or `[seq, position, layer]`, in any form of `duoviz.routes.parse`.
            tokens: the texts.

        Raises:
            ValueError: an unknown letter, a choice the model does not have, a wrong shape, or -1 for anything but a whole
                route of a position that is not scored.
        """
        array = routes_.parse(routes, layers=self.layers)
        if unknown := {routes_.LETTERS[choice] for choice in np.unique(array[array >= 0])} - set(self.choices):
            raise ValueError(
                f"routes choose {sorted(unknown)}: this model has only {self.choices!r} (a dense model has no small FFN)"
            )
        seqs, length = tokens.ids.shape
        if array.ndim not in (1, 3) or (array.ndim == 3 and array.shape[:2] != (seqs, length - 1)):
            raise ValueError(
                f"routes of shape {array.shape}: give [layer] or [{seqs}, {length - 1}, {self.layers}] (seq, position, layer)"
            )
        full = np.full((seqs, length, self.layers), routes_.BIG, np.int8)
        full[:, :-1] = array
        missing = full[:, :-1] < 0
        if wrong := int((missing.any(-1) & (~missing.all(-1) | tokens.scored | (array.ndim == 1))).sum()):
            raise ValueError(
                f"routes hold -1 at {wrong} positions that are scored, or in single layers: give 0 (skip), 1 (small) or"
                " 2 (big) there; -1 in every layer stands for a position that is not scored"
            )
        full[full < 0] = routes_.BIG
        return full

    def batches(self, tokens: Tokens, size: int) -> list[slice]:
        """Rows of the texts, so many in one forward pass.

        Raises:
            ValueError: a size below 1.
        """
        if size < 1:
            raise ValueError(f"batch_size {size}: at least 1 sequence in one forward pass is needed")
        return [slice(start, start + size) for start in range(0, len(tokens), size)]

    @undisturbed
    def hidden(self, tokens: Tokens, *, batch_size: int = 8, **routing: Any) -> Float[Tensor, "seq token hidden"]:
        """The last layer's output, before the final norm.

        Args:
            tokens, batch_size: as in `score`.
            **routing: `duo_routes` (one row per sequence, or one route for all).

        Raises:
            ValueError: a batch_size below 1.
        """
        parts = []
        for rows in self.batches(tokens, batch_size):
            given = {k: v[rows] if isinstance(v, Tensor) and v.ndim == 3 else v for k, v in routing.items()}
            parts.append(self._forward(tokens[rows], **given)[0])
        return torch.cat(parts)

    @undisturbed
    def hidden_and_logits(
        self, tokens: Tokens, router: nn.Module
    ) -> tuple[Float[Tensor, "seq token hidden"], Float[Tensor, "seq token layer choice"]]:
        """The last layer's output when a router chooses, and the router's logits."""
        hidden, out = self._forward(tokens, duo_router=router)
        assert out.router_logits is not None, "a router was given"
        return hidden, out.router_logits

    def _forward(self, tokens: Tokens, **routing: Any) -> tuple[Tensor, Any]:
        kept: list[Tensor] = []
        keep = in_this_thread(lambda _, args: kept.append(args[0]))
        hook = self.model.final_norm.register_forward_pre_hook(keep)
        try:
            ids = torch.from_numpy(tokens.ids).to(self.device)
            with Products():
                out = self.model(ids, use_cache=False, logits_to_keep=1, **routing)
        finally:
            hook.remove()
        return kept[0], out

    @undisturbed
    def score(
        self,
        tokens: Text,
        routes: routes_.Routes,
        *,
        batch_size: int = 8,
        targets: Int64[np.ndarray, "seq position"] | None = None,
    ) -> Float32[np.ndarray, "seq position"]:
        """Loss of every next token in nats, from one ordinary forward pass with the given routes.

        Args:
            tokens: `Tokens`, int64 `[seq, token]`, or a text or several.
            routes: `"BBSS..."`, `"all-big"`, `[layer]` or `[seq, position, layer]` (see `duoviz.routes.parse`).
            batch_size: sequences in one forward pass; it changes nothing but speed and memory.
            targets: score these tokens instead of the true next ones.

        Returns:
            float32 nats `[seq, position]`, NaN where a position is not scored.

        Raises:
            ValueError: bad ids, lengths, routes or batch_size; NaN among the losses.
        """
        tokens = self.check(tokens)
        spread = torch.from_numpy(self.spread(routes, tokens))
        return self.losses(self.hidden(tokens, batch_size=batch_size, duo_routes=spread), tokens, targets=targets)

    @undisturbed
    def losses(
        self,
        hidden: Float[Tensor, "seq token hidden"],
        tokens: Tokens,
        *,
        targets: Int64[np.ndarray, "seq position"] | None = None,
    ) -> Float32[np.ndarray, "seq position"]:
        """Losses in nats from the last layer's output; NaN where a position is not scored.

        Raises:
            ValueError: NaN among the scored losses.
        """
        found = np.empty(tokens.scored.shape, np.float32)
        for row, ids in enumerate(tokens.ids[:, 1:] if targets is None else targets):
            logits = self.head.logits(hidden[row, :-1])
            wanted = torch.from_numpy(ids).to(logits.device)
            found[row] = nn.functional.cross_entropy(logits, wanted, reduction="none").cpu().numpy()
        if np.isnan(found[tokens.scored]).any():
            raise ValueError("losses are NaN: the weights are damaged, or the dtype overflows; try dtype=torch.float32")
        found[~tokens.scored] = np.nan
        return found
