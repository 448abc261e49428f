"""What all arms share, and the arms without AIM: plain LoRA and LoRAReplay.

Every arm starts from the same adapter, optimiser and random state and trains on the same task
batches in the same order; ``replay`` alone draws its batches from the union of task and memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from aimmerge_fast.memory import RehearsalMemory
from training import models
from training.data import Bank, Batch, Order, memory_of, share
from training.graphs import Graphed
from training.settings import CLIP, LEARNING_RATE, RECORDS, Settings


@dataclasses.dataclass
class Used:
    """What an arm did in a block: rows it rehearsed, merges, waits, and the engine's host time.

    ``history_rows`` went forward only, ``memory_rows`` forward and backward. ``task_rows`` are
    those of the task in the order in which they were trained on.
    """

    history_rows: int = 0
    memory_rows: int = 0
    merges: int = 0
    memory_steps: int = 0
    waits: int = 0
    engine_seconds: float = 0.0
    task_rows: list[int] = dataclasses.field(default_factory=list)


class Setup:
    """One model and one bank, shared by all arms of a backbone, which run one at a time."""

    def __init__(self, name: str, model: Any, bank: Bank, settings: Settings) -> None:
        self.name, self.model, self.bank, self.settings = name, model, bank, settings
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.memory: RehearsalMemory = memory_of(settings.past_tasks, settings.seed)
        kept = self.memory.stream("all").draw(len(self.memory))
        self.memory_row_numbers: list[int] = [record["row"] for record in kept]
        self.order = Order(range(RECORDS), settings.batch, settings.seed)
        self._start = [p.detach().clone() for p in self.parameters]

    def reset(self) -> None:
        """The adapter and torch's random state as they were at the start."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self._start, strict=True):
                parameter.copy_(value)
                parameter.grad = None
        torch.manual_seed(self.settings.seed)

    def theta(self) -> str:
        """sha256 of the adapter's bits."""
        digest = hashlib.sha256()
        for parameter in self.parameters:
            digest.update(parameter.detach().cpu().numpy().tobytes())
        return digest.hexdigest()


def set_up(name: str, settings: Settings, device: torch.device, dtype: torch.dtype) -> Setup:
    """The backbone with random weights and the rows of its task and past tasks."""
    model = models.build(name, settings.layers, dtype, device, settings.seed)
    model = Graphed(model) if settings.graphs else model
    return Setup(name, model, _bank(name, settings, device, models.vocabulary(name)), settings)


def set_up_small(name: str, settings: Settings, device: torch.device) -> Setup:
    """The same with a small model of the family, for checks."""
    model = models.build_small(name, device, settings.seed)
    return Setup(name, model, _bank(name, settings, device, models.SMALL_VOCABULARY), settings)


def _bank(name: str, settings: Settings, device: torch.device, vocabulary: int) -> Bank:
    targets = max(1, settings.seq // 8) if models.is_seq2seq(name) else 0
    rows = RECORDS * (1 + settings.past_tasks)
    return Bank(rows, settings.seq, targets, vocabulary, device)


class Arm:
    """Plain LoRA, and what the others change about it."""

    name = "plain"
    title = "plain LoRA"

    def __init__(self, setup: Setup) -> None:
        self.setup, self.settings = setup, setup.settings
        self.optimizer = torch.optim.AdamW(
            setup.parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True
        )
        self.used = Used()

    @property
    def stretch(self) -> float:
        """Steps that this arm needs for as many task rows as plain LoRA trains on in one."""
        return 1.0

    def warm_up(self) -> None:
        """One update as of an earlier task: the optimiser makes its moments."""
        self.update(self.setup.bank.batch(self.setup.order.at(0)))

    def task(self) -> AbstractContextManager[Any]:
        """Around the steps of the task; what it does on entry and exit is not timed."""
        return contextlib.nullcontext()

    def step(self, number: int) -> None:
        """Update ``number`` of the task, counted from 0."""
        rows = self.setup.order.at(number)
        self.used.task_rows += rows
        self.update(self.setup.bank.batch(rows))

    def update(self, batch: Batch) -> Tensor:
        """One optimiser update; returns the loss, detached."""
        loss = self.backward(batch)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def backward(self, batch: Batch) -> Tensor:
        """Forward, backward and clipping; returns the loss, detached."""
        loss: Tensor = self.setup.model(**batch).loss
        loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
        torch.nn.utils.clip_grad_norm_(self.setup.parameters, CLIP)
        return loss.detach()


class Mixed(Arm):
    """LoRAReplay as the paper's baseline: each memory row once per epoch, among the task's."""

    name = "replay"
    title = "LoRAReplay, 2 % memory mixed in"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        pool = [*range(RECORDS), *setup.memory_row_numbers]
        self._order = Order(pool, self.settings.batch, self.settings.seed)

    @property
    def stretch(self) -> float:
        return self.settings.mixed_stretch

    def step(self, number: int) -> None:
        rows = self._order.at(number)
        of_task = [row for row in rows if row < RECORDS]
        self.used.task_rows += of_task
        self.used.memory_rows += len(rows) - len(of_task)
        self.update(self.setup.bank.batch(rows))


class Matched(Arm):
    """LoRAReplay with as much rehearsal as AIM: its rows ride in every batch."""

    name = "matched"
    title = "LoRAReplay, rehearsal matched"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._stream = setup.memory.stream("matched")

    def step(self, number: int) -> None:
        rows = self.setup.order.at(number)
        self.used.task_rows += rows
        wanted = share(number, self.settings.matched_rows)
        memory = []
        while len(memory) < wanted:  # a draw never gives more than the memory holds
            records = self._stream.draw(wanted - len(memory))
            memory += [record["row"] for record in records]
        self.used.memory_rows += len(memory)
        self.update(self.setup.bank.batch(rows + memory))
