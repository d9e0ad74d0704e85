"""What a training does: the shape of the model, how long it is trained, on what, and which part of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from .. import corpus
from ..model.adapter import is_adapter
from ..model.policy import RandomPolicy
from ..places import replaced
from ..records import whole
from .preset import PRESETS, Preset
from .record import CONVERSION, RECORD, read_record

OPTIMIZERS = ("adamw", "muon")


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
        start: a Duo folder to start from instead of random weights, or an adapter, which makes an adapter; the learning rate is
            warmed up again.
        frozen: train the small FFNs alone.
        optimizer: `"adamw"`, or `"muon"` for the hidden matrices (see `duoviz.training.muon`).
        distil: weight of the divergence from the start's own all-big predictions, against the cross-entropy: 0 to 1.
        bf16: matrix products in bfloat16, weights and sums in float32; always on a GPU. On processors with such products (AVX-512
            BF16, AMX) it is up to twice as fast.
        gradient_checkpointing: recompute activations to save memory.
        shard: divide the weights among the processes (FSDP2, a decoder layer at a time), where torchrun starts several; otherwise
            each holds all of them.

    Raises:
        ValueError: a preset that no new model can have; no sources, one named twice, unknown or never trained on; rows that
            micro_rows does not divide; shard with muon; frozen or distil without a start, distil outside 0 to 1; an adapter
            that is not frozen.
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
    bf16: bool = False
    gradient_checkpointing: bool = False
    shard: bool = False

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
        if self.shard and self.optimizer == "muon":
            raise ValueError("shard with muon: its updates need whole matrices; take adamw, or leave out shard")
        if (self.frozen or self.distil) and self.start is None:
            raise ValueError("frozen or distil: there is no model to keep or to learn from; give a start")
        if self.start is not None and is_adapter(self.start) and not self.frozen:
            raise ValueError(
                f"start {self.start} is an adapter, which holds the small FFNs alone: train them alone (frozen)"
            )
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
            "bf16": self.bf16,
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
        kept = ("preset", "sources", "policy", "seed", "micro_rows", "start", "frozen", "distil", "optimizer", "bf16")
        facts = json.loads(
            json.dumps({name: value for name, value in asdict(self).items() if name in kept}, default=str)
        )
        path = self.out / "plan.json"
        known = json.loads(path.read_text()) if path.is_file() else facts
        known = {"optimizer": "adamw", "bf16": False, **known}  # of a time when there was no other
        known["policy"] = {"any_share": False, "first": 0, **known["policy"]}
        changed = [f"{name}={known.get(name)!r}" for name in kept if known.get(name) != facts[name]]
        if changed:
            raise ValueError(f"{self.out} holds a run with {', '.join(changed)}: repeat that, or give another folder")
        self.out.mkdir(parents=True, exist_ok=True)
        replaced(path, lambda partial: partial.write_text(json.dumps(facts, indent=1) + "\n"))

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
            return read_record(copy, name)
        found = read_record(Path(self.start), name)  # nothing damaged is copied
        partial = self.out / "start.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for path in (Path(self.start) / file for file in RECORD):
            if path.is_file():
                shutil.copyfile(path, partial / path.name)
        partial.rename(copy)
        return found
