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

The functions below are ops of ``torch.library`` (``library.py``), so they can stand inside
``torch.compile``. For autograd an op has written all that its schema lets it write: a graph that is
kept across ``open_``, ``close_`` or ``repair_`` raises in its backward pass, rejected or not.
An ``Engine`` goes past the dispatcher and past autograd.

Beside them stand plain functions without a controller: the per-entry ops ``importance_`` and
``weighted_`` (``entrywise.py``), and ``quantile``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aimmerge_fast.kernels import library
from aimmerge_fast.kernels.arena import arena_layout, arena_views, copy_into, copy_out, new_arena
from aimmerge_fast.kernels.checks import check_loss
from aimmerge_fast.kernels.entrywise import KIF_WEIGHTS, importance_, weighted_
from aimmerge_fast.kernels.group import Group
from aimmerge_fast.kernels.importance import Importance, new_importance, quantile
from aimmerge_fast.kernels.registry import BACKENDS, Choice, Engine, available, choose, engine
from aimmerge_fast.kernels.states import (
    SAVED_BYTES,
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
    "KIF_WEIGHTS",
    "SAVED_BYTES",
    "Choice",
    "Engine",
    "Group",
    "Importance",
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
    "importance_",
    "is_capturing",
    "load_state",
    "new_arena",
    "new_importance",
    "new_state",
    "observe_",
    "open_",
    "quantile",
    "read_state",
    "repair_",
    "restart_interval",
    "ring",
    "save_state",
    "weighted_",
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
    if not isinstance(loss, torch.Tensor):
        check_loss(loss)
    library.observe_(loss, state, backend=backend)


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
    library.open_(list(live), anchor, mid, state, backend=backend)


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
    library.close_(list(live), anchor, mid, state, backend=backend)


def advance_(partials: torch.Tensor, state: torch.Tensor, *, backend: str = "auto") -> None:
    """Run the transition of the next half (open when idle, close when open) from partial results.

    Args:
        partials: (k, 2) fp64: rows of (L1, number of non-finite entries), added in row order.
        state: from ``new_state``. Mutated.
    Raises: ValueError when ``partials`` has another shape, dtype or device.
    """
    library.advance_(partials, state, backend=backend)


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
    library.repair_(list(live), anchor, mid, state, backend=backend)
