"""Clocks of a GPU.

The device's own time is taken between two events behind a delay, so that the host has launched
everything before the first event passes: up to a millisecond of host work is hidden. Before a cold
sample the L2 cache is filled with other data by reading it; writing would leave dirty lines, whose
way to memory would then be part of the sample.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

#: Bytes read to empty the L2, more than twice the largest there is (B200: 126 MB).
FLUSH_BYTES = 512_000_000
#: µs of the delay.
DELAY = 1_000.0
_PROBE_CYCLES = 10_000_000


def device_clock(device: torch.device, *, cold: bool) -> Callable[[Callable[[], object]], float]:
    """A function that runs a call once and returns the µs that the device worked on it."""
    cycles = _delay_cycles(device)

    def clock(call: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        if cold:
            _flush(device)
        torch.cuda._sleep(cycles)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e3

    return clock


def wall_clock(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """A function that runs a call once, cold, and returns µs until the device is idle again."""

    def clock(call: Callable[[], object]) -> float:
        _flush(device)
        torch.cuda.synchronize(device)
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize(device)
        return (time.perf_counter() - begin) * 1e6

    return clock


@functools.cache
def _flushed(device: torch.device) -> torch.Tensor:
    return torch.ones(FLUSH_BYTES // 4, device=device)


def _flush(device: torch.device) -> None:
    _flushed(device).sum()


@functools.cache
def _delay_cycles(device: torch.device) -> int:
    """Cycles of torch's spinning kernel that last for ``DELAY``, as its clock runs now."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):  # the clock rises under load
        begin.record()
        torch.cuda._sleep(_PROBE_CYCLES)
        end.record()
    torch.cuda.synchronize(device)
    return int(_PROBE_CYCLES * DELAY / (float(begin.elapsed_time(end)) * 1e3))
