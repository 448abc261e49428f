"""Random streams of our own, so that what we do moves no random number of the loop's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class PrivateRandomness:
    """Random states that are swapped in for a block and put away again: torch, numpy, random."""

    def __init__(self, seed: int, devices: list[torch.device]) -> None:
        self._devices = [device for device in devices if device.type == "cuda"]
        torch_seed = seed % (1 << 63)  # the largest that torch takes
        self.torch_states = [torch.Generator().manual_seed(torch_seed).get_state()]
        for device in self._devices:
            self.torch_states.append(torch.Generator(device).manual_seed(torch_seed).get_state())
        self.numpy_state: Any = np.random.RandomState(seed % (1 << 32)).get_state()
        self.python_state: Any = random.Random(seed).getstate()

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        outside = self._exchange((self.torch_states, self.numpy_state, self.python_state))
        try:
            yield
        finally:
            inside = self._exchange(outside)
            self.torch_states, self.numpy_state, self.python_state = inside

    def state_dict(self) -> dict[str, Any]:
        kind, words, position, has_gauss, cached = self.numpy_state
        version, internal, gauss = self.python_state
        return {
            "torch": list(self.torch_states),
            "numpy": [kind, words.tolist(), int(position), int(has_gauss), float(cached)],
            "python": [version, list(internal), gauss],
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        kind, words, *rest = saved["numpy"]
        version, internal, gauss = saved["python"]
        self.torch_states = list(saved["torch"])
        self.numpy_state = (kind, np.array(words, dtype=np.uint32), *rest)
        self.python_state = (version, tuple(internal), gauss)

    def _exchange(self, states: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        generators = [torch.default_generator]
        generators += [torch.cuda.default_generators[d.index or 0] for d in self._devices]
        previous = ([g.get_state() for g in generators], np.random.get_state(), random.getstate())
        for generator, state in zip(generators, states[0], strict=True):
            generator.set_state(state)
        np.random.set_state(states[1])
        random.setstate(states[2])
        return previous
