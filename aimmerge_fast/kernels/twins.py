"""The ops of a backend as functions of tensors, on top of its engine."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from aimmerge_fast.kernels.registry import Engine
from aimmerge_fast.kernels.tiles import is_capturing

Tensor = torch.Tensor
_CACHED_ENGINES = 16


class Bound(Engine, Protocol):
    """An engine that depends on nothing but addresses, sizes and dtypes."""

    def let_go(self) -> None: ...


class Twins:
    """The five ops, each on an engine for exactly the addresses that it is given.

    A cached engine lets go of the tensors that it was made for: it serves any others that lie where
    they lay, and a compiler's intermediates are freed.

    Args:
        build: makes an engine from (live, anchor, mid, state).
    """

    def __init__(self, build: Callable[..., Bound]) -> None:
        self._build = build
        self._engines: OrderedDict[tuple[object, ...], Bound] = OrderedDict()
        self._captured: dict[tuple[object, ...], Bound] = {}  # CUDA graphs replay their tables

    def observe_(self, loss: Tensor, state: Tensor) -> None:
        """Give one history loss to the controller."""
        self._engine([], state, state, state).observe_(loss)

    def open_(self, live: Sequence[Tensor], anchor: Tensor, mid: Tensor, state: Tensor) -> None:
        """mid <- live; L1 and the controller's transition; undone when live is not finite."""
        self._engine(live, anchor, mid, state).open_()

    def close_(self, live: Sequence[Tensor], anchor: Tensor, mid: Tensor, state: Tensor) -> None:
        """live, anchor <- anchor + (alpha1 * (mid - anchor) + alpha2 * (live - mid)), Eq. 7."""
        self._engine(live, anchor, mid, state).close_()

    def advance_(self, partials: Tensor, state: Tensor) -> None:
        """The transition of the next half from rows of (L1, non-finite entries), in row order."""
        self._engine([], state, state, state).advance_(partials)

    def repair_(self, live: Sequence[Tensor], anchor: Tensor, mid: Tensor, state: Tensor) -> None:
        """Undo the half that met a non-finite entry: open goes back to anchor, close to mid."""
        self._engine(live, anchor, mid, state).repair_()

    def _engine(self, live: Sequence[Tensor], anchor: Tensor, mid: Tensor, state: Tensor) -> Bound:
        key = (
            *((t.data_ptr(), t.numel(), t.dtype) for t in live),
            *((t.data_ptr(), t.device) for t in (anchor, mid, state)),
        )
        engine = self._captured.get(key) or self._engines.pop(key, None)
        if engine is None:
            engine = self._build(live, anchor, mid, state)
            engine.let_go()
        if is_capturing(state.device):
            self._captured[key] = engine
        elif key not in self._captured:
            self._engines[key] = engine
        if len(self._engines) > _CACHED_ENGINES:
            self._engines.popitem(last=False)
        return engine
