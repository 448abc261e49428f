"""Compiled kernels and the way to launch them without the compiler's own launch path.

That path binds, specialises and hashes the arguments anew at each launch. All arguments here are
numbers of fixed types, so a kernel is compiled and loaded once per device, and a launch is one call
of Triton's launcher with the arguments as they are. In the interpreter there is nothing to load.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime import driver

from aimmerge_fast.kernels.triton_kernels.advance import advance_kernel
from aimmerge_fast.kernels.triton_kernels.close import close_kernel
from aimmerge_fast.kernels.triton_kernels.importance import importance_kernel
from aimmerge_fast.kernels.triton_kernels.observe import observe_kernel
from aimmerge_fast.kernels.triton_kernels.open import open_kernel
from aimmerge_fast.kernels.triton_kernels.repair import repair_kernel
from aimmerge_fast.kernels.triton_kernels.weighted import weighted_kernel

#: Launches a kernel: number of programs, then the kernel's arguments.
Launch = Callable[..., None]
_TABLE = dict.fromkeys(("tiles", "count", "anchor", "mid", "scratch", "state"), "i64")


@dataclass(frozen=True)
class Program:
    """A kernel, the types of its arguments and how it is compiled.

    ``registers``: the most that a thread may use. Without a number the assembler aims at more
    blocks than it can have, and moves some values to memory.
    """

    kernel: Any
    types: tuple[tuple[str, str], ...]
    warps: int
    registers: int | None = None
    constants: tuple[tuple[str, bool], ...] = ()


def _program(kernel: Any, types: dict[str, str], warps: int) -> Program:
    return Program(kernel, tuple(types.items()), warps)


def _over_tiles(kernel: Any) -> dict[bool, Program]:
    """By whether all tiles are narrow: a thread loads 16 bytes, eight narrow entries or four."""
    programs = {}
    for narrow in (False, True):
        warps, registers = (4, 128) if narrow else (8, 80)
        constants = (("NARROW", narrow),)
        programs[narrow] = Program(kernel, tuple(_TABLE.items()), warps, registers, constants)
    return programs


OBSERVE = _program(observe_kernel, {"loss": "i64", "dtype": "i32", "state": "i64"}, 1)
ADVANCE = _program(advance_kernel, {"rows": "i64", "count": "i64", "state": "i64"}, 1)
REPAIR = _program(repair_kernel, _TABLE, 4)
OPEN = _over_tiles(open_kernel)
CLOSE = _over_tiles(close_kernel)
_ADDRESSES = dict.fromkeys(("gradients", "places", "sensitivity", "uncertainty"), "i64")
_FACTORS = dict.fromkeys(("keep1", "take1", "keep2", "take2"), "fp32")
_TILES = dict.fromkeys(("tiles", "count"), "i64")
IMPORTANCE = _program(importance_kernel, {**_TILES, **_ADDRESSES, **_FACTORS}, 8)
_SCORES = ("places", "new_s", "new_u", "past_s", "past_u", "thresholds")
_WEIGHTS = [f"{side}{k}" for side in ("new", "past") for k in range(4)]
WEIGHTED = _program(
    weighted_kernel,
    {
        **_TILES,
        **dict.fromkeys(("anchor", "mid", *_SCORES), "i64"),
        **dict.fromkeys(_WEIGHTS, "fp32"),
        "bad": "i64",
    },
    8,
)


def compiled(program: Program, target: GPUTarget) -> CompiledKernel:
    """The kernel for a GPU architecture; needs no GPU."""
    constants = dict(program.constants)
    source = ASTSource(
        fn=program.kernel,
        signature={**dict(program.types), **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
    )
    # a fused multiply-add rounds once where the other backends round twice
    options = {"num_warps": program.warps, "enable_fp_fusion": False}
    if program.registers is not None:
        options["maxnreg"] = program.registers
    return triton.compile(source, target=target, options=options)


def launcher(program: Program, device: torch.device) -> Launch:
    """What launches ``program`` on the current stream of ``device``; compiles and loads it."""
    if device.type == "cpu":
        return _interpreted(program)
    return _loaded(program, device.index)


def _interpreted(program: Program) -> Launch:
    if not triton.knobs.runtime.interpret:
        raise RuntimeError(
            "Triton kernels are compiled for GPUs; set TRITON_INTERPRET=1 before Python starts to "
            "interpret them on the CPU, which is for tests, or choose another backend"
        )
    kernel, constants = program.kernel, dict(program.constants)

    def launch(programs: int, *arguments: int) -> None:
        kernel[(programs,)](*arguments, **constants)

    return launch


@functools.cache
def _loaded(program: Program, index: int) -> Launch:
    with torch.cuda.device(index):
        kernel = compiled(program, driver.active.get_current_target())
        run = kernel.run  # loads the machine code: not to happen while a graph is captured
    constants = tuple(value for _, value in program.constants)
    current_device = driver.active.get_current_device
    current_stream = driver.active.get_current_stream

    def launch(programs: int, *arguments: int) -> None:
        if current_device() != index:
            with torch.cuda.device(index):
                return launch(programs, *arguments)
        # no metadata and no hooks for profilers; the kernel is kept, for it unloads its code
        code = (kernel.function, kernel.packed_metadata, None, None, None)
        run(programs, 1, 1, current_stream(index), *code, *arguments, *constants)

    return launch
