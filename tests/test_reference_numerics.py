"""The reference's arithmetic against one float at a time and against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from aimmerge_fast.reference.numerics import dense, fuse, l1_order_p

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _order_p(live: list[Tensor], anchor: list[Tensor]) -> float:
    """kernels' order of additions, one Python float at a time."""
    partial = []
    for x, a in zip(live, anchor, strict=True):
        for start in range(0, x.numel(), 4096):
            pair = x[start : start + 4096].float() - a[start : start + 4096].float()
            d = pair.abs().double().tolist()
            d += [0.0] * (4096 - len(d))
            s = [(d[i] + d[i + 2048]) + (d[i + 1024] + d[i + 3072]) for i in range(1024)]
            for _ in range(10):
                s = [s[2 * i] + s[2 * i + 1] for i in range(len(s) // 2)]
            partial.append(s[0])
    q = [0.0] * 256
    for tile, value in enumerate(partial):
        q[tile % 256] += value
    for _ in range(8):
        q = [q[2 * i] + q[2 * i + 1] for i in range(len(q) // 2)]
    return q[0]


@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [
        (torch.float32, (5000, 0, 1, 4096, 4097, 260 * 4096 + 3)),  # beyond 256 tiles
        (torch.bfloat16, (5000, 0, 1, 4096, 4097)),
        (torch.float16, (5000, 0, 1, 4096, 4097)),
    ],
)
def test_l1_order(dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    live = [torch.randn(n, generator=generator).to(dtype) for n in sizes]
    anchor = [(x.float() + torch.randn(x.numel(), generator=generator)).to(dtype) for x in live]
    total = l1_order_p(live, anchor)
    assert total == _order_p(live, anchor)
    exact = math.fsum(
        value
        for x, a in zip(live, anchor, strict=True)
        for value in (x.float() - a.float()).abs().double().tolist()
    )
    assert total == pytest.approx(exact, rel=1e-14)


def test_l1_of_permuted_and_of_empty_tensors() -> None:
    tensor = torch.randn(5, 3).t()
    anchor = dense(tensor).clone() + 1
    assert l1_order_p([tensor], [anchor]) == pytest.approx(15, rel=1e-6)
    assert l1_order_p([torch.empty(0)], [torch.empty(0)]) == 0.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_fuse_rounds_every_operation(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    a, j, m = (torch.randn(10_000, generator=generator).to(dtype) for _ in range(3))
    x, y, z = (t.float().numpy() for t in (a, j, m))
    past = np.float32(0.7) * (z - y)
    expected = torch.from_numpy(x + (np.float32(0.3) * (y - x) + past)).to(dtype)
    assert torch.equal(fuse(a, j, m, 0.3, 0.7), expected)
    assert torch.equal(fuse(a, j, m, 1.0, 0.0), j)
    assert torch.equal(fuse(a, j, m, 1.0, 1e-60), j)  # the weights are those of fp32
