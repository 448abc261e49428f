"""Time calls on a shared machine: rotating data for cold runs, repeated data for hot ones.

A core that somebody else uses for a moment adds 4-8 ms to one sample, so a spread is reported and
never a mean. How a GPU is timed: ``overhead/cuda_clock.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from overhead import cuda_clock

Call = Callable[[], object]

#: Bytes that the sets of one cold arm must cover, so that no cache holds what comes next.
ROTATION_BYTES = 300_000_000
#: Runs in a row of a hot sample; only the last is timed, for the arm before left a foreign cache.
HOT_RUN = 3
#: Calls that warm an arm: its code and allocator; its data was written when the sets were made.
WARM_CALLS = 3


@dataclasses.dataclass(frozen=True)
class Spread:
    """Percentiles of one arm's samples, in µs."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        ordered = sorted(samples)
        last = len(ordered) - 1
        return cls(*(ordered[round(last * share)] for share in (0.2, 0.5, 0.8)))

    def headline(self, device: torch.device) -> float:
        """p20 on a CPU, whose cores are often shared; the median on a GPU."""
        return self.p20 if device.type == "cpu" else self.p50


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure an arm: ``samples``, or ``fewest`` and what fits into ``seconds``."""

    samples: int
    fewest: int
    seconds: float
    hook_calls: int
    rotation_bytes: int = ROTATION_BYTES

    def rotation(self, bytes_per_set: int) -> int:
        """Sets needed until they cover ``rotation_bytes``."""
        return max(1, math.ceil(self.rotation_bytes / max(1, bytes_per_set)))


FULL = Effort(samples=200, fewest=5, seconds=3.0, hook_calls=20_000)
QUICK = Effort(samples=40, fewest=3, seconds=0.25, hook_calls=2_000)


@dataclasses.dataclass(frozen=True)
class Halves:
    """A call in two parts: a GPU is timed on each apart, for the memory steps lie between them.

    ``owner`` is kept alive: its kernels may know only addresses.
    """

    first: Call
    second: Call
    owner: object

    def __call__(self) -> None:
        self.first()
        self.second()


def stopwatch(device: torch.device, *, cold: bool) -> Callable[[Call], float]:
    """A function that runs a call once and returns its µs: host clock, or CUDA events on a GPU."""
    if device.type == "cpu":

        def host(call: Call) -> float:
            begin = time.perf_counter()
            call()
            return (time.perf_counter() - begin) * 1e6

        return host

    clock = cuda_clock.device_clock(device, cold=cold)

    def events(call: Call) -> float:
        parts = (call.first, call.second) if isinstance(call, Halves) else (call,)
        return sum(map(clock, parts))

    return events


def cold(arms: dict[str, list[Call]], effort: Effort, device: torch.device) -> dict[str, Spread]:
    """Spread of each arm over its rotating sets, interleaved so that drift hits every arm."""
    return _sample(arms, effort, stopwatch(device, cold=True), repeat=1)


def hot(arms: dict[str, Call], effort: Effort, device: torch.device) -> dict[str, Spread]:
    """Spread of each arm on one set that its own two runs before have just touched."""
    sets = {name: [call] for name, call in arms.items()}
    return _sample(sets, effort, stopwatch(device, cold=False), repeat=HOT_RUN)


def wall(arms: dict[str, list[Call]], effort: Effort, device: torch.device) -> dict[str, Spread]:
    """As ``cold``, but host and device together: from an idle GPU to an idle GPU."""
    return _sample(arms, effort, cuda_clock.wall_clock(device), repeat=1)


def per_call(call: Call, calls: int, device: torch.device) -> float:
    """Median µs of one call of a short function, over batches of 100 calls in a row.

    On a GPU this is host time: the device is waited for between the batches, outside the clock.
    """
    batch, samples = 100, []
    with _quiet():
        for _ in range(max(1, calls // batch)):
            begin = time.perf_counter()
            for _ in range(batch):
                call()
            samples.append((time.perf_counter() - begin) * 1e6 / batch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    return Spread.of(samples).p50


def _sample(
    arms: dict[str, list[Call]], effort: Effort, clock: Callable[[Call], float], repeat: int
) -> dict[str, Spread]:
    samples: dict[str, list[float]] = {name: [] for name in arms}
    spent = dict.fromkeys(arms, 0.0)
    with _quiet():
        limits = {name: _limit(sets, effort, clock, repeat) for name, sets in arms.items()}
        for turn in range(effort.samples):
            for name, sets in arms.items():
                # A slow arm sits out turns, evenly spread, instead of running first and alone.
                sits_out = turn * limits[name] % effort.samples >= limits[name]
                # Others may take the cores at any moment: what an arm may cost stays bounded.
                late = spent[name] > 2e6 * effort.seconds and len(samples[name]) >= effort.fewest
                if sits_out or late:
                    continue
                call = sets[(len(samples[name]) + WARM_CALLS) % len(sets)]  # not those just warmed
                run = [clock(call) for _ in range(repeat)]
                samples[name].append(run[-1])
                spent[name] += sum(run)
    return {name: Spread.of(values) for name, values in samples.items()}


def _limit(sets: list[Call], effort: Effort, clock: Callable[[Call], float], repeat: int) -> int:
    """How many samples fit into the arm's seconds, judged by its first calls."""
    first: list[float] = []
    for call in sets[:WARM_CALLS]:
        if sum(first) <= 1e6 * effort.seconds:
            first.append(clock(call))
    once = max(min(first) * repeat / 1e6, 1e-9)
    return min(effort.samples, max(effort.fewest, int(effort.seconds / once)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No garbage collection inside a timed region."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
