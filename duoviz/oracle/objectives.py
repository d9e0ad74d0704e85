"""What a search minimises, and the target its result is scored on.

Every objective is the log-sum-exp of the logits less something linear in them, `LSE(z) - v . z`: v is one-hot at the
target for the loss itself, and a teacher's distribution for the expected loss. One pass can therefore serve them all.

| objective | minimises the loss on | scored on | shows |
|---|---|---|---|
| `nll` | the true next token | the true one | the paper's oracle |
| `expected` | the mean over all-big's own distribution | the true one | what a policy without the label can have |
| `null:SEED` | a token sampled from all-big's distribution | the sampled one | what a minimum over many routes gives by itself |
| `sampled:SEED` | the same sampled token | the true one | how far such a route carries over |
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..model import LanguageModel
from ..records import Tokens
from ..routes import BIG

SAMPLED = ("null", "sampled")
"""Objectives that draw their targets."""


@dataclass(frozen=True)
class Objective:
    """An objective of the table above.

    Attributes:
        name: `nll`, `expected`, `null` or `sampled`.
        seed: draw of the sampled targets.
    """

    name: str
    seed: int = 0

    @classmethod
    def of(cls, text: str, *, seed: int = 0) -> Objective:
        """`"nll"`, `"expected"`, `"null"` or `"null:3"`; one without a number takes the seed.

        Raises:
            ValueError: anything else.
        """
        name, colon, number = text.partition(":")
        sampled = name in SAMPLED
        if not (sampled or name in ("nll", "expected")) or (colon and not (sampled and number.isdigit())):
            raise ValueError(f"objective {text!r}: allowed are nll, expected, null, null:SEED, sampled, sampled:SEED")
        return cls(name, int(number) if colon else seed if sampled else 0)

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


def sample_targets(lm: LanguageModel, tokens: Tokens | np.ndarray, *, seed: int) -> Int64[np.ndarray, "seq position"]:
    """A next token for every position, drawn (independently, so with replacement) from all-big's own distribution.

    The draw of a text depends on the seed and its ids alone, not on the texts beside it.
    """
    tokens = lm.check(tokens)
    found, big = np.empty(tokens.scored.shape, np.int64), all_big(lm, tokens)
    for row, ids in enumerate(tokens.ids):
        draw = np.random.default_rng([seed, *ids.tolist()]).random(len(ids) - 1)
        cumulated = lm.head.logits(big[row]).softmax(-1).double().cumsum(-1).cpu().numpy()
        places = [np.searchsorted(line, x * line[-1], side="right") for line, x in zip(cumulated, draw.tolist())]
        found[row] = np.minimum(places, lm.vocab - 1)
    return found


@dataclass(frozen=True)
class Columns:
    """The linear parts of several objectives: `loss = LSE(z) - vectors . norm(h) - bias`.

    Attributes:
        names: `nll`, `expected`, `sample:SEED`.
        vectors: float32 `[seq, position, hidden, column]`.
        bias: float32 `[seq, position, column]`; zero for a head without bias.
        big: the last layer's output under all-big, whose likeliest tokens bound the leaves.
    """

    names: tuple[str, ...]
    vectors: Float[Tensor, "seq position hidden column"]
    bias: Float[Tensor, "seq position column"]
    big: Float[Tensor, "seq position hidden"]


@torch.no_grad()
def columns(lm: LanguageModel, tokens: Tokens, names: tuple[str, ...]) -> Columns:
    """The columns that some objectives need."""
    weight = lm.head.weight
    bias = lm.head.bias if lm.head.bias is not None else weight.new_zeros(len(weight))
    big, vectors, biases = all_big(lm, tokens), [], []
    for name in names:
        if name == "expected":
            likely = [lm.head.logits(hidden).softmax(-1) for hidden in big]
            vectors.append(torch.stack([q @ weight for q in likely]))
            biases.append(torch.stack([q @ bias for q in likely]))
        else:
            drawn = name.startswith("sample:")
            ids = sample_targets(lm, tokens, seed=int(name[7:])) if drawn else tokens.ids[:, 1:]
            targets = torch.from_numpy(ids).to(weight.device)
            vectors.append(weight[targets])
            biases.append(bias[targets])
    return Columns(names, torch.stack(vectors, -1), torch.stack(biases, -1), big)
