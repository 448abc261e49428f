"""Measure one case of a sweep on one backend: memory, the gate, launches, cold times, host time."""

from __future__ import annotations

import dataclasses
import functools
import gc
from collections.abc import Callable

import torch
from torch import Tensor

from aimmerge_fast.cl.estimate import available
from overhead import gate, launches, timing
from overhead.measure import host_us
from overhead.ours import ALPHAS, Ours, counted_bytes
from overhead.rivals import Arm, Foreach
from overhead.timing import Effort, Halves, Spread
from sweep.cases import BY_TENSORS, Case, Drawn

FOREACH = "foreach"
Progress = Callable[[str], None]
Maker = Callable[[list[Tensor]], Arm]
#: live, anchor and mid in fp32; and what allocators round up and the check of one tensor takes.
_BYTES_PER_ENTRY, _SLACK = 12, 1.25
#: Calls of the step hook; a merge's host side is called a twentieth as often.
_HOOK_CALLS = 6_000


@dataclasses.dataclass(frozen=True)
class Measured:
    """One case on one backend; ``skipped`` is why it has no figures.

    ``cold[arm]`` µs per merge on the device, ``wall[arm]`` on a GPU host and device together, the
    arms being the backend and, where tensors grow, ``foreach``; ``launches`` of the backend's merge
    (None: not seen); ``host_us`` per step hook; ``merge_host_us`` what a merger does around the
    kernels of a merge: look for re-allocated parameters, tell autograd.
    """

    case: Case
    backend: str
    bytes_per_merge: int = 0
    cold: dict[str, Spread] = dataclasses.field(default_factory=dict)
    wall: dict[str, Spread] = dataclasses.field(default_factory=dict)
    launches: int | None = None
    host_us: float | None = None
    merge_host_us: float | None = None
    skipped: str | None = None


def measure(
    case: Case, backend: str, device: torch.device, effort: Effort, progress: Progress
) -> Measured:
    """Check against Eq. 7, then time; ``GateError`` before anything is timed."""
    sets = effort.rotation(2 * 4 * case.entries)  # as overhead.measure counts a set
    short = shortage(needed_bytes(case, sets), device)
    if short:
        return Measured(case, backend, skipped=short)
    try:
        found = _timed(case, backend, device, sets, effort, progress)
        progress(f"{backend}, {case.text()}: timing the host")
        calls = min(effort.hook_calls, _HOOK_CALLS)
        # Only now: beside the sets of the arms it would take room for three more copies.
        hook, around = host_us(backend, Drawn(case.sizes(), device), calls, device)
    except torch.OutOfMemoryError as error:
        return Measured(case, backend, skipped=f"out of memory: {str(error).splitlines()[0]}")
    return dataclasses.replace(found, host_us=hook, merge_host_us=around)


def _timed(
    case: Case,
    backend: str,
    device: torch.device,
    sets: int,
    effort: Effort,
    progress: Progress,
) -> Measured:
    makers: dict[str, Maker] = {backend: functools.partial(Ours, backend)}
    if case.grows == BY_TENSORS:
        makers[FOREACH] = lambda live: Foreach(live, ALPHAS)
    values = Drawn(case.sizes(), device)
    progress(f"{backend}, {case.text()}: checking")
    arms = {n: gate.check(n, make, values, ours=n == backend) for n, make in makers.items()}
    mine = arms[backend]
    launched = launches.count(_merge(mine), device, mine.unseen)
    progress(f"{backend}, {case.text()}: timing {sets} sets, cold")
    calls = {name: _sets(arm, makers[name], sets) for name, arm in arms.items()}
    return Measured(
        case,
        backend,
        counted_bytes(mine.live),
        timing.cold(calls, effort, device),
        timing.wall(calls, effort, device) if device.type == "cuda" else {},
        launched,
    )


def _sets(checked: Arm, make: Maker, sets: int) -> list[timing.Call]:
    """The checked arm and ``sets - 1`` beside it; no arm's time depends on the values."""
    others = [make([live + 1e-3 for live in checked.live]) for _ in range(sets - 1)]
    return [_merge(arm) for arm in (checked, *others)]


def _merge(arm: Arm) -> Halves:
    return Halves(arm.open_, arm.close_, arm)


# ---- memory -------------------------------------------------------------------------------------


def needed_bytes(case: Case, sets: int) -> int:
    """Of the rotating sets of every arm, or of one check."""
    arms = 2 if case.grows == BY_TENSORS else 1
    return int(arms * sets * _BYTES_PER_ENTRY * case.entries * _SLACK)


def shortage(needed: int, device: torch.device) -> str | None:
    """Why so many bytes do not fit on ``device`` now; None where they do."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch keeps for itself does not count as free
    free = available(device)
    if needed <= free:
        return None
    return f"needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
