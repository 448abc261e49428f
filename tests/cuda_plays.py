"""Merges played on the emulated CUDA kernels and on the CPU kernels, compared byte by byte."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.kernels import layout
from aimmerge_fast.kernels.tiles import SCRATCH_HEADER
from tests import emulated
from tests.tables import DTYPES, Play, Spec, Table, bits_like, bits_of

F32, BF16, F16 = DTYPES
CONFIG = AIMConfig(alpha_new=0.5)
# Whole tiles, aligned and not, tails and an empty tensor; for each of the two geometries.
MIXED = [Spec(F32, 4097, 1), Spec(BF16, 0), Spec(F16, 4096), Spec(BF16, 8192, 8), Spec(F32, 4096)]
NARROW = [Spec(BF16, 4097, 1), Spec(F16, 0), Spec(F16, 4096), Spec(BF16, 8192, 8), Spec(F16, 33)]


def engine(table: Table) -> Any:
    """The engine of CUDA users on the emulation."""
    from aimmerge_fast.kernels.native import CudaEngine

    return CudaEngine(table.live, table.anchor, table.mid, table.state, module=emulated.module())


class HostTable(Table):
    """A table whose snapshots hold one NaN: the payload of a sum is each processor's own."""

    def snapshot(self) -> list[bytes]:
        *rest, state = super().snapshot()
        saved = torch.frombuffer(bytearray(state), dtype=torch.uint8)
        fields = layout.block(saved)["state"]
        for name in ("l1", "partial_l1"):
            fields[name] = fields[name] if fields[name] == fields[name] else math.nan
        ring = saved[-layout.RING_SIZE * layout.RECORD.itemsize :].numpy().view(layout.RECORD)
        ring["l1"] = np.where(np.isnan(ring["l1"]), math.nan, ring["l1"])
        return [*rest, bits_of(saved)]


class EmulatedTable(HostTable):
    """A table whose engine is the emulated one, whatever backend is asked for."""

    def engine(self, backend: str) -> kernels.Engine:
        self._made = engine(self)
        return self._made

    def scratch(self) -> torch.Tensor:
        """Ticket and count of non-finite entries of the engine that was made last."""
        return self._made._table.scratch[:SCRATCH_HEADER]


class Ops:
    """What a controller's adapter needs of ``aimmerge_fast.kernels``, emulated."""

    def __init__(self) -> None:
        self._engines: dict[int, kernels.Engine] = {}

    def _engine(self, state: torch.Tensor) -> kernels.Engine:
        if state.data_ptr() not in self._engines:
            empty = torch.zeros(64, dtype=torch.uint8)
            self._engines[state.data_ptr()] = engine(Table([], [], empty, empty.clone(), state))
        return self._engines[state.data_ptr()]

    def observe_(self, loss: torch.Tensor, state: torch.Tensor, *, backend: str) -> None:
        self._engine(state).observe_(loss)

    def advance_(self, partials: torch.Tensor, state: torch.Tensor, *, backend: str) -> None:
        self._engine(state).advance_(partials)


class AbsorbingPlay(Play):
    """Changes whose sum depends on the order in which they are added: one is 1, the others would
    be absorbed by it one by one, and not when they have been added up before."""

    @functools.cached_property
    def bits(self) -> list[list[np.ndarray[Any, Any]]]:
        draw = np.random.default_rng(self.seed)
        stages = []
        for spec in self.specs:
            tiny = draw.uniform(0, 2**-50, spec.entries)
            stages.append([bits_like(v, spec.dtype) for v in (0 * tiny, tiny, 2 * tiny)])
        stages[len(stages) // 3][1][0] = bits_like(np.ones(1), self.specs[0].dtype)[0]
        return stages


def agree(play: Play, *, rejects: tuple[int, int] | None = None) -> None:
    """Play on both; ``rejects``: non-finite entries that the two halves must have counted."""
    host = HostTable.build(play.specs, play.config)
    device = EmulatedTable.build(play.specs, play.config)
    expected, got = play.on("native", host), play.on("emulated", device)
    for half, wanted, found in zip(("open", "close"), expected, got, strict=True):
        same(f"after {half}", play.specs, wanted, found)
    if rejects is not None:
        first = len(play.losses)
        assert tuple(kernels.ring(device.state)["reject"][first : first + 2]) == rejects


def same(when: str, table: Sequence[Spec], wanted: list[bytes], found: list[bytes]) -> None:
    names = [*(f"{spec}" for spec in table), "anchor", "mid", "state"]
    different = [n for n, a, b in zip(names, wanted, found, strict=True) if a != b]
    assert not different, f"{when}, CUDA differs from the CPU in {different}"
