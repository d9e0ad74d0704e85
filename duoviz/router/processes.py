"""A router trained by several processes under torchrun: each reads its part of a step's rows, and gradients are averaged."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def together() -> Iterator[bool]:
    """Join the other processes of torchrun, if there are any; tells whether this one is the first, which writes.

    All of them leave at the same time.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())  # takes the device of this process, too
    try:
        yield state.is_main_process
        state.wait_for_everyone()
    finally:
        state.destroy_process_group()  # a process that ends with its group open may crash


def number() -> int:
    """How many there are."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def averaged(x: Tensor) -> Tensor:
    """The mean over the processes."""
    if number() == 1:
        return x
    total = x.detach().clone()
    torch.distributed.all_reduce(total)
    return total / number()
