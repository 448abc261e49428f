"""open: mid <- live and Lambda's numerator in one pass over the parameters, then the transition."""

from __future__ import annotations

import triton
import triton.language as tl

from aimmerge_fast.kernels.triton_kernels import fields as at
from aimmerge_fast.kernels.triton_kernels.block import block_at
from aimmerge_fast.kernels.triton_kernels.controller_halves import open_merge
from aimmerge_fast.kernels.triton_kernels.formats import change, entries_at, value
from aimmerge_fast.kernels.triton_kernels.order import final_sum, tile_sum
from aimmerge_fast.kernels.triton_kernels.table import (
    Rows,
    Table,
    add_bad,
    bad_in_live,
    is_last,
    load_row,
    load_rows,
    of_format,
    store_row,
    store_rows,
    take_bad,
    tile_at,
    undo_open,
)


@triton.jit
def changes(live, anchor, DTYPE: tl.constexpr):
    return change(value(live, DTYPE), value(anchor, DTYPE))


@triton.jit
def snapshot_rows(tile, DTYPE: tl.constexpr):
    """A wide tile: everything is asked for before anything is stored."""
    x = load_rows(entries_at(tile.live, DTYPE, True), tile.count, True)
    a = load_rows(entries_at(tile.anchor, DTYPE, True), tile.count, True)
    store_rows(entries_at(tile.mid, DTYPE, True), x, tile.count, True)
    return Rows(
        changes(x.r0, a.r0, DTYPE),
        changes(x.r1, a.r1, DTYPE),
        changes(x.r2, a.r2, DTYPE),
        changes(x.r3, a.r3, DTYPE),
    )


@triton.jit
def snapshot_row(tile, ROW: tl.constexpr, DTYPE: tl.constexpr):
    """A row of any tile; rows one after another need few registers."""
    x = load_row(entries_at(tile.live, DTYPE, False), tile.count, ROW, False)
    a = load_row(entries_at(tile.anchor, DTYPE, False), tile.count, ROW, False)
    store_row(entries_at(tile.mid, DTYPE, False), x, tile.count, ROW, False)
    return changes(x, a, DTYPE)


@triton.jit
def snapshot_tile(tile, _, DTYPE: tl.constexpr, WIDE: tl.constexpr):
    if WIDE:
        d = snapshot_rows(tile, DTYPE)
    else:
        d = Rows(
            snapshot_row(tile, 0, DTYPE),
            snapshot_row(tile, 1, DTYPE),
            snapshot_row(tile, 2, DTYPE),
            snapshot_row(tile, 3, DTYPE),
        )
    return tile_sum(d.r0, d.r1, d.r2, d.r3)


@triton.jit
def open_tile(table, tile, NARROW: tl.constexpr):
    partial = of_format(snapshot_tile, tile, 0, NARROW)
    place = table.scratch + at.PARTIALS_BYTE + tile.index * 8
    tl.store(place.to(tl.pointer_type(tl.float64)), partial)
    # a bad entry's change is not finite either, so a finite sum spares the count
    if partial - partial != 0.0:
        add_bad(table, bad_in_live(tile))


@triton.jit
def finish_open(table, b):
    l1 = final_sum(table.scratch, table.count)
    bad = take_bad(table)
    tl.store(b.f64 + at.S_PARTIAL_L1, l1)
    tl.store(b.f64 + at.S_PARTIAL_BAD, bad.to(tl.float64))
    if tl.load(b.i32 + at.S_DEFER) == 0:
        reject = open_merge(b, l1, bad)
        if (reject != 0) & (tl.load(b.i32 + at.C_SCHEDULE) != at.MONITOR):
            for index in range(0, table.count):
                undo_open(tile_at(table, index))


@triton.jit
def open_kernel(tiles, count, anchor, mid, scratch, state, NARROW: tl.constexpr):
    table = Table(tiles, count, anchor, mid, scratch)
    index = tl.program_id(0).to(tl.int64)
    if index < count:
        open_tile(table, tile_at(table, index), NARROW)
    if is_last(table):
        finish_open(table, block_at(state))
