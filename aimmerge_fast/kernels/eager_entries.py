"""Backend ``eager`` for the per-entry ops: plain torch over whole arenas, the plain formula first.

Same bits as the compiled backends: every operation is rounded once (no ``alpha=``, no ``lerp``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aimmerge_fast.kernels.arena import arena_views, entry_layout
from aimmerge_fast.kernels.eager import exact_denormals

Tensor = torch.Tensor


def importance_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    sensitivity: Tensor,
    uncertainty: Tensor,
    betas: Sequence[float],
) -> None:
    """One step: u = |theta * gradient|, then S and U; ``betas`` are b1, 1 - b1, b2, 1 - b2."""
    keep1, take1, keep2, take2 = betas
    known = [k for k, gradient in enumerate(gradients) if gradient is not None]
    theta, gradient = (_spread(parameters, tensors, known) for tensors in (parameters, gradients))
    s, u = sensitivity[: len(theta)], uncertainty[: len(theta)]
    with torch.no_grad(), exact_denormals(_cpu_entries(theta)):
        seen = (theta * gradient).abs()
        s.copy_(keep1 * s + take1 * seen)
        u.copy_(keep2 * u + take2 * (seen - s).abs())


def weighted_(
    live: Sequence[Tensor],
    arenas: tuple[Tensor, Tensor],
    scores: Sequence[tuple[Tensor, Tensor]],
    thresholds: Tensor,
    weights: Sequence[tuple[float, float]],
) -> Tensor:
    """live <- anchor + (w_new (mid - anchor) + w_past (live - mid)); how many are not finite."""
    everyone = range(len(live))
    x = _spread(live, live, everyone)
    a, m = (_spread(live, arena_views(arena, live), everyone) for arena in arenas)
    with torch.no_grad(), exact_denormals(_cpu_entries(x)):
        important = [
            s[: len(x)] * u[: len(x)] > threshold
            for (s, u), threshold in zip(scores, thresholds.unbind(), strict=True)
        ]
        w_new, w_past = (_choose(important, column) for column in zip(*weights, strict=True))
        fused = a + (w_new * (m - a) + w_past * (x - m))
        # a + (m - a) is not m in floating point, and 0 * inf is not 0
        fused = torch.where((w_new == 1.0) & (w_past == 0.0), m, fused)
        torch._foreach_copy_(list(live), _views(fused, live))
    bad = [(~torch.isfinite(tensor)).sum() for tensor in live]
    return torch.stack(bad).sum()


def _spread(
    live: Sequence[Tensor], values: Sequence[Tensor | None], which: Sequence[int]
) -> Tensor:
    """``values[k]`` for k in ``which`` as fp32, laid out like an importance of ``live``; else 0."""
    flat = torch.zeros(entry_layout(live)[1], dtype=torch.float32, device=live[0].device)
    views = _views(flat, live)
    given = [value for k in which if (value := values[k]) is not None]
    if given:
        with torch.no_grad():
            torch._foreach_copy_([views[k] for k in which], given)
    return flat


def _views(flat: Tensor, live: Sequence[Tensor]) -> list[Tensor]:
    starts, _ = entry_layout(live)
    return [flat[start : start + t.numel()] for start, t in zip(starts, live, strict=True)]


def _choose(important: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weight of each entry; ``weights`` are for both, only new, only past, neither."""
    new, past = important
    both, only_new, only_past, neither = (
        torch.full((), weight, dtype=torch.float32, device=new.device) for weight in weights
    )
    return torch.where(
        new, torch.where(past, both, only_new), torch.where(past, only_past, neither)
    )


def _cpu_entries(tensor: Tensor) -> int:
    return tensor.numel() if tensor.device.type == "cpu" else 0
