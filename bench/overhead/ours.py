"""Our merge as an arm: one engine over one set of adapter tensors, driven as the merger does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from overhead.rivals import Alphas

#: Constant weights 0.6 and 0.4: never the alpha = (1, 0) shortcut, which reads less.
CONFIG = AIMConfig(schedule="fixed", alpha_new=0.6)
ALPHAS: Alphas = (0.6, 1.0 - 0.6)
#: Backends of our own kernels, the one that is chosen first before the others.
KERNELS = ("native", "triton")
#: open and close; one kernel each, and no torch operation at all.
LAUNCHES = 2
#: Bytes per entry and byte of storage: open reads 2 and writes 1, close reads 3 and writes 2.
_STREAMS = 3 + 5


class Ours:
    """An arm (see ``rivals.Arm``) on one of our backends."""

    tolerance = 0.0

    def __init__(self, backend: str, live: Sequence[Tensor]) -> None:
        self.live = list(live)
        self.unseen = 0 if backend == "eager" else LAUNCHES
        flat = [tensor.view(-1) for tensor in self.live]
        self._anchor, self._mid = kernels.new_arena(flat), kernels.new_arena(flat)
        for arena in (
            self._anchor,
            self._mid,
        ):  # mid too: its pages must be there when timing starts
            kernels.copy_into(arena, flat)
        self._state = kernels.new_state(CONFIG, device=flat[0].device)
        self._flat = flat
        engine = kernels.engine(backend, flat, self._anchor, self._mid, self._state)
        self.open_, self.close_, self.observe_ = engine.open_, engine.close_, engine.observe_
        self._engine = engine

    def change(self) -> float:
        return float(kernels.read_state(self._state)["state"]["partial_l1"])

    def anchors(self) -> list[Tensor]:
        views = kernels.arena_views(self._anchor, self._flat)
        return [view.view(live.shape) for view, live in zip(views, self.live, strict=True)]


def counted_bytes(live: Iterable[Tensor]) -> int:
    """Bytes a merge has to move: 12 N to open and 20 N to close in fp32."""
    return sum(_STREAMS * tensor.numel() * tensor.element_size() for tensor in live)


def choose(names: Iterable[str] | None, device: torch.device) -> tuple[list[str], dict[str, str]]:
    """Backends to run, and why others are not run.

    Args:
        names: explicit backends, each of which must work; None takes all that work on ``device``.
    Raises: ValueError for an unknown name, RuntimeError for one that cannot work on ``device``.
    """
    if names is not None:
        return [kernels.choose(name, device).name for name in names], {}
    reasons = kernels.available(device)
    usable = [name for name, reason in reasons.items() if reason is None]
    return usable, {name: reason for name, reason in reasons.items() if reason is not None}
