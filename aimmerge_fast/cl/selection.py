"""``select="best"``: the state with the lowest dev loss over the seen tasks is a stage's result."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aimmerge_fast.cl.data import TaskData
from aimmerge_fast.cl.methods.base import Trainee
from aimmerge_fast.cl.parallel import Ranks


class Best:
    """The best state so far; a later one must be strictly lower (algorithm.md A.3, end of task)."""

    def __init__(self, trainee: Trainee, ranks: Ranks) -> None:
        self._trainee, self._ranks = trainee, ranks
        self.loss: float | None = None
        self.step = 0
        self._tensors: list[Tensor] = []

    def reset(self) -> None:
        """A stage begins."""
        self.loss, self.step, self._tensors = None, 0, []

    def offer(self, tasks: Sequence[TaskData], step: int) -> None:
        """Keep the present adapter if its dev loss is the lowest so far."""
        loss = self._ranks.from_main(lambda: dev_loss(self._trainee, tasks))
        if self.loss is None or loss < self.loss:
            self.loss, self.step = loss, step
            self._tensors = [p.detach().clone() for p in self._trainee.parameters()]

    def restore(self) -> None:
        """Put the best state back; nothing was offered: the last state stays."""
        with torch.no_grad():
            for parameter, best in zip(self._trainee.parameters(), self._tensors, strict=False):
                parameter.copy_(best)

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "step": self.step, "tensors": self._tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.loss, self.step = state["loss"], state["step"]
        device = self._trainee.device
        self._tensors = [tensor.to(device) for tensor in state["tensors"]]


def dev_loss(trainee: Trainee, tasks: Sequence[TaskData]) -> float:
    """Mean cross-entropy of answer tokens over up to ``select_items`` dev records of each task.

    Records are drawn with seed 42, as the authors' code does; without dropout, batches of 8.
    """
    chosen = []
    for task in tasks:
        items = min(trainee.config.select_items, len(task.dev))
        chosen += random.Random(42).sample(task.dev, items)
    if not chosen:
        raise ValueError("select='best' needs dev records; no task has any")
    was_training, total, tokens = trainee.model.training, 0.0, 0
    trainee.model.eval()
    try:
        with torch.no_grad():
            for at in range(0, len(chosen), 8):
                batch = trainee.collate(chosen[at : at + 8])
                loss, count = trainee.loss.total(trainee.model, batch)
                total, tokens = total + float(loss), tokens + count
    finally:
        trainee.model.train(was_training)
    return total / tokens
