"""observe: one history loss in; activations, threshold and decision out; one record to the ring."""

from __future__ import annotations

import triton
import triton.language as tl

from aimmerge_fast.kernels.triton_kernels import fields as at
from aimmerge_fast.kernels.triton_kernels.block import block_at
from aimmerge_fast.kernels.triton_kernels.controller_step import observe_step
from aimmerge_fast.kernels.triton_kernels.formats import value


@triton.jit
def read_as(address, DTYPE: tl.constexpr):
    if DTYPE == at.FLOAT32:
        bits = tl.load(address.to(tl.pointer_type(tl.uint32)))
    else:
        bits = tl.load(address.to(tl.pointer_type(tl.uint16)))
    return value(bits, DTYPE).to(tl.float64)


@triton.jit
def read_loss(address, dtype):
    if dtype == at.FLOAT32:
        loss = read_as(address, at.FLOAT32)
    elif dtype == at.BFLOAT16:
        loss = read_as(address, at.BFLOAT16)
    elif dtype == at.FLOAT16:
        loss = read_as(address, at.FLOAT16)
    else:
        loss = tl.load(address.to(tl.pointer_type(tl.float64)))
    return loss


@triton.jit
def observe_kernel(loss, dtype, state):
    observe_step(block_at(state), read_loss(loss, dtype))
