"""What a router is: the mixture it is made for, one small network per transformer layer, the routes it takes.

Paper: arXiv 2410.10846, section 2, stage 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int8
from torch import Tensor, nn

from ..model import LanguageModel
from ..records import Tokens
from ..routes import BIG, LETTERS, SKIP, SMALL

READS = ("ffn", "spent", "token", "position", "frequency", "change", "entropy")
"""What a router can read: the FFN's input (`ffn`); that and the token's running budget, how much more often than asked for the
layers below took the largest choice (`spent`); or, as controls, the token's embedding or waves of its place in the text; or one
number, which the kind `threshold` compares with an offset: the surprise of the token by its frequency in the training text, in
nats; how far the FFN's input has turned from the token's embedding (one less the cosine); the entropy in nats of the prediction
that the head makes of the FFN's input (the logit lens)."""
NAMES = {"big": BIG, "small": SMALL, "skip": SKIP}
"""The names of the choices, as in columns and files."""


@dataclass(frozen=True)
class Mixture:
    """The budget of a router: shares of tokens and layers for each choice.

    Raises:
        ValueError: shares that are negative or do not sum to 1, or that leave nothing to choose.
    """

    big: float
    small: float = 0.0
    skip: float = 0.0

    def __post_init__(self) -> None:
        shares = (self.big, self.small, self.skip)
        if not (min(shares) >= 0 and abs(sum(shares) - 1) <= 1e-6):  # so that NaN fails too
            raise ValueError(f"mixture big, small, skip = {shares}: give shares that sum to 1")
        if len(self.choices) < 2:
            raise ValueError(f"mixture big, small, skip = {shares}: a router needs at least two choices with a share")

    @classmethod
    def from_budget(cls, big: int, layers: int) -> Mixture:
        """`big` of so many layers big on average, the others small.

        Raises:
            ValueError: a budget that leaves nothing to choose.
        """
        if not 0 < big < layers:
            raise ValueError(f"budget {big} of {layers} layers leaves nothing to choose: ask for 1..{layers - 1}")
        return cls(big / layers, (layers - big) / layers)

    @property
    def choices(self) -> tuple[int, ...]:
        """The choices that have a share, ascending."""
        return tuple(choice for choice in (SKIP, SMALL, BIG) if self.share(choice) > 0)

    @property
    def letters(self) -> str:
        """The choices as letters, for example `"SB"`."""
        return "".join(LETTERS[choice] for choice in self.choices)

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares of `choices`."""
        return tuple(self.share(choice) for choice in self.choices)

    def share(self, choice: int) -> float:
        """The share of one choice."""
        return (self.skip, self.small, self.big)[choice]


class Router(nn.Module):
    """A linear router for every layer, or one with a hidden layer.

    Args:
        layers: transformer layers.
        hidden: width of the FFN's input.
        mixture: the budget; its choices are the columns of the logits.
        units: of the hidden layer; 0 for none.
        reads: of `READS`.
        seed: of the initial weights.

    Attributes:
        beta: sharpness of the soft mixture; a buffer that training raises.
        offset: float32 `[choice]`, added to the logits before the best is taken: `calibrate` sets it so that a budget is
            met exactly; zero before.
        surprise: float32 `[vocab]`, what a router that reads frequencies knows of the tokens.
        drawn: where choices are sampled from, with the probabilities `softmax(beta * logits)`, while some kinds train; None
            where the largest logit decides.
        facts: how it was made; written beside the weights.
    """

    beta: Tensor
    offset: Tensor
    surprise: Tensor

    drawn: torch.Generator | None = None

    def __init__(
        self, layers: int, hidden: int, mixture: Mixture, *, units: int = 0, reads: str = "ffn", seed: int = 0
    ) -> None:
        super().__init__()
        choices = len(mixture.choices)
        self.mixture, self.choices = mixture, mixture.choices
        self.layers, self.hidden, self.units, self.reads = layers, hidden, units, reads
        self.width = hidden + (reads == "spent")
        self._make_networks(layers, choices, seed)
        if reads == "frequency":
            self.register_buffer("surprise", torch.zeros(0))
        self.register_buffer("beta", torch.tensor(1.0))
        self.register_buffer("offset", torch.zeros(choices))
        self.facts: dict[str, Any] = {}

    def _make_networks(self, number: int, outputs: int, seed: int) -> None:
        """So many networks with so many outputs each."""
        draw = torch.Generator().manual_seed(seed)
        if self.units:
            self.inner = nn.Parameter(torch.randn(number, self.units, self.width, generator=draw) * self.hidden**-0.5)
            self.inner_bias = nn.Parameter(torch.zeros(number, self.units))
        self.weight = nn.Parameter(torch.randn(number, outputs, self.units or self.width, generator=draw) * 0.02)
        self.bias = nn.Parameter(torch.zeros(number, outputs))

    def aimed(self, mixture: Mixture) -> Router:
        """The same networks for another budget, which `calibrate` has them meet.

        Raises:
            ValueError: a mixture of other choices, or one that this kind cannot have.
        """
        if mixture.choices != self.choices:
            raise ValueError(f"a router over {self.mixture.letters!r}: it has learned nothing of {mixture.letters!r}")
        made = type(self)(self.layers, self.hidden, mixture, units=self.units, reads=self.reads)
        if self.reads == "frequency":
            made.surprise = torch.zeros_like(self.surprise)
        made.load_state_dict(self.state_dict())
        made.facts = dict(self.facts)
        return made.to(self.weight.device).eval()

    def logits(
        self, layer: int, x: Float[Tensor, "*token hidden"], given: Any = None
    ) -> Float[Tensor, "*token choice"]:
        """Logits of one layer, float32, before `beta` and `offset`, from the FFN's input and what `given` made of the pass."""
        logits = self.network(layer, self.read(x.float(), given))
        if self.reads == "spent":
            soft = (self.beta * logits).softmax(-1)[..., -1]
            took = soft if self.training else (logits + self.offset).argmax(-1) == len(self.choices) - 1
            given["spent"] = given["spent"] + took - self.mixture.shares[-1]
        return logits

    def network(self, layer: int, x: Float[Tensor, "*token width"]) -> Float[Tensor, "*token choice"]:
        """Logits of one layer from what is read; in float32, whatever the model around it computes in."""
        with torch.autocast(x.device.type, enabled=False):
            if self.units:
                x = nn.functional.gelu(nn.functional.linear(x, self.inner[layer], self.inner_bias[layer]))
            return nn.functional.linear(x, self.weight[layer], self.bias[layer])

    def given(self, model: Any, tokens: Tensor, begun: int) -> Any:
        """What is needed of a forward pass besides the FFN's inputs: None where they are all that is read.

        Args:
            model: of transformers.
            tokens: `[batch, token]` ids or `[batch, token, hidden]` embeddings.
            begun: tokens before them, in a cache.

        Raises:
            ValueError: embeddings, for a router that reads frequencies of ids.
        """
        if self.reads == "frequency":
            if tokens.ndim == 3:
                raise ValueError("a router that reads the frequency of tokens needs input_ids, not inputs_embeds")
            return nn.functional.embedding(tokens, self.surprise[:, None])[..., 0]
        if self.reads in ("token", "change"):
            read = tokens if tokens.ndim == 3 else model.get_input_embeddings()(tokens)
            return nn.functional.normalize(read.detach().float(), dim=-1) * self.hidden**0.5
        if self.reads == "position":
            places = torch.arange(begun, begun + tokens.shape[1], device=tokens.device).float()
            # wavelengths from 2 pi to about 60,000, as of the first transformer (arXiv 1706.03762, section 3.5)
            angles = places[:, None] * 10_000.0 ** -torch.linspace(0, 1, (self.hidden + 1) // 2, device=tokens.device)
            waves = torch.cat([angles.sin(), angles.cos()], -1)[:, : self.hidden]
            return waves.expand(len(tokens), -1, -1)
        if self.reads == "spent":
            return {"spent": torch.zeros((), device=tokens.device)}
        return model.get_output_embeddings() if self.reads == "entropy" else None

    def read(self, x: Float[Tensor, "*token hidden"], given: Any) -> Float[Tensor, "*token width"]:
        """What the networks see: a single number stands in the first place, and nothing in the others."""
        if self.reads == "ffn":
            return x
        if self.reads == "spent":
            return torch.cat([x, given["spent"].expand(x.shape[:-1])[..., None]], -1)
        if self.reads in ("token", "position"):
            return given.reshape(x.shape)
        if self.reads == "frequency":
            number = given.reshape(x.shape[:-1])
        elif self.reads == "change":
            number = 1 - nn.functional.cosine_similarity(x, given.reshape(x.shape), dim=-1)
        else:
            with torch.no_grad():
                number = torch.distributions.Categorical(logits=given(x.to(given.weight.dtype)).float()).entropy()
        return nn.functional.pad(number[..., None], (0, self.hidden - 1))

    def flops(self, vocab: int) -> int:
        """FLOPs of a token in all layers; multiply-adds count twice."""
        inside = self.units * (self.width + len(self.choices)) if self.units else self.width * len(self.choices)
        return 2 * self.layers * (inside + (self.hidden * vocab if self.reads == "entropy" else 0))

    def shares(self, chosen: Int[Tensor, "*any"]) -> list[float]:
        """The share of each of its choices among those that were made."""
        return [float((chosen == choice).float().mean()) for choice in self.choices]

    def choose(self, logits: Float[Tensor, "*any choice"]) -> Int[Tensor, "*any"]:
        """The choice with the largest logit, `offset` added; or one that is drawn."""
        if self.drawn is not None:
            logits = self._noisy(logits)
        return torch.tensor(self.choices, device=logits.device)[(logits + self.offset).argmax(-1)]

    def weights(self, logits: Float[Tensor, "*any choice"]) -> Float[Tensor, "*any choice"]:
        """Shares with which the modules' outputs are mixed in training: the probabilities; or, where choices are drawn, 1 for the
        one that is drawn, with the gradient of the probabilities."""
        if self.drawn is None:
            return (self.beta * logits).softmax(-1)
        soft = self._noisy(logits).softmax(-1)
        hard = nn.functional.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
        return hard + soft - soft.detach()

    def _noisy(self, logits: Float[Tensor, "*any choice"]) -> Float[Tensor, "*any choice"]:
        """Sharpened logits with Gumbel noise: the largest is a draw from their softmax."""
        uniform = torch.rand(logits.shape, generator=self.drawn).clamp_(min=1e-9)
        return self.beta * logits - (-uniform.log()).log().to(logits.device)

    @torch.no_grad()
    def run(
        self, lm: LanguageModel, tokens: Tokens | np.ndarray, *, batch_size: int = 8
    ) -> tuple[Int8[np.ndarray, "seq position layer"], Float32[np.ndarray, "seq position"]]:
        """Routes taken in one ordinary forward pass, and its losses in nats; -1 and NaN where not scored.

        Raises:
            ValueError: a router of another model, bad token ids, lengths or batch_size, or NaN among the losses.
        """
        self.check(lm)
        tokens, was_training = lm.check(tokens), self.training
        batches = lm.batches(tokens, batch_size)
        self.eval().to(lm.device)
        routes, losses = [], []
        try:
            for part in (tokens[rows] for rows in batches):
                hidden, logits = lm.hidden_and_logits(part, self)
                routes.append(self.choose(logits)[:, :-1].to(torch.int8).cpu().numpy())
                losses.append(lm.losses(hidden, part))
        finally:
            self.train(was_training)
        chosen = np.concatenate(routes)
        chosen[~tokens.scored] = -1
        return chosen, np.concatenate(losses)

    def routes(self, lm: LanguageModel, tokens: Tokens | np.ndarray) -> Int8[np.ndarray, "seq position layer"]:
        """The routes this router takes, as in `run`."""
        return self.run(lm, tokens)[0]

    def losses(self, lm: LanguageModel, tokens: Tokens | np.ndarray) -> Float32[np.ndarray, "seq position"]:
        """The losses in nats under those routes, as in `run`."""
        return self.run(lm, tokens)[1]

    def check(self, lm: LanguageModel) -> None:
        """Check that the router can be used with the model.

        Raises:
            ValueError: another shape, a choice that the model does not have, or a router made for another model.
        """
        if (self.layers, self.hidden) != (lm.layers, lm.model.config.hidden_size):
            raise ValueError(
                f"a router for {self.layers} layers of width {self.hidden}: the model has {lm.layers} of"
                f" {lm.model.config.hidden_size}; it belongs to another model"
            )
        if missing := sorted(set(self.mixture.letters) - set(lm.choices)):
            raise ValueError(
                f"a router that chooses {missing}: this model has only {lm.choices!r} (a dense model has no small FFN)"
            )
        made_for = self.facts.get("model")
        if made_for not in (None, lm.fingerprint):
            raise ValueError(f"a router of model {made_for}: this model is {lm.fingerprint}; train one for it")
