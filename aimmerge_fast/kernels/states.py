"""State tensors: the controller's bytes on the host or on a device, and their record rings.

A *state* tensor is one uint8 tensor, ``Config | State`` of ``csrc/core/controller.h``. Its ring of
records is host memory apart, page-locked where a GPU posts to it, and ``State.ring`` holds the
address: a graph compiler may copy the state tensor, but records always reach the one ring.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aimmerge_fast.config import AIMConfig
from aimmerge_fast.kernels import layout
from aimmerge_fast.kernels.eager_controller import first_interval
from aimmerge_fast.kernels.layout import BLOCK, RECORD, RING_SIZE, Block

STATE_BYTES = BLOCK.itemsize
_RING_BYTES = RING_SIZE * RECORD.itemsize
_RING_START = -(-STATE_BYTES // 64) * 64  # in a saved state
SAVED_BYTES = _RING_START + _RING_BYTES


def new_state(
    config: AIMConfig,
    *,
    task: int = 0,
    defer: bool = False,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """A state tensor (uint8, on ``device``) at the start of task ``task``; keep it for life.

    ``defer``: ``open_`` and ``close_`` leave the transition to ``advance_`` (several tables).
    """
    device = torch.device(device)
    with torch.inference_mode(False):  # they are written outside of it too
        address = _take_ring(device)
        state = torch.zeros(STATE_BYTES, dtype=torch.uint8, device=device)
    weakref.finalize(state, _give_back, state.device, address).atexit = False
    with edit_state(state) as shared:
        layout.write_config(shared, config)
        shared["state"]["defer"] = defer
        shared["state"]["ring"] = address
        shared["state"]["ring_size"] = RING_SIZE
        layout.begin_task(shared, task, first_interval(shared, task))
    return state


def read_state(state: torch.Tensor) -> Block:
    """Configuration and state: a writable view of a CPU tensor, a copy of a device's (blocks)."""
    return layout.block(state.cpu())


@contextmanager
def edit_state(state: torch.Tensor) -> Iterator[Block]:
    """The block to change in place; a device's is copied here and back, so it blocks."""
    host = state.cpu()
    yield layout.block(host)
    if state.device.type != "cpu":
        state.copy_(host)


def ring(state: torch.Tensor) -> npt.NDArray[Any]:
    """The record ring of a state tensor: (RING_SIZE,) of RECORD, a view of host memory.

    Raises: RuntimeError when the tensor that ``new_state`` returned is gone and its ring with it.
    """
    address = int(read_state(state)["state"]["ring"])
    if address not in _rings:
        raise RuntimeError(
            "this state's record ring does not exist here: use the tensor that new_state() "
            "returned, and load_state() to restore a saved one"
        )
    return _rings[address].numpy().view(RECORD)


def begin_task(state: torch.Tensor, task: int) -> None:
    """Start task number ``task`` in place; the ring and its sequence number go on. Blocks."""
    with edit_state(state) as shared:
        layout.begin_task(shared, task, first_interval(shared, task))


def abandon_merge(state: torch.Tensor) -> None:
    """Make ``close_`` of the open merge store theta_j, whatever the controller weighed. Blocks."""
    with edit_state(state) as shared:
        layout.abandon_merge(shared)


def restart_interval(state: torch.Tensor, *, steps: int, t: int, F: int) -> None:
    """Begin the interval anew with ``steps`` of the task done, of them t in it. Blocks."""
    with edit_state(state) as shared:
        layout.restart_interval(shared, steps=steps, t=t, F=F)


def save_state(state: torch.Tensor) -> torch.Tensor:
    """A copy of the state and its ring: uint8, (SAVED_BYTES,), on the CPU."""
    saved = torch.zeros(SAVED_BYTES, dtype=torch.uint8, device="cpu")
    saved[:STATE_BYTES] = state.cpu()
    layout.block(saved)["state"]["ring"] = 0  # an address says nothing in another process
    saved[_RING_START:] = torch.from_numpy(ring(state).view(np.uint8))
    return saved


def load_state(state: torch.Tensor, saved: torch.Tensor) -> None:
    """Copy what ``save_state`` gave into ``state`` and its ring, which stays where it is.

    Raises: ValueError when ``saved`` is not of that length.
    """
    if saved.numel() != SAVED_BYTES:
        raise ValueError(f"saved has {saved.numel()} bytes, save_state() gives {SAVED_BYTES}")
    target, saved = ring(state), saved.cpu()
    with edit_state(state) as shared:
        address = shared["state"]["ring"].item()
        for part in ("config", "state"):
            shared[part] = layout.block(saved)[part]
        shared["state"]["ring"] = address
    target.view(np.uint8)[:] = saved[_RING_START:].numpy()


# ---- rings -----------------------------------------------------------------------------------
# A ring is never freed, only used again: a kernel in flight, or a copy of a state whose original is
# gone, may still write to it.

_rings: dict[int, torch.Tensor] = {}
_free: dict[torch.device, list[int]] = {}
_lock = threading.RLock()  # a finalizer may run inside _take_ring


def _take_ring(device: torch.device) -> int:
    """Address of a zeroed ring that nothing uses."""
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    with _lock:
        free = _free.get(device)
        address = free.pop() if free else None
    if address is not None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # what its last state launched has ended
        _rings[address].zero_()
        return address
    locked = device.type == "cuda"  # the ring is the host's, whatever the default device is
    made = torch.zeros(_RING_BYTES, dtype=torch.uint8, device="cpu", pin_memory=locked)
    _rings[made.data_ptr()] = made
    return made.data_ptr()


def _give_back(device: torch.device, address: int) -> None:
    with _lock:
        _free.setdefault(device, []).append(address)
