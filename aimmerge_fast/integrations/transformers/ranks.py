"""What the Trainer's processes do as one: all of them succeed, or all of them raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from transformers import TrainingArguments

T = TypeVar("T")


def smallest(args: TrainingArguments, value: int) -> int:
    """The smallest ``value`` of all processes, which all call this."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return value
    cell = torch.tensor(value, dtype=torch.int64, device=args.device)
    dist.all_reduce(cell, op=dist.ReduceOp.MIN)
    return int(cell)


def as_one(args: TrainingArguments, action: Callable[[], T]) -> T:
    """Do ``action`` on every process; what it raises on one is an error on all of them."""
    error: Exception | None = None
    try:
        result = action()
    except Exception as caught:
        error = caught
    good = smallest(args, int(error is None))
    if error is not None:
        raise error
    if not good:
        raise RuntimeError("another process raised here; its message says why")
    return result


def main_does(args: TrainingArguments, action: Callable[[], object]) -> None:
    """``as_one``, with something to do only for the process that saves."""
    as_one(args, action if args.should_save else lambda: None)
