"""Linear maps on the CPU by oneDNN, not by the BLAS that PyTorch was built with.

On an AMD EPYC, one thread, 64 to 4,096 rows of 576 x 1,536: MKL 105 GFLOP/s, oneDNN 220 to 250. Results differ by rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FEWEST, LAID_OUT = 16, 4
"""Rows from which on oneDNN is faster: where it lays out the weights at each call, and where that is done before."""
ROWS = 1024
"""Rows that the weights' layout is chosen for."""
LARGEST = 2**28
"""Parameters of a model whose weights are laid out before: they are copied."""


@cache
def available() -> bool:
    """Whether this build of PyTorch offers oneDNN's products."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(
    x: Float[Tensor, "*row inner"],
    weight: Float[Tensor, "outer inner"],
    bias: Float[Tensor, " outer"] | None = None,
    laid_out: dict[int, Tensor | None] | None = None,
) -> Float[Tensor, "*row outer"]:
    """`torch.nn.functional.linear`, by oneDNN where that is faster: float32 on the CPU, without gradients.

    Args:
        x, weight, bias: of the linear map.
        laid_out: weights as oneDNN wants them, by the id of the weight; None where that is to be made. Another weight is laid out
            at each call: one that is computed, such as that of a parametrised module, has an id for a moment only.
    """
    known = laid_out is not None and id(weight) in laid_out
    if (
        type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() >= (LAID_OUT if known else FEWEST) * max(1, x.shape[-1])
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and available()
    ):
        if laid_out is not None and known:
            made = laid_out[id(weight)]
            if made is None:
                made = laid_out[id(weight)] = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
            weight = made
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return nn.functional.linear(x, weight, bias)


class Products(TorchFunctionMode):
    """Inside, `torch.nn.functional.linear` is `product`, in whatever module it is called; in this thread alone.

    Args:
        of: a model that runs again and again, whose weights do not change meanwhile: they are laid out once, if they are few
            enough.
    """

    def __init__(self, of: nn.Module | None = None) -> None:
        super().__init__()
        self._of = [] if of is None else list(of.parameters())  # alive, so that their ids are theirs
        few = sum(one.numel() for one in self._of) <= LARGEST
        self._laid_out: dict[int, Tensor | None] = {id(one): None for one in self._of if few and one.ndim == 2}

    @no_type_check  # called by every function of torch, also by those that check shapes
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.linear and not kwargs:
            x, weight, bias = args if len(args) == 3 else (*args, None)
            return product(x, weight, bias, self._laid_out)
        return func(*args, **(kwargs or {}))
