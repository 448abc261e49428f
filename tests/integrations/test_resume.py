"""A Trainer that is stopped and resumed at any step trains to the bits of one that never was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aimmerge_fast import RehearsalMemory
from aimmerge_fast.events import Close, Open
from tests.integrations.resumable import (
    EPOCH,
    NOISE,
    STEPS,
    Crash,
    CrashAfter,
    Run,
    alone,
    checkpoints,
    memory,
    require_same_end,
    rows,
)

pytestmark = pytest.mark.filterwarnings(NOISE)

#: what the run is like: fields of TrainingArguments, and "config" of AIMConfig
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulating": {"gradient_accumulation_steps": 2},
    "callback states restored": {"restore_callback_states_from_checkpoint": True},
    "moments put back": {"config": {"memory_optimizer": "snapshot"}},
    "second optimizer, probe after": {"config": {"memory_optimizer": "separate", "probe": "after"}},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs that were never interrupted, made when they are first asked for."""
    made: dict[str, Run] = {}

    def run(kind: str) -> Run:
        if kind not in made:
            made[kind] = Run(tmp_path_factory.mktemp("whole"), **KINDS[kind]).train()
        return made[kind]

    return run


@pytest.mark.filterwarnings(NOISE)
def test_the_run_is_worth_resuming(whole: Any) -> None:
    events = whole("plain").events
    merges = [event for event in events if isinstance(event, Open)]
    assert len(merges) >= 4
    assert all(event.memory_steps > 0 and 0.3 <= event.alpha_new <= 0.7 for event in merges[1:])
    assert sum(isinstance(event, Close) for event in events) == len(merges)


def every(kind: str) -> range | tuple[int, ...]:
    """Steps to stop at: the end and the begin of an epoch among them."""
    return range(1, STEPS + 1) if kind == "plain" else (3, EPOCH, EPOCH + 1)


@pytest.mark.parametrize(("kind", "step"), [(kind, step) for kind in KINDS for step in every(kind)])
def test_resumed_from_any_step(kind: str, step: int, whole: Any, tmp_path: Path) -> None:
    first = whole(kind)
    alone(first, step, tmp_path)
    run = Run(tmp_path, **KINDS[kind]).train(resume=True)
    require_same_end(run, first.events[: first.told[step]] + run.events, first)


@pytest.mark.parametrize("step", [1, EPOCH, EPOCH + 3])
def test_resumed_in_the_folder_of_a_run_that_crashed(step: int, whole: Any, tmp_path: Path) -> None:
    before = Run(tmp_path, CrashAfter(step), save_total_limit=1)
    with pytest.raises(Crash):
        before.train()
    assert checkpoints(tmp_path) == [f"checkpoint-{step}"]
    run = Run(tmp_path, save_total_limit=1).train(resume=True)
    assert checkpoints(tmp_path) == [f"checkpoint-{STEPS}"]
    events = before.events[: before.told[step]]
    require_same_end(run, events + run.events, whole("plain"))


def test_saved_at_the_end_of_each_epoch(whole: Any, tmp_path: Path) -> None:
    before = Run(tmp_path, CrashAfter(EPOCH + 2), save_strategy="epoch")
    with pytest.raises(Crash):
        before.train()
    assert checkpoints(tmp_path) == [f"checkpoint-{EPOCH}"]
    run = Run(tmp_path, save_strategy="epoch").train(resume=True)
    events = before.events[: before.told[EPOCH]]
    require_same_end(run, events + run.events, whole("plain"))


def test_a_resume_that_trains_too_far_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A Trainer of its own accord makes one update more, where max_steps ends within an epoch."""
    for steps, told in ((EPOCH, False), (EPOCH + 1, True)):
        folder = tmp_path / str(steps)
        Run(folder, max_steps=steps).train()
        caplog.clear()
        run = Run(folder, max_steps=steps).train(resume=True)
        assert (run.trainer.state.global_step > steps) is told
        assert ("the Trainer makes one more" in caplog.text) is told


# ---- a memory that the resumed script did not rebuild ----------------------------------------


def test_an_empty_memory_is_filled_from_the_checkpoint(whole: Any, tmp_path: Path) -> None:
    first, held = whole("plain"), RehearsalMemory(ratio=0.5, seed=1)
    alone(first, 5, tmp_path)
    run = Run(tmp_path, held=held).train(resume=True)
    assert held.fingerprint() == memory().fingerprint()
    require_same_end(run, first.events[: first.told[5]] + run.events, first)


def test_another_memory_is_refused(whole: Any, tmp_path: Path) -> None:
    alone(whole("plain"), 5, tmp_path)
    held = RehearsalMemory(ratio=0.5, seed=1)
    held.add("before", rows(20, seed=10))
    with pytest.raises(ValueError, match="the memory differs from the one that task 'now'"):
        Run(tmp_path, held=held).train(resume=True)
