"""What a caller saves beside the merger's state, and how two such checkpoints are compared."""

from __future__ import annotations

import copy
import json
import math
import random
from typing import Any

import numpy as np
import torch

from aimmerge_fast import kernels
from tests.loops import Loop

Checkpoint = dict[str, Any]


def save(loop: Loop) -> Checkpoint:
    """Model, optimiser, merger, data position and global generators, as a training script would."""
    return {
        "model": copy.deepcopy(loop.model.state_dict()),
        "optimizer": copy.deepcopy(loop.optimizer.state_dict()),
        "merger": loop.merger.state_dict(),
        "data": loop.data.get_state(),
        "random": (torch.get_rng_state(), np.random.get_state(), random.getstate()),
    }


def load(loop: Loop, saved: Checkpoint) -> None:
    """Put a checkpoint into new objects, as a new process would."""
    torch.manual_seed(99)
    loop.model.load_state_dict(saved["model"])
    loop.optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))  # it keeps the tensors
    loop.data.set_state(saved["data"])
    torch.set_rng_state(saved["random"][0])
    np.random.set_state(saved["random"][1])
    random.setstate(saved["random"][2])
    loop.merger.load_state_dict(saved["merger"])


def require_equal(one: Any, other: Any, where: str = "") -> None:
    """``AssertionError`` names the first place where two checkpoints differ."""
    if isinstance(one, tuple) and isinstance(other, list):
        one = list(one)  # JSON has no tuples
    if isinstance(other, tuple) and isinstance(one, list):
        other = list(other)
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            require_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            require_equal(*pair, f"{where}[{index}]")
    elif isinstance(one, torch.Tensor):
        if where.startswith(".merger.states"):
            one, other = without_address(one), without_address(other)
        assert torch.equal(one, other), where
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, other), where
    else:
        assert one == other or (math.isnan(one) and math.isnan(other)), where


def without_address(state: torch.Tensor) -> torch.Tensor:
    """A state tensor without the address of its own ring."""
    copied = state.clone()
    kernels.read_state(copied)["state"]["ring"] = 0
    return copied


def through_json(saved: Any) -> Any:
    """The scalars through strict JSON and back, the tensors apart, as a folder on disk has them."""
    tensors: list[torch.Tensor] = []

    def take(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            tensors.append(value)
            return {"tensor": len(tensors) - 1}
        if isinstance(value, dict):
            assert all(isinstance(key, str) for key in value), list(value)
            return {key: take(item) for key, item in value.items()}
        return [take(item) for item in value] if isinstance(value, (list, tuple)) else value

    def put(value: Any) -> Any:
        if isinstance(value, dict):
            if list(value) == ["tensor"]:
                return tensors[value["tensor"]]
            return {key: put(item) for key, item in value.items()}
        return [put(item) for item in value] if isinstance(value, list) else value

    return put(json.loads(json.dumps(take(saved), allow_nan=False)))
