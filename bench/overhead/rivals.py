"""The same merge as others would write it: released sequence, ``torch._foreach_*``, torch.compile.

Plain torch with no more Python than one loop over the tensors per statement, and each gives our
theta: separate multiplications and additions in the order of Eq. 7, because ``alpha=`` arguments
and ``addcmul`` fuse them into one rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Alphas = tuple[float, float]


class Arm(Protocol):
    """One way to merge: ``open_`` before the memory steps, ``close_`` after them.

    ``tolerance`` is the relative difference from the formula that the arm claims (0: same bits);
    ``unseen`` counts launches that the torch profiler cannot see.
    """

    tolerance: float
    unseen: int
    live: list[Tensor]

    def open_(self) -> None: ...
    def close_(self) -> None: ...
    def change(self) -> float: ...
    def anchors(self) -> list[Tensor]: ...


class Released:
    """The authors' operations: about 13 small kernels per tensor, 108 bytes per fp32 entry.

    As in their code each statement runs over all tensors and keeps what it made. Theirs also runs
    under autograd; this arm is spared that.
    """

    tolerance = 0.0
    unseen = 0

    def __init__(self, live: Sequence[Tensor], alphas: Alphas) -> None:
        self.live = list(live)
        self._alphas = alphas
        self._anchor = [tensor.clone() for tensor in self.live]
        self._mid: list[Tensor] = []
        self._new: list[Tensor] = []
        self._change = 0.0

    def open_(self) -> None:
        self._mid = [live.clone() for live in self.live]
        self._new = [mid - anchor for mid, anchor in zip(self._mid, self._anchor, strict=True)]

    def close_(self) -> None:
        alpha_new, alpha_past = self._alphas
        moved = [live.clone() for live in self.live]
        past = [theta - mid for theta, mid in zip(moved, self._mid, strict=True)]
        for index, live in enumerate(self.live):
            delta = alpha_new * self._new[index] + alpha_past * past[index]
            live.copy_(self._anchor[index] + delta)
        self._anchor = [live.clone() for live in self.live]
        total = torch.zeros((), device=self.live[0].device)
        for new in self._new:
            total = total + new.abs().sum()
        self._mid, self._new = [], []
        self._change = total.item()

    def change(self) -> float:
        return self._change

    def anchors(self) -> list[Tensor]:
        return self._anchor


class Importance:
    """The released code's importance scores: updated after every step, never read by its merge.

    Per tensor p·∂p, its absolute value and two moving averages (beta 0.85), after a read of
    ``isnan(grad).any()`` on the host.
    """

    def __init__(self, live: Sequence[Tensor]) -> None:
        self._live = list(live)
        self._grads = [tensor * 1e-3 for tensor in live]
        self._mean = [torch.zeros_like(tensor) for tensor in live]
        self._spread = [torch.zeros_like(tensor) for tensor in live]

    def step(self, beta: float = 0.85) -> None:
        for index, (live, grad) in enumerate(zip(self._live, self._grads, strict=True)):
            if torch.isnan(grad).any():
                continue
            score = (live * grad).abs()
            self._mean[index] = beta * self._mean[index] + (1 - beta) * score
            off = (score - self._mean[index]).abs()
            self._spread[index] = beta * self._spread[index] + (1 - beta) * off


class Foreach:
    """List operations, everything in place that can be: 84 bytes per fp32 entry."""

    tolerance = 0.0
    unseen = 0

    def __init__(self, live: Sequence[Tensor], alphas: Alphas) -> None:
        self.live = list(live)
        self._alphas = alphas
        self._anchor = [tensor.clone() for tensor in self.live]
        self._mid = [tensor.clone() for tensor in self.live]
        self._new: list[Tensor] = []
        self._l1 = torch.zeros(())

    def open_(self) -> None:
        torch._foreach_copy_(self._mid, self.live)
        self._new = list(torch._foreach_sub(self._mid, self._anchor))
        self._l1 = torch.stack(torch._foreach_norm(self._new, 1)).sum()

    def close_(self) -> None:
        alpha_new, alpha_past = self._alphas
        past = torch._foreach_sub(self.live, self._mid)
        torch._foreach_mul_(self._new, alpha_new)
        torch._foreach_mul_(past, alpha_past)
        torch._foreach_add_(self._new, past)
        torch._foreach_add_(self._anchor, self._new)
        torch._foreach_copy_(self.live, self._anchor)
        self._new = []

    def change(self) -> float:
        return self._l1.item()

    def anchors(self) -> list[Tensor]:
        return self._anchor


class Compiled:
    """Flat buffers and ``torch.compile``: one pass per half, the strongest rival.

    It needs what we do not ask for: every parameter is a view of one flat buffer. It looks for
    non-finite entries, as our kernels do, but restores nothing. Inductor may contract on another
    compiler, so it is held to a tolerance.
    """

    tolerance = 1e-6
    unseen = 2

    def __init__(self, live: Sequence[Tensor], alphas: Alphas) -> None:
        self._flat = torch.cat([tensor.reshape(-1) for tensor in live])
        self._anchor = self._flat.clone()
        self._mid = self._flat.clone()
        pieces = self._flat.split([tensor.numel() for tensor in live])
        self._shapes = [tensor.shape for tensor in live]
        self.live = [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]
        self._alphas = torch.tensor(alphas, dtype=torch.float32, device=self._flat.device)
        on_gpu = self._flat.device.type == "cuda"
        self._open, self._close = _compiled_for_size() if on_gpu else _compiled_halves()
        self._l1 = torch.zeros(())

    def open_(self) -> None:
        self._l1, self._good_open = self._open(self._flat, self._anchor, self._mid)

    def close_(self) -> None:
        self._good_close = self._close(self._flat, self._anchor, self._mid, self._alphas)

    def change(self) -> float:
        return self._l1.item()

    def anchors(self) -> list[Tensor]:
        pieces = self._anchor.split([live.numel() for live in self.live])
        return [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]


def _flat_open(live: Tensor, anchor: Tensor, mid: Tensor) -> tuple[Tensor, Tensor]:
    mid.copy_(live)
    l1 = (live - anchor).abs().sum()
    return l1, torch.isfinite(l1)


def _flat_close(live: Tensor, anchor: Tensor, mid: Tensor, alphas: Tensor) -> Tensor:
    fused = anchor + (alphas[0] * (mid - anchor) + alphas[1] * (live - mid))
    live.copy_(fused)
    anchor.copy_(fused)
    return torch.isfinite(fused).all()


@functools.cache
def _compiled_halves() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """One compiled pair for all sizes: as fast as specialised code (within 1 %), compiled once."""
    return (
        torch.compile(_flat_open, dynamic=True, fullgraph=True),
        torch.compile(_flat_close, dynamic=True, fullgraph=True),
    )


@functools.cache
def _compiled_for_size() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A pair for each size: that one pair is as fast for all was measured on a CPU only."""
    return (
        torch.compile(_flat_open, dynamic=False, fullgraph=True),
        torch.compile(_flat_close, dynamic=False, fullgraph=True),
    )


COMPILED = "compiled"
#: Name in the tables and in the JSON keys -> arm.
RIVALS: dict[str, Callable[[Sequence[Tensor], Alphas], Arm]] = {
    "released": Released,
    "foreach": Foreach,
    COMPILED: Compiled,
}
