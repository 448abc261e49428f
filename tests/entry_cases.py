"""Tables for the per-entry ops: tensors between fences with known bits, and what must come out.

The oracle is numpy in fp32, one operation at a time, entry by entry of one tensor after another.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from tests.tables import Spec, Table, bits_like, bits_of, set_bits, special_bits

Array = np.ndarray[Any, Any]
Device = torch.device | str
#: (importance_, weighted_) with the arguments of the public ones, ``backend`` left out.
Ops = tuple[Callable[..., None], Callable[..., torch.Tensor]]
WEIGHTS = ((0.4, 0.6), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5))
BETAS = (0.85, 0.7)
ODD_FENCE = 7.0  # behind the last entry of an importance


def public(backend: str) -> Ops:
    return (
        functools.partial(kernels.importance_, backend=backend),
        functools.partial(kernels.weighted_, backend=backend),
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """Two importances of two steps each, then one fusion.

    ``kind``: normal | specials (edges of the format) | bad (non-finite entries among them).
    ``without``: tensors whose second gradient is None.
    """

    specs: Sequence[Spec]
    kind: str = "normal"
    seed: int = 0
    weights: Sequence[tuple[float, float]] = WEIGHTS
    without: Sequence[int] = ()

    def draw(self, spec: Spec, generator: np.random.Generator) -> Array:
        if self.kind == "specials":
            return generator.choice(np.asarray(special_bits(spec.dtype), np.uint32), spec.entries)
        values = generator.standard_normal(spec.entries).astype(np.float32)
        if self.kind == "bad" and spec.entries:
            places = generator.integers(0, spec.entries, 3)
            values[places] = generator.choice([np.inf, -np.inf, np.nan], 3)
        return bits_like(values, spec.dtype)

    def fill(self, tensors: Sequence[torch.Tensor], number: int) -> None:
        generator = np.random.default_rng([self.seed, number])
        for tensor, spec in zip(tensors, self.specs, strict=True):
            set_bits(tensor, self.draw(spec, generator))


def fenced_importance(live: Sequence[torch.Tensor], device: Device) -> kernels.Importance:
    """One whose buffers go on behind the last entry."""
    made = kernels.new_importance(live)
    entries = len(made.sensitivity)
    longer = [torch.full((entries + 70,), ODD_FENCE, device=device) for _ in range(2)]
    for buffer in longer:
        buffer[:entries] = 0.0
    return kernels.Importance(longer[0], longer[1], made.places)


def play(
    case: Case, ops: Ops, device: Device = "cpu"
) -> tuple[Table, list[kernels.Importance], torch.Tensor, list[bytes]]:
    """The table and the importances as ``ops`` leave them, the count, and what live held before."""
    importance_, weighted_ = ops
    table = Table.build(case.specs, AIMConfig(), device=device)
    gradients = Table.build(case.specs, AIMConfig(), device=device).live
    importances = [fenced_importance(table.live, device) for _ in range(2)]
    for number, each in enumerate(importances):
        for step in range(2):
            case.fill(table.live, 10 + 4 * number + step)
            case.fill(gradients, 20 + 4 * number + step)
            given = [
                None if step and index in case.without else gradient
                for index, gradient in enumerate(gradients)
            ]
            importance_(table.live, given, each.sensitivity, each.uncertainty, *BETAS)
    for stage, arena in enumerate((table.anchor, table.mid)):
        case.fill(table.live, stage)
        kernels.copy_into(arena, table.live)
    case.fill(table.live, 2)
    before = [bits_of(arena) for arena in (table.anchor, table.mid)]
    fusion = (table.live, table.anchor, table.mid, *importances, limits(case).to(device))
    count = weighted_(*fusion, case.weights)
    return table, importances, count, before


def limits(case: Case) -> torch.Tensor:
    return torch.tensor([0.02, 0.01]) if case.kind == "normal" else torch.tensor([1e-9, 0.0])


# ---- what must come out -------------------------------------------------------------------------


def averages(case: Case, number: int, live: Sequence[torch.Tensor]) -> list[tuple[Array, Array]]:
    """(S, U) of each tensor after two steps."""
    keep = [np.float32(beta) for beta in BETAS]
    take = [np.float32(1.0 - beta) for beta in BETAS]
    found = [tuple(np.zeros(spec.entries, np.float32) for _ in range(2)) for spec in case.specs]
    for step in range(2):
        theta = _drawn(case, live, 10 + 4 * number + step)
        gradient = _drawn(case, live, 20 + 4 * number + step)
        for index, (s, u) in enumerate(found):
            seen = np.abs(theta[index] * gradient[index])
            if step and index in case.without:
                seen = np.zeros_like(seen)
            s = keep[0] * s + take[0] * seen
            found[index] = (s, keep[1] * u + take[1] * np.abs(seen - s))
    return [(s, u) for s, u in found]


def fused(case: Case, live: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What ``weighted_`` stores in each tensor."""
    anchors, mids, lives = (_drawn(case, live, stage) for stage in range(3))
    threshold = limits(case).numpy()
    scores = [[s * u for s, u in averages(case, number, live)] for number in range(2)]
    results = []
    for index, spec in enumerate(case.specs):
        new, past = (scores[side][index] > threshold[side] for side in range(2))
        kind = np.where(new, np.where(past, 0, 1), np.where(past, 2, 3))
        w_new, w_past = (np.float32([pair[side] for pair in case.weights])[kind] for side in (0, 1))
        a, m, x = anchors[index], mids[index], lives[index]
        values = a + (w_new * (m - a) + w_past * (x - m))
        values = np.where((w_new == 1) & (w_past == 0), m, values)
        results.append(torch.from_numpy(values).to(spec.dtype))
    return results


def _drawn(case: Case, live: Sequence[torch.Tensor], number: int) -> list[Array]:
    tensors = [torch.empty_like(tensor) for tensor in live]
    case.fill(tensors, number)
    return [tensor.cpu().float().numpy() for tensor in tensors]


def problems(case: Case, ops: Ops, device: Device = "cpu") -> list[str]:
    """What ``ops`` leave otherwise than they must."""
    with np.errstate(all="ignore"):
        table, importances, count, before = play(case, ops, device)
        wrong = []
        for number, each in enumerate(importances):
            expected = averages(case, number, table.live)
            for name, buffer, side in (("S", each.sensitivity, 0), ("U", each.uncertainty, 1)):
                wanted = torch.zeros_like(buffer)
                wanted[len(wanted) - 70 :] = ODD_FENCE
                for (first, entries), pair in zip(each.places, expected, strict=True):
                    wanted[first : first + entries] = torch.from_numpy(pair[side])
                if not same(buffer, wanted):
                    wrong.append(f"{name} of importance {number}")
        results = fused(case, table.live)
    for index, (tensor, wanted) in enumerate(zip(table.live, results, strict=True)):
        if not same(tensor, wanted):
            wrong.append(f"live tensor {index}")
        fences = table.buffers[index].clone()
        start = 64 + case.specs[index].offset * tensor.element_size()
        fences[start : start + tensor.numel() * tensor.element_size()] = 0xA5
        if not bool((fences == 0xA5).all()):
            wrong.append(f"beside live tensor {index}")
    if int(count) != sum(int((~torch.isfinite(each)).sum()) for each in results):
        wrong.append("the count")
    if before != [bits_of(arena) for arena in (table.anchor, table.mid)]:
        wrong.append("an arena")
    return wrong


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """The same bits, but for the pattern of a NaN, which is each processor's own."""
    pair = (found.cpu(), wanted.cpu())
    one = [torch.where(torch.isnan(each), torch.nan, each) for each in pair]
    return bits_of(one[0]) == bits_of(one[1])
