"""Rows of random tokens for a task and its past, and the order in which the arms train on them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from aimmerge_fast.memory import RehearsalMemory
from training.settings import MEMORY_RATIO, RECORDS

Batch = dict[str, Tensor]


class Bank:
    """Every row of a run, tokenised once and kept on the device, all of the same length.

    A row is a number: the task's are 0 … RECORDS - 1, those of past task k follow from
    (k + 1) * RECORDS on. ``targets`` 0: the labels are the tokens themselves.
    """

    def __init__(
        self, rows: int, tokens: int, targets: int, vocabulary: int, device: torch.device
    ) -> None:
        generator = torch.Generator().manual_seed(rows)

        def draw(length: int) -> Tensor:
            # not 0: T5 takes it for padding
            return torch.randint(1, vocabulary, (rows, length), generator=generator)

        self.inputs_on_host = draw(tokens)
        self.labels_on_host = draw(targets) if targets else self.inputs_on_host
        self._inputs = list(self.inputs_on_host.to(device))
        self._labels = list(self.labels_on_host.to(device))

    def batch(self, rows: Sequence[int]) -> Batch:
        """The model's inputs for these rows; one kernel per tensor and nothing from the host."""
        return {
            "input_ids": torch.stack([self._inputs[row] for row in rows]),
            "labels": torch.stack([self._labels[row] for row in rows]),
        }

    def collate(self, records: Iterable[Any]) -> Batch:
        """``batch`` of records as the memory hands them out."""
        return self.batch([record["row"] for record in records])


def memory_of(past_tasks: int, seed: int) -> RehearsalMemory:
    """2 % of each past task."""
    memory = RehearsalMemory(ratio=MEMORY_RATIO, seed=seed)
    for past in range(past_tasks):
        first = (past + 1) * RECORDS
        memory.add(f"past {past}", [{"row": first + record} for record in range(RECORDS)])
    return memory


class Order:
    """Batches of a pool of rows, epoch after epoch, each epoch a permutation of its own."""

    def __init__(self, pool: Sequence[int], batch: int, seed: int) -> None:
        self._pool, self._batch, self._seed = list(pool), batch, seed
        self._epochs: dict[int, list[int]] = {}

    def at(self, step: int) -> list[int]:
        """The rows of update ``step``, counted from 0."""
        first, size = step * self._batch, len(self._pool)
        return [
            self._row(position // size, position % size)
            for position in range(first, first + self._batch)
        ]

    def _row(self, epoch: int, position: int) -> int:
        if epoch not in self._epochs:
            shuffled = list(self._pool)
            random.Random(f"{self._seed}/{epoch}").shuffle(shuffled)
            self._epochs[epoch] = shuffled
        return self._epochs[epoch][position]


def share(step: int, rows_per_step: float) -> int:
    """Whole rows of one step, so that the first n steps together have floor(n * rows_per_step)."""
    return int((step + 1) * rows_per_step) - int(step * rows_per_step)
