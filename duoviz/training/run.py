"""The loop of stage 1, on `Trainer` of transformers, and what a run leaves behind."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments

from .. import corpus
from ..model.duo import CLASSES, DuoCausalLM, RandomPolicy
from ..model.language_model import load_model
from .plan import PRESETS, Preset, Stage1
from .text import HELD_ROWS, Rows, held_out, rows_of, tokenizer_of

HELD_POLICIES = ("big", "small", "random")
"""What the holdout is scored with."""


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
        for name in HELD_POLICIES:
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
        ValueError: a folder that holds another plan's run, a damaged record of the model to start from, text too short
            for two rows, a loss that is not finite.
    """
    plan.claim()
    before = plan.before()
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
    return _finish(plan, trainer, tokenizer, *before)


def _arguments(plan: Stage1) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(plan.out),
        per_device_train_batch_size=plan.micro_rows,
        gradient_accumulation_steps=plan.preset.rows // plan.micro_rows,
        max_steps=plan.steps,
        learning_rate=plan.preset.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": plan.preset.final_learning_rate},
        warmup_steps=plan.preset.warmup_steps,
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


def _finish(
    plan: Stage1,
    trainer: DuoTrainer,
    tokenizer: PreTrainedTokenizerFast,
    legs: list[dict[str, Any]],
    log: pd.DataFrame,
) -> Path:
    """Write the model with all that is known of its training, `legs` and `log` of the model it started from included."""
    folder, done = plan.out / "model", trainer.state.global_step
    names = [f"eval_{source}_{policy}" for source in plan.sources for policy in HELD_POLICIES]
    held = [row for row in trainer.state.log_history if row["step"] == done and names[0] in row]
    losses = held[-1] if held else trainer.evaluate()
    own = pd.DataFrame([row for row in trainer.state.log_history if "train_runtime" not in row])  # of this call alone
    own["tokens"] = own["step"] * plan.preset.step_tokens + sum(leg["tokens"] for leg in legs)
    own["step"] += sum(leg["steps"] for leg in legs)
    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pd.concat([log, own] if len(log) else [own], ignore_index=True).to_parquet(folder / "training-log.parquet")
    legs = [*legs, plan.leg(done)]
    facts = {
        "name": plan.out.name,
        "steps": sum(leg["steps"] for leg in legs),
        "tokens": sum(leg["tokens"] for leg in legs),
        "holdout_nats": {name.removeprefix("eval_"): round(losses[name], 4) for name in names},
        "legs": legs,
    }
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    (folder / "README.md").write_text(card(facts))
    return folder


def card(facts: dict[str, Any]) -> str:
    """The model card, from what `training.json` holds: data, tokens, losses and, for every leg, seed and command."""
    legs = facts["legs"]
    shape = Preset(**legs[-1]["preset"])
    losses = "\n".join(f"| {name.replace('_', ', ')} | {value:.3f} |" for name, value in facts["holdout_nats"].items())
    trained = f"Trained on {facts['tokens']:,} tokens" + (f" in {len(legs)} legs." if len(legs) > 1 else ".")
    if legs[0]["start"]:
        trained += (
            f" It started from the model in {legs[0]['start']},\nwhich came without a record of its own training."
        )
    parts = [
        f"# {facts['name']}",
        f"""A Duo Llama: {shape.layers} layers of width {shape.hidden}, {shape.heads} heads, FFNs of width {shape.big} (big)
and {shape.small} (small), a byte-level BPE vocabulary of {shape.vocab:,}, context {shape.context}, tied embeddings,
float32. It was made to be studied, not to be used: it knows only what it has read.""",
        *_cuts(legs),
        f"""{trained} At each layer, independently,
each token took the big FFN, the small one or none at random. {_held(legs)}""",
        "AdamW (0.9, 0.95), weight decay 0.1, gradients clipped at 1.",
        *(_leg(leg, f"Leg {number}: " if len(legs) > 1 else "") for number, leg in enumerate(legs, 1)),
        f"""| holdout (at most {HELD_ROWS} rows of {shape.context} tokens), policy | loss, nats per token |
|---|---|
{losses}""",
    ]
    return "\n\n".join(parts) + "\n"


def _cuts(legs: list[dict[str, Any]]) -> list[str]:
    """A sentence for every leg that was cut off before its learning rate had come down."""
    found = []
    for number, leg in enumerate(legs, 1):
        if leg["steps"] >= leg["steps_planned"]:
            continue
        steps = f"{leg['steps']:,} of {leg['steps_planned']:,} steps"
        if number < len(legs):
            found.append(
                f"Leg {number} was cut off after {steps}, before its learning rate had come down; leg {number + 1} went on"
                " from\nthere with a new warm-up and a new cosine."
            )
        else:
            found.append(
                f"Training is not finished: {steps}{f' of leg {number}' if number > 1 else ''}, the learning rate has not"
                " come down\nyet, and the losses below will fall."
            )
    return found


def _held(legs: list[dict[str, Any]]) -> str:
    """What was kept out of training."""
    sources = list(dict.fromkeys(source for leg in legs for source in leg["sources"]))
    own = [source for source in sources if source not in corpus.PYTHON]
    read = "The last rows of {} were held out.".format(" and ".join(own)) if own else ""
    if len(own) == len(sources):
        return read
    return (
        "The python sources are docstrings and sources of the standard library and of the\n"
        "installed packages, read where they are installed. Documents whose hash falls into the holdout (4 %), and\n"
        f"near-duplicates of those, were never trained on; neither was the shipped text. {read}"
    ).strip()


def _leg(leg: dict[str, Any], title: str) -> str:
    """One leg of training: text, routes, schedule, seed and command."""
    shape, policy = Preset(**leg["preset"]), leg["policy"]
    cut = f" of {leg['steps_planned']:,}" if leg["steps"] < leg["steps_planned"] else ""
    rate = f"{shape.learning_rate} after {shape.warmup_steps} steps, then a cosine to {shape.final_learning_rate}"
    odds = f"big with probability {policy['big']}, small {policy['small']}, none {policy['skip']}"
    return f"""{title}{leg["tokens"]:,} tokens of {" and ".join(leg["sources"])} in equal parts: {leg["steps"]:,}{cut} steps
of {shape.rows} rows of {shape.context} tokens; {odds};
learning rate {rate}; seed {leg["seed"]}.

{_command(leg)}"""


def _command(leg: dict[str, Any]) -> str:
    """The command that trains a leg, or why there is none."""
    shape, policy = Preset(**leg["preset"]), leg["policy"]
    names = [name for name, preset in PRESETS.items() if replace(preset, tokens=shape.tokens) == shape]
    if not names:
        return "It was trained from Python: its shape and schedule are no preset of the command line."
    given: dict[str, Any] = {"--out": f"runs/{leg['name']}"}
    if names[0] != "tiny":
        given["--preset"] = names[0]
    if leg["start"]:
        given["--start"] = leg["start"]
    if shape.tokens != PRESETS[names[0]].tokens:
        given["--tokens"] = shape.tokens
    rest = {"--sources": ",".join(leg["sources"])}
    if (policy["big"], policy["skip"]) != (RandomPolicy().big, RandomPolicy().skip):
        rest |= {"--big": policy["big"], "--skip": policy["skip"]}
    rest |= {"--seed": leg["seed"], "--micro-rows": leg["micro_rows"]}
    first, second = (shlex.join(str(word) for pair in some.items() for word in pair) for some in (given, rest))
    return f"    python -m duoviz train {first} \\\n        {second}"


class _StopAt(TrainerCallback):
    """Save and stop at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step >= self.step:
            control.should_save = control.should_training_stop = True
        return control
