"""Which backends exist, which of them work here, and which one ``auto`` takes and why."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol, cast

import torch

#: Fastest first; ``auto`` takes the first that works on the device.
BACKENDS = ("native", "triton", "eager")
_MODULES = {"triton": "triton_kernels"}  # a module named triton would hide the library
_ENTRY_MODULES = {  # the per-entry ops
    "native": "native_entries",
    "triton": "triton_kernels.entries",
    "eager": "eager_entries",
}


class Engine(Protocol):
    """The ops of a backend bound to one set of tensors; no method takes a live tensor."""

    def rebind(self, live: Sequence[torch.Tensor]) -> None: ...
    def observe_(self, loss: torch.Tensor) -> None: ...
    def open_(self) -> None: ...
    def close_(self) -> None: ...
    def advance_(self, partials: torch.Tensor) -> None: ...
    def repair_(self) -> None: ...


@dataclass(frozen=True)
class Choice:
    """A backend and, readable, why it was taken."""

    name: str
    reason: str


def available(device: torch.device | str = "cpu") -> dict[str, str | None]:
    """For each backend: None when it works on ``device``, else the reason that it does not."""
    device = torch.device(device)
    return {"native": _why_not_native(device), "triton": _why_not_triton(device), "eager": None}


def choose(name: str, device: torch.device | str) -> Choice:
    """Resolve ``auto`` or check an explicit name.

    Raises:
        ValueError: unknown name; the known ones are listed.
        RuntimeError: a known backend that cannot work on ``device``, with the reason.
    """
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; choose one of auto, {', '.join(BACKENDS)}")
    reasons = available(device)
    if name != "auto":
        if reasons[name] is not None:
            raise RuntimeError(f"backend {name!r} cannot work on {device}: {reasons[name]}")
        return Choice(name, "asked for")
    kind = torch.device(device).type
    if kind == "cpu" and reasons["triton"] is None:
        reasons["triton"] = "interpreted on the CPU, which is for tests"
    passed_over = []
    for candidate in BACKENDS:
        if reasons[candidate] is None:
            break
        passed_over.append(f"{candidate}: {reasons[candidate]}")
    why = f"fastest that works on {kind}"
    return Choice(candidate, "; ".join([why, *passed_over]))


def load(name: str, room: str = "ops") -> ModuleType:
    """The module of a backend that ``choose`` approved; ``room``: ops | entries (per-entry ops)."""
    file = _ENTRY_MODULES[name] if room == "entries" else _MODULES.get(name, name)
    return importlib.import_module(f"aimmerge_fast.kernels.{file}")


def engine(
    backend: str,
    live: Sequence[torch.Tensor],
    anchor: torch.Tensor,
    mid: torch.Tensor,
    state: torch.Tensor,
) -> Engine:
    """The ops of ``backend`` bound to these tensors; live are 1-D dense views of one device."""
    return cast(Engine, load(backend).Engine(live, anchor, mid, state))


def _why_not_native(device: torch.device) -> str | None:
    if device.type not in ("cpu", "cuda"):
        return f"there are native kernels for cpu and cuda, none for {device.type}"
    try:
        native = importlib.import_module("aimmerge_fast._native")
    except ImportError as error:
        return f"the compiled module is missing or does not load ({error})"
    if device.type == "cpu":
        return None
    if not hasattr(native, "CudaEngine"):
        return "the compiled module was built without CUDA kernels (aimmerge doctor says why)"
    reason = _why_not_cuda(device, min(native.cuda_architectures()))
    if reason is not None:
        return reason
    try:  # the driver may be older than the runtime that the kernels were built with
        native.cuda_kernels(device.index or 0)
    except RuntimeError as error:
        return f"the compiled kernels do not load ({error})"
    return None


def _why_not_triton(device: torch.device) -> str | None:
    try:
        triton = importlib.import_module("triton")
    except ImportError as error:
        return f"triton does not load ({error})"
    release = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if release < (3, 6):
        return f"triton {triton.__version__} is too old; 3.6 or newer is needed"
    if device.type == "cpu":
        if triton.knobs.runtime.interpret and release >= (3, 9):
            return None
        return (
            "Triton compiles for GPUs; TRITON_INTERPRET=1 interprets its kernels on the CPU (3.9)"
        )
    if device.type != "cuda":
        return f"there are Triton kernels for cuda, none for {device.type}"
    return _why_not_launchable() or _why_not_cuda(device, 75)


def _why_not_launchable() -> str | None:
    """Triton builds its launcher with CC where that is set, else with gcc or clang."""
    chosen = os.environ.get("CC")
    if chosen and shutil.which(chosen) is None:
        return f"Triton needs a C compiler for its launcher, and CC={chosen} is not found"
    if not chosen and not any(map(shutil.which, ("gcc", "clang"))):
        return "Triton needs a C compiler for its launcher, and there is neither gcc nor clang"
    return None


def _why_not_cuda(device: torch.device, lowest: int) -> str | None:
    """Why kernels for compute capability ``lowest`` (75: 7.5) and above do not run there."""
    if torch.version.cuda is None:
        return "torch was built without CUDA"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    major, minor = torch.cuda.get_device_capability(device)
    if 10 * major + minor < lowest:
        return f"the GPU has compute capability {major}.{minor}, below {lowest // 10}.{lowest % 10}"
    return None
