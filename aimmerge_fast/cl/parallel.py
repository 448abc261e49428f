"""Several processes on one run (``torchrun``), by way of Accelerate's process state.

Every rank holds the same adapter and draws the same batches. Training rows are dealt out and the
gradients added; the memory's rows (probes, memory steps) pass through every rank alike. What they
give is taken from rank 0, so ranks stay equal where kernels do not repeat their bits. Rank 0 alone
reads and writes the run's files: another rank may see them later, or not at all.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

Item = TypeVar("Item")
Made = TypeVar("Made")


class Ranks:
    """This process among those of the run: one per GPU, or CPU processes where there is none.

    Attributes: rank, world; device: where its model goes.

    Raises: ValueError when a machine is given more processes than it has GPUs.
    """

    def __init__(self) -> None:
        from accelerate import PartialState

        on_cpu = not torch.cuda.is_available()
        if not on_cpu:
            _require_devices(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count())
        known = PartialState._shared_state
        first = not known
        state = PartialState(cpu=on_cpu)  # without cpu=True, ranks without a GPU would not meet
        self.rank: int = state.process_index
        self.world: int = state.num_processes
        self.device: torch.device = state.device
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        if first and self.world > 1:
            atexit.register(state.destroy_process_group)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def from_main(self, make: Callable[[], Made]) -> Made:
        """What ``make()`` gives on rank 0, on every rank; its error is raised on every rank."""
        if self.world == 1:
            return make()
        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box[0] = make()
            except Exception as error:
                box[1] = error
        torch.distributed.broadcast_object_list(box)
        if box[1] is not None:
            raise box[1]
        made: Made = box[0]
        return made

    # ---- training --------------------------------------------------------------------------

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sum the gradients over the ranks, as one collective; one process does nothing."""
        if self.world > 1:
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            _together(parameters, torch.distributed.all_reduce)

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks of what each holds its share of."""
        if self.world > 1:
            torch.distributed.all_reduce(value)
        return value

    def of_main(self, value: torch.Tensor) -> torch.Tensor:
        """Rank 0's value of what all ranks computed alike."""
        if self.world > 1:
            value = value.clone()
            torch.distributed.broadcast(value, 0)
        return value

    @contextlib.contextmanager
    def equal_steps(self) -> Iterator[None]:
        """Every optimiser step inside, the memory's too, takes the gradients of rank 0."""
        if self.world == 1:
            yield
            return
        hook = register_optimizer_step_pre_hook(_gradients_of_main)
        try:
            yield
        finally:
            hook.remove()

    # ---- evaluation ------------------------------------------------------------------------

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This rank's part of ``items``: each ``world``-th."""
        return list(items[self.rank :: self.world])

    def gather(self, items: Sequence[Item], length: int) -> list[Item]:
        """Undo ``share`` for a sequence of ``length`` items, on every rank."""
        if self.world == 1:
            return list(items)
        parts: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(parts, list(items))
        return [parts[place % self.world][place // self.world] for place in range(length)]


def _require_devices(processes: int, devices: int) -> None:
    if processes > devices:
        raise ValueError(
            f"torchrun started {processes} processes on a machine with {devices} GPUs; give "
            f"--nproc-per-node {devices}, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to run on CPUs"
        )


def _gradients_of_main(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    _together(
        [p for p in parameters if p.grad is not None],
        lambda flat: torch.distributed.broadcast(flat, 0),
    )


def _together(
    parameters: Sequence[torch.nn.Parameter], exchange: Callable[[torch.Tensor], Any]
) -> None:
    """Put the gradients through one collective, as one float32 vector."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    flat = torch.cat([gradient.reshape(-1).float() for gradient in gradients])
    exchange(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
