"""``AccelerateMerger``: which updates count, the plain loop's bits, durable saves, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from aimmerge_fast import AIMConfig, FastAIMMerger
from aimmerge_fast.durable import Broken
from aimmerge_fast.events import Close, to_json
from aimmerge_fast.integrations.accelerate import AccelerateMerger
from tests import loops

FIELDS: dict[str, Any] = {"s_init": 3, "history_batch": 6, "memory_batch": 6}
FUNCTIONS: dict[str, Any] = {"collate": loops.collate, "loss_fn": loops.loss_fn}


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps one state a process; a Trainer of another test may have left its own."""
    _reset()
    yield
    _reset()


def _reset() -> None:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


class Accelerated(loops.Loop):
    """The loop of ``loops`` under Accelerate, each update of ``accumulation`` micro-batches."""

    def __init__(self, accumulation: int = 2, precision: str = "no") -> None:
        super().__init__(merge=False, **FIELDS)
        self.accelerator = Accelerator(
            cpu=True, gradient_accumulation_steps=accumulation, mixed_precision=precision
        )
        plan = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda k: 1 / (1 + k))
        self.wrapped, self.prepared, self.schedule = self.accelerator.prepare(
            self.model, self.optimizer, plan if accumulation == 1 else None
        )
        self.merger = AccelerateMerger(
            self.accelerator, self.wrapped, self.config, optimizer=self.prepared, **FUNCTIONS
        )

    def micro_batch(self) -> bool:
        with self.accelerator.accumulate(self.wrapped):
            self.accelerator.backward(loops.loss_fn(self.wrapped, self.batch()))
            self.prepared.step()
            if self.schedule is not None:
                self.schedule.step()
            self.prepared.zero_grad()
        return self.merger.step()


def accumulated(loop: loops.Loop, updates: int) -> None:
    """The same updates in a loop that knows nothing of Accelerate."""
    for _ in range(updates):
        for _ in range(2):
            (loops.loss_fn(loop.model, loop.batch()) / 2).backward()
        loop.optimizer.step()
        loop.optimizer.zero_grad()
        loop.merger.step()


def test_equals_the_plain_loop_and_counts_updates_only() -> None:
    torch.manual_seed(3)
    ours = Accelerated()
    torch.manual_seed(3)
    with ours.merger.task("one", ours.memory):
        merged = [ours.micro_batch() for _ in range(50)]
    torch.manual_seed(3)
    plain = loops.Loop(**FIELDS)
    torch.manual_seed(3)
    with plain.merger.task("one", plain.memory):
        accumulated(plain, 25)
    assert ours.bits() == plain.bits()
    assert not any(merged[0::2])  # after the first of two micro-batches nothing was updated
    assert sum(merged) == len(plain.of_type(Close)) >= 3
    assert [to_json(e) for e in ours.merger.events] == [to_json(e) for e in plain.merger.events]


def whole_run(loop: Accelerated, done: int) -> str:
    for _ in range(done, 12):
        loop.micro_batch()
    saved = loop.merger.state_dict()
    return json.dumps([saved["host"], saved["controller"], saved["rehearsal"]["streams"]])


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_saved_state_goes_on_to_the_same_bits(tmp_path: Path, precision: str) -> None:
    torch.manual_seed(3)
    first = Accelerated(1, precision)
    with first.merger.task("one", first.memory):
        for _ in range(5):
            first.micro_batch()
        data = first.data.get_state()
        first.merger.save(tmp_path / "state", {"task": "one", "done": 5})
        with pytest.raises(ValueError, match="exists; save every state to a new folder"):
            first.merger.save(tmp_path / "state")
        ended = whole_run(first, 5)
    torch.manual_seed(8)
    second = Accelerated(1, precision)
    position = second.merger.load(tmp_path / "state")
    assert position == {"task": "one", "done": 5}
    second.data.set_state(data)
    with second.merger.task("one", second.memory):
        assert whole_run(second, 5) == ended
    assert second.bits() == first.bits()
    assert second.optimizer.param_groups[0]["lr"] == first.optimizer.param_groups[0]["lr"] < 0.002


def test_a_damaged_state_is_named_and_changes_nothing(tmp_path: Path) -> None:
    loop = Accelerated(1)
    with loop.merger.task("one", loop.memory):
        loop.micro_batch()
        loop.merger.save(tmp_path / "state")
    weights = tmp_path / "state" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    before = loop.bits()
    with pytest.raises(Broken, match=r"model\.safetensors is damaged"):
        loop.merger.load(tmp_path / "state")
    assert loop.bits() == before


def test_a_save_cut_short_is_no_state_and_does_not_hinder_the_next(tmp_path: Path) -> None:
    loop = Accelerated(1)
    with loop.merger.task("one", loop.memory):
        loop.micro_batch()
        cut = tmp_path / ".state.part"
        cut.mkdir()
        (cut / "stale.bin").write_bytes(b"half")
        with pytest.raises(Broken, match="state"):
            loop.merger.load(tmp_path / "state")
        loop.merger.save(tmp_path / "state")
    assert not cut.exists()
    assert not (tmp_path / "state" / "stale.bin").exists()


def test_refusals() -> None:
    loop = Accelerated(1)
    with pytest.raises(ValueError, match=r"Accelerate's wrapper.*AccelerateMerger"):
        FastAIMMerger(loop.wrapped, AIMConfig(), optimizer=loop.prepared, **FUNCTIONS)
    with pytest.raises(ValueError, match=r"is a AdamW; give what accelerator\.prepare"):
        AccelerateMerger(loop.accelerator, loop.wrapped, optimizer=loop.optimizer)
    deepspeed: Any = SimpleNamespace(distributed_type="DEEPSPEED")
    with pytest.raises(ValueError, match="Accelerate runs DEEPSPEED, which is not supported"):
        AccelerateMerger(deepspeed, loop.wrapped, optimizer=loop.prepared)
