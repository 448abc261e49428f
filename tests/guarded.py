"""Runs the native kernels on buffers between pages that must not be touched; a program of its own.

``python -m tests.guarded`` prints how many merges ran, then one line for each planted fault with
the signal that ended it. test_kernels_guard.py reads that; a kernel that strays ends the program.
"""

from __future__ import annotations

import ctypes
import faulthandler
import itertools
import mmap
import os
from collections.abc import Callable

import numpy as np
import torch

from aimmerge_fast import _native, kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.kernels import layout, states
from tests.tables import DTYPES, Play, Spec, Table, bad_bits, set_bits

PAGE = mmap.PAGESIZE
TAILS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025)
SIZES = (*TAILS, 2049, 4095, 4096, 4097, 4096 + 33, 8192, 8192 + 7)
_kept: list[object] = []
_libc = ctypes.CDLL(None, use_errno=True)


def fenced(nbytes: int, at_end: bool, alignment: int = 1) -> torch.Tensor:
    """``nbytes`` that start just after a forbidden page, or end just before one.

    With an alignment the end may lie up to ``alignment - 1`` bytes before the page.
    """
    inside = max(1, -(-nbytes // PAGE)) * PAGE
    area = mmap.mmap(-1, inside + 2 * PAGE)
    whole = torch.frombuffer(area, dtype=torch.uint8)
    _kept.append(area)
    for page in (whole.data_ptr(), whole.data_ptr() + PAGE + inside):
        assert _libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0) == 0
    start = PAGE + (inside - nbytes) // alignment * alignment if at_end else PAGE
    return whole[start : start + nbytes]


def fenced_state(config: AIMConfig, at_end: bool) -> torch.Tensor:
    made = kernels.new_state(config)
    state = fenced(made.numel(), at_end, 16)
    state.copy_(made)
    ring = fenced(layout.RING_SIZE * layout.RECORD.itemsize, at_end, 64)
    layout.block(state)["state"]["ring"] = ring.data_ptr()
    states._rings[ring.data_ptr()] = ring
    return state


def fenced_table(specs: list[Spec], config: AIMConfig, at_end: bool) -> Table:
    live = [
        fenced(spec.entries * spec.dtype.itemsize, (index % 2 == 0) == at_end).view(spec.dtype)
        for index, spec in enumerate(specs)
    ]
    size = kernels.arena_layout(live).nbytes
    arenas = [fenced(size, at_end, 16) for _ in range(2)]
    return Table([], live, *arenas, fenced_state(config, at_end))


def merge(specs: list[Spec], bad: int, at_end: bool) -> None:
    """One merge; ``bad``: the half (1: open, 2: close) that meets a NaN in a last entry, or 0."""
    planted = {bad: [(0, specs[0].entries - 1, bad_bits(specs[0].dtype)[0])]} if bad else {}
    play = Play(specs, "normal", 1, AIMConfig(alpha_new=0.5), bad=planted)
    table = fenced_table(specs, play.config, at_end)
    play.on("native", table)
    table.engine("native").repair_()
    rejected = kernels.ring(table.state)[len(play.losses) : len(play.losses) + 2]["reject"]
    assert list(rejected) == [int(bad == 1), int(bad == 2)]
    for dtype in (*DTYPES, torch.float64):
        loss = fenced(dtype.itemsize, at_end).view(dtype)
        table.engine("native").observe_(loss)
    table.engine("native").advance_(fenced(32, at_end).view(torch.float64).view(2, 2).fill_(0))
    _kept.clear()


def entry_ops(specs: list[Spec], at_end: bool, backend: str) -> None:
    """The per-entry ops, with a gradient and without."""
    table, other = (fenced_table(specs, AIMConfig(), at_end) for _ in range(2))
    entries = len(kernels.new_importance(table.live).sensitivity)
    for tensor in (*table.live, *other.live, table.anchor, table.mid):
        tensor.fill_(1)
    for gradients in (other.live, [None] * len(specs)):
        s, u = (fenced(4 * entries, at_end, 16).view(torch.float32).fill_(0) for _ in range(2))
        kernels.importance_(table.live, gradients, s, u, backend=backend)
        made = kernels.Importance(s, u, ())
        limits = fenced(8, at_end).view(torch.float32).fill_(0)
        kernels.weighted_(table.live, table.anchor, table.mid, made, made, limits, backend=backend)


# ---- planted faults -----------------------------------------------------------------------------


def planted(shift: str, at_end: bool, half: str) -> Callable[[], None]:
    """A table whose tensor or arena is said to lie or to reach one step beyond its fence."""
    spec = Spec(torch.float32, 1024)
    table = fenced_table([spec], AIMConfig(alpha_new=0.5), at_end)
    set_bits(table.live[0], np.ones(spec.entries))
    moved = {"live": 0, "anchor": 0, "mid": 0, shift: PAGE if at_end else -16}
    engine = _native.Engine(
        table.anchor.data_ptr() + moved["anchor"],
        table.mid.data_ptr() + moved["mid"],
        table.state.data_ptr(),
    )
    entries = spec.entries
    if shift == "live":
        moved["live"] = 0 if at_end else -4
        entries += 1
    engine.bind([table.live[0].data_ptr() + moved["live"]], [entries], [0], [0])
    return engine.open if half == "open" else engine.close


def signal_of(run: Callable[[], None]) -> int:
    """The signal that ends a child which runs it, 0 when it survives."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        run()
        os._exit(0)
    return os.waitpid(child, 0)[1] & 0x7F


def main() -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    count = 0
    for name in _native.isa_available():
        _native.set_isa(name)
        for dtype, entries, at_end in itertools.product(DTYPES, SIZES, (True, False)):
            specs = [Spec(dtype, entries), Spec(dtype, entries), Spec(dtype, 0)]
            for bad in range(3):
                merge(specs, bad, at_end)
                count += 1
            entry_ops(specs, at_end, "native")
            _kept.clear()
    print("merges", count)
    for shift, at_end, half in itertools.product(
        ("live", "anchor", "mid"), (True, False), ("open", "close")
    ):
        print("fault", shift, at_end, half, signal_of(planted(shift, at_end, half)), flush=True)


if __name__ == "__main__":
    main()
