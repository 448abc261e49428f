"""The order of training batches: a pure function of the step number."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def batch_at(
    records: Sequence[T],
    step: int,
    size: int,
    seed: int | str,
    lengths: Sequence[int] | None = None,
    window: int = 0,
) -> list[T]:
    """The batch of update ``step`` (from 1).

    Every epoch is a new seeded permutation; its last partial batch is dropped (records fewer than
    ``size`` make one smaller batch). Having no iterator state, an interrupted run finds its place
    by the step number alone.

    With ``lengths`` (one per record) and ``window`` > 1, the records of that many consecutive
    batches are dealt out by length, and the batches taken in a seeded order: an epoch trains on
    the same records as without, with less padding.
    """
    if step < 1 or size < 1:
        raise ValueError(f"step={step} and size={size} must be at least 1")
    if not records:
        raise ValueError("no records to draw a batch from")
    if lengths is not None and len(lengths) != len(records):
        raise ValueError(f"{len(lengths)} lengths for {len(records)} records")
    per_epoch = max(1, len(records) // size)
    epoch, place = divmod(step - 1, per_epoch)
    order = _permutation(len(records), f"{seed}/{epoch}")
    if lengths is None or window < 2:
        return [records[i] for i in order[place * size : (place + 1) * size]]
    first = place // window * window
    batches = min(window, per_epoch - first)
    near = sorted(order[first * size : (first + batches) * size], key=lengths.__getitem__)
    turn = _permutation(batches, f"{seed}/{epoch}/{first}")[place - first]
    return [records[i] for i in near[turn * size : (turn + 1) * size]]


@functools.lru_cache(maxsize=64)
def _permutation(count: int, seed: str) -> tuple[int, ...]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return tuple(order)
