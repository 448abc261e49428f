"""Several tables as one engine: one per device or rank, decided by the sum of their changes.

Every table has its own copy of the controller, fed with the same losses. ``open_`` and ``close_``
leave the transition to ``advance_``: defer (partial sums) -> advance on all -> repair. Same inputs,
same code, so the copies stay equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from aimmerge_fast.kernels import layout
from aimmerge_fast.kernels.registry import Engine


class Group:
    """An engine over tables; see ``aimmerge_fast.kernels`` for what each op does.

    Args:
        engines: one per table.
        states: their state tensors, made with ``defer=True``.
        exchange: makes of this process's (2,) fp64 partial results the (k, 2) of all processes.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        states: Sequence[torch.Tensor],
        exchange: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._engines = engines
        self._states = states
        self._exchange = exchange

    def rebind(self, live: Sequence[torch.Tensor]) -> None:
        raise NotImplementedError("re-bind each engine of the group with the tensors of its table")

    def observe_(self, loss: torch.Tensor) -> None:
        for engine, state in zip(self._engines, self._states, strict=True):
            # a copy to the CPU must have arrived when the host reads it
            engine.observe_(loss.to(state.device, non_blocking=state.device.type != "cpu"))

    def open_(self) -> None:
        for engine in self._engines:
            engine.open_()
        self._settle()

    def close_(self) -> None:
        for engine in self._engines:
            engine.close_()
        self._settle()

    def advance_(self, partials: torch.Tensor) -> None:
        for engine in self._engines:
            engine.advance_(partials)

    def repair_(self) -> None:
        for engine in self._engines:
            engine.repair_()

    def _settle(self) -> None:
        rows = [_partial_row(state) for state in self._states]
        if self._exchange is not None:
            first = self._states[0].device
            later = first.type != "cpu"
            added = rows[0]
            for row in rows[1:]:
                added = added + row.to(first, non_blocking=later)
            rows = list(self._exchange(added))
        for engine, state in zip(self._engines, self._states, strict=True):
            # a copy to the CPU must have arrived when the host reads it
            later = state.device.type != "cpu"
            engine.advance_(torch.stack([row.to(state.device, non_blocking=later) for row in rows]))
        self.repair_()


def _partial_row(state: torch.Tensor) -> torch.Tensor:
    """(2,) fp64 view in a state tensor: this table's L1 and its number of non-finite entries."""
    start = layout.offset_in_state("partial_l1")
    return state[start : start + 16].view(torch.float64)
