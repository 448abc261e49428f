"""Launches the compiled Triton kernels on a driver that only writes launches down.

A program of its own, because it puts its own driver under Triton's launcher. Prints, as JSON, what
each method of an engine launched; test_triton_launch.py starts it with native/recording_libcuda.c
as libcuda.so.1.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
from collections.abc import Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime import driver

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.kernels import triton_kernels
from aimmerge_fast.kernels.triton_kernels import entries, launch

STREAM = 77
here = 0  # the current device
entered: list[int] = []


class Launch(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("grid", "block", "shared", "stream", "function")),
        ("values", ctypes.c_uint64 * 24),
    ]


class Driver(CudaDriver):  # type: ignore[misc]
    """Triton's driver, with the questions answered that it asks torch."""

    def __init__(self) -> None:
        super().__init__()
        self.get_current_device = lambda: here
        self.get_current_stream = lambda index: STREAM + index
        self.get_current_target = lambda: GPUTarget("cuda", 90, 32)


@contextlib.contextmanager
def device(index: int) -> Iterator[None]:
    """In place of ``torch.cuda.device``."""
    global here
    entered.append(index)
    before, here = here, index
    yield
    here = before


library = ctypes.CDLL("libcuda.so.1")
last = Launch.in_dll(library, "last")
expected = ctypes.c_int.in_dll(library, "expected_arguments")
count = ctypes.c_int.in_dll(library, "launches")


def launched(method: Any, *arguments: Any, takes: int) -> dict[str, Any]:
    """What one call of a method launched."""
    expected.value, before = takes, count.value
    method(*arguments)
    return {
        "launches": count.value - before,
        "programs": last.grid,
        "threads": last.block,
        "stream": last.stream,
        "arguments": list(last.values[:takes]),
    }


def played(live: list[torch.Tensor]) -> dict[str, Any]:
    """Addresses that an engine was given, and what its methods launched."""
    anchor, mid = (kernels.new_arena(live) for _ in range(2))
    state = kernels.new_state(AIMConfig())
    engine = triton_kernels.Engine(live, anchor, mid, state)
    loss, rows = torch.tensor(1.0).bfloat16(), torch.zeros(3, 2, dtype=torch.float64)
    gc.collect()
    table = engine._table
    return {
        "table": [
            *(table.tiles.data_ptr(), table.count, anchor.data_ptr(), mid.data_ptr()),
            *(table.scratch.data_ptr(), state.data_ptr()),
        ],
        "observe": [launched(engine.observe_, loss, takes=3), loss.data_ptr(), state.data_ptr()],
        "advance": [launched(engine.advance_, rows, takes=3), rows.data_ptr(), state.data_ptr()],
        "open": launched(engine.open_, takes=6),
        "close": launched(engine.close_, takes=6),
        "repair": launched(engine.repair_, takes=6),
    }


def played_entries(live: list[torch.Tensor]) -> dict[str, Any]:
    """Addresses that the per-entry ops were given, and what they launched."""
    anchor, mid = (kernels.new_arena(live) for _ in range(2))
    new, past = (kernels.new_importance(live) for _ in range(2))
    buffers = [*new.state_dict().values(), *past.state_dict().values()]
    limits = torch.zeros(2)
    engine = entries.Entries(live, anchor, mid)
    weights = [(0.5, 1.0), (1.5, 2.0), (2.5, 3.0), (3.5, 4.0)]
    step = (live, buffers[:2], [0.25, 0.75, 0.125, 0.875])
    table = (engine._table.tiles.data_ptr(), engine._table.count)
    places = engine._places.tensor.data_ptr()
    return {
        "importance": launched(engine.importance_, *step, takes=10),
        "weighted": launched(engine.weighted_, buffers, limits, weights, takes=19),
        "step": [*table, engine._places._gradients.data_ptr(), places, *addresses(*buffers[:2])],
        "by": [*table, *addresses(anchor, mid), places, *addresses(*buffers, limits)],
    }


def addresses(*tensors: torch.Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def main() -> None:
    global here
    driver.set_active(Driver())
    torch.cuda.device = device  # type: ignore[assignment,misc]
    launch.launcher = lambda program, _: launch._loaded(program, 0)
    wide = torch.zeros(3 * 4096 + 1)
    narrow = [torch.zeros(n, dtype=d) for n, d in ((4096, torch.float16), (7, torch.bfloat16))]
    result: dict[str, Any] = {"version": triton.__version__}
    result |= {"wide": played([wide]), "narrow": played(narrow), "none": played([])}
    result["entries"] = played_entries([wide, *narrow])
    entered.clear()
    here = 1
    result |= {"elsewhere": played([wide]), "entered": entered.copy()}
    result["unloaded"] = ctypes.c_int.in_dll(library, "unloaded").value
    print(json.dumps(result))


if __name__ == "__main__":
    main()
