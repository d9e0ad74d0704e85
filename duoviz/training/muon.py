"""Muon: momentum whose matrix updates are made orthogonal; beside it AdamW for what is no hidden matrix.

On the tiny preset, after 0.5 M tokens, the training loss was 5.68 nats with it and 6.31 with AdamW. Source: Jordan et al. 2024,
"Muon: an optimizer for hidden layers"; the scale of the update follows Liu et al., arXiv 2502.16982, equation 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration, whose slope at 0 is steep: five steps take singular values from 0.01 on to about 1."""
FASTER = 2.0
"""Learning rate of the matrices over that of the rest; measured on the tiny preset."""


class Muon(torch.optim.AdamW):
    """AdamW, but for the hidden matrices, which get Muon's update.

    Differs: from `torch.optim.Muon`, which works in bfloat16 and on one matrix at a time: on CPUs without bfloat16 products that
    took longer than the step itself. Here it is float32, and the matrices of one shape (those of all layers) go together.

    Args:
        matrices: parameters `[out, in]` of the hidden layers.
        rest: embeddings, norms and biases; they do not decay.
        lr: of the rest; that of the matrices is `FASTER` times as high.
        momentum: of the matrices (Nesterov).
        weight_decay: of the matrices.
        betas: of AdamW.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        rest: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> None:
        groups: list[dict[str, Any]] = [
            {"params": list(matrices), "lr": FASTER * lr, "weight_decay": weight_decay, "momentum": momentum},
            {"params": list(rest), "lr": lr, "weight_decay": 0.0, "momentum": None},
        ]
        super().__init__(groups, betas=betas)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step; `AdamW` takes no notice of parameters without a gradient, so the matrices' are gone when its turn comes."""
        matrices = self.param_groups[0]
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in matrices["params"]:
            if parameter.grad is not None:
                by_shape.setdefault(parameter.shape, []).append(parameter)
        for same in by_shape.values():
            self._step_together(same, matrices)
        taken = [(parameter, parameter.grad) for parameter in matrices["params"]]
        for parameter, _ in taken:
            parameter.grad = None
        loss = super().step(closure)
        for parameter, gradient in taken:
            parameter.grad = gradient
        return loss

    def _step_together(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Matrices of one shape."""
        for parameter in parameters:  # `step` is what AdamW looks for when a state is loaded
            if not self.state[parameter]:
                self.state[parameter].update(step=torch.zeros(()), momentum_buffer=torch.zeros_like(parameter))
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        gradients = torch.stack([parameter.grad for parameter in parameters])  # type: ignore[misc]
        torch._foreach_lerp_(buffers, list(gradients), 1 - group["momentum"])
        updates = orthogonal(torch.lerp(gradients, torch.stack(buffers), group["momentum"]))
        # an orthogonal matrix [a, b] has entries of RMS max(a, b)^-0.5; AdamW's updates have about 0.2
        scale = 0.2 * max(parameters[0].shape) ** 0.5
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(updates), alpha=-group["lr"] * scale)


def orthogonal(matrices: Float[Tensor, "*any out in"], steps: int = 5) -> Float[Tensor, "*any out in"]:
    """Nearly the orthogonal matrix next to each: all singular values between about 0.7 and 1.2."""
    a, b, c = COEFFICIENTS
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = (matrices if wide else matrices.mT).float()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrices.dtype)
