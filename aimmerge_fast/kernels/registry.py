"""Which backends exist, which of them work here, and which one ``auto`` takes and why."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol, cast

import torch

#: Fastest first; ``auto`` takes the first that works on the device.
BACKENDS = ("native", "eager")


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
    kind = torch.device(device).type
    return {"native": _why_not_native(kind), "eager": None}


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
    passed_over = []
    for candidate in BACKENDS:
        if reasons[candidate] is None:
            break
        passed_over.append(f"{candidate}: {reasons[candidate]}")
    why = f"fastest that works on {torch.device(device).type}"
    return Choice(candidate, "; ".join([why, *passed_over]))


def load(name: str) -> ModuleType:
    """The module of a backend that ``choose`` approved."""
    return importlib.import_module(f"aimmerge_fast.kernels.{name}")


def engine(
    backend: str,
    live: Sequence[torch.Tensor],
    anchor: torch.Tensor,
    mid: torch.Tensor,
    state: torch.Tensor,
) -> Engine:
    """The ops of ``backend`` bound to these tensors; live are 1-D dense views of one device."""
    return cast(Engine, load(backend).Engine(live, anchor, mid, state))


def _why_not_native(device_kind: str) -> str | None:
    if device_kind != "cpu":
        return f"this version has native kernels for the CPU only, not for {device_kind}"
    try:
        importlib.import_module("aimmerge_fast._native")
    except ImportError as error:
        return f"the compiled module is missing or does not load ({error})"
    return None
