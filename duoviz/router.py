"""Stage 3: a learned router.

One linear layer per transformer layer maps the FFN's input to logits h over the choices; `softmax(beta * h)` weighs the
outputs of the modules while the router trains, beta rises, and at evaluation the largest logit decides.

Paper: arXiv 2410.10846, section 2, stage 3. Differs: the printed `(e^h / tau) / sum(e^h / tau)` cancels tau, so beta
multiplies h; the budget loss is written for one position and described per sequence, and is taken per sequence here; the
backbone, on which the paper is silent, is frozen unless asked otherwise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float32, Int, Int8, Integer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .model import LanguageModel
from .records import Tokens
from .routes import BIG, SKIP, SMALL


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
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"mixture big, small, skip = {shares}: give shares that sum to 1")
        if len(self.choices) < 2:
            raise ValueError(f"mixture big, small, skip = {shares}: a router needs at least two choices with a share")

    @property
    def choices(self) -> tuple[int, ...]:
        """The choices that have a share, ascending."""
        return tuple(choice for choice in (SKIP, SMALL, BIG) if self.share(choice) > 0)

    def share(self, choice: int) -> float:
        """The share of one choice."""
        return (self.skip, self.small, self.big)[choice]


class Router(nn.Module):
    """A linear router for every layer.

    Args:
        layers: transformer layers.
        hidden: width of the FFN's input.
        mixture: the budget; its choices are the columns of the logits.
        seed: of the initial weights.

    Attributes:
        beta: sharpness of the soft mixture; a buffer that training raises.
        offset: float32 `[choice]`, added to the logits before the best is taken: `calibrate` sets it so that a budget is
            met exactly; zero before.
        facts: how it was made; written beside the weights.
    """

    beta: Tensor
    offset: Tensor

    def __init__(self, layers: int, hidden: int, mixture: Mixture, *, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        choices = len(mixture.choices)
        self.mixture, self.choices = mixture, mixture.choices
        self.weight = nn.Parameter(torch.randn(layers, choices, hidden, generator=draw) * 0.02)
        self.bias = nn.Parameter(torch.zeros(layers, choices))
        self.register_buffer("beta", torch.tensor(1.0))
        self.register_buffer("offset", torch.zeros(choices))
        self.facts: dict[str, Any] = {}

    def logits(self, layer: int, x: Float[Tensor, "*token hidden"]) -> Float[Tensor, "*token choice"]:
        """Logits of one layer, float32, before `beta` and `offset`."""
        return nn.functional.linear(x.float(), self.weight[layer], self.bias[layer])

    def choose(self, logits: Float[Tensor, "*any choice"]) -> Int[Tensor, "*any"]:
        """The choice with the largest logit, `offset` added."""
        return torch.tensor(self.choices, device=logits.device)[(logits + self.offset).argmax(-1)]

    @torch.no_grad()
    def run(
        self, lm: LanguageModel, tokens: Tokens | np.ndarray, *, batch_size: int = 8
    ) -> tuple[Int8[np.ndarray, "seq position layer"], Float32[np.ndarray, "seq position"]]:
        """Routes taken in one ordinary forward pass, and its losses in nats; -1 and NaN where not scored.

        Raises:
            ValueError: a router of another model.
        """
        self._check(lm)
        tokens, was_training = lm.check(tokens), self.training
        self.eval()
        self.to(lm.device)
        routes, losses = [], []
        for start in range(0, len(tokens), batch_size):
            part = tokens[start : start + batch_size]
            hidden, logits = lm.hidden_and_logits(part, self)
            routes.append(self.choose(logits)[:, :-1].to(torch.int8).cpu().numpy())
            losses.append(lm.losses(hidden, part))
        self.train(was_training)
        chosen = np.concatenate(routes)
        chosen[~tokens.scored] = -1
        return chosen, np.concatenate(losses)

    def routes(self, lm: LanguageModel, tokens: Tokens | np.ndarray) -> Int8[np.ndarray, "seq position layer"]:
        """The routes this router takes, as in `run`."""
        return self.run(lm, tokens)[0]

    def _check(self, lm: LanguageModel) -> None:
        layers, _, hidden = self.weight.shape
        if (layers, hidden) != (lm.layers, lm.model.config.hidden_size):
            raise ValueError(
                f"a router for {layers} layers of width {hidden}: the model has {lm.layers} of"
                f" {lm.model.config.hidden_size}; it belongs to another model"
            )
        made_for = self.facts.get("model")
        if made_for not in (None, lm.fingerprint):
            raise ValueError(f"a router of model {made_for}: this model is {lm.fingerprint}; train one for it")


@dataclass(frozen=True)
class Stage3:
    """How a router is trained.

    Attributes:
        mixture: the budget.
        tokens: training tokens.
        rows: sequences of a step.
        learning_rate: of AdamW for the router, constant.
        alpha: weight of the budget loss against the cross-entropy in nats; 30 holds the soft budget within about 0.03.
        beta_start, beta_end: sharpness of the soft mixture, raised geometrically.
        train_backbone: also train the model, at a tenth of the learning rate.
        save_every: steps between checkpoints, if there is a folder for them.
        seed: of the initial router.
    """

    mixture: Mixture
    tokens: int = 1_000_000
    rows: int = 8
    learning_rate: float = 3e-3
    alpha: float = 30.0
    beta_start: float = 1.0
    beta_end: float = 10.0
    train_backbone: bool = False
    save_every: int = 100
    seed: int = 0


def budget_loss(
    probabilities: Float[Tensor, "seq token layer choice"], mixture: Mixture
) -> tuple[Float[Tensor, ""], Float[Tensor, " choice"]]:
    """Squared distance of a sequence's mean probabilities from the budget, averaged over the batch; and the mean shares.

    With two choices one share says all, and its square alone is taken; with three the squares are summed.

    Paper: arXiv 2410.10846, section 2, stage 3. Differs: per sequence, see the module.
    """
    means = probabilities.mean((1, 2))
    asked = means.new_tensor([mixture.share(choice) for choice in mixture.choices])
    squares = (means - asked) ** 2
    per_sequence = squares[:, -1] if len(mixture.choices) == 2 else squares.sum(-1)
    return per_sequence.mean(), means.mean(0).detach()


def train(
    lm: LanguageModel, rows: Integer[np.ndarray, "row token"], plan: Stage3, *, checkpoint: Path | None = None
) -> tuple[Router, pd.DataFrame]:
    """Train a router; returns it, in evaluation mode, with its log.

    Args:
        lm: the model; unchanged unless the plan trains the backbone.
        rows: training rows, taken in order from the first, and again.
        plan: what to do.
        checkpoint: a file that training resumes from, if it is there; removed when training ends.

    Returns:
        The router, and a table: step, tokens, loss_nats, budget_loss, beta and share_<choice>.

    Raises:
        ValueError: a loss that is NaN.
    """
    router = Router(lm.layers, lm.model.config.hidden_size, plan.mixture, seed=plan.seed).to(lm.device).train()
    steps = max(1, plan.tokens // (plan.rows * rows.shape[1]))
    groups: list[dict[str, Any]] = [{"params": list(router.parameters()), "lr": plan.learning_rate}]
    if plan.train_backbone:
        groups.append({"params": list(lm.model.parameters()), "lr": plan.learning_rate / 10})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    log, begin = _resume(checkpoint, router, optimizer, lm if plan.train_backbone else None)
    with _frozen(lm.model, frozen=not plan.train_backbone):
        for step in range(begin, steps):
            router.beta.fill_(plan.beta_start * (plan.beta_end / plan.beta_start) ** (step / max(1, steps - 1)))
            log.append(_step(lm, router, optimizer, rows, plan, step))
            if checkpoint and (step + 1) % plan.save_every == 0:
                _save_checkpoint(checkpoint, router, optimizer, log, lm if plan.train_backbone else None)
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    router.facts = {
        "mixture": asdict(plan.mixture),
        "tokens": steps * plan.rows * rows.shape[1],
        "seed": plan.seed,
        "alpha": plan.alpha,
        "model": lm.fingerprint if not plan.train_backbone else None,
    }
    return router.eval(), pd.DataFrame(log)


def _step(
    lm: LanguageModel, router: Router, optimizer: torch.optim.Optimizer, rows: np.ndarray, plan: Stage3, step: int
) -> dict[str, float | int]:
    """One optimizer step; its log record."""
    places = np.arange(step * plan.rows, (step + 1) * plan.rows) % len(rows)
    ids = torch.from_numpy(rows[places].astype(np.int64)).to(lm.device)
    out = lm.model(ids, labels=ids, duo_router=router, use_cache=False)
    budget, shares = budget_loss((router.beta * out.router_logits).softmax(-1), plan.mixture)
    loss = out.loss + plan.alpha * budget
    if not torch.isfinite(loss).item():
        raise ValueError(f"the router's loss is {loss.item()} at step {step}: lower the learning rate")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    names = {SKIP: "share_skip", SMALL: "share_small", BIG: "share_big"}
    return {
        "step": step + 1,
        "tokens": (step + 1) * ids.numel(),
        "loss_nats": out.loss.item(),
        "budget_loss": budget.item(),
        "beta": float(router.beta),
        **{names[choice]: float(share) for choice, share in zip(router.choices, shares)},
    }


@contextmanager
def _frozen(model: nn.Module, *, frozen: bool) -> Iterator[None]:
    """No gradients for the backbone's parameters."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(not frozen)
    try:
        yield
    finally:
        for parameter, needed in before:
            parameter.requires_grad_(needed)


def _save_checkpoint(
    path: Path, router: Router, optimizer: torch.optim.Optimizer, log: list[dict], lm: LanguageModel | None
) -> None:
    state = {"router": router.state_dict(), "optimizer": optimizer.state_dict(), "log": log}
    if lm is not None:
        state["model"] = lm.model.state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def _resume(
    path: Path | None, router: Router, optimizer: torch.optim.Optimizer, lm: LanguageModel | None
) -> tuple[list[dict[str, float | int]], int]:
    """The log so far and the step to go on with."""
    if path is None or not path.is_file():
        return [], 0
    state = torch.load(path, weights_only=True)
    router.load_state_dict(state["router"])
    optimizer.load_state_dict(state["optimizer"])
    if lm is not None:
        lm.model.load_state_dict(state["model"])
    return state["log"], len(state["log"])


def calibrate(router: Router, lm: LanguageModel, tokens: Tokens | np.ndarray, *, rounds: int = 4) -> Router:
    """Set the router's offsets so that its hard choices meet the budget on calibration text.

    One number per choice but the last, each found by bisection on the realised share of a whole forward pass (a choice
    changes the inputs of later layers and tokens, so the shares of the logits alone would not do).

    Args:
        router: changed in place and returned; `facts["calibrated"]` tells the shares met.
        lm: its model.
        tokens: calibration text.
        rounds: passes over the choices, where there are three.
    """
    with torch.no_grad():
        router.offset.zero_()
        free = range(1, len(router.choices))
        for _ in range(rounds if len(router.choices) > 2 else 1):
            for index in free:
                low, high = -20.0, 20.0
                for _ in range(24):
                    router.offset[index] = (low + high) / 2
                    share = _share(router.routes(lm, tokens), router.choices[index])
                    if share < router.mixture.share(router.choices[index]):
                        low = (low + high) / 2
                    else:
                        high = (low + high) / 2
    router.facts["calibrated"] = realised(router.routes(lm, tokens))
    return router


def realised(routes: Int8[np.ndarray, "seq position layer"]) -> dict[str, float]:
    """Shares of the three choices over scored positions and layers."""
    return {name: _share(routes, choice) for name, choice in (("big", BIG), ("small", SMALL), ("skip", SKIP))}


def _share(routes: np.ndarray, choice: int) -> float:
    return float((routes[routes[..., 0] >= 0] == choice).mean())


def save(router: Router, folder: Path | str) -> None:
    """Write `router.safetensors` and `router.json`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in router.state_dict().items()}, folder / "router.safetensors")
    facts = {**router.facts, "mixture": asdict(router.mixture)}
    (folder / "router.json").write_text(json.dumps(facts, indent=1) + "\n")


def load(folder: Path | str) -> Router:
    """A saved router, in evaluation mode.

    Raises:
        FileNotFoundError: no router in the folder.
        ValueError: a damaged file, named.
    """
    folder = Path(folder)
    for name in ("router.json", "router.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"router {folder}: there is no {name}")
    try:
        facts = json.loads((folder / "router.json").read_text())
        state = load_file(folder / "router.safetensors")
        layers, _, hidden = state["weight"].shape
        router = Router(layers, hidden, Mixture(**facts["mixture"]))
        router.load_state_dict(state)
    except (json.JSONDecodeError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"router {folder} is damaged: {error}") from error
    router.facts = facts
    return router.eval()
