"""How drawn memory records pass through the model: dealt out to ranks, cut into micro-batches.

The records of a batch do not depend on the number of ranks, and losses are weighed by the items
that they are means of, so the loss and the gradient are those of the whole batch in one process.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aimmerge_fast.distributed import Processes

Batch = Any
Collate = Callable[[list[Any]], Batch]
LossFn = Callable[[Any, Batch], Tensor]
Items = Callable[[Batch], Tensor | float]

IGNORED = -100  # the label that Hugging Face's losses leave out


def default_loss(model: Any, batch: Batch) -> Tensor:
    """``model(**batch).loss``, as Hugging Face models return it."""
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"collate returned {type(batch).__name__}; without loss_fn it must return a dict of "
            "the model's inputs"
        )
    loss = getattr(model(**batch), "loss", None)
    if not isinstance(loss, Tensor):
        raise TypeError(
            "the model's output has no .loss; include labels in the batch or pass "
            "loss_fn=lambda model, batch: …"
        )
    return loss


class HistoryLoss(NamedTuple):
    """A rank's share of a history loss: the sum of ``total`` over that of ``items`` is the mean.

    items None: ``total`` is the mean already.
    """

    total: Tensor
    items: Tensor | float | None


class Part(NamedTuple):
    """One pass: ``batch()`` makes its batch.

    items: what its mean loss is a mean of; 0 where the rank has no record and repeats another's.
    weight: of its loss in the gradient of the whole batch; None: it is the whole batch.
    """

    batch: Callable[[], Batch]
    items: Tensor | float
    weight: Tensor | float | None


class Passes:
    """Cuts batches of records.

    Args:
        collate: list of records -> batch.
        loss_fn: (model, batch) -> scalar mean loss.
        items: batch -> how many items that mean is over; by default labels that are not -100 where
            a dict has ``labels`` (not those of a first position that is not predicted), else
            records.
        micro_batch: records of a pass at most.
        processes: who share a batch.
        shifted: whether the first position of a row of labels is not predicted.
    """

    def __init__(
        self,
        collate: Collate,
        loss_fn: LossFn,
        items: Items | None,
        micro_batch: int | None,
        processes: Processes,
        shifted: bool,
    ) -> None:
        whole = isinstance(micro_batch, int) and not isinstance(micro_batch, bool)
        if micro_batch is not None and (not whole or micro_batch < 1):
            raise ValueError(f"micro_batch={micro_batch!r} must be an integer of at least 1")
        self._collate, self.loss_fn, self._items = collate, loss_fn, items
        self._size, self.processes, self._shifted = micro_batch, processes, shifted
        #: Whether more is collated than a rank's own next pass: then under a stream of its own.
        self.deals = micro_batch is not None or not processes.alone

    def deal(self, records: list[Any]) -> list[Part]:
        """This rank's passes; as many on every rank, so that all meet in each backward pass."""
        world, rank = self.processes.world, self.processes.rank
        size = self._size or len(records)
        if world == 1 and len(records) <= size:
            return [Part(lambda: self._collate(records), len(records), None)]
        shares = [records[r::world] for r in range(world)]
        starts = range(0, len(shares[0]), size)
        cut = [[share[at : at + size] for at in starts] for share in shares]
        batches = [[self._collate(part or records[:1]) for part in parts] for parts in cut]
        items = [
            [self._count(batch, part) for batch, part in zip(*pair, strict=True)]
            for pair in zip(batches, cut, strict=True)
        ]
        counted = sum(count for counts in items for count in counts)
        total = counted if isinstance(counted, Tensor) else counted or math.nan  # 0: a mean of none
        good = _first_with_items(batches, items)  # 0 times a mean of nothing would be no number
        parts = []
        for batch, count in zip(batches[rank], items[rank], strict=True):
            passed = batch if isinstance(count, Tensor) or count else good
            parts.append(Part(functools.partial(_the, passed), count, count * world / total))
        return parts

    def added(self, losses: Iterable[tuple[Tensor, Tensor | float]]) -> HistoryLoss:
        """The sum of mean losses, each times its items, and of those items."""
        (first, items), *rest = losses
        if not rest and self.processes.alone:
            return HistoryLoss(first, None)
        total = weighed(first, items)
        for loss, count in rest:
            total, items = total + weighed(loss, count), items + count
        return (
            HistoryLoss(total / items, None) if self.processes.alone else HistoryLoss(total, items)
        )

    def _count(self, batch: Batch, records: list[Any]) -> Tensor | float:
        if not records:
            return 0
        if self._items is not None:
            return self._items(batch)
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if not isinstance(labels, Tensor):
            return len(records)
        if self._shifted and labels.dim() == 2:
            labels = labels[:, 1:]
        count = (labels != IGNORED).sum()
        return count if labels.is_cuda else int(count)


def _the(batch: Batch) -> Batch:
    return batch


def _first_with_items(batches: list[list[Batch]], items: list[list[Any]]) -> Batch:
    for row, counts in zip(batches, items, strict=True):
        for batch, count in zip(row, counts, strict=True):
            if isinstance(count, Tensor) or count:
                return batch
    return batches[0][0]


def weighed(loss: Tensor, items: Tensor | float) -> Tensor:
    """() fp64; 0 where there are no items, of which the mean is no number."""
    if isinstance(items, Tensor):
        items = items.to(loss.device, non_blocking=True)
        return torch.where(items > 0, loss.double() * items, 0.0)
    return loss.double() * items if items else torch.zeros_like(loss, dtype=torch.float64)


def shifts_labels(model: Any) -> bool:
    """Whether a Hugging Face model predicts each label from what stands before it."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    return getattr(model, "loss_type", None) in ("ForCausalLM", "ForConditionalGeneration")


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The tensors of a batch (nested dicts, lists, tuples) on ``device``, without a wait.

    What goes to a GPU goes through page-locked memory: a copy from anywhere else may wait for all
    that the stream still has to do, sync-debug mode silent.
    """
    if isinstance(batch, Tensor):
        if batch.device == device:
            return batch
        locked = batch.device.type == "cpu" and device.type == "cuda"
        return (batch.pin_memory() if locked else batch).to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
