"""The controller's bytes in device memory, and the record ring in host memory.

A scalar store is done by one thread and a scalar load by all of them. So a transition first loads
and computes, then passes one barrier, and only then stores; it never reads back what it stored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from aimmerge_fast.kernels.triton_kernels import fields as at
from aimmerge_fast.kernels.triton_kernels.fields import LAYOUT


class Block(NamedTuple):
    """A StateBlock, seen as numbers of three types."""

    i32: Any
    i64: Any
    f64: Any


class Record(NamedTuple):
    """What a record holds beside its sequence number."""

    loss: Any
    threshold: Any
    l1: Any
    t: Any
    S: Any
    F: Any
    code: Any
    merge: Any
    memory_steps: Any
    next_S: Any
    reject: Any


@triton.jit
def block_at(address):
    tl.static_assert(LAYOUT != "")  # used, so that it is part of every kernel's key in the cache
    return Block(
        address.to(tl.pointer_type(tl.int32)),
        address.to(tl.pointer_type(tl.int64)),
        address.to(tl.pointer_type(tl.float64)),
    )


@triton.jit
def post(b, record):
    """Write one record and then its number; the host reads a record whose number it has seen.

    One thread does all of this. The addition of nothing is a release to the whole system, which a
    plain store cannot be, and an acquire, so the number stays behind it.
    """
    room = tl.load(b.i32 + at.S_RING_SIZE)
    posted = tl.load(b.i64 + at.S_SEQUENCE)
    ring = tl.load(b.i64 + at.S_RING)
    tl.debug_barrier()
    if room > 0:
        slot = block_at(ring + posted % room * at.RECORD_BYTES)
        tl.store(b.i64 + at.S_SEQUENCE, posted + 1)
        tl.store(slot.f64 + at.R_LOSS, record.loss)
        tl.store(slot.f64 + at.R_THRESHOLD, record.threshold)
        tl.store(slot.f64 + at.R_L1, record.l1)
        tl.store(slot.i32 + at.R_T, record.t)
        tl.store(slot.i32 + at.R_S, record.S)
        tl.store(slot.i32 + at.R_F, record.F)
        tl.store(slot.i32 + at.R_CODE, record.code)
        tl.store(slot.i32 + at.R_MERGE, record.merge)
        tl.store(slot.i32 + at.R_MEMORY_STEPS, record.memory_steps)
        tl.store(slot.i32 + at.R_NEXT_S, record.next_S)
        tl.store(slot.i32 + at.R_REJECT, record.reject)
        tl.atomic_add(b.i32 + at.S_RING_SIZE, 0, sem="acq_rel", scope="sys")
        tl.store(slot.i64 + at.R_SEQUENCE, posted + 1)
