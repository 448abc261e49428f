"""The ops of a merge, whatever backend runs them.

A merge has two halves. ``open_`` snapshots the live parameters and measures how far they moved;
after the memory steps ``close_`` fuses the two task vectors. ``observe_`` runs once per update.

=========== ================================================================== ===================
op          does                                                               bytes per fp32 entry
=========== ================================================================== ===================
observe_    history loss in; activations, threshold, decision; one record      -
open_       mid <- live; L1; transition (window, alpha, next S, M)             12
close_      live, anchor <- anchor + (a1 (mid - anchor) + a2 (live - mid))     20
advance_    the transition alone, from the partial results of several tables   -
repair_     undoes the half that met a non-finite entry                        -
=========== ================================================================== ===================

All tensors of a call are on one device. ``live`` is a list of 1-D dense views of the parameters
(fp32, bf16 or fp16, mixed at will) that are never moved; ``anchor`` and ``mid`` are uint8 arenas
from ``new_arena``; ``state`` is the uint8 tensor from ``new_state``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aimmerge_fast.kernels.arena import (
    LOSS_DTYPES,
    arena_layout,
    arena_views,
    check_live,
    copy_into,
    copy_out,
    new_arena,
)
from aimmerge_fast.kernels.group import Group
from aimmerge_fast.kernels.registry import BACKENDS, Choice, Engine, available, choose, engine, load
from aimmerge_fast.kernels.states import (
    SAVED_BYTES,
    STATE_BYTES,
    abandon_merge,
    begin_task,
    load_state,
    new_state,
    read_state,
    restart_interval,
    ring,
    save_state,
)
from aimmerge_fast.kernels.tiles import is_capturing

__all__ = [
    "BACKENDS",
    "SAVED_BYTES",
    "Choice",
    "Engine",
    "Group",
    "abandon_merge",
    "advance_",
    "arena_layout",
    "arena_views",
    "available",
    "begin_task",
    "check_loss",
    "choose",
    "close_",
    "copy_into",
    "copy_out",
    "engine",
    "is_capturing",
    "load_state",
    "new_arena",
    "new_state",
    "observe_",
    "open_",
    "read_state",
    "repair_",
    "restart_interval",
    "ring",
    "save_state",
]


def observe_(loss: torch.Tensor, state: torch.Tensor, *, backend: str = "auto") -> None:
    """Give one history loss to the controller: the forgetting signal of Sec. 3.1 of the paper.

    Collects the threshold's samples, judges (loss > threshold), decides, posts one record.

    Args:
        loss: () or one element, fp32 | bf16 | fp16 | fp64, on the state's device. Read only.
        state: from ``new_state``. Mutated.

    Numerics: everything fp64. A non-finite loss counts as a step, is no sample, never activates.
    Raises: ValueError when ``loss`` is no scalar or lies on another device.
    """
    check_loss(loss, state.device)
    load(choose(backend, state.device).name).observe_(loss.detach(), state)


def open_(
    live: Sequence[torch.Tensor],
    anchor: torch.Tensor,
    mid: torch.Tensor,
    state: torch.Tensor,
    *,
    backend: str = "auto",
) -> None:
    """Snapshot theta_j and let the controller weigh the interval (Eq. 3, 4, 5 and 8).

    Plain form: ``mid.copy_(live); l1 = (live - anchor).abs().double().sum()``; then the transition:
    Lambda, trend window, alpha, next S. A non-finite live entry rejects the merge: live and mid go
    back to anchor, Lambda is not recorded, S stays, alpha = (1, 0).

    Args:
        live:   list of (n_i,) fp32 | bf16 | fp16, contiguous, one device. Mutated on a reject only.
        anchor: uint8 arena of the same tensors, finite. Read only.
        mid:    uint8 arena. Overwritten.
        state:  from ``new_state``. Mutated.

    Numerics: an fp32 difference, then fp64 additions in order P (csrc/core/tiles.h): the same bits
        on every backend, for any number of threads.
    Raises: ValueError naming the tensor for an unsupported dtype, shape, stride or device.
    """
    check_call(live, anchor, mid, state)
    load(choose(backend, anchor.device).name).open_(live, anchor, mid, state)


def close_(
    live: Sequence[torch.Tensor],
    anchor: torch.Tensor,
    mid: torch.Tensor,
    state: torch.Tensor,
    *,
    backend: str = "auto",
) -> None:
    """Fuse the two task vectors, Eq. 7; the result is both the new live and the new anchor.

    Plain form: ``live = anchor = anchor + (alpha1 * (mid - anchor) + alpha2 * (live - mid))``.
    alpha = (1, 0) stores mid itself. A non-finite stored entry rejects: live and anchor go to mid.

    Args: as ``open_``; live and anchor are overwritten, mid is read.
    Numerics: alpha rounded to fp32 once; fp32 with one rounding per operation in the order above,
        no fused multiply-add; then rounded to the storage dtype.
    Raises: ValueError as ``open_``.
    """
    check_call(live, anchor, mid, state)
    load(choose(backend, anchor.device).name).close_(live, anchor, mid, state)


def advance_(partials: torch.Tensor, state: torch.Tensor, *, backend: str = "auto") -> None:
    """Run the transition of the next half (open when idle, close when open) from partial results.

    Args:
        partials: (k, 2) fp64: rows of (L1, number of non-finite entries), added in row order.
        state: from ``new_state``. Mutated.
    Raises: ValueError when ``partials`` has another shape, dtype or device.
    """
    if partials.dim() != 2 or partials.shape[1] != 2 or partials.dtype != torch.float64:
        raise ValueError(
            f"partials must be (k, 2) float64, got {tuple(partials.shape)} {partials.dtype}"
        )
    if partials.device != state.device:
        raise ValueError(f"partials are on {partials.device}, the state on {state.device}")
    load(choose(backend, state.device).name).advance_(partials, state)


def repair_(
    live: Sequence[torch.Tensor],
    anchor: torch.Tensor,
    mid: torch.Tensor,
    state: torch.Tensor,
    *,
    backend: str = "auto",
) -> None:
    """Undo the half that was just rejected: open goes back to anchor, close to mid; else nothing.

    ``open_`` and ``close_`` do this themselves; after a deferred one it follows ``advance_``.
    Args and Raises: as ``open_``.
    """
    check_call(live, anchor, mid, state)
    load(choose(backend, anchor.device).name).repair_(live, anchor, mid, state)


def check_loss(loss: torch.Tensor, device: torch.device | None = None) -> None:
    """``ValueError`` unless ``loss`` is one floating-point number (on ``device`` if given)."""
    if not isinstance(loss, torch.Tensor):
        raise ValueError(f"the history loss must be a scalar tensor, got {type(loss).__name__}")
    if loss.numel() != 1 or loss.dtype not in LOSS_DTYPES:
        raise ValueError(
            "the history loss must be a scalar of fp32, fp64, bf16 or fp16, got "
            f"a {loss.dtype} tensor of shape {tuple(loss.shape)}"
        )
    if device is not None and loss.device != device:
        raise ValueError(f"the history loss is on {loss.device}, the controller on {device}")


def check_call(
    live: Sequence[torch.Tensor], anchor: torch.Tensor, mid: torch.Tensor, state: torch.Tensor
) -> None:
    """``ValueError`` naming the argument that lies on another device or has another size."""
    device = check_live(live)
    needed = arena_layout(live).nbytes
    for name, buffer in (("anchor", anchor), ("mid", mid)):
        if live and buffer.device != device:
            raise ValueError(f"{name} is on {buffer.device} and live on {device}; use one device")
        if buffer.numel() < needed:
            raise ValueError(f"{name} has {buffer.numel()} bytes, these tensors need {needed}")
    if live and state.device != device:
        raise ValueError(
            f"state is on {state.device} and live on {device}; use new_state(device=...)"
        )
    if state.numel() != STATE_BYTES:
        raise ValueError(f"state has {state.numel()} bytes, expected {STATE_BYTES}")
