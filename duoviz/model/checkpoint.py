"""Weights: their digest, and the files that a training which was cut off goes on from."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..places import replaced

Log = list[dict[str, float | int]]
"""One record per step."""


class Checkpoint:
    """The file a killed training resumes from.

    Args:
        path: the file; with None nothing is kept.
        training: all that must be the same when it resumes.
        modules: what is trained, by name.
    """

    def __init__(self, path: Path | None, training: dict[str, Any], modules: dict[str, nn.Module]) -> None:
        self.path, self.training, self.modules = path, training, modules

    def write(self, optimizer: torch.optim.Optimizer, log: Log) -> None:
        """Keep the state of now in place of what is kept."""
        if self.path is None:
            return
        states = {name: module.state_dict() for name, module in self.modules.items()}
        state = {"training": self.training, **states, "optimizer": optimizer.state_dict(), "log": log}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replaced(self.path, lambda partial: torch.save(state, partial))

    def read(self, optimizer: torch.optim.Optimizer) -> Log:
        """Set everything to the state kept; returns the log until then, empty where there is no file.

        Raises:
            ValueError: a damaged file, or one of another training.
        """
        if self.path is None:
            return []
        for half_written in self.path.parent.glob(f"{self.path.name}.*.partial"):  # by a process that was killed
            half_written.unlink()
        if not self.path.is_file():
            return []
        try:
            state = torch.load(self.path, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"checkpoint {self.path} is damaged ({error}): delete it to start again") from error
        kept = state.get("training", {})
        differ = {k: (kept.get(k), asked) for k, asked in self.training.items() if kept.get(k) != asked}
        if differ:
            raise ValueError(
                f"checkpoint {self.path} is of another training, (kept, asked) = {differ}: ask for the same, or delete it"
            )
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        optimizer.load_state_dict(state["optimizer"])
        return state["log"]


def digest(weights: Mapping[str, Tensor], said: str = "") -> str:
    """Twelve hexadecimal digits that change with weights, rounded to bfloat16, with their names, and with what is said."""
    made = hashlib.sha256(said.encode())
    for name, tensor in sorted(weights.items()):
        made.update(name.encode())
        rounded = tensor.detach().cpu().to(torch.bfloat16).contiguous()
        made.update(rounded.reshape(-1).view(torch.uint8).numpy().tobytes())
    return made.hexdigest()[:12]
