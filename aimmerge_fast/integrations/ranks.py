"""What the processes of a training do as one: all of them succeed, or all of them raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def smallest(device: torch.device, value: int) -> int:
    """The smallest ``value`` of all processes, which all call this; exchanged on ``device``."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return value
    cell = torch.tensor(value, dtype=torch.int64, device=device)
    dist.all_reduce(cell, op=dist.ReduceOp.MIN)
    return int(cell)


def as_one(device: torch.device, action: Callable[[], T]) -> T:
    """Do ``action`` on every process; what it raises on one is an error on all of them."""
    error: Exception | None = None
    try:
        result = action()
    except Exception as caught:
        error = caught
    good = smallest(device, int(error is None))
    if error is not None:
        raise error
    if not good:
        raise RuntimeError("another process raised here; its message says why")
    return result


def main_does(device: torch.device, is_main: bool, action: Callable[[], object]) -> None:
    """``as_one``, with something to do only for the process that saves."""
    as_one(device, action if is_main else lambda: None)
