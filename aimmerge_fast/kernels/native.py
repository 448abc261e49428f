"""Backend ``native``: the compiled kernels of ``csrc/``, reached by raw addresses.

Addresses are taken when an ``Engine`` is built or re-bound, so its methods take no tensors and cost
about a microsecond. The functional twins build a table from the tensors that they are given.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch

from aimmerge_fast import _native  # after torch: both must share torch's OpenMP runtime
from aimmerge_fast.kernels.arena import DTYPES, LOSS_DTYPES, arena_layout, check_apart, check_live

Tensor = torch.Tensor
_CACHED_ENGINES = 16


class Engine:
    """The ops bound to one set of tensors; see ``aimmerge_fast.kernels`` for what each does."""

    def __init__(self, live: Sequence[Tensor], anchor: Tensor, mid: Tensor, state: Tensor) -> None:
        for name, buffer in (("anchor", anchor), ("mid", mid), ("state", state)):
            _check_buffer(name, buffer)
        self._kept = (anchor, mid, state)  # addresses below must outlive this object
        self._native = _native.Engine(anchor.data_ptr(), mid.data_ptr(), state.data_ptr())
        self.rebind(live)

    def rebind(self, live: Sequence[Tensor]) -> None:
        device = check_live(live)
        if device.type != "cpu":
            raise ValueError(f"live is on {device}; this build's native kernels run on the CPU")
        layout = arena_layout(live)
        if any(buffer.numel() < layout.nbytes for buffer in self._kept[:2]):
            raise ValueError(f"anchor and mid need {layout.nbytes} bytes for these tensors")
        if live:
            check_apart(live, *self._kept[:2])
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


_engines: OrderedDict[tuple[object, ...], Engine] = OrderedDict()


def _engine(live: Sequence[Tensor], anchor: Tensor, mid: Tensor, state: Tensor) -> Engine:
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


def _state_engine(state: Tensor) -> Engine:
    return _engine([], state, state, state)


def _check_buffer(name: str, buffer: Tensor) -> None:
    if buffer.device.type != "cpu" or buffer.dtype != torch.uint8 or not buffer.is_contiguous():
        raise ValueError(
            f"{name} must be a contiguous uint8 CPU tensor, got {buffer.dtype} on {buffer.device}"
        )
    if buffer.data_ptr() % 16:
        raise ValueError(f"{name} starts at an address that is no multiple of 16; use new_arena()")
