"""The controller's transitions of the two halves of a merge: the end of ``csrc/core/controller.h``.

See ``controller_step`` for how the two differ in spelling.
"""

from __future__ import annotations

import triton
import triton.language as tl

from aimmerge_fast.kernels.triton_kernels import fields as at
from aimmerge_fast.kernels.triton_kernels.block import Record, post
from aimmerge_fast.kernels.triton_kernels.controller_merge import (
    Alpha,
    Merge,
    Planned,
    learning_signal,
    next_interval,
    remember,
    saturate,
    weigh,
)
from aimmerge_fast.kernels.triton_kernels.controller_step import (
    integer,
    is_merge,
    real,
    truncate_within,
)


@triton.jit
def record_merge(b, l1, S, kind):
    count = tl.load(b.i32 + at.S_HISTORY_COUNT)
    newest = b.f64 + (at.S_HISTORY - 1 + count)
    previous = tl.load(newest, mask=count > 0, other=0.0)
    merges = tl.load(b.i32 + at.S_MERGES) + 1
    memory_steps = tl.load(b.i32 + at.S_MEMORY_STEPS)
    released = tl.load(b.i32 + at.C_POLICY) == at.RELEASED
    signal = learning_signal(b, l1, S, kind)
    up, down = remember(b, signal)
    L_up = tl.where(released, 0, up)
    L_down = tl.where(released, 0, down)
    window = tl.load(b.i32 + at.C_WINDOW)
    early = tl.where(released, merges - 1 <= tl.load(b.i32 + at.C_COLD_START), merges <= window)
    cold = early.to(tl.int32)
    trend = tl.where(L_up > L_down, 1, tl.where(L_up == L_down, 2, 3))
    case = tl.where(released | (cold != 0), 0, trend)
    alpha = weigh(b, S, cold, L_up)
    planned = next_interval(b, S, cold, case, signal, previous, merges)
    if released:
        s_init = tl.load(b.i32 + at.C_S_INIT).to(tl.float64)
        ratio = tl.load(b.i32 + at.C_OUTER_INIT).to(tl.float64) / s_init
        scaled = planned.S.to(tl.float64) * ratio
        memory_steps = truncate_within(scaled, integer(1), integer(at.LARGEST))
    return Merge(merges, signal, cold, L_up, L_down, case, alpha, planned, memory_steps)


@triton.jit
def unrecorded(b, S):
    """A rejected merge leaves nothing but alpha = (1, 0)."""
    none = integer(0)
    return Merge(
        tl.load(b.i32 + at.S_MERGES),
        tl.load(b.f64 + at.S_LAMBDA),
        none,
        none,
        none,
        none,
        Alpha(real(1.0), real(0.0)),
        Planned(S, real(float("nan"))),
        tl.load(b.i32 + at.S_MEMORY_STEPS),
    )


@triton.jit
def store_merge(b, m, l1, t, reject):
    tl.store(b.f64 + at.S_L1, l1)
    tl.store(b.i32 + at.S_ELAPSED, t)
    tl.store(b.i32 + at.S_REJECT, reject)
    tl.store(b.i32 + at.S_MERGES, m.merges)
    tl.store(b.f64 + at.S_LAMBDA, m.signal)
    tl.store(b.i32 + at.S_COLD, m.cold)
    tl.store(b.i32 + at.S_L_UP, m.L_up)
    tl.store(b.i32 + at.S_L_DOWN, m.L_down)
    tl.store(b.i32 + at.S_CASE, m.case)
    tl.store(b.f64 + at.S_ALPHA1, m.alpha.new)
    tl.store(b.f64 + at.S_ALPHA2, m.alpha.past)
    tl.store(b.i32 + at.S_S, m.planned.S)
    tl.store(b.f64 + at.S_CHANGE_FACTOR, m.planned.change_factor)
    tl.store(b.i32 + at.S_MEMORY_STEPS, m.memory_steps)


@triton.jit
def restart_interval(b):
    tl.store(b.i32 + at.S_T, 0)
    tl.store(b.i32 + at.S_F, 0)
    tl.store(b.i32 + at.S_SAMPLES, 0)
    tl.store(b.i32 + at.S_HAS_THRESHOLD, 0)
    tl.store(b.f64 + at.S_SUM, 0.0)
    tl.store(b.i32 + at.S_CODE, at.COLLECT)


@triton.jit
def open_merge(b, l1, bad):
    """theta_j was snapshotted; bad counts its non-finite entries. How many make it a reject."""
    S = tl.load(b.i32 + at.S_S)
    F = tl.load(b.i32 + at.S_F)
    t = tl.load(b.i32 + at.S_T)
    code = tl.load(b.i32 + at.S_CODE)
    kind = tl.where(is_merge(code) | (code == at.MEASURE), code, at.FINAL)
    reject = saturate(bad)
    m = unrecorded(b, S)
    if reject == 0:
        m = record_merge(b, l1, S, kind)
    trend = (m.cold << 15) | (m.L_up << 16) | (m.L_down << 24)
    packed = (kind << 8) | (m.case << 12) | trend | at.OPEN
    released = tl.load(b.i32 + at.C_POLICY) == at.RELEASED
    steps = tl.where(released, m.memory_steps, 0)
    new, past, next_S = m.alpha.new, m.alpha.past, m.planned.S
    tl.debug_barrier()
    store_merge(b, m, l1, t, reject)
    restart_interval(b)
    tl.store(b.i32 + at.S_PHASE, at.MERGE_OPEN)
    post(b, Record(new, past, l1, t, S, F, packed, m.merges, steps, next_S, reject))
    return reject


@triton.jit
def close_merge(b, bad):
    """The fused values were stored; bad counts the non-finite ones. How many make it a reject."""
    S = tl.load(b.i32 + at.S_S)
    merges = tl.load(b.i32 + at.S_MERGES)
    reject = saturate(bad)
    tl.debug_barrier()
    tl.store(b.i32 + at.S_REJECT, reject)
    tl.store(b.i32 + at.S_PHASE, at.IDLE)
    nan, zero, none = real(float("nan")), real(0.0), integer(0)
    code = integer(at.CLOSE)
    post(b, Record(zero, nan, zero, none, S, none, code, merges, none, S, reject))
    return reject
