"""The loop of stage 1, on `Trainer` of transformers, and what a run leaves behind."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments

from .. import corpus
from ..model.duo import CLASSES, DuoCausalLM, RandomPolicy
from ..model.language_model import load_model
from .plan import Stage1
from .text import HELD_ROWS, Rows, held_out, rows_of, tokenizer_of


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
        found = super().compute_loss(model, inputs, *args, **kwargs)
        loss = (found[0] if isinstance(found, tuple) else found).detach()
        if not bool(torch.isfinite(loss)):
            raise ValueError(
                f"the training loss is {float(loss)} in step {self.state.global_step + 1}: lower the learning rate;"
                " earlier checkpoints are kept"
            )
        return found

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Holdout losses in nats per token: all big, all small and the training policy, on every source."""
        losses = holdout_losses(self.model, self.held, self.policy)
        self.log(losses)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, losses)
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


def last_checkpoint(out: Path) -> Path | None:
    """The newest complete checkpoint of a run; a half-written one is removed, so that `Trainer` does not count it.

    `Trainer` writes `trainer_state.json` last: a checkpoint without it was cut off.
    """
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
        ValueError: a folder that holds another plan's run, text too short for two rows, a loss that is not finite.
    """
    plan.claim()
    tokenizer = tokenizer_of(plan)
    rows = rows_of(plan, tokenizer)
    torch.manual_seed(plan.seed)
    model = load_model(plan.start) if plan.start else CLASSES["llama"][1](plan.preset.config())
    trainer = DuoTrainer(
        model,
        _arguments(plan),
        train_dataset=Rows(list(rows["train"].values()), length=plan.steps * plan.preset.rows, seed=plan.seed),
        eval_dataset=list(range(1)),
        policy=replace(plan.policy, seed=plan.seed * 1_000_003),
        held=held_out(rows["holdout"]),
        callbacks=[_StopAt(max_steps)] if max_steps else None,
    )
    checkpoint = last_checkpoint(plan.out)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return _finish(plan, trainer, tokenizer)


def _arguments(plan: Stage1) -> TrainingArguments:
    return TrainingArguments(
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


def _finish(plan: Stage1, trainer: DuoTrainer, tokenizer: PreTrainedTokenizerFast) -> Path:
    folder, done = plan.out / "model", trainer.state.global_step
    history = trainer.state.log_history
    held = [row for row in history if row["step"] == done and any(name.startswith("eval_") for name in row)]
    losses = held[-1] if held else trainer.evaluate()
    log = pd.DataFrame(trainer.state.log_history)
    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tokens_per_step = plan.preset.rows * plan.preset.context
    log["tokens"] = log["step"] * tokens_per_step
    log.to_parquet(folder / "training-log.parquet")
    facts = {
        "name": plan.out.name,
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
    own = [source for source in facts["sources"] if source not in corpus.PYTHON]
    read = "The last rows of {} were held out.".format(" and ".join(own)) if own else ""
    if len(own) < len(facts["sources"]):
        read = (
            "The python sources are docstrings and sources of the standard library and of the installed packages, read where\n"
            "they are installed. Documents whose hash falls into the holdout (4 %), and near-duplicates of those, were never\n"
            f"trained on; neither was the shipped text. {read}"
        ).strip()
    return f"""# {facts["name"]}

A Duo Llama: {shape["layers"]} layers of width {shape["hidden"]}, {shape["heads"]} heads, FFNs of width {shape["big"]} (big)
and {shape["small"]} (small), a byte-level BPE vocabulary of {shape["vocab"]:,}, context {shape["context"]}, tied embeddings,
float32. It was made to be studied, not to be used: it knows only what it has read.
{note}
Trained on {facts["tokens"]:,} tokens of {" and ".join(facts["sources"])} in equal parts. Each token took the big FFN with
probability {facts["policy"]["big"]}, the small one with {facts["policy"]["small"]} and none with {facts["policy"]["skip"]}, at
each layer independently. {read}

AdamW (0.9, 0.95), weight decay 0.1, gradients clipped at 1, learning rate {shape["learning_rate"]} after {shape["warmup"]} steps,
then a cosine to {shape["final_learning_rate"]}; {shape["rows"]} rows of {shape["context"]} tokens a step; seed {facts["seed"]}.

    python -m duoviz train --out runs/{facts["name"]} --sources {",".join(facts["sources"])} --seed {facts["seed"]} \\
        --micro-rows {facts["micro_rows"]}

| holdout (at most {HELD_ROWS} rows of {shape["context"]} tokens), policy | loss, nats per token |
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
