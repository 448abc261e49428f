"""What the memory steps and the probes need so that training does not notice them."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
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
    """Random states of our own that stand in for torch's, numpy's and Python's during a block.

    Dropout and collate functions read the global ones; after the block these are as before it.
    """

    def __init__(self, seed: int, devices: Iterable[torch.device]) -> None:
        self._generators = [torch.default_generator]
        torch_seed = seed % (1 << 63)  # the largest that torch takes everywhere
        own = [torch.Generator().manual_seed(torch_seed)]
        for device in devices:
            if device.type == "cuda":
                self._generators.append(torch.cuda.default_generators[device.index])
                own.append(torch.Generator(device).manual_seed(torch_seed))
        self._torch = [generator.get_state() for generator in own]
        self._numpy: Any = np.random.RandomState(seed % (1 << 32)).get_state()
        self._python: Any = random.Random(seed).getstate()

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        """Exchange the global states and ours."""
        outside = [generator.get_state() for generator in self._generators]
        for generator, state in zip(self._generators, self._torch, strict=True):
            generator.set_state(state)
        self._torch = outside
        mine, self._numpy = self._numpy, np.random.get_state()
        np.random.set_state(mine)
        mine, self._python = self._python, random.getstate()
        random.setstate(mine)


class MemoryOptimizer:
    """Which optimiser takes the memory steps, and what becomes of its moments.

    ``shared``: the training one, moments and all. ``snapshot``: the same, but its state is put back
    after the merge. ``separate``: one of the same class and settings with moments of its own, which
    it keeps; each merge takes over the training one's learning rates.
    """

    def __init__(self, mode: str, training: torch.optim.Optimizer) -> None:
        self._mode = mode
        self._training = training
        self.optimizer = training
        if mode == "separate":
            make: Any = type(training)  # groups carry every setting: ``defaults`` may name more
            self.optimizer = make([dict(group) for group in training.param_groups])

    @property
    def parameters(self) -> list[torch.Tensor]:
        """Everything that it steps, which may be more than what is merged."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @contextmanager
    def merging(self) -> Iterator[None]:
        """One merge's memory steps; the gradients that the training loop holds are put aside."""
        if self._mode == "separate":
            pairs = zip(self.optimizer.param_groups, self._training.param_groups, strict=True)
            for own, group in pairs:
                own["lr"] = group["lr"]
        state = copy.deepcopy(self._training.state_dict()) if self._mode == "snapshot" else None
        gradients = [p.grad for p in self.parameters]
        try:
            yield
        finally:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            if state is not None:
                self._training.load_state_dict(state)


@contextmanager
def probing(model: nn.Module, *, dropout: bool) -> Iterator[None]:
    """Running statistics do not move during the block, and without ``dropout`` nothing is dropped.

    Each module's own mode is put back.
    """
    norms = nn.modules.batchnorm._NormBase
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        if not dropout or (isinstance(module, norms) and module.track_running_stats):
            module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def to_device(batch: Any, device: torch.device) -> Any:
    """The tensors of a batch, in mappings, lists and tuples too, on ``device``."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
