"""Arenas: byte buffers that hold a copy of every live tensor, each in its storage dtype.

Each tensor starts at a multiple of 64 entries, so that kernels may use the widest loads and
streaming stores whatever the size of its neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

#: Storage dtypes and their number in the tile table (csrc/core/tiles.h).
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
#: The same for a history loss, which may be fp64 too.
LOSS_DTYPES = {**DTYPES, torch.float64: 3}
_ALIGNMENT = 64  # entries


@dataclass(frozen=True)
class Layout:
    """Where each tensor starts in an arena (bytes) and how long the arena is (bytes)."""

    offsets: tuple[int, ...]
    nbytes: int


def check_live(live: Sequence[torch.Tensor]) -> torch.device:
    """The one device of ``live``; ``ValueError`` names the tensor that no kernel can work on."""
    for index, tensor in enumerate(live):
        if tensor.dtype not in DTYPES:
            raise ValueError(
                f"live[{index}] is {tensor.dtype}; the kernels take float32, bfloat16 and float16"
            )
        if tensor.dim() != 1 or not tensor.is_contiguous():
            raise ValueError(
                f"live[{index}] has shape {tuple(tensor.shape)} and strides {tensor.stride()}; "
                "pass 1-D contiguous views (Parameters.flat())"
            )
        if tensor.device != live[0].device:
            raise ValueError(
                f"live[{index}] is on {tensor.device} and live[0] on {live[0].device}; one call "
                "takes the tensors of one device, so build one engine per device"
            )
    return live[0].device if live else torch.device("cpu")


def check_apart(live: Sequence[torch.Tensor], anchor: torch.Tensor, mid: torch.Tensor) -> None:
    """``ValueError`` naming two tensors that share memory: their entries would be fused twice.

    One device, O(n log n): done where tensors are bound, not at every merge.
    """
    named = [(f"live[{index}]", tensor) for index, tensor in enumerate(live)]
    spans = sorted(
        (tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size(), name)
        for name, tensor in [*named, ("anchor", anchor), ("mid", mid)]
        if tensor.numel()
    )
    for (_, end, first), (start, _, second) in zip(spans, spans[1:], strict=False):
        if start < end:
            raise ValueError(
                f"{first} and {second} share memory; list each tensor once and give anchor and mid "
                "arenas of their own (new_arena())"
            )


def check_bindable(
    live: Sequence[torch.Tensor], anchor: torch.Tensor, mid: torch.Tensor, state: torch.Tensor
) -> None:
    """``ValueError`` naming the tensor that a compiled kernel cannot address."""
    check_live(live)
    device = live[0].device if live else state.device
    needed = arena_layout(live).nbytes
    for name, buffer in (("anchor", anchor), ("mid", mid), ("state", state)):
        if buffer.device != device or buffer.dtype != torch.uint8 or not buffer.is_contiguous():
            raise ValueError(
                f"{name} must be a contiguous uint8 tensor on {device}, got {buffer.dtype} on "
                f"{buffer.device}"
            )
        if buffer.data_ptr() % 16:
            raise ValueError(
                f"{name} starts at an address that is no multiple of 16; use new_arena()"
            )
        if name != "state" and buffer.numel() < needed:
            raise ValueError(f"{name} has {buffer.numel()} bytes, these tensors need {needed}")
    if live:
        check_apart(live, anchor, mid)


def arena_layout(live: Sequence[torch.Tensor]) -> Layout:
    """Start of each tensor at a multiple of 64 of its entries and of the largest item size."""
    # one rule for all dtypes, so mixed tables stay aligned
    return Layout(*_placed([t.numel() * t.element_size() for t in live], _ALIGNMENT * 4))


def _placed(sizes: Sequence[int], step: int) -> tuple[tuple[int, ...], int]:
    """Starts of parts of these sizes, each at a multiple of ``step``, and the end of the last."""
    starts, end = [], 0
    for size in sizes:
        starts.append(-(-end // step) * step)
        end = starts[-1] + size
    return tuple(starts), end


def entry_layout(live: Sequence[torch.Tensor]) -> tuple[tuple[int, ...], int]:
    """Where each tensor starts in a buffer of one number per entry, and how long that is.

    As in an arena, each starts at a multiple of 64 entries.
    """
    return _placed([tensor.numel() for tensor in live], _ALIGNMENT)


def new_arena(live: Sequence[torch.Tensor]) -> torch.Tensor:
    """An uninitialised uint8 arena for ``live`` on its device; allocate once, keep for life."""
    device = check_live(live)
    return torch.empty(max(1, arena_layout(live).nbytes), dtype=torch.uint8, device=device)


def arena_views(arena: torch.Tensor, live: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """1-D views of the arena, one per live tensor, in its dtype and length."""
    views = []
    for tensor, offset in zip(live, arena_layout(live).offsets, strict=True):
        nbytes = tensor.numel() * tensor.element_size()
        views.append(arena[offset : offset + nbytes].view(tensor.dtype))
    return views


def copy_into(arena: torch.Tensor, live: Sequence[torch.Tensor]) -> None:
    """arena <- live, bit for bit."""
    if live:
        with torch.no_grad():
            torch._foreach_copy_(arena_views(arena, live), list(live))


def copy_out(live: Sequence[torch.Tensor], arena: torch.Tensor) -> None:
    """live <- arena, bit for bit."""
    if live:
        with torch.no_grad():
            torch._foreach_copy_(list(live), arena_views(arena, live))
