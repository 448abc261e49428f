"""Run one arm for one block of steps, from the same start every time, and time it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from typing import Any

import torch

from training import syncs
from training.arms import Arm, Matched, Mixed, Setup, Used
from training.ours import Ours, OursAfter, OursBefore
from training.released import Released, ReleasedLean

#: The arms that are timed, in the order of the table.
ARMS: tuple[type[Arm], ...] = (Arm, Mixed, Matched, Released, ReleasedLean, Ours)
#: Those whose synchronising calls are counted: the replay arms run the code of plain LoRA.
COUNTED: tuple[type[Arm], ...] = (Arm, Released, ReleasedLean, OursBefore, OursAfter)


@dataclasses.dataclass(frozen=True)
class Block:
    """One timed block: ``wall`` and ``events`` (a GPU's own clock) in seconds for ``steps``.

    ``theta`` and ``task_rows`` are digests of where the arm ended and of what it trained on;
    ``load`` is the machine's load average afterwards.
    """

    arm: str
    repeat: int
    steps: int
    wall: float
    events: float | None
    history_rows: int
    memory_rows: int
    merges: int
    memory_steps: int
    waits: int
    engine_seconds: float
    theta: str
    task_rows: str
    load: float

    @property
    def step_seconds(self) -> float:
        return self.wall / self.steps


def timed(kind: type[Arm], setup: Setup, repeat: int) -> Block:
    """One block of an arm: a fresh start, one untimed update, then the steps in one go."""
    arm = ready(kind, setup)
    steps = setup.settings.steps
    with arm.task():
        arm.used = Used()
        clock = _Clock(setup.device)
        for number in range(steps):
            arm.step(number)
        wall, events = clock.stop()
    return Block(
        arm=arm.name,
        repeat=repeat,
        steps=steps,
        wall=wall,
        events=events,
        history_rows=arm.used.history_rows,
        memory_rows=arm.used.memory_rows,
        merges=arm.used.merges,
        memory_steps=arm.used.memory_steps,
        waits=arm.used.waits,
        engine_seconds=arm.used.engine_seconds,
        theta=setup.theta(),
        task_rows=hashlib.sha256(repr(arm.used.task_rows).encode()).hexdigest(),
        load=_load(),
    )


def counted(kind: type[Arm], setup: Setup) -> dict[str, Any]:
    """Synchronising calls of one interval of an arm by who made them, and waits; not timed."""
    arm = ready(kind, setup)
    steps = setup.settings.interval
    with arm.task(), syncs.counted(setup.device) as counts:
        arm.used = Used()
        for number in range(steps):
            arm.step(number)
    return {"arm": kind.name, "steps": steps, "waits": arm.used.waits, **counts}


def untimed(kind: type[Arm], setup: Setup) -> dict[str, Any]:
    """Waits of one block of an arm, without a clock or counters; it also warms a GPU up."""
    arm = ready(kind, setup)
    steps = setup.settings.steps
    with arm.task():
        arm.used = Used()
        for number in range(steps):
            arm.step(number)
    return {"arm": kind.name, "steps": steps, "waits": arm.used.waits}


def ready(kind: type[Arm], setup: Setup) -> Arm:
    setup.reset()
    arm = kind(setup)
    arm.warm_up()
    return arm


class _Clock:
    """Wall-clock time between two moments at which the device had nothing to do, and its events."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if self._device.type == "cuda":
            self._first, self._last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(self._device)
            self._first.record()
        self._begin = time.perf_counter()

    def stop(self) -> tuple[float, float | None]:
        """Seconds since the start: of the wall clock, and of the GPU's own where there is one."""
        if self._device.type != "cuda":
            return time.perf_counter() - self._begin, None
        self._last.record()
        torch.cuda.synchronize(self._device)
        wall = time.perf_counter() - self._begin
        return wall, self._first.elapsed_time(self._last) / 1e3


def _load() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
