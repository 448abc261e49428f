"""Close on the GPU, value by value: every 16-bit pattern against many edges, ten million fp32 ones.

A deferred close stores what Eq. 7 gives, finite or not, and undoes nothing, so that every value can
be compared. Which NaN it is depends on the processor; that it is one does not.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from tests import gpu
from tests.oracles import fused, stored
from tests.tables import bad_bits, bits_of, special_bits

pytestmark = [gpu.REQUIRED, pytest.mark.parametrize("backend", gpu.BACKENDS)]
Array = np.ndarray[tuple[int], np.dtype[np.uint32]]
PATTERNS = 1 << 16
RANDOM = 10_000_000


@dataclasses.dataclass
class Fused:
    """What a deferred merge left behind, on the CPU."""

    live: torch.Tensor
    anchor: torch.Tensor
    alphas: tuple[float, float]
    l1: float
    bad: tuple[int, int]  # counted by open, by close


def merge(
    backend: str, device: torch.device, alpha: float, stages: tuple[torch.Tensor, ...]
) -> Fused:
    """A deferred open, its transition, and a deferred close of one tensor of these values."""
    anchor_value, mid_value, live_value = (stage.to(device) for stage in stages)
    live = anchor_value.clone()
    anchor, mid = kernels.new_arena([live]), kernels.new_arena([live])
    kernels.copy_into(anchor, [live])
    state = kernels.new_state(AIMConfig(alpha_new=alpha), defer=True, device=device)
    engine = kernels.engine(backend, [live], anchor, mid, state)
    engine.observe_(torch.tensor(1.0, device=device))
    live.copy_(mid_value)
    engine.open_()
    opened = kernels.read_state(state)["state"].copy()
    engine.advance_(torch.tensor([[1.0, 0.0]], dtype=torch.float64, device=device))
    live.copy_(live_value)
    engine.close_()
    closed = kernels.read_state(state)["state"].copy()
    return Fused(
        gpu.one_nan(live),
        gpu.one_nan(kernels.arena_views(anchor, [live])[0]),
        (float(closed["alpha1"]), float(closed["alpha2"])),
        float(opened["partial_l1"]),
        (int(opened["partial_bad"]), int(closed["partial_bad"])),
    )


def assert_equal(backend: str, alpha: float, stages: tuple[torch.Tensor, ...]) -> Fused:
    on_cpu = merge(gpu.REFERENCE, torch.device("cpu"), alpha, stages)
    on_gpu = merge(backend, gpu.device(), alpha, stages)
    for name in ("live", "anchor"):
        expected, found = getattr(on_cpu, name), getattr(on_gpu, name)
        wrong = (expected != found).nonzero()
        assert not len(wrong), f"{name}: {len(wrong)} entries differ, first {int(wrong[0])}"
    # field by field, with one NaN for another
    assert on_gpu.alphas == on_cpu.alphas == (alpha, 1.0 - alpha)
    assert on_gpu.bad == on_cpu.bad
    assert np.array_equal([on_gpu.l1], [on_cpu.l1], equal_nan=True)
    return on_gpu


def patterns(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """All patterns in turn for each of 50 edges as theta_j; the anchor is the edge 17 places on."""
    edges = [*special_bits(dtype), *bad_bits(dtype)]
    edges += [(0x1234 + 2903 * k) % PATTERNS for k in range(50 - len(edges))]
    assert len(set(edges)) == 50
    mid = np.repeat(np.asarray(edges), PATTERNS)
    anchor = np.repeat(np.roll(np.asarray(edges), 17), PATTERNS)
    live = np.tile(np.arange(PATTERNS), 50)
    return tuple(stored(bits, dtype) for bits in (anchor, mid, live))


@pytest.mark.parametrize("alpha", [0.6, 1 / 3, 1.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_pattern_against_fifty_edges(backend: str, dtype: torch.dtype, alpha: float) -> None:
    values = patterns(dtype)
    found = assert_equal(backend, alpha, values)
    bad = [int((~torch.isfinite(value)).sum()) for value in values]
    assert bad[1] == found.bad[0] >= 10 * PATTERNS
    assert found.bad[1] == bad[1] if alpha == 1.0 else found.bad[1] > max(bad)


@pytest.mark.parametrize("alpha", [0.6, 1 / 3])
def test_ten_million_random_words(backend: str, alpha: float) -> None:
    """fp32 of any magnitude, NaNs and infinities among them."""
    rng = np.random.default_rng(7)
    words = [rng.integers(0, 1 << 32, RANDOM, np.uint32) for _ in range(3)]
    found = assert_equal(backend, alpha, tuple(stored(w, torch.float32) for w in words))
    assert min(found.bad) > RANDOM // 300  # one in 256 is not finite


def test_ten_million_ordinary_values(backend: str) -> None:
    """As weights are: close to each other, so that roundings decide; and numpy's opinion."""
    rng = np.random.default_rng(8)
    anchor = rng.standard_normal(RANDOM, np.float32) * np.float32(0.02)
    mid = anchor + rng.standard_normal(RANDOM, np.float32) * np.float32(1e-3)
    live = mid + rng.standard_normal(RANDOM, np.float32) * np.float32(5e-4)
    found = assert_equal(backend, 0.6, tuple(map(torch.from_numpy, (anchor, mid, live))))
    assert found.bad == (0, 0)
    expected = torch.from_numpy(fused(anchor, mid, live, *found.alphas))
    assert bits_of(found.live) == bits_of(expected)
    new, past = (np.float32(alpha) * (b - a).astype(np.float64) for alpha, a, b in (
        (found.alphas[0], anchor, mid), (found.alphas[1], mid, live)
    ))  # fmt: skip
    contracted = anchor + (new + past.astype(np.float32)).astype(np.float32)
    assert np.count_nonzero(contracted != expected.numpy()) > RANDOM // 100  # these would show one
