"""Stage 1: a Duo model trained with random routes.

Every token takes, at every layer, the big or the small FFN (or neither) at random, so that both learn without the bias a
learned router would bring. `Trainer` of transformers does the work; a killed run resumes where its last checkpoint is.

Paper: arXiv 2410.10846, section 2, stage 1, and section 3.1 (preset `paper`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Integer
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments

from . import corpus
from .model.duo import CLASSES, DuoCausalLM, DuoConfig, RandomPolicy, config_for
from .model.language_model import load_model

HELD_ROWS = 64
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Preset:
    """A model shape and how long it is trained.

    Attributes:
        hidden, layers, heads, big, small, vocab, context: the shape of a Duo Llama with tied embeddings.
        tokens: training tokens.
        rows: sequences of `context` tokens in one optimizer step.
        learning_rate, final_learning_rate: peak and end of a cosine with warm-up.
        warmup: steps of warm-up.
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
        sources: corpus sources, mixed in equal parts.
        policy: probabilities of the three choices.
        seed: of the initial weights, of the order of the text and of the routes.
        micro_rows: sequences in one forward pass; gradients are accumulated up to the preset's `rows`.
        evaluate_every, save_every: steps.
        start: a Duo folder to start from instead of random weights; the learning rate is warmed up again.
        gradient_checkpointing: recompute activations to save memory.
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
        for source in self.sources:
            corpus.check(source)
        if self.preset.rows % self.micro_rows:
            raise ValueError(f"micro_rows {self.micro_rows} must divide the {self.preset.rows} rows of a step")

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, self.preset.tokens // (self.preset.rows * self.preset.context))


class Rows(torch.utils.data.Dataset):
    """Training rows in an order fixed by the seed: the sources take turns, each shuffled anew every epoch."""

    def __init__(self, parts: Sequence[np.ndarray], *, length: int, seed: int) -> None:
        self.parts, self.length, self.seed = parts, length, seed
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        turn, part = divmod(index, len(self.parts))
        epoch, place = divmod(turn, len(self.parts[part]))
        if (part, epoch) not in self._orders:
            draw = np.random.default_rng((self.seed, part, epoch))
            self._orders[part, epoch] = draw.permutation(len(self.parts[part]))
        ids = torch.from_numpy(self.parts[part][self._orders[part, epoch][place]].astype(np.int64))
        return {"input_ids": ids, "labels": ids, "row": index}


class DuoTrainer(Trainer):
    """`Trainer` whose forward passes take random routes, drawn anew for every batch from the seed and the batch's rows."""

    model: Any
    train_dataset: Any

    def __init__(self, *args: Any, policy: RandomPolicy, held: dict[str, Tensor], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.policy, self.held = policy, held

    def _get_train_sampler(self, *args: Any) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        first = int(inputs.pop("row")[0])
        inputs["duo_policy"] = replace(self.policy, seed=self.policy.seed + first)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Holdout losses in nats per token: all big, all small and the training policy, on every source."""
        losses = holdout_losses(self.model, self.held, self.policy)
        self.log(losses)
        return losses


@torch.no_grad()
def holdout_losses(model: DuoCausalLM, held: dict[str, Tensor], policy: RandomPolicy) -> dict[str, float]:
    """Mean loss in nats of every source's rows (int64 `[row, token]`) under three policies, as `eval_<source>_<policy>`."""
    layers, was_training = model.config.num_hidden_layers, model.training
    model.eval()
    found = {}
    for source, rows in held.items():
        for name in ("big", "small", "random"):
            total = 0.0
            for number, part in enumerate(rows.split(16)):
                if name == "random":
                    ways: dict[str, Any] = {"duo_policy": replace(policy, seed=number)}
                else:
                    ways = {"duo_routes": torch.full((layers,), 2 if name == "big" else 1, dtype=torch.int8)}
                batch = part.to(model.device)
                total += float(model(batch, labels=batch, **ways).loss) * len(batch)
            found[f"eval_{source}_{name}"] = total / len(rows)
    model.train(was_training)
    return found


def new_tokenizer(sources: Sequence[str], *, vocab: int, context: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learned from the train split of the sources."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (d.text for source in sources for d in corpus.documents(source, split="train")[::2])
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, model_max_length=context
    )


def _tokenizer(plan: Stage1) -> PreTrainedTokenizerFast:
    for folder in (plan.out / "tokenizer", plan.start):
        if folder is not None and folder.is_dir():
            return PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer = new_tokenizer(plan.sources, vocab=plan.preset.vocab, context=plan.preset.context)
    tokenizer.save_pretrained(plan.out / "tokenizer")
    return tokenizer


def _rows(plan: Stage1, tokenizer: PreTrainedTokenizerFast, split: str) -> dict[str, np.ndarray]:
    """Packed rows of every source, kept in the run's folder."""
    found = {}
    for source in plan.sources:
        path = plan.out / f"{split}-{source.replace(':', '-').replace('/', '-')}.npy"
        if not path.is_file():
            rows = corpus.packed(tokenizer, corpus.documents(source, split=split), length=plan.preset.context)
            temporary = path.with_suffix(".tmp.npy")
            np.save(temporary, rows)
            temporary.replace(path)
        found[source] = np.load(path, mmap_mode="r")
    return found


def _spread(rows: Integer[np.ndarray, "row token"]) -> Tensor:
    """`HELD_ROWS` rows from all over the holdout (its beginning may be of one kind), int64."""
    return torch.from_numpy(rows[:: max(1, len(rows) // HELD_ROWS)][:HELD_ROWS].astype(np.int64))


def last_checkpoint(out: Path) -> Path | None:
    """The newest complete checkpoint of a run: `Trainer` writes `trainer_state.json` last, so a half-written one lacks it."""
    complete = []
    for path in out.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(path)
            continue
        complete.append(path)
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def train(plan: Stage1, *, max_steps: int | None = None) -> Path:
    """Train, or go on training, and write the model with its tokenizer and log; returns the model's folder.

    Args:
        plan: what to do.
        max_steps: stop (resumably) after this step of the plan's schedule.

    Raises:
        ValueError: text too short for one row, or a loss that is NaN.
    """
    plan.out.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(plan)
    rows = _rows(plan, tokenizer, "train")
    held = {s: _spread(r) for s, r in _rows(plan, tokenizer, "holdout").items()}
    torch.manual_seed(plan.seed)
    config = plan.preset.config()
    model = load_model(plan.start) if plan.start else CLASSES["llama"][1](config)
    arguments = TrainingArguments(
        output_dir=str(plan.out),
        per_device_train_batch_size=plan.micro_rows,
        gradient_accumulation_steps=plan.preset.rows // plan.micro_rows,
        max_steps=plan.steps,
        learning_rate=plan.preset.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": plan.preset.final_learning_rate},
        warmup_steps=min(plan.preset.warmup, plan.steps // 10),
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        logging_steps=min(50, plan.evaluate_every),
        eval_strategy="steps",
        eval_steps=plan.evaluate_every,
        save_steps=plan.save_every,
        save_total_limit=2,
        seed=plan.seed,
        activation_checkpointing=plan.gradient_checkpointing,
        bf16=torch.cuda.is_available(),
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = DuoTrainer(
        model,
        arguments,
        train_dataset=Rows(list(rows.values()), length=plan.steps * plan.preset.rows, seed=plan.seed),
        eval_dataset=list(range(1)),
        policy=replace(plan.policy, seed=plan.seed * 1_000_003),
        held=held,
        callbacks=[_StopAt(max_steps)] if max_steps else None,
    )
    checkpoint = last_checkpoint(plan.out)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return _finish(plan, trainer, tokenizer)


def _finish(plan: Stage1, trainer: DuoTrainer, tokenizer: PreTrainedTokenizerFast) -> Path:
    folder, done = plan.out / "model", trainer.state.global_step
    history = trainer.state.log_history
    held = [row for row in history if row["step"] == done and any(name.startswith("eval_") for name in row)]
    losses = held[-1] if held else trainer.evaluate()
    log = pd.DataFrame(trainer.state.log_history)
    if "loss" in log and log["loss"].isna().sum() > log["step"].nunique():
        raise ValueError("the training loss is NaN: lower the learning rate")
    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tokens_per_step = plan.preset.rows * plan.preset.context
    log["tokens"] = log["step"] * tokens_per_step
    log.to_parquet(folder / "training-log.parquet")
    facts = {
        "preset": asdict(plan.preset),
        "sources": plan.sources,
        "policy": asdict(plan.policy),
        "seed": plan.seed,
        "micro_rows": plan.micro_rows,
        "continued": plan.start is not None,
        "steps": done,
        "steps_planned": plan.steps,
        "tokens": done * tokens_per_step,
        "holdout_nats": {k.removeprefix("eval_"): round(v, 4) for k, v in losses.items() if k.startswith("eval_")},
    }
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    (folder / "README.md").write_text(card(facts))
    return folder


def card(facts: dict[str, Any]) -> str:
    """The model card: data, tokens, losses, seed, command."""
    shape = facts["preset"]
    losses = "\n".join(f"| {name.replace('_', ', ')} | {value:.3f} |" for name, value in facts["holdout_nats"].items())
    unfinished = facts["steps"] < facts["steps_planned"]
    note = (
        f"\nTraining is not finished: {facts['steps']:,} of {facts['steps_planned']:,} steps, the learning rate has not"
        " come down yet, and the losses below will fall.\n"
        if unfinished
        else ""
    )
    return f"""# duo-tiny

A Duo Llama: {shape["layers"]} layers of width {shape["hidden"]}, {shape["heads"]} heads, FFNs of width {shape["big"]} (big)
and {shape["small"]} (small), a byte-level BPE vocabulary of {shape["vocab"]:,}, context {shape["context"]}, tied embeddings,
float32. It was made to be studied on two CPU cores, not to be used: it has read little, and it knows only Python and its
documentation.
{note}
Trained on {facts["tokens"]:,} tokens of {" and ".join(facts["sources"])} in equal parts: docstrings and sources of the Python
standard library and of the installed packages, read where they are installed. Each token took the big FFN with probability
{facts["policy"]["big"]}, the small one with {facts["policy"]["small"]} and none with {facts["policy"]["skip"]}, at each layer
independently. Documents whose hash falls into the holdout (4 %), and near-duplicates of those, were never trained on; neither
was the shipped text.

AdamW (0.9, 0.95), weight decay 0.1, gradients clipped at 1, learning rate {shape["learning_rate"]} after {shape["warmup"]} steps,
then a cosine to {shape["final_learning_rate"]}; {shape["rows"]} rows of {shape["context"]} tokens a step; seed {facts["seed"]}.

    python -m duoviz train --out runs/duo-tiny --seed {facts["seed"]}

| holdout (64 rows of {shape["context"]} tokens), policy | loss, nats per token |
|---|---|
{losses}
"""


class _StopAt(TrainerCallback):
    """Save and stop at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step >= self.step:
            control.should_save = control.should_training_stop = True
        return control
