"""Backend ``native`` for the per-entry ops: the compiled kernels, on engines kept by address."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from aimmerge_fast import _native  # after torch: both must share torch's OpenMP runtime
from aimmerge_fast.kernels.arena import DTYPES, arena_layout
from aimmerge_fast.kernels.native import stream_of
from aimmerge_fast.kernels.tiles import DeviceTable, EntryPlaces
from aimmerge_fast.kernels.twins import EntryTwins

Tensor = torch.Tensor


class CpuEntries:
    """The ops bound to one set of tensors; arenas only for ``weighted_``. It keeps no tensor."""

    def __init__(self, live: Sequence[Tensor], anchor: Tensor, mid: Tensor) -> None:
        self._places = EntryPlaces(live, anchor.device)
        self._native = _native.Engine(anchor.data_ptr(), mid.data_ptr(), 0)
        self._native.bind(
            [tensor.data_ptr() for tensor in live],
            [tensor.numel() for tensor in live],
            list(arena_layout(live).offsets),
            [DTYPES[tensor.dtype] for tensor in live],
        )

    def importance_(
        self, gradients: Sequence[Tensor | None], pair: Sequence[Tensor], betas: Sequence[float]
    ) -> None:
        addresses = self._places.of_gradients(gradients)
        self._native.importance(_addresses(addresses, self._places.tensor, *pair), betas)

    def weighted_(
        self, scores: Sequence[Tensor], thresholds: Tensor, weights: Sequence[tuple[float, float]]
    ) -> Tensor:
        given = _addresses(self._places.tensor, *scores, thresholds)
        bad = self._native.weighted(given, weights)
        return torch.tensor(bad, dtype=torch.int64, device="cpu")


class CudaEntries:
    """The ops as CUDA kernels on the current stream of the tensors' device.

    Args:
        module: the compiled module that launches.
    """

    def __init__(
        self, live: Sequence[Tensor], anchor: Tensor, mid: Tensor, *, module: Any = _native
    ) -> None:
        device = anchor.device
        self._stream = stream_of(device)
        self._places = EntryPlaces(live, device)
        self._table = table = DeviceTable(live, device)
        addresses = _addresses(anchor, mid)
        module.cuda_kernels(device.index or 0)  # loads them: not to happen in a capture
        self._native = module.CudaEngine(*addresses, 0, table.scratch.data_ptr(), device.index or 0)
        self._native.bind(table.tiles.data_ptr(), table.count, table.narrow)

    def importance_(
        self, gradients: Sequence[Tensor | None], pair: Sequence[Tensor], betas: Sequence[float]
    ) -> None:
        addresses = self._places.of_gradients(gradients)
        given = _addresses(addresses, self._places.tensor, *pair)
        self._native.importance(given, betas, self._stream())

    def weighted_(
        self, scores: Sequence[Tensor], thresholds: Tensor, weights: Sequence[tuple[float, float]]
    ) -> Tensor:
        bad = torch.zeros((), dtype=torch.int64, device=thresholds.device)
        given = _addresses(self._places.tensor, *scores, thresholds)
        self._native.weighted(given, weights, bad.data_ptr(), self._stream())
        return bad


def Entries(live: Sequence[Tensor], anchor: Tensor, mid: Tensor) -> CpuEntries | CudaEntries:
    """The engine for the device of the arenas."""
    kind = CpuEntries if anchor.device.type == "cpu" else CudaEntries
    return kind(live, anchor, mid)


def _addresses(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


_twins = EntryTwins(Entries)
importance_, weighted_ = _twins.importance_, _twins.weighted_
