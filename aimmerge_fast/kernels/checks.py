"""What a call of an op must look like, whatever backend runs it.

Shapes, dtypes, devices and sizes only, never contents or addresses: a compiler's tensors without
memory pass through here too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aimmerge_fast.kernels.arena import LOSS_DTYPES, arena_layout, check_live
from aimmerge_fast.kernels.states import STATE_BYTES


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


def check_observe(loss: torch.Tensor, state: torch.Tensor) -> None:
    check_loss(loss, state.device)
    _check_state(state)


def check_advance(partials: torch.Tensor, state: torch.Tensor) -> None:
    """``ValueError`` unless ``partials`` are rows of (L1, non-finite entries) by the state."""
    if partials.dim() != 2 or partials.shape[1] != 2 or partials.dtype != torch.float64:
        raise ValueError(
            f"partials must be (k, 2) float64, got {tuple(partials.shape)} {partials.dtype}"
        )
    if partials.device != state.device:
        raise ValueError(f"partials are on {partials.device}, the state on {state.device}")
    _check_state(state)


def check_half(
    live: Sequence[torch.Tensor], anchor: torch.Tensor, mid: torch.Tensor, state: torch.Tensor
) -> None:
    """``ValueError`` naming the argument that lies on another device or has another size."""
    device = check_live(live)
    needed = arena_layout(live).nbytes
    for name, buffer in (("anchor", anchor), ("mid", mid)):
        if buffer.dtype != torch.uint8 or not buffer.is_contiguous():
            raise ValueError(
                f"{name} must be a contiguous uint8 tensor (new_arena()), got {buffer.dtype} with "
                f"strides {buffer.stride()}"
            )
        if live and buffer.device != device:
            raise ValueError(f"{name} is on {buffer.device} and live on {device}; use one device")
        if buffer.numel() < needed:
            raise ValueError(f"{name} has {buffer.numel()} bytes, these tensors need {needed}")
    if live and state.device != device:
        raise ValueError(
            f"state is on {state.device} and live on {device}; use new_state(device=...)"
        )
    _check_state(state)


def _check_state(state: torch.Tensor) -> None:
    if state.dtype != torch.uint8 or not state.is_contiguous():
        raise ValueError(
            f"state must be the contiguous uint8 tensor of new_state(), got {state.dtype} with "
            f"strides {state.stride()}"
        )
    if state.numel() != STATE_BYTES:
        raise ValueError(f"state has {state.numel()} bytes, expected {STATE_BYTES}")
