"""What stage 1 does: the shape of the model, how long it is trained, and on what."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import LlamaConfig

from .. import corpus
from ..model.duo import DuoConfig, RandomPolicy, config_for


@dataclass(frozen=True)
class Preset:
    """A model shape and how long it is trained.

    Attributes:
        hidden, layers, heads, big, small, vocab, context: the shape of a Duo Llama with tied embeddings.
        tokens: training tokens.
        rows: sequences of `context` tokens in one optimizer step.
        learning_rate, final_learning_rate: peak and end of a cosine with warm-up.
        warmup: steps of warm-up.

    Raises:
        ValueError: a size below 1, or a width that the heads do not divide evenly.
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

    def __post_init__(self) -> None:
        small = {name: size for name, size in asdict(self).items() if name != "warmup" and size <= 0}
        if small or self.context < 2 or self.warmup < 0:
            raise ValueError(f"preset {self}: every size must be positive, a context holds at least 2 tokens")
        if self.hidden % (2 * self.heads):
            raise ValueError(
                f"hidden {self.hidden}: {self.heads} heads need a multiple of {2 * self.heads} (rotary pairs)"
            )

    def config(self) -> DuoConfig:
        """The configuration of the model."""
        dense = LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.big,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=self.context,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=None,
        )
        return config_for(dense, small_width=self.small)


PRESETS = {
    "tiny": Preset(128, 12, 4, 512, 32, 4096, 256, 30_400_000, 32, 2e-3, 1e-4),
    "paper": Preset(2560, 12, 20, 10_240, 640, 32_000, 2048, 300_000_000_000, 2048, 3e-4, 3e-5, 2000),
}
"""`tiny` is the shipped model; `paper` has the shape of arXiv 2410.10846, section 3.1 (its context length and optimizer are
not stated there and are ours)."""


@dataclass(frozen=True)
class Stage1:
    """What `train` does.

    Attributes:
        out: folder of the run: checkpoints, training rows, the log and, at the end, the model.
        preset: the shape.
        sources: corpus sources, mixed in equal parts. Of your own text (`file:`, `hf:`) the last rows are held out.
        policy: probabilities of the three choices.
        seed: of the initial weights, of the order of the text and of the routes.
        micro_rows: sequences in one forward pass; gradients are accumulated up to the preset's `rows`.
        evaluate_every, save_every: steps.
        start: a Duo folder to start from instead of random weights; the learning rate is warmed up again.
        gradient_checkpointing: recompute activations to save memory.

    Raises:
        ValueError: no sources, one named twice, unknown or never trained on; rows that micro_rows does not divide.
        FileNotFoundError: a missing file or folder to start from.
    """

    out: Path
    preset: Preset = PRESETS["tiny"]
    sources: tuple[str, ...] = ("python-prose", "python-code")
    policy: RandomPolicy = RandomPolicy()
    seed: int = 0
    micro_rows: int = 8
    evaluate_every: int = 250
    save_every: int = 100
    start: Path | None = None
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if not self.sources or len(set(self.sources)) < len(self.sources):
            raise ValueError(f"sources {self.sources}: name at least one, and each once")
        for source in self.sources:
            corpus.check(source)
            if source in corpus.SHIPPED:
                raise ValueError(f"{source} is the evaluation text and never trained on: give another source")
        if self.start is not None and not Path(self.start).is_dir():
            raise FileNotFoundError(f"start {self.start}: there is no such folder")
        if min(self.micro_rows, self.evaluate_every, self.save_every) < 1:
            raise ValueError(f"{self}: micro_rows, evaluate_every and save_every must be at least 1")
        if self.preset.rows % self.micro_rows:
            raise ValueError(f"micro_rows {self.micro_rows} must divide the {self.preset.rows} rows of a step")

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, self.preset.tokens // (self.preset.rows * self.preset.context))

    def claim(self) -> None:
        """Make the run's folder this plan's own.

        Raises:
            ValueError: it holds a run of another plan.
        """
        kept = ("preset", "sources", "policy", "seed", "micro_rows", "start")
        facts = json.loads(
            json.dumps({name: value for name, value in asdict(self).items() if name in kept}, default=str)
        )
        path = self.out / "plan.json"
        known = json.loads(path.read_text()) if path.is_file() else facts
        changed = [f"{name}={known.get(name)!r}" for name in kept if known.get(name) != facts[name]]
        if changed:
            raise ValueError(f"{self.out} holds a run with {', '.join(changed)}: repeat that, or give another folder")
        self.out.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(facts, indent=1) + "\n")
        temporary.replace(path)
