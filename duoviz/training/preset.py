"""The shape of a model, and how long it is trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from transformers import PretrainedConfig

from ..families import FAMILIES, family
from ..model.config import DuoConfig
from ..model.duo import config_for
from ..records import above_zero, whole

ROW = 256
"""Tokens of a training row at most, for a model that is there."""


@dataclass(frozen=True)
class Preset:
    """A model shape and how long it is trained.

    Attributes:
        hidden, layers, heads, big, small, vocab, context: the shape of a Duo model with tied embeddings.
        tokens: training tokens.
        rows: sequences of `context` tokens in one optimizer step.
        learning_rate, final_learning_rate: peak and end of a cosine with warm-up.
        warmup: steps of warm-up; at most a tenth of all steps.
        family: of `duoviz.families`.

    Raises:
        ValueError: a size below 1, an unknown family.
    """

    hidden: int
    layers: int
    heads: int
    big: int
    small: int
    vocab: int
    context: int
    tokens: int
    rows: int
    learning_rate: float
    final_learning_rate: float
    warmup: int = 100
    family: str = "llama"

    def __post_init__(self) -> None:
        family(self.family)
        rates = {"learning_rate": self.learning_rate, "final_learning_rate": self.final_learning_rate}
        whole(**{name: n for name, n in asdict(self).items() if name not in ("warmup", "family", *rates)})
        above_zero(**rates)
        if self.context < 2 or self.warmup < 0:
            raise ValueError(
                f"context {self.context}, warmup {self.warmup}: give at least 2 tokens, and 0 steps or more"
            )

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.rows * self.context

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, self.tokens // self.step_tokens)

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rate rises."""
        return min(self.warmup, self.steps // 10)

    def changed(
        self,
        *,
        tokens: int | None = None,
        big: int | None = None,
        rows: int | None = None,
        learning_rate: float | None = None,
    ) -> Preset:
        """The preset with what is given in place of its own; another learning rate falls to a twentieth."""
        given = {"tokens": tokens, "big": big, "rows": rows, "learning_rate": learning_rate}
        if learning_rate is not None:
            given["final_learning_rate"] = learning_rate / 20
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return replace(self, **changes)

    def config(self) -> DuoConfig:
        """The configuration of a new model; no dropout, since the text is read about once.

        Raises:
            ValueError: a width that the heads do not divide into rotary pairs.
        """
        if self.hidden % (2 * self.heads):
            raise ValueError(
                f"hidden {self.hidden}: {self.heads} heads need a multiple of {2 * self.heads} (rotary pairs)"
            )
        entry = FAMILIES[self.family]
        fields: dict[str, Any] = {
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            entry.width: self.big // (entry.config().num_experts_per_tok if entry.experts else 1),
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": self.context,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": None,
        }
        if hasattr(entry.config(), "num_key_value_heads"):
            fields["num_key_value_heads"] = self.heads
        if hasattr(entry.config(), "head_dim"):
            fields["head_dim"] = self.hidden // self.heads
        fields |= {name: 0.0 for name in entry.config().to_dict() if "drop" in name}
        return config_for(entry.config(**fields), small_width=self.small)

    def check(self, config: PretrainedConfig) -> None:
        """Check that a model that is there has this shape.

        Raises:
            ValueError: if not.
        """
        own = Preset.of(config, tokens=self.tokens, learning_rate=self.learning_rate)
        for name in ("family", "layers", "hidden", "heads", "big", "small", "vocab"):
            if getattr(self, name) != getattr(own, name):
                raise ValueError(
                    f"the model to start from has {name} {getattr(own, name)}, the preset {getattr(self, name)}: leave the"
                    " preset out, or give one of its shape"
                )
        if self.context > config.max_position_embeddings:
            raise ValueError(f"rows of {self.context} tokens: the model's context is {config.max_position_embeddings}")

    @classmethod
    def of(cls, config: PretrainedConfig, *, tokens: int, learning_rate: float) -> Preset:
        """The shape of a Duo model that is there, trained on rows of at most `ROW` tokens.

        Raises:
            ValueError: a dense model.
        """
        if not isinstance(config, DuoConfig):
            raise ValueError(
                f"a dense {config.model_type} has no small FFNs: give it some with python -m duoviz convert"
            )
        entry = family(config.model_type)
        return cls(
            hidden=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            big=entry.ffn_width(config),
            small=config.small_intermediate_size,
            vocab=config.vocab_size,
            context=min(ROW, config.max_position_embeddings),
            tokens=tokens,
            rows=32,
            learning_rate=learning_rate,
            final_learning_rate=learning_rate / 20,
            family=entry.name,
        )


PRESETS = {
    "tiny": Preset(128, 12, 4, 512, 32, 4096, 256, 30_400_000, 32, 2e-3, 1e-4),
    "tiny-opt": Preset(128, 8, 4, 512, 32, 4096, 256, 8_000_000, 32, 2e-3, 1e-4, family="opt"),
    "wide": Preset(256, 12, 4, 1024, 64, 8192, 256, 60_000_000, 128, 2e-3, 1e-4),
    "paper": Preset(2560, 12, 20, 10_240, 640, 32_000, 2048, 300_000_000_000, 2048, 3e-4, 3e-5, 2000),
}
"""`tiny` is the shipped model, `tiny-opt` the shipped dense one, `wide` one for minutes of a GPU; `paper` has the shape of
arXiv 2410.10846, section 3.1 (its context length and optimizer are not stated there and are ours)."""
