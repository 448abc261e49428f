"""The tile table: how the live tensors are cut into tiles, and its place on a device.

The twin of ``tile_at`` in ``csrc/core/tiles.h``, for backends whose kernels read the table from
device memory; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aimmerge_fast.kernels.arena import DTYPES, arena_layout, entry_layout

ENTRIES = 4096  # of a full tile
WIDE = 4  # flag of a full tile whose live address is 16-byte aligned, as the arenas' always are
TILE = np.dtype([("address", "u8"), ("offset", "i8"), ("count", "i4"), ("flags", "i4")])
_ITEM_SIZES = [dtype.itemsize for dtype in DTYPES]
SCRATCH_HEADER = 16  # bytes: uint32 ticket, 4 unused, uint64 count of non-finite entries


def tile_count(entries: int) -> int:
    return -(-entries // ENTRIES)


def tiles_at(
    address: int, entries: int, offset: int, dtype: int, numbers: npt.NDArray[np.int64]
) -> npt.NDArray[Any]:
    """Tiles number ``numbers`` of one tensor: (len(numbers),) of TILE.

    Args:
        address, offset: of the tensor's first entry, in memory and in the arenas, in bytes.
        dtype: number in the table (``arena.DTYPES``).
    """
    first = numbers * ENTRIES
    start = first * _ITEM_SIZES[dtype]
    tiles = np.empty(len(numbers), TILE)
    tiles["address"] = np.uint64(address) + start.astype(np.uint64)
    tiles["offset"] = offset + start
    tiles["count"] = np.minimum(entries - first, ENTRIES)
    wide = (tiles["count"] == ENTRIES) & (tiles["address"] % np.uint64(16) == 0)
    tiles["flags"] = np.where(wide, dtype | WIDE, dtype)
    return tiles


def plan(live: Sequence[torch.Tensor]) -> npt.NDArray[Any]:
    """The tiles of all tensors in order: (tiles,) of TILE."""
    parts = [np.empty(0, TILE)]
    for tensor, offset in zip(live, arena_layout(live).offsets, strict=True):
        entries = tensor.numel()
        numbers = np.arange(tile_count(entries), dtype=np.int64)
        place = tensor.data_ptr(), entries, offset, DTYPES[tensor.dtype]
        parts.append(tiles_at(*place, numbers))
    return np.concatenate(parts)


def of_tiles(
    entries: Sequence[int], starts: Sequence[int], sizes: Sequence[int]
) -> npt.NDArray[np.int64]:
    """(tiles,): where each tile begins in something that holds, for tensor i, ``sizes[i]`` per
    entry from ``starts[i]`` on; 0 for the tiles of a tensor with ``sizes[i]`` = 0.
    """
    counts = [tile_count(each) for each in entries]
    last = np.cumsum([0, *counts])
    numbers = np.arange(last[-1]) - np.repeat(last[:-1], counts)
    pairs = np.array([*zip(starts, sizes, strict=True)], np.int64).reshape(-1, 2)
    start, size = np.repeat(pairs, counts, axis=0).T
    places: npt.NDArray[np.int64] = np.where(size, start + numbers * (ENTRIES * size), 0)
    return places


class DeviceTable:
    """The tile table of one set of tensors and the scratch of the kernels that walk it.

    Attributes:
        tiles: uint8, count * 24 bytes on the device; rewritten in place by ``rebind``.
        scratch: uint8 on the device: ticket, count of non-finite entries, one partial sum a tile.
            Zero between launches except for the partial sums.
        count: number of tiles.
        narrow: every tile holds 16-bit entries.

    Raises: RuntimeError while a CUDA graph is captured.
    """

    def __init__(self, live: Sequence[torch.Tensor], device: torch.device) -> None:
        self._device = device
        self.tiles: torch.Tensor
        _require_no_capture(device)
        self._write(plan(live), live)

    def rebind(self, live: Sequence[torch.Tensor]) -> bool:
        """Describe other tensors; True when the buffers had to be replaced."""
        _require_no_capture(self._device)
        self._settle()
        tiles = plan(live)
        if len(tiles) == self.count:
            self.tiles.copy_(_bytes(tiles))
            self.narrow = _is_narrow(live)
            return False
        self._write(tiles, live)
        return True

    def _write(self, tiles: npt.NDArray[Any], live: Sequence[torch.Tensor]) -> None:
        self.count = len(tiles)
        self.narrow = _is_narrow(live)
        self.tiles = _bytes(tiles).to(self._device)
        nbytes = SCRATCH_HEADER + 8 * max(1, self.count)
        self.scratch = torch.zeros(nbytes, dtype=torch.uint8, device=self._device)
        self._settle()

    def _settle(self) -> None:
        """Buffers are written, and no longer read, whatever stream the kernels run on."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class EntryPlaces:
    """Where the tiles of one set of tensors begin in what has one number per entry.

    Attributes:
        tensor: (tiles,) int64 on the device: the number of each tile's first entry in buffers of
            ``entry_layout``.

    Raises: RuntimeError while a CUDA graph is captured.
    """

    def __init__(self, live: Sequence[torch.Tensor], device: torch.device) -> None:
        _require_no_capture(device)
        self._entries = [tensor.numel() for tensor in live]
        places = of_tiles(self._entries, entry_layout(live)[0], [1] * len(live))
        self.tensor = torch.from_numpy(places).to(device)
        self._gradients = torch.zeros_like(self.tensor)
        self._known = [0] * len(live)

    def of_gradients(self, gradients: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """(tiles,) int64 on the device: address of each tile's first gradient, 0 for None.

        Rewritten in place where a gradient is no longer where it was; the host waits for nothing.
        """
        addresses = [0 if each is None else each.data_ptr() for each in gradients]
        if addresses != self._known:
            device = self.tensor.device
            _require_no_capture(device)
            sizes = [0 if each is None else each.element_size() for each in gradients]
            places = torch.from_numpy(of_tiles(self._entries, addresses, sizes))
            if device.type == "cuda":
                places = places.pin_memory()
            self._gradients.copy_(places, non_blocking=True)
            self._known = addresses
        return self._gradients


def _require_no_capture(device: torch.device) -> None:
    if is_capturing(device):
        raise RuntimeError(
            "tensors at new addresses while a CUDA graph is captured, which cannot hold the "
            "upload of their table; call the op once on these tensors before the capture"
        )


def is_capturing(device: torch.device) -> bool:
    """Whether the current stream of a CUDA ``device`` is being captured into a graph."""
    if device.type != "cuda" or not torch.cuda.is_initialized():
        return False
    if device.index in (None, torch.cuda.current_device()):  # the usual case, at every step
        return bool(torch.cuda.is_current_stream_capturing())
    with torch.cuda.device(device):
        return bool(torch.cuda.is_current_stream_capturing())


def _is_narrow(live: Sequence[torch.Tensor]) -> bool:
    held = [t for t in live if t.numel()]
    return bool(held) and all(t.element_size() == 2 for t in held)


def _bytes(tiles: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(tiles).view(np.uint8))
