"""Tensors beyond 2^31 entries in little memory: every page but the last ones is the same few.

The bulk of a map shows one small file again and again, all zeros, which open and close keep zero.
The tail is memory of its own, so that an offset that wraps around at 32 bits misses it, and meets
either zeros or a page that may not be touched.
"""

from __future__ import annotations

import ctypes
import mmap
import os

import torch

#: One full tile beyond 2^31 entries, then three entries: the first offsets that need 32 bits.
ENTRIES = 2**31 + 4099
_CHUNK = 64 << 20
_PROT, _FIXED_SHARED = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | 0x10  # MAP_FIXED
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Map:
    """``nbytes`` of zeros, of which only the last two chunks have pages of their own."""

    def __init__(self, nbytes: int) -> None:
        self._length = -(-nbytes // _CHUNK) * _CHUNK
        bulk, tail = (os.memfd_create(name) for name in ("bulk", "tail"))
        for file, chunks in ((bulk, 1), (tail, 2)):
            os.ftruncate(file, chunks * _CHUNK)
        reserve = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
        self._address = self._map(None, self._length, 0, reserve, -1)
        own = self._length - 2 * _CHUNK
        for start in range(0, own, _CHUNK):
            self._map(self._address + start, _CHUNK, _PROT, _FIXED_SHARED, bulk)
        self._map(self._address + own, 2 * _CHUNK, _PROT, _FIXED_SHARED, tail)
        for file in (bulk, tail):
            os.close(file)
        held = (ctypes.c_ubyte * nbytes).from_address(self._address)
        self.bytes = torch.frombuffer(held, dtype=torch.uint8)

    def _map(self, at: int | None, length: int, prot: int, flags: int, file: int) -> int:
        address = _libc.mmap(at, length, prot, flags, file, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), f"mmap of {length} bytes failed")
        return int(address)

    def close(self) -> None:
        del self.bytes
        _libc.munmap(self._address, self._length)
