"""The correctness gate: nothing is timed before its result was compared in the same run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from overhead.backbones import Shape
from overhead.ours import ALPHAS
from overhead.rivals import Arm

#: Relative error allowed to L1: our fp64 sum against another order, and the rivals' fp32 sums.
_L1_TOLERANCE = {True: 1e-12, False: 1e-4}
#: Of the values: those at the start, and those that each of two rounds of steps adds.
SCALES = (2e-2, 1e-3, 5e-4)


class GateError(RuntimeError):
    """An arm's result is wrong, so nothing may be timed."""


class Values(Protocol):
    """Values of one merge, tensor by tensor, so that a check need not hold all of them."""

    def tensors(self) -> list[Tensor]:
        """Fresh tensors at the start values, each with its own memory as parameters have."""

    def pieces(self, stage: int) -> Iterator[Tensor]:
        """Flat values of each tensor: 0 the start, 1 and 2 what a round of steps adds."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """``Values`` as flat fp32 vectors."""

    shapes: list[Shape]
    start: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def draw(cls, shapes: list[Shape], device: torch.device, seed: int = 42) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        entries = sum(math.prod(shape) for shape in shapes)

        def normal(scale: float) -> Tensor:
            return (torch.randn(entries, generator=generator) * scale).to(device)

        return cls(shapes, *map(normal, SCALES))

    def tensors(self) -> list[Tensor]:
        pieces = self.pieces(0)
        return [piece.view(s).clone() for piece, s in zip(pieces, self.shapes, strict=True)]

    def pieces(self, stage: int) -> Iterator[Tensor]:
        vector = (self.start, self.first, self.second)[stage]
        return iter(vector.split([math.prod(shape) for shape in self.shapes]))


def check(name: str, make: Callable[[list[Tensor]], Arm], values: Values, *, ours: bool) -> Arm:
    """One merge of a new arm against Eq. 7 written out; ``GateError`` says what differs.

    Ours must give the same bits and L1 at 1e-12; a rival must keep the tolerance that it claims.
    Beside the arm it takes memory for the work on one tensor.
    """
    arm = make(values.tensors())
    _move(arm.live, values.pieces(1))
    arm.open_()
    _move(arm.live, values.pieces(2))
    arm.close_()
    live, anchor = (_Comparison(f"{name}: {what}", arm.tolerance) for what in ("live", "anchor"))
    moved = []
    rows = zip(arm.live, arm.anchors(), *map(values.pieces, range(3)), strict=True)
    for live_tensor, anchor_tensor, start, first, second in rows:
        theta_j = start + first
        moved.append((theta_j - start).abs().double().sum().item())
        expected = _formula(start, theta_j, theta_j + second)
        live.add(live_tensor, expected)
        anchor.add(anchor_tensor, expected)
    live.require_equal()
    anchor.require_equal()
    if not math.isclose(arm.change(), math.fsum(moved), rel_tol=_L1_TOLERANCE[ours]):
        raise GateError(f"{name}: L1 is {arm.change()!r}, the formula gives {math.fsum(moved)!r}")
    return arm


def _formula(anchor: Tensor, mid: Tensor, live: Tensor) -> Tensor:
    """Eq. 7 in fp32, one rounding per operation in the order of the specification."""
    new, past = ALPHAS[0] * (mid - anchor), ALPHAS[1] * (live - mid)
    return anchor + (new + past)


def _move(tensors: Sequence[Tensor], steps: Iterable[Tensor]) -> None:
    for tensor, step in zip(tensors, steps, strict=True):
        tensor.add_(step.view(tensor.shape))


class _Comparison:
    """Entries that differ from what is expected, over the tensors of an arm."""

    def __init__(self, what: str, tolerance: float) -> None:
        self._what, self._tolerance = what, tolerance
        self._entries = self._wrong = 0
        self._first = ""

    def add(self, tensor: Tensor, expected: Tensor) -> None:
        got = tensor.reshape(-1)
        allowed = self._tolerance * expected.abs().clamp(min=1e-3)
        wrong = ~((got - expected).abs() <= allowed)
        if wrong.any():
            at = int(wrong.nonzero()[0])
            self._first = self._first or (
                f"entry {self._entries + at}: {got[at].item()!r}, expected {expected[at].item()!r}"
            )
            self._wrong += int(wrong.sum())
        self._entries += got.numel()

    def require_equal(self) -> None:
        if self._wrong:
            raise GateError(
                f"{self._what}: {self._wrong} of {self._entries} entries differ from Eq. 7; the "
                f"first is {self._first}"
            )
