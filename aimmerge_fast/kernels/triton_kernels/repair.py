"""repair: undo the half that just met a non-finite entry; nothing when it did not."""

from __future__ import annotations

import triton
import triton.language as tl

from aimmerge_fast.kernels.triton_kernels import fields as at
from aimmerge_fast.kernels.triton_kernels.block import block_at
from aimmerge_fast.kernels.triton_kernels.table import Table, tile_at, undo_close, undo_open


@triton.jit
def repair_kernel(tiles, count, anchor, mid, scratch, state):
    table = Table(tiles, count, anchor, mid, scratch)
    b = block_at(state)
    index = tl.program_id(0).to(tl.int64)
    rejected = tl.load(b.i32 + at.S_REJECT) != 0
    changes_live = tl.load(b.i32 + at.C_SCHEDULE) != at.MONITOR
    if rejected & changes_live & (index < count):
        tile = tile_at(table, index)
        if tl.load(b.i32 + at.S_PHASE) == at.MERGE_OPEN:
            undo_open(tile)  # theta_j was bad: back to the anchor
        else:
            undo_close(tile)  # the fused values were bad: back to theta_j
