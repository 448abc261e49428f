"""The controller's transition of one step: the Triton twin of ``csrc/core/controller.h``.

Same functions in the same order, same operations in the same order, so the same bits. What the C++
functions write into the state these return, see ``block``. Every real number is fp64: two constants
that meet in a choice would be fp32, so those are made with ``real``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from aimmerge_fast.kernels.triton_kernels import fields as at
from aimmerge_fast.kernels.triton_kernels.block import Record, post


class Judged(NamedTuple):
    """What ``judge`` decided and what it changed."""

    code: Any
    F: Any
    sum: Any
    samples: Any
    threshold: Any
    has_threshold: Any


class Decided(NamedTuple):
    """The code of a step, and F."""

    code: Any
    F: Any


@triton.jit
def real(x: tl.constexpr):
    return tl.full((), x, tl.float64)


@triton.jit
def integer(x: tl.constexpr):
    return tl.full((), x, tl.int32)


@triton.jit
def is_finite(x):
    return x - x == 0.0


@triton.jit
def truncate_within(x, low, high):
    """int(x) clamped to [low, high]; NaN gives low. Clamped first: the cast of a huge x differs."""
    return tl.where(x > low, tl.where(x < high, x, high), low).to(tl.int32)


@triton.jit
def is_merge(code):
    return (code >= at.EARLY) & (code <= at.FINAL)


@triton.jit
def last_sample(b, S):
    two_thirds = 2 * S // 3
    released = tl.load(b.i32 + at.C_POLICY) == at.RELEASED
    return tl.where(released, two_thirds + 1, tl.maximum(two_thirds, 1))


@triton.jit
def memory_steps_now(b, t):
    released = tl.load(b.i32 + at.C_POLICY) == at.RELEASED
    steps = tl.where(released, tl.load(b.i32 + at.S_MEMORY_STEPS), tl.maximum(t // 2, 1))
    return tl.where(tl.load(b.i32 + at.C_SCHEDULE) == at.MONITOR, 0, steps)


@triton.jit
def judge(b, t, S, F, loss):
    """Collect or judge one history loss."""
    code = integer(at.QUIET)
    sum = tl.load(b.f64 + at.S_SUM)
    samples = tl.load(b.i32 + at.S_SAMPLES)
    threshold = tl.load(b.f64 + at.S_THRESHOLD)
    has_threshold = tl.load(b.i32 + at.S_HAS_THRESHOLD)
    released = tl.load(b.i32 + at.C_POLICY) == at.RELEASED
    n = last_sample(b, S)
    finite = is_finite(loss)
    if released | (tl.load(b.i32 + at.C_USE_FORGETTING_SIGNAL) != 0):
        if t <= n:
            code = integer(at.COLLECT)
            if finite:
                sum = sum + loss
                samples = samples + 1
            if (t >= n) & (samples > 0):
                code = integer(at.THRESHOLD)
                threshold = tl.load(b.f64 + at.C_GAMMA_FORGET) * (sum / samples.to(tl.float64))
                has_threshold = integer(1)
        elif finite & (has_threshold != 0):
            # "exceeds" in the paper; the released code compares with >=
            if (loss > threshold) | (released & (loss == threshold)):
                code = integer(at.ACTIVATE)
                F = F + 1
    return Judged(code, F, sum, samples, threshold, has_threshold)


@triton.jit
def merge_kind(t, S):
    return tl.where(t < S, at.EARLY, tl.where(t == S, at.DUE, at.DEFERRED))


@triton.jit
def decide_adaptive(b, code, t, S, F):
    f_max = tl.load(b.i32 + at.C_F_MAX)
    due = t >= S
    overdue = t >= 2 * S
    kind = merge_kind(t, S)
    if tl.load(b.i32 + at.C_POLICY) == at.RELEASED:
        # "else if": a quiet judged step at 2S counts as a forced activation
        forced = (code != at.ACTIVATE) & (t > last_sample(b, S)) & overdue
        F = F + forced.to(tl.int32)
        if (F >= f_max) | (due & (F >= 1)):
            code = tl.where(forced, at.FORCED, kind)
    elif tl.load(b.i32 + at.C_USE_FORGETTING_SIGNAL) == 0:
        code = tl.where(due, at.DUE, code)
    elif tl.load(b.i32 + at.C_USE_LEARNING_SIGNAL) == 0:
        code = tl.where(F >= 1, kind, code)
    elif (F >= f_max) & (t < S):
        code = integer(at.EARLY)
    elif due & (F >= 1):
        code = kind
    else:
        code = tl.where(overdue, at.FORCED, code)
    return Decided(code, F)


@triton.jit
def is_listed(b, g):
    """Whether a merge is planned at step g of the task."""
    i = tl.arange(0, at.ROOM)
    steps = tl.load(
        b.i32 + at.C_MERGE_AT + i, mask=i < tl.load(b.i32 + at.C_MERGE_AT_COUNT), other=-1
    )
    return tl.sum((steps == g).to(tl.int32), axis=0) > 0


@triton.jit
def decide(b, code, t, S, F, g):
    schedule = tl.load(b.i32 + at.C_SCHEDULE)
    decided = Decided(code, F)
    if schedule == at.ADAPTIVE:
        decided = decide_adaptive(b, code, t, S, F)
    elif schedule == at.AT:
        decided = Decided(tl.where(is_listed(b, g), at.DUE, code), F)
    elif (schedule != at.SINGLE) & (t >= S):
        decided = Decided(tl.where(schedule == at.MONITOR, at.MEASURE, at.DUE), F)
    return decided


@triton.jit
def observe_step(b, loss):
    """One optimiser update happened and its history loss is known."""
    S = tl.load(b.i32 + at.S_S)
    t = tl.load(b.i32 + at.S_T) + 1
    g = tl.load(b.i32 + at.S_G) + 1
    merges = tl.load(b.i32 + at.S_MERGES)
    judged = judge(b, t, S, tl.load(b.i32 + at.S_F), loss)
    decided = decide(b, judged.code, t, S, judged.F, g)
    acts = is_merge(decided.code) | (decided.code == at.MEASURE)
    steps = integer(0)
    if acts:
        steps = memory_steps_now(b, t)
    shown = tl.where(judged.has_threshold != 0, judged.threshold, float("nan"))
    tl.debug_barrier()
    tl.store(b.i32 + at.S_T, t)
    tl.store(b.i32 + at.S_G, g)
    tl.store(b.f64 + at.S_LOSS, loss)
    tl.store(b.f64 + at.S_SUM, judged.sum)
    tl.store(b.i32 + at.S_SAMPLES, judged.samples)
    tl.store(b.f64 + at.S_THRESHOLD, judged.threshold)
    tl.store(b.i32 + at.S_HAS_THRESHOLD, judged.has_threshold)
    tl.store(b.i32 + at.S_F, decided.F)
    tl.store(b.i32 + at.S_CODE, decided.code)
    F, code = decided.F, decided.code
    record = Record(loss, shown, real(0.0), t, S, F, code, merges, steps, S, integer(0))
    post(b, record)
