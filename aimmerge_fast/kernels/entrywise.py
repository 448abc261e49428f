"""The ops that treat every entry by its own importance: Recurrent-KIF, +IFM and TaSL.

=========== ================================================================ ====================
op          does                                                             bytes per fp32 entry
=========== ================================================================ ====================
importance_ S, U <- smoothed |theta * gradient| and its spread               24
weighted_   live <- anchor + (w_new (mid - anchor) + w_past (live - mid))    32
=========== ================================================================ ====================

All tensors of a call are on one device; there is no controller in it and nothing waits for the
device. Same bits on every backend (the pattern of a NaN apart). Captured into a CUDA graph, an op
must have been called once before on the same tensors, gradients included.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import cast

import torch

from aimmerge_fast.kernels.arena import arena_layout, check_apart, check_live, entry_layout
from aimmerge_fast.kernels.importance import Importance
from aimmerge_fast.kernels.registry import choose, load

Tensor = torch.Tensor
#: (w_new, w_past) of entries important to both, only to new, only to past, and to neither.
KIF_WEIGHTS = ((0.4, 0.6), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5))


def importance_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    sensitivity: Tensor,
    uncertainty: Tensor,
    beta1: float = 0.85,
    beta2: float = 0.85,
    *,
    backend: str = "auto",
) -> None:
    """Take one step's gradients into the importance of every entry.

    Plain form: ``u = |theta * gradient|; S = beta1 S + (1 - beta1) u;
    U = beta2 U + (1 - beta2) |u - S|`` (the new S).

    Args:
        parameters: list of fp32 | bf16 | fp16, any shapes, one device. Read only; what is not
            contiguous is copied first.
        gradients: one for each, of its dtype and number of entries; None counts as zeros, so u = 0.
        sensitivity, uncertainty: S and U of ``new_importance(parameters)``. Mutated; what lies
            between the tensors stays 0.
        beta1, beta2: 0 to 1.

    Numerics: fp32 with one rounding per operation, no fused multiply-add; beta and 1 - beta are
        rounded to fp32 once. A u that is not finite makes its entry's S and U not finite for good.
    Raises: ValueError naming the tensor or number that does not fit.
    """
    flat = [tensor.detach().reshape(-1) for tensor in parameters]
    if len(gradients) != len(flat):
        raise ValueError(
            f"{len(gradients)} gradients for {len(flat)} parameters; pass one each, None for none"
        )
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"{name} must be between 0 and 1, got {beta!r}")
    device = check_live(flat)
    slopes = [
        None if gradient is None else _flat_gradient(index, gradient, tensor)
        for index, (gradient, tensor) in enumerate(zip(gradients, flat, strict=True))
    ]
    _check_pair("", (sensitivity, uncertainty), flat, device)
    if not any(tensor.numel() for tensor in flat):
        return
    betas = [_fp32(x) for x in (beta1, 1.0 - beta1, beta2, 1.0 - beta2)]
    module = load(_chosen(backend, device), "entries")
    module.importance_(flat, slopes, sensitivity, uncertainty, betas)
    _bump([sensitivity, uncertainty])


def weighted_(
    live: Sequence[Tensor],
    anchor: Tensor,
    mid: Tensor,
    new: Importance,
    past: Importance,
    thresholds: Tensor | Sequence[Tensor],
    weights: Sequence[Sequence[float]] = KIF_WEIGHTS,
    *,
    backend: str = "auto",
) -> Tensor:
    """Fuse the two task vectors with weights that depend on each entry's importance.

    Plain form: ``live = anchor + (w_new * (mid - anchor) + w_past * (live - mid))``. An entry is
    important to new (past) where its score S * U is *greater* than the threshold; one that equals
    it is not, nor is any where a score or the threshold is NaN. Weights (1, 0) store mid itself.

    All or nothing is the caller's: where the count that is returned is not 0, ``copy_out(live,
    mid)`` undoes it; else ``copy_into(mid, live)`` and a ``close_`` with alpha = (1, 0) finish.

    Args:
        live: list of (n_i,) fp32 | bf16 | fp16, contiguous, one device. Mutated.
        anchor, mid: uint8 arenas of the same tensors. Read only.
        new, past: importances of the same tensors.
        thresholds: for new and for past: (2,) fp32 on the device, or two () fp32.
        weights: (w_new, w_past) for entries important to both, only new, only past, neither.

    Returns: () int64 on the device: how many stored entries are not finite.
    Numerics: fp32 with one rounding per operation in the order above, no fused multiply-add;
        weights rounded to fp32 once; the result is rounded to the storage dtype.
    Raises: ValueError naming the argument that does not fit.
    """
    device = check_live(live)
    for name, arena in (("anchor", anchor), ("mid", mid)):
        _check_arena(name, arena, live, device)
    for side, each in (("new", new), ("past", past)):
        _check_pair(f"{side}.", (each.sensitivity, each.uncertainty), live, device)
    limits = _thresholds(thresholds, device)
    if len(weights) != 4 or any(len(pair) != 2 for pair in weights):
        raise ValueError(f"weights must be four pairs (w_new, w_past), got {weights!r}")
    if not any(tensor.numel() for tensor in live):
        return torch.zeros((), dtype=torch.int64, device=device)
    check_apart(live, anchor, mid)
    module = load(_chosen(backend, device), "entries")
    scores = [(each.sensitivity, each.uncertainty) for each in (new, past)]
    rounded = [(_fp32(w_new), _fp32(w_past)) for w_new, w_past in weights]
    bad = module.weighted_(live, (anchor, mid), scores, limits, rounded)
    _bump(live)
    return cast(Tensor, bad)


@functools.cache
def _chosen(backend: str, device: torch.device) -> str:
    return choose(backend, device).name


def _fp32(x: float) -> float:
    return float(torch.tensor(x, dtype=torch.float64, device="cpu").float())


def _flat_gradient(index: int, gradient: Tensor, parameter: Tensor) -> Tensor:
    found = (gradient.numel(), gradient.dtype, gradient.device)
    if found != (parameter.numel(), parameter.dtype, parameter.device):
        raise ValueError(
            f"gradients[{index}] has {found[0]} entries of {found[1]} on {found[2]}, its parameter "
            f"{parameter.numel()} of {parameter.dtype} on {parameter.device}"
        )
    return gradient.detach().reshape(-1)


def _check_pair(
    side: str, pair: tuple[Tensor, Tensor], live: Sequence[Tensor], device: torch.device
) -> None:
    _, needed = entry_layout(live)
    names = (f"{side}sensitivity", f"{side}uncertainty")
    for name, tensor in zip(names, pair, strict=True):
        if tensor.dtype != torch.float32 or tensor.dim() != 1 or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be 1-D contiguous float32 (new_importance()), got {tensor.dtype} of "
                f"shape {tuple(tensor.shape)}"
            )
        if live and tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device} and the parameters on {device}")
        if tensor.numel() < needed:
            raise ValueError(f"{name} has {tensor.numel()} entries, these tensors need {needed}")
        if tensor.data_ptr() % 16:
            raise ValueError(f"{name} starts at no multiple of 16 bytes; use new_importance()")
    if needed and pair[0].data_ptr() == pair[1].data_ptr():
        raise ValueError(f"{names[0]} and {names[1]} are the same memory")


def _check_arena(name: str, arena: Tensor, live: Sequence[Tensor], device: torch.device) -> None:
    needed = arena_layout(live).nbytes
    if arena.dtype != torch.uint8 or not arena.is_contiguous() or arena.numel() < needed:
        raise ValueError(
            f"{name} must be a contiguous uint8 arena of {needed} bytes (new_arena()), got "
            f"{arena.numel()} of {arena.dtype}"
        )
    if live and arena.device != device:
        raise ValueError(f"{name} is on {arena.device} and live on {device}; use one device")
    if arena.data_ptr() % 16:
        raise ValueError(f"{name} starts at no multiple of 16 bytes; use new_arena()")


def _thresholds(given: Tensor | Sequence[Tensor], device: torch.device) -> Tensor:
    pair = given if isinstance(given, Tensor) else torch.stack(list(given))
    if pair.shape != (2,) or pair.dtype != torch.float32 or pair.device != device:
        raise ValueError(
            f"thresholds must be two float32 numbers on {device}, got {pair.dtype} of shape "
            f"{tuple(pair.shape)} on {pair.device}"
        )
    return pair.detach().contiguous()


def _bump(written: Sequence[Tensor]) -> None:
    """Kernels write past autograd; a graph that is kept across the call must notice."""
    counted = [tensor for tensor in written if not tensor.is_inference()]
    torch.autograd.graph.increment_version(counted)
