"""Order P of ``csrc/core/tiles.h``: the one order in which changes are summed.

A sum over an axis of two entries has one order; a longer axis would be summed in the compiler's.
"""

from __future__ import annotations

import triton
import triton.language as tl

from aimmerge_fast.kernels.triton_kernels import fields as at

LANES = tl.constexpr(256)


@triton.jit
def halve(values, TIMES: tl.constexpr):
    """Add neighbours TIMES times."""
    for _ in tl.static_range(TIMES):
        values = tl.sum(tl.reshape(values, (values.shape[0] // 2, 2)), axis=1)
    return values


@triton.jit
def tile_sum(r0, r1, r2, r3):
    """Four rows (1024,) fp64 -> scalar: rows as (0 + 2) + (1 + 3), then neighbours ten times."""
    return tl.sum(halve((r0 + r2) + (r1 + r3), 9), axis=0)


@triton.jit
def final_sum(scratch, count):
    """The tiles' partial sums dealt over 256 lanes in ascending order, then neighbours."""
    lanes = tl.arange(0, LANES)
    sums = tl.zeros((LANES,), tl.float64)
    for first in range(0, count, LANES):
        partials = (scratch + at.PARTIALS_BYTE + first * 8).to(tl.pointer_type(tl.float64))
        left = tl.minimum(count - first, LANES).to(tl.int32)
        # past L1, which other blocks' stores do not reach
        sums += tl.load(partials + lanes, mask=lanes < left, other=0.0, cache_modifier=".cg")
    return tl.sum(halve(sums, 7), axis=0)
