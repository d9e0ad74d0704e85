"""The loop of stage 1, on `Trainer` of transformers, and what a run leaves behind."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

from .. import progress
from ..model.adapter import is_adapter, place_of_base, save_adapter
from ..model.duo import CLASSES, DuoCausalLM
from ..model.loading import load_model
from ..model.memory import keep_freed
from ..model.policy import RandomPolicy
from ..routes import BIG, SMALL
from . import attention
from .card import card
from .muon import Muon
from .plan import Stage1
from .text import Rows, held_out, rows_of, tokenizer_of


class DuoTrainer(Trainer):
    """`Trainer` whose forward passes take random routes, drawn anew for every row from the seed and the row's number: any number
    of processes draws the same."""

    model: Any
    train_dataset: Any

    def __init__(
        self,
        *args: Any,
        policy: RandomPolicy,
        held: dict[str, Tensor],
        distil: float = 0.0,
        teacher: DuoCausalLM | None = None,
        muon: bool = False,
        bf16: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.policy, self.held, self.distil, self.muon = policy, held, distil, muon
        # that of `Trainer` takes no CPU, and writes all logits once more, in float32
        self.products = partial(torch.autocast, self.args.device.type, torch.bfloat16, enabled=bf16)
        self.teacher = None if teacher is None else teacher.to(self.args.device)

    def _get_train_sampler(self, *args: Any) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def create_optimizer(self, *args: Any) -> torch.optim.Optimizer:
        """AdamW of `Trainer`, or Muon where the plan says so."""
        if self.optimizer is None and self.muon:
            trained = [(name, one) for name, one in self.model.named_parameters() if one.requires_grad]
            ends = {
                id(one)
                for end in (self.model.get_input_embeddings(), self.model.get_output_embeddings())
                for one in end.parameters()
            }
            hidden = [one for _, one in trained if one.ndim == 2 and id(one) not in ends]
            known = {id(one) for one in hidden}
            self.optimizer = Muon(
                hidden, [one for _, one in trained if id(one) not in known], lr=self.args.learning_rate
            )
        return super().create_optimizer(*args)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        first = int(inputs.pop("row")[0])
        policy = replace(self.policy, first=first)
        loss: Any = None
        with self.products():
            if self.distil == 1:  # the text says nothing then
                out = model(inputs["input_ids"], use_cache=False, duo_policy=policy)
            else:
                loss, out = super().compute_loss(model, {**inputs, "duo_policy": policy}, True, num_items_in_batch)
        if self.distil:
            with torch.no_grad(), self.products():  # nothing is dropped out of either
                taught = (self.teacher or model)(inputs["input_ids"], use_cache=False).logits
            learned = divergence(taught, out.logits, num_items_in_batch)
            if num_items_in_batch is not None:  # those of all processes, whose gradients are averaged
                learned = learned * self.args.world_size
            loss = learned if loss is None else torch.lerp(loss, learned, self.distil)
        if not bool(torch.isfinite(loss.detach())):
            raise ValueError(
                f"the training loss is {loss.item()} in step {self.state.global_step + 1}: lower the learning rate;"
                " earlier checkpoints are kept"
            )
        return (loss, out) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Holdout losses in nats per token: all big, all small and the training policy, on every source."""
        losses = holdout_losses(self.model, self.held, self.policy)
        self.log(losses)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, losses)
        return losses


def held_policies(policy: RandomPolicy) -> tuple[str, ...]:
    """What the holdout is scored with while training with a policy."""
    return ("big", "small", "random") if policy.small else ("big",)


def divergence(
    taught: Float[Tensor, "seq token vocab"], found: Float[Tensor, "seq token vocab"], items: Tensor | int | None = None
) -> Float[Tensor, ""]:
    """Kullback-Leibler divergence in nats from a teacher's next-token distributions, of every token but a text's last, which
    the cross-entropy has no target for; divided by the same number of items as that (the positions if not given)."""
    q, p = (logits[:, :-1].log_softmax(-1, dtype=torch.float32) for logits in (taught, found))
    total = torch.nn.functional.kl_div(p, q, reduction="sum", log_target=True)
    return total / (q[..., 0].numel() if items is None else items)


@torch.no_grad()
def holdout_losses(model: DuoCausalLM, held: dict[str, Tensor], policy: RandomPolicy) -> dict[str, float]:
    """Mean loss in nats of every source's rows (int64 `[row, token]`) as `eval_<source>_<policy>`: all big and, where a
    training policy takes the small FFNs, all small and that policy."""
    layers, was_training = model.config.num_hidden_layers, model.training
    model.eval()
    found = {}
    for source, rows in held.items():
        for name in held_policies(policy):
            total = 0.0
            for number, part in enumerate(rows.split(16)):
                if name == "random":
                    ways: dict[str, Any] = {"duo_policy": replace(policy, seed=number)}
                else:
                    ways = {"duo_routes": torch.full((layers,), BIG if name == "big" else SMALL, dtype=torch.int8)}
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
            for two rows, processes that do not divide the rows of a step, several GPUs in one process, a loss that is not finite.

    Under torchrun every process calls this; the first writes.
    """
    keep_freed(large=True)
    arguments = _arguments(plan)
    with arguments.main_process_first(local=False):
        plan.claim()
        before = plan.before()
        tokenizer = tokenizer_of(plan)
        rows = rows_of(plan, tokenizer)
        checkpoint = last_checkpoint(plan.out)
    torch.manual_seed(plan.seed)
    if plan.start:
        model = load_model(plan.start)
        plan.preset.check(model.config)
        _stop_dropout(model)
    else:
        model = CLASSES[plan.preset.family][1](plan.preset.config())
    if plan.frozen:
        model.requires_grad_(False)
        layers: list[Any] = list(model.decoder_layers)
        for layer in layers:
            layer.duo_ffn.small.requires_grad_(True)
    teacher = load_model(plan.start) if plan.distil and plan.start and not plan.frozen else None
    if plan.bf16:
        for one in filter(None, (model, teacher)):
            attention.use(one)
    trainer = DuoTrainer(
        model,
        arguments,
        train_dataset=Rows(list(rows["train"].values()), length=plan.steps * plan.preset.rows, seed=plan.seed),
        eval_dataset=list(range(1)),
        policy=replace(plan.policy, seed=plan.seed * 1_000_003),
        held=held_out(rows["holdout"]),
        distil=plan.distil,
        teacher=teacher,
        muon=plan.optimizer == "muon",
        bf16=plan.bf16 or torch.cuda.is_available(),
        callbacks=[_StopAt(max_steps)] if max_steps else None,
    )
    begun = int(checkpoint.name.rpartition("-")[2]) / plan.steps if checkpoint else 0.0
    with progress.bar(f"training {plan.out.name}", begun=begun, quiet=arguments.process_index > 0) as watch:
        trainer.add_callback(_Tell(watch))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    folder = _finish(plan, trainer, tokenizer, *before)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()  # a process that exits with its group open may crash in the group's threads
    return folder


def _stop_dropout(model: torch.nn.Module) -> None:
    """No noise in what is learned from and in what is frozen; the configuration, which is saved, stays as it is."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _arguments(plan: Stage1) -> TrainingArguments:
    """The plan in the words of `Trainer`; a step's rows are divided among the processes."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if plan.preset.rows % (plan.micro_rows * processes):
        raise ValueError(
            f"{processes} processes with micro_rows {plan.micro_rows} must divide the {plan.preset.rows} rows of a step"
        )
    blocks = list(CLASSES[plan.preset.family][1]._no_split_modules)
    found = TrainingArguments(
        output_dir=str(plan.out),
        per_device_train_batch_size=plan.micro_rows,
        gradient_accumulation_steps=plan.preset.rows // (plan.micro_rows * processes),
        max_steps=plan.steps,
        learning_rate=plan.preset.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": plan.preset.final_learning_rate},
        warmup_steps=plan.preset.warmup_steps,
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        logging_steps=min(50, plan.evaluation_steps),
        eval_strategy="steps",
        eval_steps=plan.evaluation_steps,
        save_steps=plan.save_every,
        save_total_limit=2,
        seed=plan.seed,
        activation_checkpointing=plan.gradient_checkpointing,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=processes > 1 and not torch.cuda.is_available(),
        ddp_find_unused_parameters=True,  # an FFN that no token took
        fsdp="full_shard" if plan.shard else None,
        fsdp_config={"transformer_layer_cls_to_wrap": blocks} if plan.shard else None,
    )
    if found.n_gpu > 1:
        raise ValueError(
            f"{found.n_gpu} GPUs in one process: start one for each, torchrun --nproc-per-node {found.n_gpu} -m duoviz"
            " train ..., or set CUDA_VISIBLE_DEVICES=0"
        )
    return found


def _finish(
    plan: Stage1,
    trainer: DuoTrainer,
    tokenizer: PreTrainedTokenizerBase,
    legs: list[dict[str, Any]],
    log: pd.DataFrame,
) -> Path:
    """Write the model with all that is known of its training, `legs` and `log` of the model it started from included."""
    folder, done, model = plan.out / "model", trainer.state.global_step, _whole(trainer)
    names = [f"eval_{source}_{policy}" for source in plan.sources for policy in held_policies(plan.policy)]
    held = [row for row in trainer.state.log_history if row["step"] == done and names[0] in row]
    losses = held[-1] if held else trainer.evaluate()
    if not trainer.is_world_process_zero():
        return folder
    own = pd.DataFrame([row for row in trainer.state.log_history if "train_runtime" not in row])  # of this call alone
    own["tokens"] = own["step"] * plan.preset.step_tokens + sum(leg["tokens"] for leg in legs)
    if plan.distil:  # what was minimised is no loss on the text
        own["objective"], own["loss"] = own["loss"], float("nan")
    own["step"] += sum(leg["steps"] for leg in legs)
    if plan.start and is_adapter(plan.start):
        save_adapter(model, folder, base=place_of_base(plan.start))
    else:
        (model if plan.policy.small else model.dense()).save_pretrained(folder)
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


def _whole(trainer: DuoTrainer) -> DuoCausalLM:
    """The trained model with all its weights, of which each process may hold a part; the first process gets them."""
    if not trainer.is_fsdp_enabled:
        return trainer.model
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return trainer.model
    made = type(trainer.model)(trainer.model.config)
    made.load_state_dict(state)
    return made.eval()


class _Tell(TrainerCallback):
    """Tell the share of the steps that is done."""

    def __init__(self, watch: progress.Watch) -> None:
        self.watch = watch

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.watch(state.global_step / state.max_steps)


class _StopAt(TrainerCallback):
    """Save and stop at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step >= self.step:
            control.should_save = control.should_training_stop = True
        return control
