"""Bad input gives one clear error, and parameters, optimiser and memory are as before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from aimmerge_fast import RehearsalMemory
from tests.loops import Loop, records
from tests.refusals import refused


def test_calls_outside_a_task() -> None:
    loop = Loop()
    calls: dict[str, Callable[[], Any]] = {
        "step()": loop.merger.step,
        "observe()": lambda: loop.merger.observe(torch.tensor(1.0)),
        "due()": loop.merger.due,
        "open_merge()": loop.merger.open_merge,
        "close_merge()": loop.merger.close_merge,
        "rollback()": loop.merger.rollback,
    }
    for round_ in range(2):  # before any task, and after one
        for name, call in calls.items():
            with refused(loop, RuntimeError, rf"^{name[:-2]}\(\) outside a task: use `with merger"):
                call()
        if round_ == 0:
            loop.run(3)


def test_a_task_within_a_task() -> None:
    loop = Loop()
    with loop.merger.task("outer", loop.memory):
        loop.train(2)
        message = "task 'inner' inside task 'outer': leave it first"
        with refused(loop, RuntimeError, message), loop.merger.task("inner", loop.memory):
            pass
        loop.train(2)
    assert loop.merger.events[-1].step == 4


def test_halves_of_a_merge_out_of_order() -> None:
    loop = Loop(probe="in_batch")
    one = torch.tensor(1.0)
    with loop.merger.task("task", loop.memory) as merger:
        with refused(loop, RuntimeError, r"close_merge\(\) before open_merge\(\)"):
            merger.close_merge()
        with refused(loop, RuntimeError, "right after a merge: there is no interval to merge"):
            merger.open_merge()
        with refused(loop, RuntimeError, r"due\(\) without a new history loss: call observe"):
            merger.due()
        merger.observe(one)
        with refused(loop, RuntimeError, r"observe\(\) although a history loss waits"):
            merger.observe(one)
        merger.due()
        with refused(loop, RuntimeError, r"due\(\) without a new history loss"):
            merger.due()
        merger.observe(one)
        with refused(loop, RuntimeError, r"between observe\(\) and due\(\): call due\(\) first"):
            merger.open_merge()
        merger.due()
        merger.open_merge()
        for call in (merger.open_merge, lambda: merger.observe(one), merger.due):
            with refused(loop, RuntimeError, r"call close_merge\(\) first|close it first"):
                call()
        with refused(loop, RuntimeError, "close it first"):
            merger.step(one)
        merger.close_merge()
        with refused(loop, RuntimeError, r"close_merge\(\) before open_merge\(\)"):
            merger.close_merge()


def test_a_task_that_ends_inside_a_merge() -> None:
    loop = Loop()

    def unfinished() -> None:
        with loop.merger.task("task", loop.memory):
            loop.train(1)
            loop.merger.open_merge()

    with pytest.raises(RuntimeError, match="ended inside an open merge: call close_merge"):
        unfinished()
    assert loop.run(3, task="next") == [False] * 3


# ---- what is handed over -----------------------------------------------------------------------


def test_memories() -> None:
    loop = Loop()
    for wrong in (records(), {"a": 1}, "memory", 3, object()):
        message = f"must be a RehearsalMemory, got {type(wrong).__name__}"
        with refused(loop, TypeError, message), loop.merger.task("task", wrong):  # type: ignore[arg-type]
            pass
    with loop.merger.task("first", RehearsalMemory()):
        loop.train(1)
    message = "task 'second': the memory is empty though a task was trained"
    with refused(loop, ValueError, message), loop.merger.task("second", RehearsalMemory()):
        pass
    assert loop.run(2, task="second") == [False, False]


NOT_SCALARS = {
    "vector": (torch.ones(3), r"a torch\.float32 tensor of shape \(3,\)"),
    "integer": (torch.tensor(3), r"a torch\.int64 tensor of shape \(\)"),
    "empty": (torch.ones(0), r"a torch\.float32 tensor of shape \(0,\)"),
    "float": (1.5, "got float"),
    "string": ("1.5", "got str"),
}


@pytest.mark.parametrize("name", NOT_SCALARS)
def test_history_losses(name: str) -> None:
    loss, message = NOT_SCALARS[name]
    loop = Loop(probe="in_batch")
    with loop.merger.task("task", loop.memory):
        for call in (loop.merger.observe, loop.merger.step):
            with refused(loop, ValueError, f"history loss must be .*{message}"):
                call(loss)  # type: ignore[operator]
        loop.merger.step(torch.tensor([1.0]))  # one entry is a scalar


def test_a_history_loss_given_or_missing_against_the_probe() -> None:
    for probe in ("before", "after"):
        loop = Loop(probe=probe)
        message = f"probe='{probe}': .* takes no history loss"
        with loop.merger.task("task", loop.memory), refused(loop, ValueError, message):
            loop.merger.step(torch.tensor(1.0))
    loop = Loop(probe="in_batch")
    message = r"probe='in_batch': .* needs the history loss: step\(loss"
    with loop.merger.task("task", loop.memory), refused(loop, ValueError, message):
        loop.merger.step()
