"""A run that is interrupted anywhere and resumed in new objects goes on bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aimmerge_fast.controller import BadProbes
from aimmerge_fast.events import Open, to_json
from tests import checkpoints
from tests.checkpoints import Checkpoint, require_equal, through_json
from tests.loops import Loop, loss_fn

PLAN = (("one", 0, 30), ("two", 30, 60))
AHEAD = 12  # updates after a resume that are compared
CASES: dict[str, dict[str, Any]] = {
    "paper": {"s_init": 3, "s_max": 9, "gamma_forget": 1.02},
    "released": {"policy": "released", "s_init": 3, "s_max": 9, "gamma_forget": 1.02},
    "after, snapshot": {"s_init": 3, "s_max": 9, "probe": "after", "memory_optimizer": "snapshot"},
    "separate": {"s_init": 3, "memory_optimizer": "separate", "merge_at_task_end": True},
    "random": {"schedule": "random", "s_hi": 6, "memory_optimizer": "separate"},
    "monitor": {"schedule": "monitor"},
}
Hook = Callable[[int], None]


def go(loop: Loop, start: int, stop: int, after_step: Hook) -> None:
    """Updates ``start`` to ``stop`` of the plan; ``after_step`` is called within the task."""
    for task, first, last in PLAN:
        if start <= last and first < stop:
            with loop.merger.task(task, loop.memory):
                for step in range(max(start, first), min(stop, last)):
                    loop.update()
                    loop.merger.step()
                    after_step(step + 1)


def history(loop: Loop) -> list[str]:
    return [to_json(event) for event in loop.merger.events]


def whole_run(fields: dict[str, Any]) -> tuple[list[Checkpoint], list[int], Loop]:
    """Checkpoints after every update, and how many events there were at each."""
    loop = Loop(**fields)
    torch.manual_seed(7)
    saved, counts = [checkpoints.save(loop)], [0]

    def keep(_: int) -> None:
        saved.append(checkpoints.save(loop))
        counts.append(len(loop.merger.events))

    go(loop, 0, 60, keep)
    return saved, counts, loop


@pytest.mark.parametrize("name", CASES)
def test_resume_at_every_step(name: str) -> None:
    saved, counts, whole = whole_run(CASES[name])
    merges = [event.step for event in whole.of_type(Open)]
    assert len(merges) >= (0 if name == "monitor" else 8)
    for start in range(1, 60):
        stop = min(start + AHEAD, 60)
        loop = Loop(**CASES[name])
        state = saved[start] | {"merger": through_json(saved[start]["merger"])}
        checkpoints.load(loop, state)

        def compare(step: int, loop: Loop = loop, start: int = start, stop: int = stop) -> None:
            if step == stop:
                require_equal(checkpoints.save(loop), saved[stop])
                assert history(loop) == history(whole)[counts[start] : counts[stop]]

        go(loop, start, stop, compare)


@pytest.mark.parametrize("name", ["separate", "released"])
def test_resume_between_tasks(name: str) -> None:
    def train(loop: Loop, task: str) -> None:
        loop.run(17, task=task)

    whole = Loop(**CASES[name])
    torch.manual_seed(7)
    train(whole, "one")
    saved = checkpoints.save(whole)
    require_equal(saved["merger"]["rehearsal"], None)
    train(whole, "two")
    resumed = Loop(**CASES[name])
    checkpoints.load(resumed, saved)
    train(resumed, "two")
    require_equal(checkpoints.save(resumed), checkpoints.save(whole))
    assert history(resumed) == history(whole)[-len(resumed.merger.events) :]


class Pieces:
    """A custom loop that can stop between any two calls; its own position is the caller's."""

    def __init__(self, loop: Loop, position: tuple[str, int, int] = ("update", 0, 0)) -> None:
        self.loop, self.position = loop, position

    def advance(self) -> None:
        phase, step, left = self.position
        merger, rehearsal = self.loop.merger, self.loop.merger.rehearsal
        assert rehearsal is not None
        if phase == "update":
            self.loop.update()
            self.position = "observe", step, 0
        elif phase == "observe":
            merger.observe(torch.tensor(1.0 + 0.1 * (step * step % 7)))
            self.position = "due", step, 0
        elif phase == "due":
            self.position = ("open", step, 0) if merger.due() else ("update", step + 1, 0)
        elif phase == "open":
            rehearsal.save_moments()
            self.position = "memory", step, merger.open_merge()
        elif phase == "memory":
            rehearsal.memory_step()
            self.position = ("memory", step, left - 1) if left > 1 else ("close", step, 0)
        else:
            rehearsal.restore_moments()
            merger.close_merge()
            self.position = "update", step + 1, 0


@pytest.mark.parametrize("mode", ["shared", "separate", "snapshot"])
@pytest.mark.parametrize("policy", ["paper", "released"])
def test_resume_between_any_two_calls(policy: str, mode: str) -> None:
    fields: dict[str, Any] = {
        "policy": policy, "probe": "in_batch", "memory_optimizer": mode, "s_init": 3, "s_max": 6,
        "gamma_forget": 1.01,
    }  # fmt: skip
    calls, ahead = 110, 9
    whole = Pieces(Loop(**fields))
    torch.manual_seed(7)
    saved, positions = [], []
    with whole.loop.merger.task("task", whole.loop.memory):
        for _ in range(calls + ahead):
            saved.append(checkpoints.save(whole.loop))
            positions.append(whole.position)
            whole.advance()
        while whole.loop.merger.controller.is_open:
            whole.advance()
    assert {phase for phase, _, _ in positions[:calls]} == {
        "update", "observe", "due", "open", "memory", "close",
    }  # fmt: skip
    for start in range(calls):
        pieces = Pieces(Loop(**fields), positions[start])
        checkpoints.load(pieces.loop, saved[start])
        with pieces.loop.merger.task("task", pieces.loop.memory):
            for _ in range(ahead):
                pieces.advance()
            assert pieces.position == positions[start + ahead]
            require_equal(checkpoints.save(pieces.loop), saved[start + ahead])
            if pieces.loop.merger.controller.is_open:
                pieces.loop.merger.close_merge()


@pytest.mark.parametrize("mode", ["shared", "separate", "snapshot"])
@pytest.mark.parametrize("probe", ["before", "after"])
def test_resume_inside_a_merge_that_step_drives(probe: str, mode: str) -> None:
    """Saved after a memory step: entering the task makes the others, closes, and probes."""
    fields: dict[str, Any] = {
        "schedule": "fixed", "s_init": 6, "probe": probe, "memory_optimizer": mode,
        "merge_at_task_end": True,
    }  # fmt: skip
    whole = Loop(**fields)
    inside: list[Checkpoint] = []

    def keep(*_: Any) -> None:
        if whole.merger.controller.is_open:
            inside.append(checkpoints.save(whole))

    assert whole.merger.rehearsal is not None
    whole.merger.rehearsal.memory_optimizer.register_step_post_hook(keep)
    torch.manual_seed(7)
    saved: list[Checkpoint] = []
    go(whole, 0, 16, lambda _: saved.append(checkpoints.save(whole)))
    assert len(inside) == 3 + 3 + 2  # at steps 6 and 12, and at the end of the task
    for index, state in enumerate(inside):
        loop = Loop(**fields)
        checkpoints.load(loop, state | {"merger": through_json(state["merger"])})
        with loop.merger.task("one", loop.memory):
            for step in range(6 * (1 + index // 3) if index < 6 else 16, 16):
                require_equal(checkpoints.save(loop), saved[step - 1])
                loop.train(1)
        assert loop.bits() == whole.bits()
        assert history(loop) == history(whole)[-len(loop.merger.events) :]


def test_a_state_in_memory_stays_as_it_was_saved() -> None:
    """Training on does not write into it, and it can be loaded more than once."""
    for mode in ("separate", "snapshot"):
        loop = Loop(schedule="fixed", s_init=3, memory_optimizer=mode)
        with loop.merger.task("task", loop.memory):
            loop.train(4)
            loop.merger.rehearsal.save_moments()  # type: ignore[union-attr]
            saved = checkpoints.save(loop)
            kept = through_json(saved["merger"])
            loop.train(6)
        require_equal(through_json(saved["merger"]), kept)
        ends = []
        for _ in range(2):
            again = Loop(schedule="fixed", s_init=3, memory_optimizer=mode)
            checkpoints.load(again, saved)
            with again.merger.task("task", again.memory):
                again.train(6)
            ends.append(again.bits())
        assert ends[0] == ends[1] == loop.bits()


def test_losses_that_are_not_finite_are_strict_json_too() -> None:
    def bad(model: nn.Module, batch: Any) -> Tensor:
        return loss_fn(model, batch) * (1.0 if torch.is_grad_enabled() else math.nan)

    loop = Loop(s_init=3, max_bad_probes=8, keywords={"loss_fn": bad})
    with loop.merger.task("task", loop.memory):
        loop.train(7)
        saved = checkpoints.save(loop)
    again = Loop(s_init=3, max_bad_probes=8, keywords={"loss_fn": bad})
    checkpoints.load(again, saved | {"merger": through_json(saved["merger"])})
    expected = pytest.raises(BadProbes, match="step 8: the last 8 history losses")
    with again.merger.task("task", again.memory), expected:
        again.train(1)


def test_resume_twice_in_a_row() -> None:
    """A state saved right after a resume, before any step, is the state that was loaded."""
    saved, _, _ = whole_run(CASES["paper"])
    loop = Loop(**CASES["paper"])
    checkpoints.load(loop, saved[20])
    with loop.merger.task("one", loop.memory):
        second = checkpoints.save(loop)
    require_equal(second, saved[20])
