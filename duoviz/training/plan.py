"""What a training does: the shape of the model, how long it is trained, on what, and which part of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PretrainedConfig

from .. import corpus
from ..families import FAMILIES, family
from ..model.duo import DuoConfig, RandomPolicy, config_for
from ..records import above_zero, whole

OPTIMIZERS = ("adamw", "muon")
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
        """That a model that is there has this shape.

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
    "paper": Preset(2560, 12, 20, 10_240, 640, 32_000, 2048, 300_000_000_000, 2048, 3e-4, 3e-5, 2000),
}
"""`tiny` is the shipped model, `tiny-opt` the shipped dense one; `paper` has the shape of arXiv 2410.10846, section 3.1 (its
context length and optimizer are not stated there and are ours)."""


@dataclass(frozen=True)
class Stage1:
    """What `train` does.

    Attributes:
        out: folder of the run: checkpoints, training rows, the log and, at the end, the model.
        preset: the shape.
        sources: corpus sources, mixed in equal parts. Of your own text (`file:`, `hf:`) every 25th row is held out.
        policy: probabilities of the three choices; where none goes to small, a dense model is trained.
        seed: of the initial weights, of the order of the text and of the routes.
        micro_rows: sequences in one forward pass; gradients are accumulated up to the preset's `rows`.
        evaluate_every: steps; a tenth of the run, at most 250, if not given.
        save_every: steps.
        start: a Duo folder to start from instead of random weights; the learning rate is warmed up again.
        frozen: train the small FFNs alone.
        optimizer: `"adamw"`, or `"muon"` for the hidden matrices (see `duoviz.training.muon`).
        distil: weight of the divergence from the start's own all-big predictions, against the cross-entropy: 0 to 1.
        gradient_checkpointing: recompute activations to save memory.

    Raises:
        ValueError: a preset that no new model can have; no sources, one named twice, unknown or never trained on; rows that
            micro_rows does not divide; frozen or distil without a start, distil outside 0 to 1.
        FileNotFoundError: a missing file or folder to start from.
    """

    out: Path
    preset: Preset = PRESETS["tiny"]
    sources: tuple[str, ...] = ("python-prose", "python-code")
    policy: RandomPolicy = RandomPolicy()
    seed: int = 0
    micro_rows: int = 8
    evaluate_every: int | None = None
    save_every: int = 100
    start: Path | None = None
    frozen: bool = False
    optimizer: str = "adamw"
    distil: float = 0.0
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if not self.sources or len(set(self.sources)) < len(self.sources):
            raise ValueError(f"sources {self.sources}: name at least one, and each once")
        if self.start is None:
            self.preset.config()  # or its error, before any text is read
        for source in self.sources:
            corpus.check(source)
            if source in corpus.SHIPPED:
                raise ValueError(f"{source} is the evaluation text and never trained on: give another source")
        if self.start is not None and not Path(self.start).is_dir():
            raise FileNotFoundError(f"start {self.start}: there is no such folder")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.optimizer!r}: allowed are {', '.join(OPTIMIZERS)}")
        if not 0 <= self.distil <= 1:
            raise ValueError(f"distil {self.distil}: give 0 (the text alone) to 1 (the big model's predictions alone)")
        if (self.frozen or self.distil) and self.start is None:
            raise ValueError("frozen or distil: there is no model to keep or to learn from; give a start")
        whole(micro_rows=self.micro_rows, evaluate_every=self.evaluation_steps, save_every=self.save_every)
        if self.preset.rows % self.micro_rows:
            raise ValueError(f"micro_rows {self.micro_rows} must divide the {self.preset.rows} rows of a step")

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.preset.steps

    @property
    def evaluation_steps(self) -> int:
        """Steps between evaluations."""
        return max(1, min(250, self.steps // 10)) if self.evaluate_every is None else self.evaluate_every

    def leg(self, steps: int) -> dict[str, Any]:
        """What `training.json` says of this run after so many steps; a model trained in several runs has several legs."""
        return {
            "name": self.out.name,
            "start": None if self.start is None else str(self.start),
            "preset": asdict(self.preset),
            "sources": self.sources,
            "policy": asdict(self.policy),
            "seed": self.seed,
            "micro_rows": self.micro_rows,
            "frozen": self.frozen,
            "optimizer": self.optimizer,
            "split": corpus.SPLIT,
            "distil": self.distil,
            "conversion": self._conversion(),
            "steps": steps,
            "steps_planned": self.steps,
            "tokens": steps * self.preset.step_tokens,
        }

    def _conversion(self) -> dict[str, Any] | None:
        """How the small FFNs began that a dense model was given, if that is what the run starts from."""
        path = self.out / "start" / CONVERSION
        return json.loads(path.read_text()) if path.is_file() else None

    def claim(self) -> None:
        """Make the run's folder this plan's own.

        Raises:
            ValueError: it holds a run of another plan.
        """
        kept = ("preset", "sources", "policy", "seed", "micro_rows", "start", "frozen", "distil", "optimizer")
        facts = json.loads(
            json.dumps({name: value for name, value in asdict(self).items() if name in kept}, default=str)
        )
        path = self.out / "plan.json"
        known = json.loads(path.read_text()) if path.is_file() else facts
        known = {"optimizer": "adamw", **known}  # of a time when there was no other
        changed = [f"{name}={known.get(name)!r}" for name in kept if known.get(name) != facts[name]]
        if changed:
            raise ValueError(f"{self.out} holds a run with {', '.join(changed)}: repeat that, or give another folder")
        self.out.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(facts, indent=1) + "\n")
        temporary.replace(path)

    def before(self) -> tuple[list[dict[str, Any]], pd.DataFrame]:
        """Legs and log of the model that the run starts from; empty where nothing came with it.

        They are read from a copy in the run's folder, made the first time: what was trained here may take the place of
        the model it started from, and a repeated command must still find the earlier legs.

        Raises:
            ValueError: a damaged record, or one that does not say what the model was continued from.
        """
        if self.start is None:
            return [], pd.DataFrame()
        copy, name = self.out / "start", Path(self.start).resolve().name
        if copy.is_dir():
            return _record(copy, name)
        found = _record(Path(self.start), name)  # nothing damaged is copied
        partial = self.out / "start.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for path in (Path(self.start) / file for file in RECORD):
            if path.is_file():
                shutil.copyfile(path, partial / path.name)
        partial.rename(copy)
        return found


CONVERSION = "conversion.json"
RECORD = ("training.json", "training-log.parquet", CONVERSION)
"""What a model's folder holds about its training, and about how small FFNs were added to it."""


def _record(folder: Path, name: str) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Legs and log that a folder holds; a leg that does not say its name has the one given."""
    facts_path, log_path = (folder / file for file in RECORD[:2])
    if not facts_path.is_file():
        return [], pd.DataFrame()
    path = facts_path
    try:
        facts = json.loads(facts_path.read_text())
        legs = [_leg(leg, name) for leg in facts.get("legs", [facts])]
        path = log_path
        log = pd.read_parquet(log_path) if log_path.is_file() else pd.DataFrame()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): put the right file there, or remove it") from error
    if "legs" not in facts and facts.get("continued"):
        raise ValueError(
            f"{facts_path} says that the model was continued, but not from what: repeat the command that trained it,"
            " which writes its model again"
        )
    return legs, log


def _leg(facts: dict[str, Any], name: str) -> dict[str, Any]:
    """A leg as `Stage1.leg` writes it, also from facts of a time when a model had but one."""
    kept = ("sources", "policy", "seed", "micro_rows", "steps", "steps_planned", "tokens")
    return {
        "name": facts.get("name", name),
        "start": facts.get("start"),
        "frozen": facts.get("frozen", False),
        "optimizer": facts.get("optimizer", "adamw"),
        "split": facts.get("split", "text"),
        "distil": facts.get("distil", 0.0),
        "conversion": facts.get("conversion"),
        "preset": asdict(Preset(**facts["preset"])),
        **{key: facts[key] for key in kept},
    }
