"""How bench/training_overhead.py counts synchronising calls, and whose it says they are."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch

from training import arms, blocks, check, ours, syncs
from training import released as theirs
from training.arms import Arm, Setup

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def small() -> Setup:
    return arms.set_up_small("llama2-7b", check._SMALL, torch.device("cpu"))


def test_synchronising_calls_are_those_of_the_code(small: Setup) -> None:
    def method(kind: type[Arm]) -> int:
        counts = blocks.counted(kind, small)
        assert (counts["steps"], counts["training"]) == (4, 0)
        return int(counts["method"])

    tensors = len(small.parameters)
    # per step two losses, per merge L1; importance: every update of the task and of the memory
    assert method(theirs.ReleasedLean) == 4 * 2 + 1
    assert method(theirs.Released) == 4 * 2 + 1 + (4 + 2) * tensors
    assert [method(kind) for kind in (Arm, ours.OursBefore, ours.OursAfter)] == [0, 0, 0]


def test_planted_calls_are_told_apart(small: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine(ours.Ours):
        def step(self, number: int) -> None:
            super().step(number)
            self.merger.binding.require_finite()

    assert blocks.counted(Engine, small)["method"] == 4 * len(small.parameters)

    handle = small.model.register_forward_hook(lambda _, __, output: output.loss.item() and None)
    try:
        counts = blocks.counted(ours.Ours, small)
    finally:
        handle.remove()
    # 4 updates, 4 probes, 2 memory steps: the model's, whoever called it
    assert (counts["method"], counts["training"]) == (0, 10)
    strict = functools.partial(torch.nn.utils.clip_grad_norm_, error_if_nonfinite=True)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", strict)
    counts = blocks.counted(ours.Ours, small)
    # 4 updates, 2 memory steps: clipping belongs to training, also where the engine asks for it
    assert (counts["method"], counts["training"]) == (0, 6)


def test_gpu_counts_are_the_debug_mode_s_warnings(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    modes: list[Any] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with syncs.counted(torch.device("cuda")) as counts:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation (from here)", stacklevel=1)
        warnings.warn("another", stacklevel=1)
    assert counts == {"method": 0, "training": 3}
    assert modes == ["warn", 0]
