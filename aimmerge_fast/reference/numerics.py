"""The arithmetic of a merge over whole tensors, in plain torch: fp32 elements, fp64 sums.

Which operation is rounded when is part of the algorithm here: int(S / 1.5) turns one ulp of the
learning signal into another trajectory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TILE = 4096
ROW = TILE // 4
LANES = 256


def dense(tensor: Tensor) -> Tensor:
    """The entries of a dense tensor of any dimension order as ``(numel,)``, in memory order."""
    return tensor.detach().as_strided((tensor.numel(),), (1,), tensor.storage_offset())


def non_finite(tensors: Sequence[Tensor]) -> int:
    """How many entries are NaN or infinite."""
    return sum(int((~torch.isfinite(tensor)).sum()) for tensor in tensors)


def fuse(anchor: Tensor, theta_j: Tensor, theta_m: Tensor, alpha1: float, alpha2: float) -> Tensor:
    """Eq. 7: anchor + (alpha1 * tau_new + alpha2 * tau_past), in the dtype of ``theta_j``.

    Args:
        anchor, theta_j, theta_m: (N,) fp32, bf16 or fp16, one dtype and device.
        alpha1, alpha2: rounded to fp32 once.

    Numerics: fp32, each operation rounded by itself (no fused multiply-add, hence no ``alpha=`` and
        no ``addcmul``), the result rounded to the storage dtype. Weights (1, 0) give theta_j:
        ``anchor + (theta_j - anchor)`` would differ from it by an ulp in a third of the entries.
    """
    weight_new, weight_past = torch.tensor([alpha1, alpha2], dtype=torch.float64).float().tolist()
    if weight_new == 1.0 and weight_past == 0.0:
        return theta_j.clone()
    a, j, m = anchor.float(), theta_j.float(), theta_m.float()
    tau_new = j - a
    tau_past = m - j
    theta_hat: Tensor = a + (weight_new * tau_new + weight_past * tau_past)
    return theta_hat.to(theta_j.dtype)


def l1_order_p(live: Sequence[Tensor], anchor: Sequence[Tensor]) -> float:
    """sum |live - anchor| over all entries, added in order P.

    Args:
        live: dense tensors of one device, fp32, bf16 or fp16.
        anchor: (numel,) each, of the same dtypes, in the memory order of ``live``.

    Numerics: the difference is fp32; every addition after it is fp64, in one fixed order. A tile is
        4,096 consecutive entries of one tensor, padded with zeros at the tensor's end:

            s[l]  = (d[l] + d[l + 2048]) + (d[l + 1024] + d[l + 3072])      l = 0 .. 1023
            ten times:   s[l] <- s[2l] + s[2l + 1]                          partial[tile] = s[0]
            q[j]  = 0 + partial[j] + partial[j + 256] + ...                 j = 0 .. 255
            eight times: q[l] <- q[2l] + q[2l + 1]                          L1 = q[0]
    """
    partials = [_tile_sums(dense(x), a) for x, a in zip(live, anchor, strict=True)]
    lanes = torch.zeros(LANES, dtype=torch.float64)
    for row in _padded(torch.cat(partials), LANES):
        lanes = lanes + row
    return float(_pairwise(lanes))


def _tile_sums(live: Tensor, anchor: Tensor) -> Tensor:
    d = _padded((live.float() - anchor.float()).abs().double().cpu(), TILE)
    d = d.view(d.shape[0], 4, ROW)
    return _pairwise((d[:, 0] + d[:, 2]) + (d[:, 1] + d[:, 3]))


def _pairwise(values: Tensor) -> Tensor:
    """Add neighbours until one value is left in the last dimension, a power of two long."""
    while values.shape[-1] > 1:
        values = values[..., 0::2] + values[..., 1::2]
    return values[..., 0]


def _padded(values: Tensor, width: int) -> Tensor:
    """``values`` (N,) followed by zeros, as rows of ``width``."""
    rows = -(-values.numel() // width)
    padded = values.new_zeros(rows * width)
    padded[: values.numel()] = values
    return padded.view(rows, width)
