"""The random states that a training loop draws from, as the Trainer saves them but as a tree."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

States = tuple[Any, Any, torch.Tensor, list[torch.Tensor]]


def take() -> States:
    """random, numpy, torch's CPU and CUDA generators as they are now."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), devices


def to_tree(states: States) -> dict[str, Any]:
    (version, internal, gauss), numpy_state, cpu, devices = states
    kind, words, position, has_gauss, cached = numpy_state
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, words.tolist(), int(position), int(has_gauss), float(cached)],
        "cpu": cpu,
        "cuda": devices,
    }


def put_back(tree: dict[str, Any]) -> None:
    version, internal, gauss = tree["python"]
    kind, words, *rest = tree["numpy"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state((kind, np.array(words, dtype=np.uint32), *rest))
    torch.set_rng_state(tree["cpu"])
    if tree["cuda"]:
        torch.cuda.set_rng_state_all(tree["cuda"])
