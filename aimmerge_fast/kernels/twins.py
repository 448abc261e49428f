"""The ops of a backend as functions of tensors, on top of its engine."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch

from aimmerge_fast.kernels.registry import Engine
from aimmerge_fast.kernels.tiles import is_capturing

Tensor = torch.Tensor
T = TypeVar("T")
_CACHED_ENGINES = 16


class Bound(Engine, Protocol):
    """An engine that depends on nothing but addresses, sizes and dtypes."""

    def let_go(self) -> None: ...


class Engines(Generic[T]):
    """Engines by the addresses that they are bound to; the latest few, and those of CUDA graphs.

    A kept engine must not hold the tensors that it was made for: it serves any others that lie
    where they lay, and a compiler's intermediates are freed.

    Args:
        build: makes an engine from what ``at`` is given.
    """

    def __init__(self, build: Callable[..., T]) -> None:
        self._build = build
        self._engines: OrderedDict[tuple[object, ...], T] = OrderedDict()
        self._captured: dict[tuple[object, ...], T] = {}  # CUDA graphs replay their tables

    def at(self, live: Sequence[Tensor], *buffers: Tensor) -> T:
        """The engine for these addresses, sizes and dtypes."""
        key = (
            *((t.data_ptr(), t.numel(), t.dtype) for t in live),
            *((t.data_ptr(), t.device) for t in buffers),
        )
        engine = self._captured.get(key) or self._engines.pop(key, None)
        if engine is None:
            engine = self._build(live, *buffers)
        if is_capturing(buffers[-1].device):
            self._captured[key] = engine
        elif key not in self._captured:
            self._engines[key] = engine
        if len(self._engines) > _CACHED_ENGINES:
            self._engines.popitem(last=False)
        return engine


class EntryEngine(Protocol):
    """The per-entry ops of a backend bound to live tensors and arenas; it keeps no tensor."""

    def importance_(
        self, gradients: Sequence[Tensor | None], pair: Sequence[Tensor], betas: Sequence[float]
    ) -> None: ...

    def weighted_(
        self, scores: Sequence[Tensor], thresholds: Tensor, weights: Sequence[tuple[float, float]]
    ) -> Tensor: ...


class EntryTwins:
    """The per-entry ops, each on an engine for exactly the addresses that it is given.

    Args:
        build: makes an engine from (live, anchor, mid).
    """

    def __init__(self, build: Callable[..., EntryEngine]) -> None:
        self._engine = Engines(build).at

    def importance_(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        sensitivity: Tensor,
        uncertainty: Tensor,
        betas: Sequence[float],
    ) -> None:
        """One step: u = |theta * gradient|, then S and U; ``betas`` are b1, 1 - b1, b2, 1 - b2."""
        pair = (sensitivity, uncertainty)
        self._engine(parameters, *pair).importance_(gradients, pair, betas)

    def weighted_(
        self,
        live: Sequence[Tensor],
        arenas: tuple[Tensor, Tensor],
        scores: Sequence[tuple[Tensor, Tensor]],
        thresholds: Tensor,
        weights: Sequence[tuple[float, float]],
    ) -> Tensor:
        """live <- anchor + (w_new (mid - anchor) + w_past (live - mid)); non-finite entries."""
        flat = [tensor for pair in scores for tensor in pair]
        return self._engine(live, *arenas).weighted_(flat, thresholds, weights)


class Twins:
    """The five ops, each on an engine for exactly the addresses that it is given.

    Args:
        build: makes an engine from (live, anchor, mid, state).
    """

    def __init__(self, build: Callable[..., Bound]) -> None:
        def unattached(*tensors: Any) -> Bound:
            engine = build(*tensors)
            engine.let_go()
            return engine

        self._engine = Engines(unattached).at

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
