"""What the kernels should compute, written another way: numpy, scaling, plain Python floats."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

#: dtype -> significant bits, exponent of the smallest step, largest finite value
FORMATS = {
    torch.float32: (24, -149, float.fromhex("0x1.fffffep127")),
    torch.bfloat16: (8, -133, float.fromhex("0x1.fep127")),
    torch.float16: (11, -24, 65504.0),
}
Array = np.ndarray[Any, Any]


def rounded(values: Array, dtype: torch.dtype) -> Array:
    """fp64 values to the nearest of ``dtype``, ties to even, by scaling instead of bit tricks."""
    digits, lowest, largest = FORMATS[dtype]
    step = np.exp2(np.maximum(np.frexp(values)[1] - digits, lowest).astype(np.float64))
    nearest = np.where(np.isfinite(values), np.rint(values / step) * step, values)
    return np.where(np.abs(nearest) > largest, np.copysign(np.inf, nearest), nearest)


def fused(anchor: Array, mid: Array, live: Array, alpha1: float, alpha2: float) -> Array:
    """Eq. 7 on fp32 arrays; numpy rounds each operation."""
    assert anchor.dtype == mid.dtype == live.dtype == np.float32
    t = np.float32(alpha1) * (mid - anchor)
    u = np.float32(alpha2) * (live - mid)
    return anchor + (t + u)


def same_values(a: Array, b: Array) -> bool:
    """Equal with the signs of zeros; any NaN is as good as another."""
    nan = np.isnan(a) & np.isnan(b)
    return bool((nan | (a.view(np.int64) == b.view(np.int64))).all())


def stored(bits: Array, dtype: torch.dtype) -> torch.Tensor:
    signed = np.int32 if dtype == torch.float32 else np.int16
    unsigned = np.uint32 if dtype == torch.float32 else np.uint16
    return torch.from_numpy(bits.astype(unsigned).view(signed)).view(dtype)


def one_by_one(values: Iterable[float]) -> float:
    """The sum from left to right; ``sum`` corrects its roundings from Python 3.12 on."""
    return functools.reduce(operator.add, values, 0.0)


def in_order_p(changes: Sequence[Sequence[float]]) -> float:
    """The sum over tensors in order P, as csrc/core/tiles.h words it."""
    partials = []
    for change in changes:
        for first in range(0, len(change), 4096):
            d = list(change[first : first + 4096])
            d += [0.0] * (4096 - len(d))
            s = [(d[k] + d[k + 2048]) + (d[k + 1024] + d[k + 3072]) for k in range(1024)]
            partials.append(neighbours(s))
    lanes = [0.0] * 256
    for number, partial in enumerate(partials):
        lanes[number % 256] += partial
    return neighbours(lanes)


def neighbours(values: list[float]) -> float:
    """Add neighbours until one number is left."""
    while len(values) > 1:
        values = [values[k] + values[k + 1] for k in range(0, len(values), 2)]
    return values[0]
