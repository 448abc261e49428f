"""The correctness gate: nothing is timed before its result was compared in the same run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from overhead.backbones import Shape
from overhead.ours import ALPHAS
from overhead.rivals import Arm

#: Relative error allowed to L1: our fp64 sum against another order, and the rivals' fp32 sums.
_L1_TOLERANCE = {True: 1e-12, False: 1e-4}


class GateError(RuntimeError):
    """An arm's result is wrong, so nothing may be timed."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Values of one merge as flat fp32 vectors: the start, and what two rounds of steps added."""

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

        return cls(shapes, normal(2e-2), normal(1e-3), normal(5e-4))

    def tensors(self) -> list[Tensor]:
        """Fresh tensors at the start values, each with its own memory as parameters have."""
        pieces = self.start.split([math.prod(shape) for shape in self.shapes])
        return [piece.view(s).clone() for piece, s in zip(pieces, self.shapes, strict=True)]


def check(name: str, make: Callable[[list[Tensor]], Arm], inputs: Inputs, *, ours: bool) -> Arm:
    """One merge of a new arm against Eq. 7 written out; ``GateError`` says what differs.

    Ours must give the same bits and L1 at 1e-12; a rival must keep the tolerance that it claims.
    """
    arm = make(inputs.tensors())
    _move(arm.live, inputs.first)
    arm.open_()
    _move(arm.live, inputs.second)
    arm.close_()
    theta_j = inputs.start + inputs.first
    moved = (theta_j - inputs.start).abs().double().sum().item()
    expected = _formula(inputs.start, theta_j, theta_j + inputs.second)
    _compare(f"{name}: live", arm.live, expected, arm.tolerance)
    _compare(f"{name}: anchor", arm.anchors(), expected, arm.tolerance)
    if not math.isclose(arm.change(), moved, rel_tol=_L1_TOLERANCE[ours]):
        raise GateError(f"{name}: L1 is {arm.change()!r}, the formula gives {moved!r}")
    return arm


def _formula(anchor: Tensor, mid: Tensor, live: Tensor) -> Tensor:
    """Eq. 7 in fp32, one rounding per operation in the order of the specification."""
    new, past = ALPHAS[0] * (mid - anchor), ALPHAS[1] * (live - mid)
    return anchor + (new + past)


def _move(tensors: Sequence[Tensor], step: Tensor) -> None:
    pieces = step.split([tensor.numel() for tensor in tensors])
    for tensor, piece in zip(tensors, pieces, strict=True):
        tensor.add_(piece.view(tensor.shape))


def _compare(what: str, tensors: Sequence[Tensor], expected: Tensor, tolerance: float) -> None:
    got = torch.cat([tensor.reshape(-1) for tensor in tensors])
    allowed = tolerance * expected.abs().clamp(min=1e-3)
    wrong = ~((got - expected).abs() <= allowed)
    if wrong.any():
        at = int(wrong.nonzero()[0])
        raise GateError(
            f"{what}: {int(wrong.sum())} of {got.numel()} entries differ from Eq. 7; the first is "
            f"entry {at}: {got[at].item()!r}, expected {expected[at].item()!r}"
        )
