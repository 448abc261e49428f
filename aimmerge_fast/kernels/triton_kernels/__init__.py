"""Backend ``triton``: the kernels in Triton, for GPUs without our compiled module.

The same ops, orders and bits as ``csrc/``; the rooms follow it, one kernel a file:

============================================== ==================================================
file                                           twin of
============================================== ==================================================
``observe open close repair advance``          ``csrc/cpu/<op>.cpp``, ``csrc/cuda/<op>.cu``
``importance weighted``                        the same; ``entries`` launches them
``controller_{step,merge,halves}``             ``csrc/core/controller.h``
``formats order table``                        ``csrc/core/formulas.h``, ``csrc/core/tiles.h``
``fields block``                               the structs, and the record ring
``launch``                                     ``csrc/cuda/launch.h``
============================================== ==================================================

Every argument of a kernel is an address, a count or an fp32 factor. An ``Engine`` compiles and
loads all of its kernels when it is built; its methods neither allocate, copy nor wait, so that all
of them can be captured into a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aimmerge_fast.kernels.arena import LOSS_DTYPES, check_bindable
from aimmerge_fast.kernels.tiles import DeviceTable
from aimmerge_fast.kernels.triton_kernels import launch
from aimmerge_fast.kernels.twins import Twins

Tensor = torch.Tensor


class Engine:
    """The ops bound to one set of tensors; see ``aimmerge_fast.kernels`` for what each does."""

    def __init__(self, live: Sequence[Tensor], anchor: Tensor, mid: Tensor, state: Tensor) -> None:
        check_bindable(live, anchor, mid, state)
        self._kept: tuple[Tensor, ...] = (anchor, mid, state)  # their addresses are used below
        self._state = state.data_ptr()
        self._table = DeviceTable(live, state.device)
        self._observe = launch.launcher(launch.OBSERVE, state.device)
        self._advance = launch.launcher(launch.ADVANCE, state.device)
        self._repair = launch.launcher(launch.REPAIR, state.device)
        self._bind(live)

    def rebind(self, live: Sequence[Tensor]) -> None:
        check_bindable(live, *self._kept)
        self._table.rebind(live)
        self._bind(live)

    def _bind(self, live: Sequence[Tensor]) -> None:
        table, (anchor, mid, state) = self._table, self._kept
        self._open = launch.launcher(launch.OPEN[table.narrow], state.device)
        self._close = launch.launcher(launch.CLOSE[table.narrow], state.device)
        self._programs = max(1, table.count)  # without a tile the transition still takes place
        self._arguments = (
            *(table.tiles.data_ptr(), table.count, anchor.data_ptr(), mid.data_ptr()),
            *(table.scratch.data_ptr(), self._state),
        )
        self._live = list(live)

    def observe_(self, loss: Tensor) -> None:
        self._observe(1, loss.data_ptr(), LOSS_DTYPES[loss.dtype], self._state)

    def open_(self) -> None:
        self._open(self._programs, *self._arguments)

    def close_(self) -> None:
        self._close(self._programs, *self._arguments)

    def repair_(self) -> None:
        self._repair(self._programs, *self._arguments)

    def advance_(self, partials: Tensor) -> None:
        rows = partials.contiguous()
        self._advance(1, rows.data_ptr(), rows.shape[0], self._state)

    def let_go(self) -> None:
        """Stop keeping the tensors alive; the caller does, and never binds others."""
        self._kept, self._live = (), []


_twins = Twins(Engine)
observe_, open_, close_ = _twins.observe_, _twins.open_, _twins.close_
advance_, repair_ = _twins.advance_, _twins.repair_
