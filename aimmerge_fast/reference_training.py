"""What the memory steps and the probes need so that training does not notice them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn


class Stream(Protocol):
    """A persistent iterator over the rehearsal records."""

    def draw(self, n: int) -> list[Any]: ...


class Memory(Protocol):
    """The rehearsal memory, as ``RehearsalMemory`` is."""

    def __len__(self) -> int: ...

    def stream(self, name: str, *, fresh: bool = False, salt: int = 0) -> Stream: ...


class PrivateRng:
    """Random generators of our own that stand in for torch's while a block runs.

    Dropout reads torch's default generators; after the block these are as if it had not run.
    """

    def __init__(self, seed: int, devices: Iterable[torch.device]) -> None:
        cuda = sorted(device.index for device in devices if device.type == "cuda")
        self._pairs = [(torch.default_generator, torch.Generator())]
        for index in cuda:
            default = torch.cuda.default_generators[index]
            self._pairs.append((default, torch.Generator(torch.device("cuda", index))))
        for _, own in self._pairs:
            own.manual_seed(seed % (1 << 63))

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        saved = [default.get_state() for default, _ in self._pairs]
        for default, own in self._pairs:
            default.set_state(own.get_state())
        try:
            yield
        finally:
            for (default, own), state in zip(self._pairs, saved, strict=True):
                own.set_state(default.get_state())
                default.set_state(state)


class MemoryOptimizer:
    """Which optimiser takes the memory steps, and what becomes of its moments.

    ``shared``: the training one, moments and all. ``snapshot``: the same, but its state is put back
    after the merge. ``separate``: one of the same class and settings with moments of its own, which
    live as long as the task; each merge takes over the training one's learning rates.
    """

    def __init__(self, mode: str, training: torch.optim.Optimizer) -> None:
        self._mode = mode
        self._training = training
        self.optimizer = training
        if mode == "separate":
            make: Any = type(training)  # subclasses have defaults that their base has not
            self.optimizer = make([dict(group) for group in training.param_groups])

    @contextmanager
    def merging(self) -> Iterator[None]:
        """One merge's memory steps."""
        if self._mode == "separate":
            pairs = zip(self.optimizer.param_groups, self._training.param_groups, strict=True)
            for own, group in pairs:
                own["lr"] = group["lr"]
        state = copy.deepcopy(self._training.state_dict()) if self._mode == "snapshot" else None
        try:
            yield
        finally:
            if state is not None:
                self._training.load_state_dict(state)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """No dropout for the block; every module's own mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def to_device(batch: Any, device: torch.device) -> Any:
    """A tensor, or the tensors of a mapping, on ``device``; anything else as it is."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if hasattr(batch, "items"):
        return {key: to_device(value, device) for key, value in batch.items()}
    return batch
