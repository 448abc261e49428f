"""The controller's transition of one merge: the Triton twin of ``csrc/core/controller.h``.

See ``controller_step`` for how the two differ in spelling. The history of learning signals is a
vector here, and its shift a load one place further on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from aimmerge_fast.kernels.triton_kernels import fields as at
from aimmerge_fast.kernels.triton_kernels.controller_step import (
    integer,
    real,
    truncate_within,
)


class Alpha(NamedTuple):
    """Weights of the new and of the past task vector."""

    new: Any
    past: Any


class Planned(NamedTuple):
    """The next interval, and the factor by which the released code changed it."""

    S: Any
    change_factor: Any


class Merge(NamedTuple):
    """What ``record_merge`` changes beside the history."""

    merges: Any
    signal: Any  # lambda
    cold: Any
    L_up: Any
    L_down: Any
    case: Any
    alpha: Any
    planned: Any
    memory_steps: Any


@triton.jit
def saturate(x):
    return tl.minimum(x, at.LARGEST).to(tl.int32)


@triton.jit
def random_interval(b, merges):
    s_min = tl.load(b.i32 + at.C_S_MIN)
    task = tl.load(b.i32 + at.S_TASK).to(tl.uint64)
    x = tl.load(b.i64 + at.C_SEED).to(tl.uint64, bitcast=True)
    x = x + task * 0xD1B54A32D192ED03 + (merges.to(tl.uint64) + 1) * 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    x = x ^ (x >> 31)
    span = (tl.load(b.i32 + at.C_S_HI) - s_min).to(tl.uint64) + 1
    return s_min + (x % span).to(tl.int32)


@triton.jit
def remember(b, signal):
    """Append the learning signal; how many of the history rose and how many fell."""
    released = tl.load(b.i32 + at.C_POLICY) == at.RELEASED
    room = tl.where(released, 1, tl.load(b.i32 + at.C_WINDOW) + 1)
    count = tl.load(b.i32 + at.S_HISTORY_COUNT)
    last = tl.minimum(count, room - 1)
    i = tl.arange(0, at.ROOM)
    oldest = b.f64 + (at.S_HISTORY + count - last)
    kept = tl.load(oldest + i, mask=i < last, other=0.0)
    before = tl.load(oldest - 1 + i, mask=(i >= 1) & (i <= last), other=0.0)
    history = tl.where(i == last, signal, kept)
    compared = (i >= 1) & (i <= last)
    up = tl.sum((compared & (history > before)).to(tl.int32), axis=0)
    down = tl.sum((compared & (history < before)).to(tl.int32), axis=0)
    tl.debug_barrier()
    tl.store(b.f64 + at.S_HISTORY + i, history, mask=i <= last)
    tl.store(b.i32 + at.S_HISTORY_COUNT, last + 1)
    return up, down


@triton.jit
def weigh_paper(b, cold, L_up):
    """Eq. 8, with the resolutions for 0/0 and for the cold start."""
    F = tl.load(b.i32 + at.S_F).to(tl.float64)
    rising = L_up.to(tl.float64) / tl.load(b.i32 + at.C_WINDOW).to(tl.float64)
    p_new = tl.where(cold != 0, tl.load(b.f64 + at.C_P_NEW_COLD), rising)
    p_past = F / tl.load(b.i32 + at.C_F_MAX).to(tl.float64)
    floor = tl.load(b.f64 + at.C_ALPHA_FLOOR)
    high = 1.0 - floor
    alpha1 = real(0.5)
    alpha2 = real(0.5)
    if (p_new != 0.0) | (p_past != 0.0):
        alpha1 = p_new / (p_new + p_past)
        alpha2 = p_past / (p_new + p_past)
        if floor > 0.0:
            raised = tl.where(alpha1 < floor, floor, alpha1)
            alpha1 = tl.where(raised > high, high, raised)
            alpha2 = 1.0 - alpha1
    return Alpha(alpha1, alpha2)


@triton.jit
def weigh_released(b, S):
    leans_to_past = tl.load(b.i32 + at.S_F) > 1
    small = S <= tl.load(b.i32 + at.C_S_WEIGHT)
    alpha1 = real(0.5)
    alpha2 = real(0.5)
    if small & (leans_to_past == 0):
        alpha1 = real(0.6)
        alpha2 = real(0.4)
    elif (small == 0) & leans_to_past:
        alpha1 = real(0.4)
        alpha2 = real(0.6)
    return Alpha(alpha1, alpha2)


@triton.jit
def weigh(b, S, cold, L_up):
    schedule = tl.load(b.i32 + at.C_SCHEDULE)
    alpha_new = tl.load(b.f64 + at.C_ALPHA_NEW)
    learning = tl.load(b.i32 + at.C_USE_LEARNING_SIGNAL) != 0
    forgetting = tl.load(b.i32 + at.C_USE_FORGETTING_SIGNAL) != 0
    released = tl.load(b.i32 + at.C_POLICY) == at.RELEASED
    alpha = Alpha(real(0.5), real(0.5))
    if schedule == at.MONITOR:
        alpha = Alpha(real(1.0), real(0.0))
    elif alpha_new == alpha_new:
        alpha = Alpha(alpha_new, 1.0 - alpha_new)
    elif schedule == at.ADAPTIVE:
        if released:
            alpha = weigh_released(b, S)
        elif learning & forgetting:
            alpha = weigh_paper(b, cold, L_up)
    return alpha


@triton.jit
def next_interval_paper(b, S, cold, case):
    """Eq. 4."""
    large = S > tl.load(b.i32 + at.C_S_SWITCH)
    planned = S
    if (cold == 0) & (tl.load(b.i32 + at.C_USE_LEARNING_SIGNAL) != 0):
        if case == 1:
            small_gamma = tl.load(b.f64 + at.C_GAMMA_MINUS_SMALL)
            gamma = tl.where(large, tl.load(b.f64 + at.C_GAMMA_MINUS_LARGE), small_gamma)
            planned = truncate_within(S.to(tl.float64) / gamma, tl.load(b.i32 + at.C_S_MIN), S)
        elif case != 2:
            small_gamma = tl.load(b.f64 + at.C_GAMMA_PLUS_SMALL)
            gamma = tl.where(large, tl.load(b.f64 + at.C_GAMMA_PLUS_LARGE), small_gamma)
            s_max = tl.load(b.i32 + at.C_S_MAX)
            planned = truncate_within(S.to(tl.float64) * gamma, integer(0), s_max)
    return planned


@triton.jit
def next_interval_released(b, S, cold, signal, previous):
    s_min = tl.load(b.i32 + at.C_S_MIN)
    s_switch = tl.load(b.i32 + at.C_S_SWITCH)
    planned = S
    factor = real(float("nan"))
    if (cold == 0) & (tl.load(b.i32 + at.C_ADAPTIVE) != 0):
        if signal >= previous:
            both_zero = (signal == 0.0) & (previous == 0.0)
            factor = tl.where(both_zero, 1.0, signal / previous)
            factor = tl.where(factor == factor, factor, 1.0)
            shrunk = truncate_within(S.to(tl.float64) / factor, s_min, tl.maximum(S, s_min))
            planned = tl.where(shrunk >= s_switch, shrunk // 2, shrunk)
        else:
            factor = previous / signal + tl.where(S < s_switch, real(1.0), real(0.5))
            factor = tl.where(factor == factor, factor, 1.0)
            s_max = tl.load(b.i32 + at.C_S_MAX)
            planned = truncate_within(S.to(tl.float64) * factor, integer(0), s_max)
    return Planned(planned, factor)


@triton.jit
def next_interval(b, S, cold, case, signal, previous, merges):
    schedule = tl.load(b.i32 + at.C_SCHEDULE)
    s_init = tl.load(b.i32 + at.C_S_INIT)
    halved = tl.maximum(tl.load(b.i32 + at.C_S_MIN), s_init // 2)
    later = merges != 1
    planned = S
    factor = real(float("nan"))
    if schedule == at.ADAPTIVE:
        if tl.load(b.i32 + at.C_POLICY) == at.RELEASED:
            released = next_interval_released(b, S, cold, signal, previous)
            planned = released.S
            factor = released.change_factor
        else:
            planned = next_interval_paper(b, S, cold, case)
    elif schedule == at.RAPID_PLUS:
        planned = tl.where(later & (signal > previous), halved, s_init)
    elif schedule == at.SLOW_PLUS:
        planned = tl.where(later & (signal < previous), halved, s_init)
    elif schedule == at.RANDOM:
        planned = random_interval(b, merges)
    return Planned(planned, factor)


@triton.jit
def learning_signal(b, l1, S, kind):
    """The released code divides by the planned S; where nothing was planned, by elapsed steps."""
    schedule = tl.load(b.i32 + at.C_SCHEDULE)
    unplanned = (schedule == at.AT) | (schedule == at.RANDOM) | (schedule == at.SINGLE)
    unplanned = unplanned | (kind == at.FINAL) | (kind == at.MEASURE)
    planned = (tl.load(b.i32 + at.C_POLICY) == at.RELEASED) & (unplanned == 0)
    steps = tl.where(planned, S, tl.load(b.i32 + at.S_T))
    signal = real(0.0)
    if steps > 0:
        signal = l1 / steps.to(tl.float64)
    return signal
