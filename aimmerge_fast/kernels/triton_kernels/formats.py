"""Storage formats: the bits of an entry, its fp32 value and back. Twin of ``csrc/core/formulas.h``.

Entries are loaded and stored as integers, so that copies keep every bit. All element arithmetic is
fp32 with one rounding per operation; nothing is computed in a 16-bit format.
"""

from __future__ import annotations

import triton
import triton.language as tl

from aimmerge_fast.kernels.triton_kernels import fields as at


@triton.jit
def entries_at(address, DTYPE: tl.constexpr, WIDE: tl.constexpr):
    """Pointer to the bits of the entries at an address; WIDE: it is a multiple of 16."""
    if DTYPE == at.FLOAT32:
        entries = address.to(tl.pointer_type(tl.uint32))
    else:
        entries = address.to(tl.pointer_type(tl.uint16))
    if WIDE:
        # on the pointer: the compiler forgets what it was told of the integer
        entries = tl.multiple_of(entries, 16)
    return entries


@triton.jit
def value(bits, DTYPE: tl.constexpr):
    if DTYPE == at.FLOAT32:
        x = bits.to(tl.float32, bitcast=True)
    elif DTYPE == at.BFLOAT16:
        x = (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        x = bits.to(tl.float16, bitcast=True).to(tl.float32)
    return x


@triton.jit
def stored(x, DTYPE: tl.constexpr):
    """Bits of the nearest stored value, ties to even."""
    if DTYPE == at.FLOAT32:
        bits = x.to(tl.uint32, bitcast=True)
    elif DTYPE == at.BFLOAT16:
        # by hand: the interpreter truncates
        u = x.to(tl.uint32, bitcast=True)
        rounded = (u + 0x7FFF + ((u >> 16) & 1)) >> 16
        bits = tl.where((u & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded).to(tl.uint16)
    else:
        bits = x.to(tl.float16).to(tl.uint16, bitcast=True)
    return bits


@triton.jit
def is_bad(bits, DTYPE: tl.constexpr):
    """Inf or NaN: all exponent bits are set."""
    if DTYPE == at.FLOAT32:
        bad = (bits & 0x7F800000) == 0x7F800000
    elif DTYPE == at.BFLOAT16:
        bad = (bits & 0x7F80) == 0x7F80
    else:
        bad = (bits & 0x7C00) == 0x7C00
    return bad


@triton.jit
def count_bad(rows, DTYPE: tl.constexpr):
    upper = is_bad(rows.r0, DTYPE).to(tl.int32) + is_bad(rows.r1, DTYPE).to(tl.int32)
    lower = is_bad(rows.r2, DTYPE).to(tl.int32) + is_bad(rows.r3, DTYPE).to(tl.int32)
    return tl.sum(upper + lower, axis=0)


@triton.jit
def change(live, anchor):
    """|live - anchor|: one fp32 rounding; every addition after it is fp64."""
    return tl.abs(live - anchor).to(tl.float64)


@triton.jit
def fuse(anchor, mid, live, alpha1, alpha2):
    """Eq. 7: anchor + (alpha1 * (mid - anchor) + alpha2 * (live - mid)), rounded each time."""
    t = mid - anchor
    t = alpha1 * t
    u = live - mid
    u = alpha2 * u
    return anchor + (t + u)


@triton.jit
def importance_of(theta, gradient):
    """What one step says about the importance of an entry."""
    return tl.abs(theta * gradient)


@triton.jit
def smooth(average, seen, keep, take):
    kept = keep * average
    taken = take * seen
    return kept + taken


@triton.jit
def spread(uncertainty, seen, sensitivity, keep, take):
    return smooth(uncertainty, tl.abs(seen - sensitivity), keep, take)


@triton.jit
def is_important(sensitivity, uncertainty, threshold):
    """Strictly: what equals the threshold is not important, nor is NaN."""
    return sensitivity * uncertainty > threshold


@triton.jit
def weight_of(weights, learned, past):
    """Of a task vector, for entries important to both, only learned, only past, neither."""
    with_ = tl.where(past, weights.both, weights.learned)
    without = tl.where(past, weights.past, weights.neither)
    return tl.where(learned, with_, without)
