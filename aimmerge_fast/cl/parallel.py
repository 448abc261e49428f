"""Several processes on one run (``torchrun``), by way of Accelerate's process state.

Every rank holds the same adapter and draws the same batches. Training rows are dealt out and the
gradients added; the memory's rows (probes, memory steps) pass through every rank alike, so every
rank comes to the same decisions and weights without another collective.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")


class Ranks:
    """This process among those of the run.

    Attributes: rank, world; device: where its model goes.
    """

    def __init__(self) -> None:
        from accelerate import PartialState

        state = PartialState()
        self.rank: int = state.process_index
        self.world: int = state.num_processes
        self.device: torch.device = state.device
        self._state = state

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This rank's part of ``items``: each ``world``-th."""
        return list(items[self.rank :: self.world])

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sum the gradients over the ranks, as one collective; one process does nothing."""
        if self.world == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.reshape(-1).float() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        for parameter, total in zip(
            parameters, flat.split([g.numel() for g in gradients]), strict=True
        ):
            parameter.grad = total.view_as(parameter).to(parameter.dtype)

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks of what each holds its share of."""
        if self.world > 1:
            torch.distributed.all_reduce(value)
        return value

    def gather(self, items: Sequence[Item], length: int) -> list[Item]:
        """Undo ``share`` for a sequence of ``length`` items, on every rank."""
        if self.world == 1:
            return list(items)
        parts: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(parts, list(items))
        return [parts[place % self.world][place // self.world] for place in range(length)]

    def wait(self) -> None:
        """Until all ranks are here."""
        self._state.wait_for_everyone()
