"""Routes in `generate` of transformers: the text's own, those of drafts, and those of the unconditional text beside it.

Assisted decoding and classifier-free guidance make forward passes that hand no arguments of ours on; here they get them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.generation.candidate_generator import AssistedCandidateGenerator, CandidateGenerator
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.generation.utils import GenerateDecoderOnlyOutput

from ..families import Family
from ..routes import BIG, Routes
from .routing import NOTED, GivenRoutes, LearnedRoutes, holding

OURS = ("duo_routes", "duo_policy", "duo_router", "assistant_routes")


class RoutedGeneration(PreTrainedModel if TYPE_CHECKING else object):  # type: ignore[misc]
    """The part of a Duo model that makes text."""

    config: Any
    family: Family
    generation_config: Any

    def generate(
        self, inputs: Tensor | None = None, *args: Any, assistant_routes: Routes | None = None, **kwargs: Any
    ) -> Any:
        """`generate` of transformers, with `duo_routes`, `duo_policy` or `duo_router`.

        Routes per token must cover the prompt and every new token. A random policy draws routes for the whole context
        once, so the same seed gives the same text with and without the K/V cache.

        Args:
            inputs, *args, **kwargs: as there, and the arguments of `forward` that begin with `duo_`. With
                `return_dict_in_generate=True` the result has `duo_routes`, int8 `[text, token, layer]`: what every token that was
                read took, the prompt's included; -1 for those that a given cache held (not with beams, which change places).
            assistant_routes: routes with which drafts are made, in any form of `duo_routes`, by `assistant_model` (a Duo
                model), else by this model itself: with `"all-small"`, its small FFNs draft what it then checks (speculative
                decoding, arXiv 2211.17192). Greedy text is the same as without drafts. An assistant without them takes its
                big FFNs.

        Raises:
            ValueError: routes with values that are no choice, or that end before the text does; `assistant_routes` for an
                assistant that is no Duo model, or with prompt lookup, which has none; routes in continuous batching.
        """
        given = (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        prompt = next((text for text in given if text is not None), torch.zeros(1, 0, dtype=torch.long))
        policy, routes = kwargs.pop("duo_policy", None), kwargs.pop("duo_routes", None)
        only_one(routes, policy, kwargs.get("duo_router"))
        if policy is not None:
            more = self.config.max_position_embeddings - prompt.shape[1]
            routes = self._drawn(policy, prompt, kwargs.get("attention_mask"), more=max(0, more))
        elif routes is not None:
            routes = self._read(routes, len(prompt)).expand(len(prompt), -1, -1)  # beams repeat every row
        if routes is not None:
            kwargs["duo_routes"] = routes
        if assistant_routes is not None:
            assistant = kwargs.get("assistant_model") or self
            if not isinstance(assistant, RoutedGeneration):
                raise ValueError(
                    f"assistant_routes: the assistant is a {type(assistant).__name__}, no Duo model, and has no routes"
                )
            kwargs["assistant_model"] = assistant._beside(assistant._read(assistant_routes, 1))
        taken = _Taken(self)
        with holding(NOTED, taken):
            made = super().generate(inputs, *args, **kwargs)
        if isinstance(made, GenerateDecoderOnlyOutput):  # beams change places
            new = made.sequences.shape[1] - (given[0] is not None or given[1] is not None) * prompt.shape[1]
            mask = kwargs.get("attention_mask")
            text = prompt.shape[1] if mask is None else mask.shape[1]
            made["duo_routes"] = taken.routes(text + new - 1, self.config.num_hidden_layers)
        return made

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Continuous batching of transformers; all big, for it hands no routes on.

        Raises:
            ValueError: routes, a policy or a router are given.
        """
        if found := [name for name in OURS if kwargs.get(name) is not None]:
            raise ValueError(f"{', '.join(found)}: continuous batching (paged caches) knows no routes; use generate")
        return super().generate_batch(*args, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        *args: Any,
        inputs_embeds: Tensor | None = None,
        duo_routes: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        made = super().prepare_inputs_for_generation(input_ids, *args, inputs_embeds=inputs_embeds, **kwargs)
        ids = made.get("input_ids")
        new = (made["inputs_embeds"] if ids is None else ids).shape[1]
        noted = NOTED.get()
        taken = noted if isinstance(noted, _Taken) and noted.model is self else _Taken(self)
        whole = inputs_embeds is not None or new == input_ids.shape[1]
        stop = taken.reached(input_ids.shape[1], new + cached(made.get("past_key_values")) if whole else None)
        if duo_routes is not None and duo_routes.shape[1] > 1:
            if duo_routes.shape[1] < stop:
                raise ValueError(
                    f"duo_routes cover {duo_routes.shape[1]} tokens, generation has reached token {stop}:"
                    " give a route for every token, or one route for all"
                )
            duo_routes = duo_routes[:, stop - new : stop]
        return {**made, "duo_routes": duo_routes}

    def _get_candidate_generator(
        self, *, generation_config: Any, model_kwargs: dict[str, Any], assistant_model: Any = None, **kwargs: Any
    ) -> CandidateGenerator:
        """What makes drafts: with the assistant's routes, and never beyond the end of either's."""
        routes = model_kwargs.get("duo_routes")
        handed_on = {name: value for name, value in model_kwargs.items() if name not in OURS}
        drafting = getattr(assistant_model, "draft_routes", None)
        if (early := generation_config.assistant_early_exit) is not None:  # transformers would change our configuration
            generation_config = copy.deepcopy(generation_config)
            generation_config.assistant_early_exit = None
            drafting = routes if drafting is None else drafting
            assistant_model = self._beside(drafting, layers=early)
            drafting = assistant_model.draft_routes
        made = super()._get_candidate_generator(
            generation_config=generation_config, model_kwargs=handed_on, assistant_model=assistant_model, **kwargs
        )
        assisted = isinstance(made, AssistedCandidateGenerator)
        if drafting is not None:
            if not assisted:
                raise ValueError("assistant_routes, but no assistant: prompt lookup copies its drafts from the prompt")
            made.assistant_kwargs["duo_routes"] = drafting
        ends = [given.shape[1] for given in (routes, drafting) if given is not None and given.shape[1] > 1]
        if ends:
            if assisted:  # a draft has one token less than the text may have
                made.main_model_max_length = min(made.main_model_max_length, *ends)
            made.get_candidates = _shortened(made.get_candidates, min(ends))
        return made

    def _get_logits_processor(
        self, *args: Any, input_ids_seq_length: int = 0, model_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        """The processors of transformers; guidance routes the text without the prompt as it routes the text."""
        made = super()._get_logits_processor(
            *args, input_ids_seq_length=input_ids_seq_length, model_kwargs=model_kwargs, **kwargs
        )
        ways = {name: value for name, value in (model_kwargs or {}).items() if name in OURS and value is not None}
        for processor in made:
            if ways and isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor):
                processor.model = _Unconditional(self, input_ids_seq_length, ways)
        return made

    def _beside(self, routes: Tensor | None, *, layers: int | None = None) -> Any:
        """This model as its own assistant: the same weights, under a configuration of its own, with routes for drafts.

        Args:
            routes: int8 `[1, token or 1, layer]`.
            layers: how many of the layers it has; all of them if None.
        """
        made, config, kept = copy.copy(self), copy.copy(self.config), attrgetter(self.family.layers)(self)[:layers]
        config.num_hidden_layers = len(kept)
        made.config, made.draft_routes = config, None if routes is None else routes[..., :layers]
        made.generation_config = copy.deepcopy(self.generation_config)  # transformers writes into an assistant's
        holder, *names, last = made, *self.family.layers.split(".")
        for name in names:
            part: Any = copy.copy(getattr(holder, name))
            part.config = config
            holder._modules = {**holder._modules, name: part}
            holder = part
        holder._modules = {**holder._modules, last: kept}
        return made


class _Taken:
    """What the tokens of a text took, as the forward passes of one model tell it; of drafts, what the last pass says.

    Args:
        model: whose passes count.

    Attributes:
        stop: of the text, where the next pass ends.
        before: tokens of the text that a given cache held and the given ids do not.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.stop, self.before = model, 0, 0
        self.passes: list[tuple[int, int, Tensor | None]] = []

    def reached(self, ids: int, cached: int | None) -> int:
        """Where in the text the next pass ends.

        Args:
            ids: tokens of the text that were handed over.
            cached: tokens in the cache after the pass, if it reads all of these ids: they may be a part of a long prompt, or what
                is new after a given cache. If it reads only the last, the ids count: a cache may begin with what is no text (the
                virtual tokens of prefix tuning).
        """
        if cached is not None and not self.passes:
            self.before = cached - ids
        self.stop = self.before + ids if cached is None else cached
        return self.stop

    def __call__(self, model: nn.Module, tokens: int, routing: GivenRoutes | LearnedRoutes | None) -> None:
        if model is self.model:
            self.passes.append((self.stop - tokens, self.stop, None if routing is None else routing.taken()))

    def routes(self, tokens: int, layers: int) -> Tensor:
        """int8 `[text, token, layer]` of the first tokens."""
        batch = max(1 if routes is None else len(routes) for *_, routes in self.passes)
        made = torch.full((batch, tokens, layers), -1, dtype=torch.int8)
        for begin, stop, routes in self.passes:
            part = torch.full((1, 1, layers), BIG) if routes is None else routes.cpu()
            made[:, begin:stop] = (part if part.shape[1] == 1 else part[:, : tokens - begin]).to(torch.int8)
        return made


class _Unconditional:
    """A model as guidance calls it for the text without its prompt.

    It runs beside the text: its last token takes the route of the text's last, and so backwards.

    Args:
        model: the Duo model.
        prompt: tokens of the text when it is called first.
        ways: the routes or the router of the text.
    """

    def __init__(self, model: nn.Module, prompt: int, ways: dict[str, Any]) -> None:
        self.model, self.prompt, self.ways = model, prompt, ways
        self.behind: int | None = None

    def __call__(self, ids: Tensor, *, past_key_values: Any, **kwargs: Any) -> Any:
        with holding(NOTED, None):
            return self.model(ids, past_key_values=past_key_values, **kwargs, **self._ways(ids, past_key_values))

    def _ways(self, ids: Tensor, past_key_values: Any) -> dict[str, Any]:
        routes = self.ways.get("duo_routes")
        if routes is None:
            return self.ways
        if routes.shape[1] > 1:
            read = cached(past_key_values) + ids.shape[1]
            if self.behind is None:
                self.behind = self.prompt - read
            stop = self.behind + read
            if stop < ids.shape[1]:
                raise ValueError(
                    f"the negative prompt has {-self.behind} tokens more than the prompt, and duo_routes none for them:"
                    " give one route for all tokens"
                )
            routes = routes[:, stop - ids.shape[1] : stop]
        return {"duo_routes": routes.repeat_interleave(len(ids) // len(routes), 0)}  # beams


def only_one(*ways: object) -> None:
    """Refuse several of the ways to choose routes (given ones, a policy, a router)."""
    if sum(way is not None for way in ways) > 1:
        raise ValueError("give one of duo_routes, duo_policy and duo_router, not several")


def cached(cache: Any) -> int:
    """Tokens whose keys and values are kept."""
    return 0 if cache is None else int(cache.get_seq_length())


def _shortened(draft: Callable[..., Any], most: int) -> Callable[..., Any]:
    """A source of drafts that cuts them where the text with them would have more than so many tokens."""

    def get_candidates(input_ids: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        if input_ids.shape[1] >= most:
            return input_ids, None
        ids, logits = draft(input_ids, **kwargs)
        new = min(ids.shape[1], most) - input_ids.shape[1]
        return ids[:, :most], logits[:, :new] if logits is not None and new else None

    return get_candidates
