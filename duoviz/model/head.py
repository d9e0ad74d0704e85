"""The head of a model in float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .products import product


@dataclass(frozen=True)
class Head:
    """Final norm and language-model head in float32, whatever the model's dtype.

    A minimum over thousands of routes is biased down by rounding noise, so nothing here is computed in less.

    Attributes:
        norm: the model's final norm.
        weight: float32 `[vocab, hidden]`, times what the family multiplies its logits by.
        bias: float32 `[vocab]`, or None.
        cap: logits z are softly capped at it, `cap tanh(z / cap)`; None where they are not.
    """

    norm: nn.Module
    weight: Float[Tensor, "vocab hidden"]
    bias: Float[Tensor, " vocab"] | None
    cap: float | None = None

    def logits(self, hidden: Float[Tensor, "*any hidden"]) -> Float[Tensor, "*any vocab"]:
        """Logits of the last layer's output, before the final norm."""
        normed = self.norm(hidden.to(self.weight.device, torch.float32))
        return self.capped(product(normed, self.weight, self.bias))

    def capped(self, logits: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """Logits from what the linear map makes."""
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap
