"""The bandwidth ceiling of this machine in this run: triad and copy, all threads, cold.

A triad ``a[i] = b[i] + s * c[i]`` counts 12 bytes per fp32 entry. A plain store first reads the
line it overwrites, which is not counted; a non-temporal store does not, but needs compiled code.
Merges are held against the better triad, on a GPU against the copy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from overhead.timing import Call, Effort, cold

try:
    from aimmerge_fast import _native
except ImportError:
    _native = None  # type: ignore[assignment,unused-ignore]

Kernel = Callable[[Tensor, Tensor, Tensor], object]

#: Entries of one array: LLaMA2-7B's adapter, so that a call lasts as long as the merges do.
ENTRIES = 4_194_304
#: On a GPU a copy of that size would be mostly its beginning and its end, and flatter us.
GPU_ENTRIES = 1 << 27


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """GB/s of counted bytes; ``nontemporal`` is None where no compiled triad can run.

    ``best`` is what the merges are held against.
    """

    plain: float
    nontemporal: float | None
    copy: float
    note: str
    best: float


def measure(device: torch.device, effort: Effort) -> Ceiling:
    """Measure the ceiling of ``device``."""
    plain, nontemporal, note = _triads(device)
    kernels = {"plain": plain, "nontemporal": nontemporal, "copy": _copy}
    arms = {name: _sets(kernel, device, effort) for name, kernel in kernels.items() if kernel}
    spreads = cold(arms, effort, device)
    gbs = {
        name: (8 if name == "copy" else 12) * entries(device) / spread.headline(device) / 1e3
        for name, spread in spreads.items()
    }
    streamed = gbs.get("nontemporal")
    best = gbs["copy"] if device.type == "cuda" else max(gbs["plain"], streamed or 0.0)
    return Ceiling(gbs["plain"], streamed, gbs["copy"], note, best)


def entries(device: torch.device) -> int:
    """Of one array."""
    return GPU_ENTRIES if device.type == "cuda" else ENTRIES


def _triads(device: torch.device) -> tuple[Kernel, Kernel | None, str]:
    if device.type == "cpu" and hasattr(_native, "triad"):
        return (_native_triad(False), _native_triad(True), "compiled triad")
    if device.type == "cpu":
        reason = "no native module: torch's triad stands in, non-temporal stores not run"
        return _torch_triad, None, reason
    return _torch_triad, None, "arrays of 512 MiB; the non-temporal triad is a CPU kernel"


def _native_triad(nontemporal: bool) -> Kernel:
    def triad(a: Tensor, b: Tensor, c: Tensor) -> None:
        _native.triad(a.data_ptr(), b.data_ptr(), c.data_ptr(), a.numel(), nontemporal)

    return triad


def _torch_triad(a: Tensor, b: Tensor, c: Tensor) -> None:
    torch.add(b, c, alpha=0.5, out=a)


def _copy(a: Tensor, b: Tensor, c: Tensor) -> None:
    a.copy_(b)


def _sets(kernel: Kernel, device: torch.device, effort: Effort) -> list[Call]:
    """Calls on rotating arrays of this kernel's own: another's would have warmed them."""

    def one() -> Call:
        a, b, c = (torch.ones(entries(device), device=device) for _ in range(3))
        return lambda: kernel(a, b, c)

    return [one() for _ in range(effort.rotation(3 * 4 * entries(device)))]
