"""close: live and anchor <- anchor + (alpha1 * (mid - anchor) + alpha2 * (live - mid)), Eq. 7."""

from __future__ import annotations

import triton
import triton.language as tl

from aimmerge_fast.kernels.triton_kernels import fields as at
from aimmerge_fast.kernels.triton_kernels.block import block_at
from aimmerge_fast.kernels.triton_kernels.controller_halves import close_merge
from aimmerge_fast.kernels.triton_kernels.formats import count_bad, entries_at, fuse, stored, value
from aimmerge_fast.kernels.triton_kernels.table import (
    Rows,
    Table,
    add_bad,
    copy_entries,
    is_last,
    load_row,
    load_rows,
    of_format,
    store_row,
    store_rows,
    take_bad,
    tile_at,
    undo_close,
)


@triton.jit
def fused(anchor, mid, live, alpha1, alpha2, DTYPE: tl.constexpr):
    a, m, x = value(anchor, DTYPE), value(mid, DTYPE), value(live, DTYPE)
    bits = stored(fuse(a, m, x, alpha1, alpha2), DTYPE)
    # a + (m - a) is not m in floating point, and 0 * inf is not 0
    return tl.where((alpha1 == 1.0) & (alpha2 == 0.0), mid, bits)


@triton.jit
def fuse_rows(tile, alpha1, alpha2, DTYPE: tl.constexpr):
    """A wide tile: everything is asked for before anything is stored."""
    to_live = entries_at(tile.live, DTYPE, True)
    to_anchor = entries_at(tile.anchor, DTYPE, True)
    a = load_rows(to_anchor, tile.count, True)
    m = load_rows(entries_at(tile.mid, DTYPE, True), tile.count, True)
    x = load_rows(to_live, tile.count, True)
    rows = Rows(
        fused(a.r0, m.r0, x.r0, alpha1, alpha2, DTYPE),
        fused(a.r1, m.r1, x.r1, alpha1, alpha2, DTYPE),
        fused(a.r2, m.r2, x.r2, alpha1, alpha2, DTYPE),
        fused(a.r3, m.r3, x.r3, alpha1, alpha2, DTYPE),
    )
    store_rows(to_live, rows, tile.count, True)
    store_rows(to_anchor, rows, tile.count, True)
    return rows


@triton.jit
def fuse_row(tile, alpha1, alpha2, ROW: tl.constexpr, DTYPE: tl.constexpr):
    """A row of any tile; rows one after another need few registers."""
    to_live = entries_at(tile.live, DTYPE, False)
    to_anchor = entries_at(tile.anchor, DTYPE, False)
    a = load_row(to_anchor, tile.count, ROW, False)
    m = load_row(entries_at(tile.mid, DTYPE, False), tile.count, ROW, False)
    x = load_row(to_live, tile.count, ROW, False)
    row = fused(a, m, x, alpha1, alpha2, DTYPE)
    store_row(to_live, row, tile.count, ROW, False)
    store_row(to_anchor, row, tile.count, ROW, False)
    return row


@triton.jit
def fuse_tile(tile, b, DTYPE: tl.constexpr, WIDE: tl.constexpr):
    alpha1 = tl.load(b.f64 + at.S_ALPHA1).to(tl.float32)
    alpha2 = tl.load(b.f64 + at.S_ALPHA2).to(tl.float32)
    if WIDE:
        rows = fuse_rows(tile, alpha1, alpha2, DTYPE)
    else:
        rows = Rows(
            fuse_row(tile, alpha1, alpha2, 0, DTYPE),
            fuse_row(tile, alpha1, alpha2, 1, DTYPE),
            fuse_row(tile, alpha1, alpha2, 2, DTYPE),
            fuse_row(tile, alpha1, alpha2, 3, DTYPE),
        )
    return count_bad(rows, DTYPE)


@triton.jit
def settle_measure(tile, b):
    """monitor: live is only looked at, and a snapshot that was not finite is no anchor."""
    if tl.load(b.i32 + at.S_REJECT) == 0:
        copy_entries(tile, tile.live, tile.anchor)


@triton.jit
def finish_close(table, b):
    bad = take_bad(table)
    tl.store(b.f64 + at.S_PARTIAL_BAD, bad.to(tl.float64))
    if tl.load(b.i32 + at.S_DEFER) == 0:
        if close_merge(b, bad) != 0:  # never under monitor, which counts nothing
            for index in range(0, table.count):
                undo_close(tile_at(table, index))


@triton.jit
def close_kernel(tiles, count, anchor, mid, scratch, state, NARROW: tl.constexpr):
    table = Table(tiles, count, anchor, mid, scratch)
    b = block_at(state)
    index = tl.program_id(0).to(tl.int64)
    if index < count:
        tile = tile_at(table, index)
        if tl.load(b.i32 + at.C_SCHEDULE) == at.MONITOR:
            settle_measure(tile, b)
        else:
            add_bad(table, of_format(fuse_tile, tile, b, NARROW))
    if is_last(table):
        finish_close(table, b)
