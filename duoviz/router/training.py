"""How a router is trained: a loop over rows of text that is the same for every kind, but for its loss.

Paper: arXiv 2410.10846, section 2, stage 3, for the kind `budget`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Integer

from .. import progress
from ..model import Checkpoint, LanguageModel
from ..oracle import Objective
from ..records import above_zero, whole
from . import budget, distil, pairwise, policy, processes, straight_through, threshold
from .linear import NAMES, READS, Mixture, Router
from .pairwise import CLASSES
from .past import Past

KINDS = {
    "budget": budget.loss,
    "straight-through": straight_through.loss,
    "policy": policy.loss,
    "distil": distil.loss,
    "pairwise": pairwise.loss,
    "threshold": threshold.loss,
}
"""The losses of one step's gradient steps by the kind of router: of the model, the router, token ids and the plan, with what the
training has done so far."""
SEARCHED = {"distil", "pairwise"}
"""Kinds that learn from searched losses."""


@dataclass(frozen=True)
class Stage3:
    """How a router is trained.

    Attributes:
        mixture: the budget.
        kind: `budget`, `straight-through`, `policy`, `distil`, `pairwise` or `threshold`; each is a file of this package.
        units, reads: as of `Router`; `threshold` has no units, and reads a single number.
        tokens: training tokens.
        rows: sequences of a step.
        learning_rate, weight_decay: of AdamW for the router; if not given, 0.003 and 0, constant; of `distil` and `pairwise`
            0.01, which falls to 0 in each round, and 0.3. Measured on the shipped model, 117,000 positions, 64 units: these
            explain 0.13 of the variance of held-out gains, and 0.003 and 0 explain 0.115.
        alpha: weight of the budget loss against the cross-entropy in nats; `distil` has none. Measured on a random tiny model,
            120 steps, one seed, three mixtures: at 10 the soft share ends up to 0.07 off the budget, at 30 up to 0.008, at 100 no
            closer, and the cross-entropy is higher the larger it is.
        beta_start, beta_end: sharpness of the soft mixture, raised geometrically; choices that are drawn keep that of the start.
        samples: of `policy`: how many routes are drawn for each text, and compared with each other; of `pairwise`: of each token.
        objective: of `distil` and `pairwise`: `expected` (without the label) or `nll`; see `duoviz.oracle.objectives`.
        rounds: of `distil` and `pairwise`: how often they learn from all losses so far (see `duoviz.router.past`).
        epochs: of these: how often they read them each time.
        shuffled: of `distil` and `pairwise`: learn from the losses of other tokens of the same texts; a control, which can find
            no more than which layers are worth it.
        train_backbone: also train the model, at a tenth of the learning rate.
        bf16: the model's matrix products in bfloat16: a third of the time on processors that have them; not for `distil` and
            `pairwise`, which learn from losses that are searched.
        save_every: steps between checkpoints, if there is a folder for them.
        seed: of the initial router.

    Raises:
        ValueError: an unknown kind or objective, a number that is not above 0, a negative alpha, a beta that falls, or a model
            that is to be trained by a kind that has no gradient for it.
    """

    mixture: Mixture
    kind: str = "budget"
    units: int = 0
    reads: str = "ffn"
    tokens: int = 1_000_000
    rows: int = 8
    learning_rate: float | None = None
    weight_decay: float | None = None
    alpha: float = 30.0
    beta_start: float = 1.0
    beta_end: float = 10.0
    samples: int = 4
    objective: str = "expected"
    rounds: int = 4
    epochs: int = 8
    shuffled: bool = False
    train_backbone: bool = False
    bf16: bool = False
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}: allowed are {', '.join(KINDS)}")
        for name, values in (("learning_rate", (3e-3, 1e-2)), ("weight_decay", (0.0, 0.3))):
            if getattr(self, name) is None:
                object.__setattr__(self, name, values[self.kind in SEARCHED])
        Objective.of(self.objective)
        if self.reads not in READS:
            raise ValueError(f"reads {self.reads!r}: allowed are {', '.join(READS)}")
        if self.kind == "threshold" and (self.units or self.reads not in threshold.NUMBERS):
            raise ValueError(
                f"kind 'threshold' with units {self.units}, reads {self.reads!r}: it has no network, and reads one of"
                f" {', '.join(threshold.NUMBERS)}"
            )
        if self.shuffled and self.kind not in SEARCHED:
            raise ValueError(
                f"kind {self.kind!r} learns from no labels that could be shuffled: only distil and pairwise do"
            )
        if self.bf16 and self.kind in SEARCHED:
            raise ValueError(f"kind {self.kind!r} learns from losses that are searched: not in bfloat16")
        if self.train_backbone and self.kind not in ("budget", "straight-through"):
            raise ValueError(f"kind {self.kind!r} trains the router alone: it has no gradient for the model")
        numbers = ("tokens", "rows", "save_every", "samples", "rounds", "epochs")
        whole(**{name: getattr(self, name) for name in numbers})
        if self.units < 0 or self.samples < 2:
            raise ValueError(f"units {self.units}, samples {self.samples}: give 0 units or more, and 2 samples or more")
        above_zero(learning_rate=self.learning_rate or 0.0, beta_start=self.beta_start, beta_end=self.beta_end)
        if not 0 <= self.alpha < np.inf:
            raise ValueError(f"alpha {self.alpha}: give 0 (no budget) or more")
        if not self.beta_end >= self.beta_start:
            raise ValueError(f"beta from {self.beta_start} to {self.beta_end}: it must not fall")


def train(
    lm: LanguageModel, rows: Integer[np.ndarray, "row token"], plan: Stage3, *, checkpoint: Path | None = None
) -> tuple[Router, pd.DataFrame]:
    """Train a router; returns it, in evaluation mode, with its log.

    Args:
        lm: the model; unchanged unless the plan trains the backbone.
        rows: training rows, taken in order from the first, and again.
        plan: what to do.
        checkpoint: a file that training resumes from, if it is there; it stays, so that
            nothing is lost before the router is saved.

    Returns:
        The router, and a table: step, tokens, loss_nats, beta, share_<choice>, and what the kind adds.

    Raises:
        ValueError: bad rows, a mixture of choices the model does not have, a checkpoint that is damaged or of another
            training, processes that do not divide the rows of a step, or a loss that is NaN.

    Where torch.distributed is set up, every process calls this; the first writes the checkpoint.
    """
    if plan.rows % processes.number():
        raise ValueError(f"{processes.number()} processes must divide the {plan.rows} rows of a step")
    lm.check(rows[:1])
    lm.check(np.array([[rows.min(), rows.max()]]))  # all ids, without a copy of the rows
    ways: dict[str, Any] = {"units": plan.units, "reads": plan.reads, "seed": plan.seed}
    router = CLASSES.get(plan.kind, Router)(lm.layers, lm.model.config.hidden_size, plan.mixture, **ways).to(lm.device)
    router.check(lm)
    if plan.reads == "frequency":
        counts = torch.from_numpy(np.bincount(rows.ravel(), minlength=lm.vocab)).float()
        router.surprise = (
            -((counts + 1) / (counts + 1).sum()).log().to(lm.device)
        )  # of one more each: none is impossible
    steps = 1 if plan.kind == "threshold" else max(1, plan.tokens // (plan.rows * rows.shape[1]))
    assert plan.learning_rate is not None, "set where it was not given"
    groups: list[dict[str, Any]] = [{"params": list(router.parameters()), "initial_lr": plan.learning_rate}]
    if plan.train_backbone:
        groups.append({"params": list(lm.model.parameters()), "initial_lr": plan.learning_rate / 10})
    optimizer = torch.optim.AdamW(groups, weight_decay=plan.weight_decay or 0.0)
    past = Past(steps)
    trained = {"router": router, "memory": past.memory, **({"model": lm.model} if plan.train_backbone else {})}
    state = Checkpoint(checkpoint, _identity(lm, rows, plan), trained)
    with _backbone(lm, frozen=not plan.train_backbone):
        past.log = state.read(optimizer)
        with progress.bar("training the router", begun=len(past.log) / steps, quiet=processes.rank() > 0) as watch:
            for step in range(len(past.log), steps):
                part = step / max(1, steps - 1) if plan.kind == "budget" else 0.0
                router.beta.fill_(plan.beta_start * (plan.beta_end / plan.beta_start) ** part)
                past.log.append(_step(lm, router, optimizer, rows, plan, past))
                if processes.rank() == 0 and ((step + 1) % plan.save_every == 0 or step + 1 == steps):
                    state.write(optimizer, past.log)
                watch((step + 1) / steps)
    router.facts = {**asdict(plan), "tokens": steps * plan.rows * rows.shape[1], "model": lm.fingerprint}
    return router.eval(), pd.DataFrame(past.log)


def _step(
    lm: LanguageModel, router: Router, optimizer: torch.optim.Optimizer, rows: np.ndarray, plan: Stage3, past: Past
) -> dict[str, float | int]:
    """One batch of rows, shared by all processes; its log record."""
    step, rank = len(past.log), processes.rank()
    places = np.arange(step * plan.rows, (step + 1) * plan.rows)[rank :: processes.number()] % len(rows)
    ids = torch.from_numpy(rows[places].astype(np.int64)).to(lm.device)
    # what is drawn depends on step and process alone, so that a training that was cut off goes on as it would have
    draw = torch.Generator().manual_seed(plan.seed * 1_000_003 + step + 7_919_000_003 * rank)
    record: dict[str, Any] = {}
    for loss, record in KINDS[plan.kind](lm, router, ids, plan, past, draw):
        rate = record.pop("rate", 1.0)
        if loss is None:
            continue
        if not torch.isfinite(loss).item():
            raise ValueError(f"the router's loss is {loss.item()} at step {step}: lower the learning rate")
        optimizer.zero_grad()
        loss.backward()
        for parameter in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
            parameter.grad = processes.averaged(parameter.grad)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
        optimizer.step()
    share = dict(zip(router.choices, record.pop("shares")))
    record["beta"] = float(router.beta)
    record |= {f"share_{name}": share.get(choice, 0.0) for name, choice in NAMES.items()}
    if processes.number() > 1:
        means = processes.averaged(torch.tensor(list(record.values()), dtype=torch.float64, device=lm.device))
        record = dict(zip(record, means.tolist()))
    return {"step": step + 1, "tokens": (step + 1) * plan.rows * ids.shape[1], **record}


def _identity(lm: LanguageModel, rows: np.ndarray, plan: Stage3) -> dict[str, Any]:
    """What a checkpoint must have in common with the training that it is read for."""
    return {
        **{name: value for name, value in asdict(plan).items() if name != "save_every"},
        "rows_given": list(rows.shape),
        "model": None if plan.train_backbone else lm.fingerprint,  # a backbone that trains is in the checkpoint
    }


@contextmanager
def _backbone(lm: LanguageModel, *, frozen: bool) -> Iterator[None]:
    """Gradients for the backbone's parameters or none; what `lm` remembers of weights that changed is forgotten."""
    before = [(parameter, parameter.requires_grad) for parameter in lm.model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(not frozen)
    try:
        yield
    finally:
        for parameter, needed in before:
            parameter.requires_grad_(needed)
