"""The tile table, what a kernel does for the tile of its program, and who is the last to finish."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from aimmerge_fast.kernels.triton_kernels import fields as at
from aimmerge_fast.kernels.triton_kernels.formats import entries_at, is_bad


class Table(NamedTuple):
    """What describes one set of tensors: addresses, and the number of tiles."""

    tiles: Any
    count: Any
    anchor: Any
    mid: Any
    scratch: Any


class Tile(NamedTuple):
    """Addresses of the first entry of a tile in each buffer."""

    index: Any
    live: Any
    anchor: Any
    mid: Any
    count: Any
    flags: Any


class Rows(NamedTuple):
    """A tile as four rows of 1,024 entries: what a block loads at once, 16 bytes a thread."""

    r0: Any
    r1: Any
    r2: Any
    r3: Any


@triton.jit
def tile_at(table, index):
    row = table.tiles + index * at.TILE_BYTES
    wide = row.to(tl.pointer_type(tl.int64))
    narrow = row.to(tl.pointer_type(tl.int32))
    offset = tl.load(wide + at.T_OFFSET)
    return Tile(
        index,
        tl.load(wide + at.T_ADDRESS),
        table.anchor + offset,
        table.mid + offset,
        tl.load(narrow + at.T_COUNT),
        tl.load(narrow + at.T_FLAGS),
    )


@triton.jit
def narrowed(tile, address):
    """The tile, no longer wide if ``address``, which is read with it, is no multiple of 16."""
    flags = tl.where(address % 16 == 0, tile.flags, tile.flags & at.DTYPE_MASK)
    return Tile(tile.index, tile.live, tile.anchor, tile.mid, tile.count, flags)


@triton.jit
def number_at(address, index):
    """Of an array of int64: one a tile."""
    return tl.load(address.to(tl.pointer_type(tl.int64)) + index)


@triton.jit
def of_dtype(BODY: tl.constexpr, tile, inputs, WIDE: tl.constexpr, NARROW: tl.constexpr):
    dtype = tile.flags & at.DTYPE_MASK
    if dtype == at.BFLOAT16:
        result = BODY(tile, inputs, at.BFLOAT16, WIDE)
    else:
        if NARROW:
            result = BODY(tile, inputs, at.FLOAT16, WIDE)
        else:
            if dtype == at.FLOAT16:
                result = BODY(tile, inputs, at.FLOAT16, WIDE)
            else:
                result = BODY(tile, inputs, at.FLOAT32, WIDE)
    return result


@triton.jit
def of_format(BODY: tl.constexpr, tile, inputs, NARROW: tl.constexpr):
    """BODY(tile, inputs, DTYPE, WIDE) in the tile's format; NARROW: no tile is fp32.

    BODY holds everything that works on entries and gives one number: a vector that leaves a branch
    keeps its registers.
    """
    if (tile.flags & at.WIDE_FLAG) != 0:
        result = of_dtype(BODY, tile, inputs, True, NARROW)
    else:
        result = of_dtype(BODY, tile, inputs, False, NARROW)
    return result


@triton.jit
def load_row(entries, count, ROW: tl.constexpr, WIDE: tl.constexpr):
    i = tl.arange(0, at.ROW)
    row = entries + ROW * at.ROW
    return tl.load(row + i) if WIDE else tl.load(row + i, mask=i < count - ROW * at.ROW, other=0)


@triton.jit
def load_rows(entries, count, WIDE: tl.constexpr):
    """The bits of a tile, zero beyond its tensor's end. A mask would split the 16-byte loads."""
    return Rows(
        load_row(entries, count, 0, WIDE),
        load_row(entries, count, 1, WIDE),
        load_row(entries, count, 2, WIDE),
        load_row(entries, count, 3, WIDE),
    )


@triton.jit
def store_row(entries, bits, count, ROW: tl.constexpr, WIDE: tl.constexpr):
    i = tl.arange(0, at.ROW)
    row = entries + ROW * at.ROW
    if WIDE:
        tl.store(row + i, bits)
    else:
        tl.store(row + i, bits, mask=i < count - ROW * at.ROW)


@triton.jit
def store_rows(entries, rows, count, WIDE: tl.constexpr):
    store_row(entries, rows.r0, count, 0, WIDE)
    store_row(entries, rows.r1, count, 1, WIDE)
    store_row(entries, rows.r2, count, 2, WIDE)
    store_row(entries, rows.r3, count, 3, WIDE)


# ---- the last program --------------------------------------------------------------------------


@triton.jit
def bad_of(tile, DTYPE: tl.constexpr):
    live = entries_at(tile.live, DTYPE, False)
    i = tl.arange(0, at.ROW)
    bad = tl.zeros((at.ROW,), tl.int32)
    for first in range(0, tile.count.to(tl.int64), at.ROW):
        bits = tl.load(live + first + i, mask=i < tile.count - first, other=0)
        bad += is_bad(bits, DTYPE).to(tl.int32)
    return tl.sum(bad, axis=0)


@triton.jit
def bad_in_live(tile):
    """How many entries of live are not finite."""
    dtype = tile.flags & at.DTYPE_MASK
    if dtype == at.FLOAT32:
        bad = bad_of(tile, at.FLOAT32)
    elif dtype == at.BFLOAT16:
        bad = bad_of(tile, at.BFLOAT16)
    else:
        bad = bad_of(tile, at.FLOAT16)
    return bad


@triton.jit
def counter_of_bad(table):
    return (table.scratch + at.BAD_BYTE).to(tl.pointer_type(tl.int64))


@triton.jit
def add_bad(table, count):
    """Count non-finite entries of a tile; the ticket that follows makes the sum visible."""
    if count > 0:
        tl.atomic_add(counter_of_bad(table), count.to(tl.int64), sem="relaxed")


@triton.jit
def is_last(table):
    """Whether every other program has passed here; what they stored before is visible then."""
    tl.debug_barrier()
    ticket = table.scratch.to(tl.pointer_type(tl.int32))
    return tl.atomic_add(ticket, 1, sem="acq_rel") == tl.num_programs(0) - 1


@triton.jit
def take_bad(table):
    """How many non-finite entries all programs found; the scratch is left as it was found."""
    counter = counter_of_bad(table)
    bad = tl.load(counter, cache_modifier=".cg")
    tl.debug_barrier()
    tl.store(counter, tl.zeros((), tl.int64))
    tl.store(table.scratch.to(tl.pointer_type(tl.int32)), 0)
    return bad


# ---- undoing -----------------------------------------------------------------------------------


@triton.jit
def copy_tile(tile, source, target, DTYPE: tl.constexpr):
    """target <- source, bit for bit; two addresses. Rare, so it needs no wide form."""
    from_ = entries_at(source, DTYPE, False)
    to = entries_at(target, DTYPE, False)
    i = tl.arange(0, at.ROW)
    for first in range(0, tile.count.to(tl.int64), at.ROW):
        inside = i < tile.count - first
        tl.store(to + first + i, tl.load(from_ + first + i, mask=inside, other=0), mask=inside)


@triton.jit
def copy_entries(tile, source, target):
    if (tile.flags & at.DTYPE_MASK) == at.FLOAT32:
        copy_tile(tile, source, target, at.FLOAT32)
    else:
        copy_tile(tile, source, target, at.BFLOAT16)


@triton.jit
def undo_open(tile):
    copy_entries(tile, tile.anchor, tile.live)
    copy_entries(tile, tile.anchor, tile.mid)


@triton.jit
def undo_close(tile):
    copy_entries(tile, tile.mid, tile.live)
    copy_entries(tile, tile.mid, tile.anchor)
