"""advance: the transition alone, from the partial results of several tables or ranks."""

from __future__ import annotations

import triton
import triton.language as tl

from aimmerge_fast.kernels.triton_kernels import fields as at
from aimmerge_fast.kernels.triton_kernels.block import block_at
from aimmerge_fast.kernels.triton_kernels.controller_halves import close_merge, open_merge
from aimmerge_fast.kernels.triton_kernels.controller_step import integer, real, truncate_within


@triton.jit
def advance_kernel(rows, count, state):
    """rows: the address of (L1, non-finite entries), added in row order so that all agree.

    A count beyond int32 is clamped: converting it as it is would be undefined.
    """
    b = block_at(state)
    l1 = real(0.0)
    bad = tl.zeros((), tl.int64)
    for index in range(0, count):
        row = (rows + index * 16).to(tl.pointer_type(tl.float64))
        l1 += tl.load(row)
        found = truncate_within(tl.load(row + 1), integer(0), integer(at.LARGEST))
        bad += found.to(tl.int64)
    if tl.load(b.i32 + at.S_PHASE) == at.IDLE:
        open_merge(b, l1, bad)
    else:
        close_merge(b, bad)
