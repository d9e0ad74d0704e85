"""Linear maps on the CPU by oneDNN, not by the BLAS that PyTorch was built with.

On an AMD EPYC, one thread, 64 to 4,096 rows of 576 x 1,536: MKL 105 GFLOP/s, oneDNN 220 to 250. Results differ by rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FEWEST = 16
"""Rows from which on oneDNN takes over: it lays out the weights anew at each call."""


def available() -> bool:
    """Whether this build of PyTorch offers oneDNN's products."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(
    x: Float[Tensor, "*row inner"], weight: Float[Tensor, "outer inner"], bias: Float[Tensor, " outer"] | None = None
) -> Float[Tensor, "*row outer"]:
    """`torch.nn.functional.linear`, by oneDNN where that is faster: float32 on the CPU, without gradients."""
    if (
        type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() >= FEWEST * max(1, x.shape[-1])
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and available()
    ):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return nn.functional.linear(x, weight, bias)


class Products(TorchFunctionMode):
    """Inside, `torch.nn.functional.linear` is `product`, in whatever module it is called; in this thread alone."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.linear and not kwargs:
            return product(*args)
        return func(*args, **(kwargs or {}))
