"""Backend ``native``: the compiled kernels of ``csrc/``, reached by raw addresses.

Addresses are taken when an ``Engine`` is built or re-bound, so its methods take no tensors and cost
about a microsecond. The functional twins build a table from the tensors that they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from aimmerge_fast import _native  # after torch: both must share torch's OpenMP runtime
from aimmerge_fast.kernels.arena import DTYPES, LOSS_DTYPES, arena_layout, check_bindable
from aimmerge_fast.kernels.tiles import DeviceTable
from aimmerge_fast.kernels.twins import Twins

Tensor = torch.Tensor


class CpuEngine:
    """The ops bound to one set of tensors; see ``aimmerge_fast.kernels`` for what each does."""

    def __init__(self, live: Sequence[Tensor], anchor: Tensor, mid: Tensor, state: Tensor) -> None:
        self._kept: tuple[Tensor, ...] = (anchor, mid, state)  # their addresses are used below
        self._native = _native.Engine(anchor.data_ptr(), mid.data_ptr(), state.data_ptr())
        self.rebind(live)

    def rebind(self, live: Sequence[Tensor]) -> None:
        check_bindable(live, *self._kept)
        layout = arena_layout(live)
        self._live = list(live)
        self._native.bind(
            [tensor.data_ptr() for tensor in live],
            [tensor.numel() for tensor in live],
            list(layout.offsets),
            [DTYPES[tensor.dtype] for tensor in live],
        )

    def observe_(self, loss: Tensor) -> None:
        self._native.observe(loss.data_ptr(), LOSS_DTYPES[loss.dtype])

    # Methods of this object rather than of the compiled one: who keeps one keeps the tensors alive.
    def open_(self) -> None:
        self._native.open()

    def close_(self) -> None:
        self._native.close()

    def repair_(self) -> None:
        self._native.repair()

    def advance_(self, partials: Tensor) -> None:
        rows = partials.contiguous()
        self._native.advance(rows.data_ptr(), rows.shape[0])

    def let_go(self) -> None:
        """Stop keeping the tensors alive; the caller does, and never binds others."""
        self._kept, self._live = (), []


class CudaEngine:
    """The ops as CUDA kernels on the current stream of the tensors' device.

    Constructing it uploads the tile table and loads every kernel; no method allocates, copies or
    waits, so that all of them can be captured into a CUDA graph.

    Args:
        module: the compiled module that launches.
    """

    def __init__(
        self,
        live: Sequence[Tensor],
        anchor: Tensor,
        mid: Tensor,
        state: Tensor,
        *,
        module: Any = _native,
    ) -> None:
        self._kept: tuple[Tensor, ...] = (anchor, mid, state)
        self._module = module
        check_bindable(live, *self._kept)
        self._stream = stream_of(state.device)
        self._table = DeviceTable(live, state.device)
        self._device = state.device.index or 0
        module.cuda_kernels(self._device)  # loads them: not to happen in a capture
        self._bind(live)

    def rebind(self, live: Sequence[Tensor]) -> None:
        check_bindable(live, *self._kept)
        self._table.rebind(live)
        self._bind(live)

    def _bind(self, live: Sequence[Tensor]) -> None:
        table, device = self._table, self._device
        addresses = (buffer.data_ptr() for buffer in (*self._kept, table.scratch))
        self._native = self._module.CudaEngine(*addresses, device)
        self._native.bind(table.tiles.data_ptr(), table.count, table.narrow)
        self._live = list(live)

    def observe_(self, loss: Tensor) -> None:
        self._native.observe(loss.data_ptr(), LOSS_DTYPES[loss.dtype], self._stream())

    def open_(self) -> None:
        self._native.open(self._stream())

    def close_(self) -> None:
        self._native.close(self._stream())

    def repair_(self) -> None:
        self._native.repair(self._stream())

    def advance_(self, partials: Tensor) -> None:
        rows = partials.contiguous()
        self._native.advance(rows.data_ptr(), rows.shape[0], self._stream())

    def let_go(self) -> None:
        """Stop keeping the tensors alive; the caller does, and never binds others."""
        self._kept, self._live = (), []


def Engine(
    live: Sequence[Tensor], anchor: Tensor, mid: Tensor, state: Tensor
) -> CpuEngine | CudaEngine:
    """The engine for the device of ``state``."""
    kind = CpuEngine if state.device.type == "cpu" else CudaEngine
    return kind(live, anchor, mid, state)


def stream_of(device: torch.device) -> Callable[[], int]:
    """What gives the handle of the device's current stream, in well under a microsecond."""
    if device.type != "cuda":
        return lambda: 0
    raw: Callable[[int], int] = torch._C._cuda_getCurrentRawStream  # as Triton's launcher does
    index = device.index
    return lambda: raw(index)


_twins = Twins(Engine)
observe_, open_, close_ = _twins.observe_, _twins.open_, _twins.close_
advance_, repair_ = _twins.advance_, _twins.repair_
