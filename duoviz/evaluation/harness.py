"""The model class that lm-evaluation-harness sees, registered there as `duoviz`. Only `tasks` imports this, when it is asked for.

Requests are encoded, cut and scored as the harness's own class for models of transformers does it; each token takes the
route that the way gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import (
    Collator,
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.models.utils_hf import stop_sequences_criteria
from lm_eval.utils import get_rolling_token_windows, simple_parse_args_string

from .. import corpus, model, progress
from ..model import LanguageModel
from ..router import Router
from ..routes import BIG, LETTERS
from . import ways
from .ways import Piece, Way

Request = tuple[tuple[str, str], list[int], list[int]]
"""Context and continuation as text, and the tokens of both."""

LOADING = dict.fromkeys(("path", "device", "dtype", "choices", "skip_scope"), str)
ROUTING = {"route": str, "router": str, "big": float, "small": float, "skip": float, "seed": int}
RUNNING = {"batch_size": int, "max_length": int}
"""Model arguments as lm-evaluation-harness hands them over, and of what kind they are: for `model.load`, `way_of`, `Harness`."""


@register_model("duoviz")
class Harness(TemplateLM):  # type: ignore[misc]
    """A language model whose tokens are routed in one way.

    Args:
        lm: the model, with its tokenizer.
        way: how each token is routed.
        batch_size: texts in one forward pass; it changes nothing but speed and memory.
        max_length: tokens that are read at most; the model's context if not given.

    Attributes:
        counts: how often each choice was taken, over the tokens read and all layers; a token in several windows counts once.

    Raises:
        ValueError: no tokenizer, a way that the model cannot take, a batch_size below 1, a max_length outside the context.
    """

    def __init__(self, lm: LanguageModel, way: Way, *, batch_size: int = 8, max_length: int | None = None) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: at least 1 text in one forward pass is needed")
        if max_length is not None and not 2 <= max_length <= lm.context:
            raise ValueError(f"max_length {max_length}: the model's context is {lm.context}, give 2..{lm.context}")
        self.lm, self.way, self.batch_size = lm, ways.check(lm, way), batch_size
        self.max_length = max_length or lm.context
        self.tokenizer = corpus.present(lm.tokenizer)
        self.counts = np.zeros(len(LETTERS), np.int64)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Harness:
        """As `create_from_arg_obj`, from text such as `path=data/duo-tiny,big=0.5,seed=0`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Harness:
        """The model that lm-evaluation-harness's model arguments name.

        Args:
            arg_dict: `path` and other names of `LOADING`, `ROUTING` and `RUNNING`.
            additional_config: more of them, if not there; None is left out, and so is a device where there is no CUDA.

        Raises:
            ValueError: no path, an unknown argument, text where a number must be; what `model.load`, `ways.way_of` and the
                class refuse. FileNotFoundError and OSError as there.
        """
        given = {**(additional_config or {}), **arg_dict}
        if "device" not in arg_dict and not torch.cuda.is_available():
            given.pop("device", None)  # the harness's own command always says cuda:0
        given = {name: value for name, value in given.items() if value is not None and name != "max_batch_size"}
        known = LOADING | ROUTING | RUNNING
        unknown = sorted(set(given) - set(known))
        if "path" not in given or unknown:
            raise ValueError(
                f"model arguments {given}: unknown are {unknown}; give path=FOLDER, and of {', '.join(known)}"
            )
        try:
            given = {name: known[name](value) for name, value in given.items()}
        except ValueError as error:
            raise ValueError(f"model arguments {given}: {error}; give a number there") from error
        loading, routing, running = (
            {name: given[name] for name in names if name in given} for names in (LOADING, ROUTING, RUNNING)
        )
        lm = model.load(**loading)
        return cls(lm, ways.way_of(lm, **routing), **running)

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: the beginning-of-text token, or the end-of-text token."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else begin

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; special tokens as the tokenizer adds them, unless said otherwise or the text begins with one."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode([self.prefix_token_id])):
            add_special_tokens = False
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return self.tokenizer(string, verbose=False, **special)["input_ids"]

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation in nats, and whether each of its tokens is the likeliest.

        A context that is too long is cut from the left. Random choices are drawn from the context: continuations of one
        context see it routed alike.

        Raises:
            ValueError: a continuation without tokens, or one longer than the model reads.
        """
        for (_, text), _, continuation in requests:
            if not 1 <= len(continuation) <= self.max_length:
                raise ValueError(
                    f"continuation {text[:80]!r} of {len(continuation)} tokens: 1..{self.max_length} can be scored"
                )
        sizes = [len(context) + len(continuation) for _, context, continuation in requests]
        answers = [(0.0, False)] * len(requests)
        for index, _, reading in self._read(sizes, lambda index: self._cut(*requests[index][1:])):
            answers[index] = -float(reading.loss_nats.sum(dtype=float)), bool(reading.greedy.all())
            self._count(reading.routes)
            self.cache_hook.add_partial("loglikelihood", requests[index][0], answers[index])
        return answers

    def _cut(self, context: list[int], continuation: list[int]) -> Piece:
        """What is read to score a continuation; a context of nothing but what belongs to it is the prefix token."""
        context = context or [self.prefix_token_id]
        ids, size = context + continuation, len(context) + len(continuation) - 1
        routes = ways.drawn(self.way, context, tokens=size, layers=self.lm.layers)
        begin, scored = max(0, size - self.max_length), len(context) - 1
        return Piece.cut(ids, routes, begin=begin, end=size, scored=scored)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts in nats, in windows as the harness cuts them: disjoint, the last one full."""
        owners, pieces = [], []
        for owner, (text,) in enumerate(request.args for request in requests):
            ids = self.tok_encode(text, add_special_tokens=False)
            if ids[:1] == [self.prefix_token_id]:  # a chat template has put it there
                ids = ids[1:]
            whole, end = np.array([self.prefix_token_id, *ids], np.int64), 0
            routes = ways.drawn(self.way, whole, tokens=len(ids), layers=self.lm.layers)
            for read, targets in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                scored, end = end, end + len(targets)
                pieces.append(Piece.cut(whole, routes, begin=end - len(read), end=end, scored=scored))
                owners.append(owner)
        sums = np.zeros(len(requests))
        for index, piece, reading in self._read([len(piece.ids) for piece in pieces], pieces.__getitem__):
            sums[owners[index]] -= reading.loss_nats.sum(dtype=float)
            self._count(reading.routes[-len(piece.targets) :])
        for request, total in zip(requests, sums.tolist()):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums.tolist()

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations of contexts up to a stop sequence; a context that is too long is cut from the left.

        Raises:
            ValueError: more new tokens asked for than the model reads.
        """
        waiting = Collator(
            [request.args for request in requests],
            sort_fn=lambda request: -len(request[0]),
            group_fn=lambda request: request[1],
            group_by="gen_kwargs",
        )
        found: list[str] = []
        with progress.bar(f"{len(requests):,} continuations") as watch:
            for batch in waiting.get_batched(n=self.batch_size):
                texts = self._generate([context for context, _ in batch], batch[0][1])
                for request, text in zip(batch, texts):
                    self.cache_hook.add_partial("generate_until", request, text)
                found += texts
                watch(len(found) / len(requests))
        return waiting.get_original(found)

    @torch.no_grad()
    def _generate(self, contexts: Sequence[str], asked: dict[str, Any]) -> list[str]:
        options = dict(normalize_gen_kwargs(asked, self.max_length // 2))
        stop = handle_stop_sequences(options.pop("until"), eos=self.tokenizer.decode([self.eot_token_id]))
        new = options.pop("max_gen_toks")
        if not 1 <= new < self.max_length:
            raise ValueError(f"{new} new tokens: the model reads {self.max_length}, ask for 1..{self.max_length - 1}")
        if not options["do_sample"]:
            options.pop("temperature", None)
        prompts = [(self.tok_encode(text) or [self.prefix_token_id])[new - self.max_length :] for text in contexts]
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self.eot_token_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        out = self.lm.model.generate(
            ids.to(self.lm.device),
            attention_mask=mask.to(self.lm.device),
            max_new_tokens=new,
            pad_token_id=self.eot_token_id,
            stopping_criteria=stop_sequences_criteria(self.tokenizer, stop, width, len(prompts)),
            **self._routing(prompts, width, new),
            **options,
        )
        made = [row[width:].tolist() for row in out]
        self._count_generated(prompts, [self._until(tokens, stop) for tokens in made])
        texts = [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in made]
        return [postprocess_generated_text(text, stop, think_end_token=None) for text in texts]

    def _routing(self, prompts: list[list[int]], width: int, new: int) -> dict[str, Any]:
        """What `generate` takes for this way; prompts end at `width`."""
        if isinstance(self.way, Router):
            return {"duo_router": self.way.eval().to(self.lm.device)}
        routes = np.full((len(prompts), width + new, self.lm.layers), BIG, np.int8)
        for row, prompt in enumerate(prompts):
            drawn = ways.drawn(self.way, prompt, tokens=len(prompt) + new, layers=self.lm.layers)
            assert drawn is not None, "only a router chooses later"
            routes[row, -len(drawn) :] = drawn
        return {"duo_routes": torch.from_numpy(routes)}

    def _until(self, tokens: list[int], stop: Sequence[str]) -> list[int]:
        """The tokens up to the one that completes a stop sequence: a text goes on until all beside it have stopped."""
        for size in range(1, len(tokens) + 1):
            text = self.tokenizer.decode(tokens[:size])
            if any(word in text for word in stop):
                return tokens[:size]
        return tokens

    def _count_generated(self, prompts: list[list[int]], made: list[list[int]]) -> None:
        """Count the choices of prompts and of what was made of them, which a router only tells when it is read again."""
        for prompt, tokens in zip(prompts, made):
            whole = [*prompt, *tokens]
            routes = ways.drawn(self.way, prompt, tokens=len(whole) - 1, layers=self.lm.layers)
            if routes is None:
                piece = Piece.cut(whole, None, begin=0, end=len(whole) - 1, scored=len(whole) - 2)
                routes = ways.read(self.lm, [piece], self.way)[0].routes
            self._count(routes)

    def _read(self, sizes: Sequence[int], cut: Callable[[int], Piece]) -> Iterator[tuple[int, Piece, ways.Reading]]:
        """Pieces, cut when they are needed, the longest first, in batches: the index of each, and what reading it gave."""
        order = sorted(range(len(sizes)), key=lambda index: -sizes[index])
        with progress.bar(f"{len(order):,} requests") as watch:
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                pieces = [cut(index) for index in batch]
                yield from zip(batch, pieces, ways.read(self.lm, pieces, self.way))
                watch(min(1.0, (start + len(batch)) / len(order)))

    def _count(self, routes: np.ndarray) -> None:
        self.counts += np.bincount(routes.ravel(), minlength=len(self.counts))
