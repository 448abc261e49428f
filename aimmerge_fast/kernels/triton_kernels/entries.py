"""The per-entry ops on engines kept by address; see ``aimmerge_fast.kernels.entrywise``."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aimmerge_fast.kernels.tiles import DeviceTable, EntryPlaces
from aimmerge_fast.kernels.triton_kernels import launch
from aimmerge_fast.kernels.twins import EntryTwins

Tensor = torch.Tensor


class Entries:
    """The ops bound to one set of tensors; arenas only for ``weighted_``. It keeps no tensor."""

    def __init__(self, live: Sequence[Tensor], anchor: Tensor, mid: Tensor) -> None:
        self._places = EntryPlaces(live, anchor.device)
        self._table = DeviceTable(live, anchor.device)
        self._importance = launch.launcher(launch.IMPORTANCE, anchor.device)
        self._weighted = launch.launcher(launch.WEIGHTED, anchor.device)
        self._tiles = (self._table.tiles.data_ptr(), self._table.count)
        self._arenas = (anchor.data_ptr(), mid.data_ptr())

    def importance_(
        self, gradients: Sequence[Tensor | None], pair: Sequence[Tensor], betas: Sequence[float]
    ) -> None:
        addresses = self._places.of_gradients(gradients)
        given = _addresses(addresses, self._places.tensor, *pair)
        self._importance(self._table.count, *self._tiles, *given, *betas)

    def weighted_(
        self, scores: Sequence[Tensor], thresholds: Tensor, weights: Sequence[tuple[float, float]]
    ) -> Tensor:
        bad = torch.zeros((), dtype=torch.int64, device=thresholds.device)
        given = _addresses(self._places.tensor, *scores, thresholds)
        new, past = zip(*weights, strict=True)
        arguments = (*self._tiles, *self._arenas, *given, *new, *past, bad.data_ptr())
        self._weighted(self._table.count, *arguments)
        return bad


def _addresses(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


_twins = EntryTwins(Entries)
importance_, weighted_ = _twins.importance_, _twins.weighted_
