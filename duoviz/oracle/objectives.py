"""What a search minimises, and the target its result is scored on.

Most objectives are the log-sum-exp of the logits less something linear in them, `LSE(z) - v . z`: v is one-hot at the
target for the loss itself, and a teacher's distribution for an expected loss. They share their passes, and the head can be
bounded. The last two need every logit, and so do the expected losses of a model that caps its logits (Gemma 2): v . z is
no product with the normed output any more, unless v is one-hot.

| objective | minimises | scored on | shows |
|---|---|---|---|
| `nll` | the loss on the true next token | the true one | the paper's oracle |
| `expected` | its mean over all-big's own distribution | the true one | what a policy without the label can have |
| `expected:mean` | its mean over the average distribution of random routes | the true one | the same with another teacher |
| `null:SEED` | the loss on a token sampled from all-big's distribution | the sampled one | what a minimum by itself gives |
| `sampled:SEED` | the same | the true one | how far such a route carries over |
| `agree_big` | 1 where the likeliest token is not all-big's, else 0 | the true one | how few big layers keep the prediction |
| `entropy` | the entropy of the prediction, in nats | the true one | whether a sure route is a good one |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..model import LanguageModel, RandomPolicy, undisturbed
from ..records import Tokens
from ..routes import BIG, LETTERS, SMALL

SAMPLED = ("null", "sampled")
"""Objectives that draw their targets."""
FULL = ("agree_big", "entropy")
"""Objectives that need every logit."""
EXPECTED = ("expected", "expected:mean")
"""Objectives with a teacher, which need every logit of a model that caps them."""
NAMES = ("nll", "expected", "expected:mean", *SAMPLED, *FULL)
OBJECTIVES = ("nll", "expected", "null")
"""The oracle, the label-free policy and the null control."""
CARRIED = (*OBJECTIVES, "sampled")
"""And the routes of the null control scored on the true targets, where one pass serves them all."""
WITHOUT_LABEL = ("expected:mean", "agree_big", "entropy")
"""Further objectives that need no answer."""
RANDOM_PASSES = 64
"""Forward passes with random routes whose predictions the teacher of `expected:mean` averages."""


@dataclass(frozen=True)
class Objective:
    """An objective of the table above.

    Attributes:
        name: one of `NAMES`.
        seed: draw of the sampled targets.
    """

    name: str
    seed: int = 0

    @classmethod
    def of(cls, text: str, *, seed: int = 0) -> Objective:
        """`"nll"`, `"expected"`, `"null"` or `"null:3"`; a sampled one without a number takes the seed.

        Raises:
            ValueError: anything else.
        """
        name, colon, number = text.partition(":")
        if colon and name in SAMPLED and number.isdigit():
            return cls(name, int(number))
        if text not in NAMES:
            allowed = ", ".join((*NAMES, *(f"{name}:SEED" for name in SAMPLED)))
            raise ValueError(f"objective {text!r}: allowed are {allowed}")
        return cls(text, seed if text in SAMPLED else 0)

    @property
    def minimises(self) -> str:
        """The column that is minimised."""
        return f"sample:{self.seed}" if self.name in SAMPLED else self.name

    @property
    def scored_on(self) -> str:
        """The column that is reported."""
        return f"sample:{self.seed}" if self.name == "null" else "nll"


def all_big(lm: LanguageModel, tokens: Tokens) -> Float[Tensor, "seq position hidden"]:
    """The last layer's output when every layer is big; `lm.head.logits` makes all-big's prediction of it."""
    return lm.hidden(tokens, duo_routes=torch.full((lm.layers,), BIG, dtype=torch.int8))[:, :-1]


@undisturbed
def sample_targets(lm: LanguageModel, tokens: Tokens | np.ndarray, *, seed: int) -> Int64[np.ndarray, "seq position"]:
    """A next token for every position, drawn (independently, so with replacement) from all-big's own distribution.

    The draw of a text depends on the seed and its ids alone, not on the texts beside it.
    """
    tokens = lm.check(tokens)
    found, big = np.empty(tokens.scored.shape, np.int64), all_big(lm, tokens)
    for row, ids in enumerate(tokens.ids):
        draw = np.random.default_rng([seed, *ids.tolist()]).random(len(ids) - 1)
        # rows of the vocabulary without a token only fill it up: they are never drawn
        cumulated = lm.head.logits(big[row])[:, : lm.known].softmax(-1).cpu().double().cumsum(-1).numpy()
        places = [np.searchsorted(line, x * line[-1], side="right") for line, x in zip(cumulated, draw.tolist())]
        found[row] = np.minimum(places, lm.known - 1)
    return found


@dataclass(frozen=True)
class Columns:
    """What is needed to value a route by several objectives: `LSE(z) - vectors . norm(h) - bias` for the linear ones.

    Attributes:
        linear: `nll`, `expected`, `expected:mean`, `sample:SEED`.
        vectors: float32 `[seq, position, hidden, column]`, of the linear ones.
        bias: float32 `[seq, position, column]`; zero for a head without bias.
        full: `agree_big`, `entropy`, and the expected ones where logits are capped; their columns follow the linear ones.
        favourite: all-big's likeliest token, for `agree_big`; zeros where it is not asked for.
        teachers: the last layer's outputs, before the head, of the passes whose predictions make the teacher of an expected
            column among the full ones: `[pass, seq, position, hidden]` each.
    """

    linear: tuple[str, ...]
    vectors: Float[Tensor, "seq position hidden column"]
    bias: Float[Tensor, "seq position column"]
    full: tuple[str, ...]
    favourite: Int64[Tensor, "seq position"]
    teachers: dict[str, Float[Tensor, "_ seq position hidden"]] = field(default_factory=dict)

    def index(self, name: str) -> int:
        """The place of a column."""
        return (*self.linear, *self.full).index(name)


@torch.no_grad()
def columns(lm: LanguageModel, tokens: Tokens, objectives: Sequence[Objective]) -> Columns:
    """The columns that some objectives need."""
    names = tuple(dict.fromkeys(name for o in objectives for name in (o.minimises, o.scored_on)))
    full = FULL if lm.head.cap is None else (*FULL, *EXPECTED)
    linear = tuple(name for name in names if name not in full)
    parts = [_linear(lm, tokens, name) for name in linear]
    favourite = torch.zeros(tokens.scored.shape, dtype=torch.int64, device=lm.head.weight.device)
    if "agree_big" in names:
        favourite = torch.stack([lm.head.logits(hidden).argmax(-1) for hidden in all_big(lm, tokens)])
    asked = tuple(name for name in full if name in names)
    return Columns(
        linear,
        torch.stack([vectors for vectors, _ in parts], -1),
        torch.stack([bias for _, bias in parts], -1),
        asked,
        favourite,
        {name: torch.stack(list(_teacher(lm, tokens, name))) for name in asked if name in EXPECTED},
    )


def _linear(
    lm: LanguageModel, tokens: Tokens, name: str
) -> tuple[Float[Tensor, "seq position hidden"], Float[Tensor, "seq position"]]:
    """Vectors and bias of one linear column."""
    weight = lm.head.weight
    bias = lm.head.bias if lm.head.bias is not None else weight.new_zeros(len(weight))
    if name.startswith("expected"):
        number = RANDOM_PASSES if name == "expected:mean" else 1
        biases = bias.new_zeros(tokens.scored.shape)
        vectors = weight.new_zeros(*biases.shape, weight.shape[1])
        for outputs in _teacher(lm, tokens, name):
            for row, hidden in enumerate(outputs):
                likely = lm.head.logits(hidden).softmax(-1) / number
                vectors[row] += likely @ weight
                biases[row] += likely @ bias
        return vectors, biases
    ids = sample_targets(lm, tokens, seed=int(name[7:])) if name.startswith("sample:") else tokens.ids[:, 1:]
    targets = torch.from_numpy(ids).to(weight.device)
    return weight[targets], bias[targets]


def _teacher(lm: LanguageModel, tokens: Tokens, name: str) -> Iterator[Float[Tensor, "seq position hidden"]]:
    """The last layer's outputs in the passes whose mean prediction is the teacher of an expected loss."""
    if name == "expected:mean":
        yield from _random_passes(lm, tokens)
    else:
        yield all_big(lm, tokens)


def _random_passes(lm: LanguageModel, tokens: Tokens) -> Iterator[Float[Tensor, "seq position hidden"]]:
    """The last layer's outputs under random routes of the model's two fullest choices, which all texts of a length share."""
    other = 0.5 if LETTERS[SMALL] in lm.choices else 0.0
    for seed in range(RANDOM_PASSES):
        policy = RandomPolicy(0.5, other, 0.5 - other, seed)
        routes = policy.routes(1, tokens.ids.shape[1], lm.layers).expand(len(tokens), -1, -1)
        yield lm.hidden(tokens, duo_routes=routes)[:, :-1]
