"""weighted: live <- anchor + (w_new * (mid - anchor) + w_past * (live - mid)), the weights of an
entry chosen by what it is important to.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from aimmerge_fast.kernels.triton_kernels import fields as at
from aimmerge_fast.kernels.triton_kernels.formats import (
    entries_at,
    fuse,
    is_bad,
    is_important,
    stored,
    value,
    weight_of,
)
from aimmerge_fast.kernels.triton_kernels.table import (
    Table,
    load_row,
    number_at,
    of_format,
    store_row,
    tile_at,
)


class Weights(NamedTuple):
    """Of one task vector, by what an entry is important to."""

    both: Any
    learned: Any
    past: Any
    neither: Any


class Scores(NamedTuple):
    """A tile's two averages, by address, and the threshold of their product."""

    sensitivity: Any
    uncertainty: Any
    threshold: Any


class Weighing(NamedTuple):
    """What decides about the weights of a tile's entries."""

    learned: Any
    past: Any
    weights_new: Any
    weights_past: Any


@triton.jit
def important_row(scores, left, first, WIDE: tl.constexpr):
    s_at = entries_at(scores.sensitivity, at.FLOAT32, WIDE) + first
    u_at = entries_at(scores.uncertainty, at.FLOAT32, WIDE) + first
    s = value(load_row(s_at, left, 0, WIDE), at.FLOAT32)
    u = value(load_row(u_at, left, 0, WIDE), at.FLOAT32)
    return is_important(s, u, scores.threshold)


@triton.jit
def weigh_row(tile, by, first, DTYPE: tl.constexpr, WIDE: tl.constexpr):
    """How many stored entries are not finite."""
    left = tile.count - first
    to_live = entries_at(tile.live, DTYPE, WIDE) + first
    a = load_row(entries_at(tile.anchor, DTYPE, WIDE) + first, left, 0, WIDE)
    m = load_row(entries_at(tile.mid, DTYPE, WIDE) + first, left, 0, WIDE)
    x = load_row(to_live, left, 0, WIDE)
    learned = important_row(by.learned, left, first, WIDE)
    past = important_row(by.past, left, first, WIDE)
    w_new = weight_of(by.weights_new, learned, past)
    w_past = weight_of(by.weights_past, learned, past)
    fused = fuse(value(a, DTYPE), value(m, DTYPE), value(x, DTYPE), w_new, w_past)
    # a + (m - a) is not m in floating point, and 0 * inf is not 0
    bits = tl.where((w_new == 1.0) & (w_past == 0.0), m, stored(fused, DTYPE))
    store_row(to_live, bits, left, 0, WIDE)
    bad = is_bad(bits, DTYPE) & (tl.arange(0, at.ROW) < left)
    return tl.sum(bad.to(tl.int32), axis=0)


@triton.jit
def weigh_tile(tile, by, DTYPE: tl.constexpr, WIDE: tl.constexpr):
    bad = 0
    for first in range(0, tile.count.to(tl.int64), at.ROW):
        bad += weigh_row(tile, by, first, DTYPE, WIDE)
    return bad


@triton.jit
def scores_at(sensitivity, uncertainty, first, thresholds, PLACE: tl.constexpr):
    threshold = tl.load(thresholds.to(tl.pointer_type(tl.float32)) + PLACE)
    return Scores(sensitivity + first * 4, uncertainty + first * 4, threshold)


@triton.jit
def weighted_kernel(
    tiles,
    count,
    anchor,
    mid,
    places,
    new_s,
    new_u,
    past_s,
    past_u,
    thresholds,
    new0,
    new1,
    new2,
    new3,
    past0,
    past1,
    past2,
    past3,
    bad,
):
    index = tl.program_id(0).to(tl.int64)
    if index < count:
        tile = tile_at(Table(tiles, count, anchor, mid, tiles), index)
        first = number_at(places, index)
        by = Weighing(
            scores_at(new_s, new_u, first, thresholds, 0),
            scores_at(past_s, past_u, first, thresholds, 1),
            Weights(new0, new1, new2, new3),
            Weights(past0, past1, past2, past3),
        )
        found = of_format(weigh_tile, tile, by, False)
        if found > 0:
            counter = bad.to(tl.pointer_type(tl.int64))
            tl.atomic_add(counter, found.to(tl.int64), sem="relaxed")
