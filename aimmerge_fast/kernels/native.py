"""Backend ``native``: the compiled kernels of ``csrc/``, reached by raw addresses.

Addresses are taken when an ``Engine`` is built or re-bound, so its methods take no tensors and cost
about a microsecond. The functional twins build a table from the tensors that they are given.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from aimmerge_fast import _native  # after torch: both must share torch's OpenMP runtime
from aimmerge_fast.kernels.arena import (
    DTYPES,
    LOSS_DTYPES,
    arena_layout,
    check_apart,
    check_arenas,
    check_live,
)
from aimmerge_fast.kernels.tiles import DeviceTable

Tensor = torch.Tensor
_CACHED_ENGINES = 16


class CpuEngine:
    """The ops bound to one set of tensors; see ``aimmerge_fast.kernels`` for what each does."""

    def __init__(self, live: Sequence[Tensor], anchor: Tensor, mid: Tensor, state: Tensor) -> None:
        self._kept = (anchor, mid, state)  # addresses below must outlive this object
        self._native = _native.Engine(anchor.data_ptr(), mid.data_ptr(), state.data_ptr())
        self.rebind(live)

    def rebind(self, live: Sequence[Tensor]) -> None:
        _check(live, *self._kept)
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
        self._kept = (anchor, mid, state)
        self._module = module
        _check(live, *self._kept)
        self._stream = stream_of(state.device)
        self._table = DeviceTable(live, state.device)
        module.cuda_kernels(state.device.index or 0)  # loads them: not to happen in a capture
        self._bind(live)

    def rebind(self, live: Sequence[Tensor]) -> None:
        _check(live, *self._kept)
        self._table.rebind(live)
        self._bind(live)

    def _bind(self, live: Sequence[Tensor]) -> None:
        table, device = self._table, self._kept[2].device.index or 0
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


def observe_(loss: Tensor, state: Tensor) -> None:
    """Give one history loss to the controller."""
    _state_engine(state).observe_(loss)


def open_(live: Sequence[Tensor], anchor: Tensor, mid: Tensor, state: Tensor) -> None:
    """mid <- live; L1 and the controller's transition; undone when live is not finite."""
    _engine(live, anchor, mid, state).open_()


def close_(live: Sequence[Tensor], anchor: Tensor, mid: Tensor, state: Tensor) -> None:
    """live, anchor <- anchor + (alpha1 * (mid - anchor) + alpha2 * (live - mid)), Eq. 7."""
    _engine(live, anchor, mid, state).close_()


def advance_(partials: Tensor, state: Tensor) -> None:
    """The transition of the next half from rows of (L1, non-finite entries), added in row order."""
    _state_engine(state).advance_(partials)


def repair_(live: Sequence[Tensor], anchor: Tensor, mid: Tensor, state: Tensor) -> None:
    """Undo the half that met a non-finite entry: open goes back to anchor, close to mid."""
    _engine(live, anchor, mid, state).repair_()


_engines: OrderedDict[tuple[object, ...], CpuEngine | CudaEngine] = OrderedDict()


def _engine(
    live: Sequence[Tensor], anchor: Tensor, mid: Tensor, state: Tensor
) -> CpuEngine | CudaEngine:
    """An engine for exactly these addresses; a cached one keeps its tensors alive, so a cached
    address cannot have been reused for other memory."""
    key = (
        *((t.data_ptr(), t.numel(), t.dtype) for t in live),
        *(t.data_ptr() for t in (anchor, mid, state)),
    )
    engine = _engines.pop(key, None) or Engine(live, anchor, mid, state)
    _engines[key] = engine
    if len(_engines) > _CACHED_ENGINES:
        _engines.popitem(last=False)
    return engine


def _state_engine(state: Tensor) -> CpuEngine | CudaEngine:
    return _engine([], state, state, state)


def _check(live: Sequence[Tensor], anchor: Tensor, mid: Tensor, state: Tensor) -> None:
    check_arenas(live, anchor, mid, state)
    check_live(live)
    if live:
        check_apart(live, anchor, mid)
