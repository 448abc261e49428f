"""Where an arm's time goes: training pass, optimiser, probe, memory steps, engine, and the rest.

Two clocks run at every boundary between two phases: the host's, and on a GPU an event's. A phase
whose device time is its host time is bound by launches; one whose device time is longer is bound by
the GPU. Boundaries cost time themselves, so these blocks are never those that ratios come from.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from training import blocks
from training.arms import Arm, Matched, Setup, Used
from training.ours import Ours

#: Replay of as many rows is what AIM is held against; the plain loop is what both add to.
PHASED: tuple[type[Arm], ...] = (Arm, Matched, Ours)
#: The loop: batches, and what no other phase is.
LOOP = "loop"
NAMES = ("training pass", "optimiser", "probe", "memory step", "engine", LOOP)


class Phases:
    """Time by phase. Phases nest, and an inner one's time is not the outer one's too."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._stack = [LOOP]
        self._marks: list[tuple[str, float, torch.cuda.Event | None]] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._stack.append(name)
        self.mark()
        try:
            yield
        finally:
            self._stack.pop()
            self.mark()

    def around(self, owner: Any, method: str, name: str) -> None:
        """Make every call of ``owner.method`` a phase, for as long as ``owner`` lives."""
        call: Callable[..., Any] = getattr(owner, method)

        @functools.wraps(call)
        def within(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return call(*args, **kwargs)

        setattr(owner, method, within)

    def mark(self) -> None:
        """From here on time is the current phase's."""
        event = torch.cuda.Event(enable_timing=True) if self._on_gpu else None
        if event:
            event.record()
        self._marks.append((self._stack[-1], time.perf_counter(), event))

    def seconds(self) -> dict[str, dict[str, float | None]]:
        """Host and device seconds of every phase up to the last mark; device None on a CPU."""
        if self._on_gpu:
            torch.cuda.synchronize()
        host: dict[str, float] = collections.defaultdict(float)
        device: dict[str, float] = collections.defaultdict(float)
        for (name, began, first), (_, ended, last) in itertools.pairwise(self._marks):
            host[name] += ended - began
            if first and last:
                device[name] += first.elapsed_time(last) / 1e3
        return {name: {"host": host[name], "device": device.get(name)} for name in host}


def measure(kind: type[Arm], setup: Setup) -> dict[str, Any]:
    """One interval of an arm: seconds per step by phase, and how busy it kept the GPU.

    The optimiser's phase holds the updates of memory steps too.

    ``busy``: the kernels' time in an interval under torch's profiler by the stream's in the one
    without; None on a CPU, and where the profiler sees no kernel.
    """
    phases = Phases(setup.device)
    steps = setup.settings.interval

    def watched(arm: Arm) -> None:
        phases.around(arm, "backward", "training pass")
        phases.around(arm.optimizer, "step", "optimiser")
        if isinstance(arm, Ours):
            phases.around(arm.merger.rehearsal, "probe", "probe")
            phases.around(arm.merger.rehearsal, "memory_step", "memory step")
            phases.around(arm.merger, "step", "engine")

    _interval(kind, setup, watched, phases.mark)
    taken = phases.seconds()
    per_step = {
        name: {clock: value and value / steps for clock, value in taken[name].items()}
        for name in NAMES
        if name in taken
    }
    return {"arm": kind.name, "steps": steps, "phases": per_step, "busy": _busy(kind, setup, taken)}


def _interval(
    kind: type[Arm],
    setup: Setup,
    prepare: Callable[[Arm], None] = lambda _: None,
    mark: Callable[[], None] = lambda: None,
) -> None:
    """One interval of an arm from a fresh start, ``mark`` at its two ends."""
    arm = blocks.ready(kind, setup)
    prepare(arm)
    with arm.task():
        arm.used = Used()
        if setup.device.type == "cuda":
            torch.cuda.synchronize(setup.device)
        mark()
        for number in range(setup.settings.interval):
            arm.step(number)
        mark()


def _busy(kind: type[Arm], setup: Setup, taken: dict[str, dict[str, float | None]]) -> float | None:
    if setup.device.type != "cuda":
        return None
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    trace = torch.profiler.profile(activities=activities)
    bounds = iter((trace.start, trace.stop))

    def bound() -> None:
        torch.cuda.synchronize(setup.device)
        next(bounds)()

    _interval(kind, setup, mark=bound)
    worked = kernel_seconds(trace.events())
    passed = sum(both["device"] or 0.0 for both in taken.values())
    return worked / passed if worked and passed else None


def kernel_seconds(events: Iterable[Any]) -> float:
    """What the device worked: its kernels, copies and fills, but not the spans of named ranges."""
    worked = [
        event.time_range.elapsed_us()
        for event in events
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    ]
    return sum(worked) / 1e6
