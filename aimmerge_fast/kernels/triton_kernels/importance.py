"""importance: one step's |theta * gradient| of every entry into its two running averages."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from aimmerge_fast.kernels.triton_kernels import fields as at
from aimmerge_fast.kernels.triton_kernels.formats import (
    entries_at,
    importance_of,
    smooth,
    spread,
    stored,
    value,
)
from aimmerge_fast.kernels.triton_kernels.table import (
    Table,
    load_row,
    narrowed,
    number_at,
    of_format,
    store_row,
    tile_at,
)


class Step(NamedTuple):
    """A tile's gradients and averages, by address, and the averages' factors."""

    gradients: Any
    sensitivity: Any
    uncertainty: Any
    keep1: Any
    take1: Any
    keep2: Any
    take2: Any


@triton.jit
def smooth_row(tile, step, first, DTYPE: tl.constexpr, WIDE: tl.constexpr):
    left = tile.count - first
    s_at = entries_at(step.sensitivity, at.FLOAT32, WIDE) + first
    u_at = entries_at(step.uncertainty, at.FLOAT32, WIDE) + first
    theta = load_row(entries_at(tile.live, DTYPE, WIDE) + first, left, 0, WIDE)
    s = value(load_row(s_at, left, 0, WIDE), at.FLOAT32)
    u = value(load_row(u_at, left, 0, WIDE), at.FLOAT32)
    seen = tl.zeros((at.ROW,), tl.float32)  # of no gradient, whatever theta is
    if step.gradients != 0:
        gradient_at = entries_at(step.gradients, DTYPE, WIDE) + first
        gradient = load_row(gradient_at, left, 0, WIDE)
        seen = importance_of(value(theta, DTYPE), value(gradient, DTYPE))
    s = smooth(s, seen, step.keep1, step.take1)
    u = spread(u, seen, s, step.keep2, step.take2)
    store_row(s_at, stored(s, at.FLOAT32), left, 0, WIDE)
    store_row(u_at, stored(u, at.FLOAT32), left, 0, WIDE)


@triton.jit
def smooth_tile(tile, step, DTYPE: tl.constexpr, WIDE: tl.constexpr):
    for first in range(0, tile.count.to(tl.int64), at.ROW):
        smooth_row(tile, step, first, DTYPE, WIDE)
    return 0


@triton.jit
def importance_kernel(
    tiles, count, gradients, places, sensitivity, uncertainty, keep1, take1, keep2, take2
):
    index = tl.program_id(0).to(tl.int64)
    if index < count:
        tile = tile_at(Table(tiles, count, tiles, tiles, tiles), index)
        gradient = number_at(gradients, index)
        first = number_at(places, index) * 4
        s, u = sensitivity + first, uncertainty + first
        step = Step(gradient, s, u, keep1, take1, keep2, take2)
        of_format(smooth_tile, narrowed(tile, gradient), step, False)
