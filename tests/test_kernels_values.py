"""The kernels compute what the formulas say: by hand, and against oracles written another way.

L1 is compared with ``math.fsum`` of the rounded differences, the fusion with numpy in fp32 one
operation at a time, and the storage formats with torch and with rounding in exact arithmetic.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.kernels import layout
from tests.backends import USABLE
from tests.tables import DTYPES, KINDS, Play, Spec, Table, examples, integers, specs

pytestmark = [pytest.mark.parametrize("backend", USABLE), pytest.mark.usefixtures("one_thread")]
HALF = (torch.bfloat16, torch.float16)
#: dtype -> significant bits, exponent of the smallest step, largest finite value
FORMATS = {
    torch.float32: (24, -149, float.fromhex("0x1.fffffep127")),
    torch.bfloat16: (8, -133, float.fromhex("0x1.fep127")),
    torch.float16: (11, -24, 65504.0),
}
Array = np.ndarray[Any, Any]


def rounded(values: Array, dtype: torch.dtype) -> Array:
    """fp64 values to the nearest of ``dtype``, ties to even, by scaling instead of bit tricks."""
    digits, lowest, largest = FORMATS[dtype]
    step = np.exp2(np.maximum(np.frexp(values)[1] - digits, lowest).astype(np.float64))
    nearest = np.where(np.isfinite(values), np.rint(values / step) * step, values)
    return np.where(np.abs(nearest) > largest, np.copysign(np.inf, nearest), nearest)


def fused(anchor: Array, mid: Array, live: Array, alpha1: float, alpha2: float) -> Array:
    """Eq. 7 on fp32 arrays; numpy rounds each operation."""
    assert anchor.dtype == mid.dtype == live.dtype == np.float32
    t = np.float32(alpha1) * (mid - anchor)
    u = np.float32(alpha2) * (live - mid)
    return anchor + (t + u)


def same_values(a: Array, b: Array) -> bool:
    """Equal with the signs of zeros; any NaN is as good as another."""
    nan = np.isnan(a) & np.isnan(b)
    return bool((nan | (a.view(np.int64) == b.view(np.int64))).all())


def opened(backend: str, anchor: list[torch.Tensor], live: list[torch.Tensor]) -> float:
    """L1 that ``open_`` finds."""
    arenas = [kernels.new_arena(live) for _ in range(2)]
    kernels.copy_into(arenas[0], anchor)
    state = kernels.new_state(AIMConfig())
    kernels.open_(live, *arenas, state, backend=backend)
    assert kernels.read_state(state)["state"]["reject"] == 0
    return float(kernels.read_state(state)["state"]["l1"])


# ---- by hand ------------------------------------------------------------------------------------


def test_a_merge_by_hand(backend: str) -> None:
    live = [torch.tensor([0.5, 2.0, 1.0]), torch.tensor([8.0], dtype=torch.bfloat16)]
    anchor, mid = kernels.new_arena(live), kernels.new_arena(live)
    state = kernels.new_state(AIMConfig(alpha_new=0.75))
    fields = kernels.read_state(state)["state"]
    kernels.copy_into(anchor, live)
    live[0].copy_(torch.tensor([1.0, 2.0, -3.0]))  # changes 0.5, 0, 4
    live[1].fill_(10.0)  # 2
    for _ in range(4):
        kernels.observe_(torch.tensor(1.0), state, backend=backend)
    kernels.open_(live, anchor, mid, state, backend=backend)
    assert (fields["l1"], fields["lambda"], fields["alpha1"], fields["alpha2"]) == (
        6.5,
        6.5 / 4,
        0.75,
        0.25,
    )
    live[0].copy_(torch.tensor([3.0, 2.0, -3.5]))
    live[1].fill_(6.0)
    kernels.close_(live, anchor, mid, state, backend=backend)
    # 0.5 + (0.75 * 0.5 + 0.25 * 2); 2; 1 + (0.75 * -4 + 0.25 * -0.5); 8 + (0.75 * 2 + 0.25 * -4)
    assert live[0].tolist() == [1.375, 2.0, -2.125]
    assert live[1].tolist() == [8.5]
    assert [view.tolist() for view in kernels.arena_views(anchor, live)] == [
        [1.375, 2.0, -2.125],
        [8.5],
    ]


def test_a_tile_is_summed_in_order_p(backend: str) -> None:
    change = torch.ones(4096)
    change[0] = 2.0**54  # fp64 has a step of 4 there: single ones beside it are lost
    anchor = torch.zeros(4096)
    # row sums: s[0] = (2^54 + 1) + 2 -> 2^54, and 4 in the 1,023 others, whose sums are exact
    assert opened(backend, [anchor], [change]) == 2.0**54 + 4 * 1023
    assert opened(backend, [anchor[:4000]], [change[:4000]]) == 2.0**54 + 4 * 1023 - 96


def test_partial_sums_go_over_256_lanes(backend: str) -> None:
    live = [torch.ones(1) for _ in range(257)]
    live[0].fill_(2.0**53)  # step 2: lane 0 loses the one of tile 256, then that of lane 1
    assert opened(backend, [torch.zeros(1)] * 257, live) == 2.0**53 + sum(2**k for k in range(1, 8))


def test_differences_are_rounded_to_fp32_before_they_are_added(backend: str) -> None:
    assert opened(backend, [torch.tensor([2.0**-30])], [torch.ones(1)]) == 1.0
    largest = torch.tensor([torch.finfo(torch.float32).max])
    assert opened(backend, [-largest], [largest]) == math.inf


def test_no_tensors_and_empty_tensors_change_nothing(backend: str) -> None:
    assert opened(backend, [], []) == 0.0
    assert opened(backend, [torch.zeros(0)] * 3, [torch.zeros(0) for _ in range(3)]) == 0.0


# ---- against oracles ----------------------------------------------------------------------------


@examples(500)
@given(table=specs(), kind=st.sampled_from(KINDS), seed=st.integers(0, 1 << 16))
def test_l1_is_the_sum_of_the_rounded_differences(
    backend: str, table: list[Spec], kind: str, seed: int
) -> None:
    play = Play(table, kind, seed)
    built = Table.build(table, play.config)
    play.fill(built, 0)
    kernels.copy_into(built.anchor, built.live)
    play.fill(built, 1)
    terms: list[float] = []
    with np.errstate(over="ignore"):
        for live, old in zip(
            built.live, kernels.arena_views(built.anchor, built.live), strict=True
        ):
            change = np.abs(live.float().numpy() - old.float().numpy())
            terms += change.astype(np.float64).tolist()
    built.engine(backend).open_()
    exact, got = math.fsum(terms), float(built.fields["l1"])
    assert got == exact or abs(got - exact) <= 1e-15 * exact


@examples(500)
@given(
    table=specs(longest=3),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1 << 16),
    alpha=st.one_of(st.sampled_from([0.0, 0.5, 1 / 3, 1.0]), st.floats(0.0, 1.0)),
)
def test_fusion_is_eq_7_in_fp32(
    backend: str, table: list[Spec], kind: str, seed: int, alpha: float
) -> None:
    play = Play(table, kind, seed, AIMConfig(alpha_new=alpha))
    built = Table.build(table, play.config)
    play.on(backend, built)
    expected = []
    with np.errstate(all="ignore"):
        for spec, bits in zip(table, play.bits, strict=True):
            a, m, x = (stored(b, spec.dtype).float().numpy() for b in bits)
            value = m if alpha == 1.0 else fused(a, m, x, alpha, 1.0 - alpha)
            expected.append((m, rounded(value.astype(np.float64), spec.dtype)))
    rejected = not all(np.isfinite(value).all() for _, value in expected)
    assert bool(built.fields["reject"]) == rejected
    anchors = kernels.arena_views(built.anchor, built.live)
    for live, anchor, (mid, value) in zip(built.live, anchors, expected, strict=True):
        target = mid.astype(np.float64) if rejected else value
        assert same_values(live.double().numpy(), target)
        assert torch.equal(integers(live), integers(anchor))


def stored(bits: Array, dtype: torch.dtype) -> torch.Tensor:
    signed = np.int32 if dtype == torch.float32 else np.int16
    unsigned = np.uint32 if dtype == torch.float32 else np.uint16
    return torch.from_numpy(bits.astype(unsigned).view(signed)).view(dtype)


# ---- storage formats ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALF)
def test_every_16_bit_pattern_is_read_as_torch_reads_it(backend: str, dtype: torch.dtype) -> None:
    patterns = stored(np.arange(1 << 16), dtype)
    if backend == "eager":  # torch itself converts
        patterns = patterns[::61]
    state = kernels.new_state(AIMConfig(schedule="single"))
    got = np.empty(len(patterns))
    for index, loss in enumerate(patterns):
        kernels.observe_(loss, state, backend=backend)
        got[index] = layout.ring(state)[index % layout.RING_SIZE]["loss"]
    assert same_values(got, patterns.double().numpy())


@pytest.mark.parametrize("dtype", HALF)
def test_results_are_rounded_to_nearest_even(backend: str, dtype: torch.dtype) -> None:
    """Around every value of the format: the tie to its neighbour, just beside it, and others."""
    mid = stored(np.arange(1 << 16), dtype)
    magnitude = np.arange(1 << 16) & 0x7FFF
    towards_zero = stored(np.arange(1 << 16) - (magnitude > 0), dtype)
    table = Table.build([Spec(dtype, 1 << 16)], AIMConfig(), defer=True)
    (live,), engine = table.live, table.engine(backend)
    beside = 2.0 ** (FORMATS[dtype][0] - 24)  # one step of fp32
    ties = [side * (0.5 + k * beside) for side in (-1, 1) for k in (-1, 0, 1)]
    for alpha2 in (*ties, 0.25, -0.75, beside, -beside, 3.0, -1e5):
        table.anchor.zero_()
        kernels.copy_into(table.mid, [mid])
        live.copy_(towards_zero)
        table.fields["alpha1"], table.fields["alpha2"] = 1.0, alpha2
        engine.close_()
        with np.errstate(all="ignore"):
            m, x = mid.float().numpy(), towards_zero.float().numpy()
            value = fused(np.zeros_like(m), m, x, 1.0, alpha2)
            expected = rounded(value.astype(np.float64), dtype)
        assert same_values(live.double().numpy(), expected)
        assert same_values(expected, torch.from_numpy(value).to(dtype).double().numpy())
        assert table.fields["partial_bad"] == (~np.isfinite(expected)).sum()


@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_1_0_stores_mid_bit_for_bit(backend: str, dtype: torch.dtype) -> None:
    play = Play([Spec(dtype, 5000)], "bits", 1, AIMConfig(alpha_new=1.0))
    anchor, mid, _ = play.bits[0]
    table = Table.build(play.specs, play.config)
    play.fill(table, 0)
    kernels.copy_into(table.anchor, table.live)
    play.fill(table, 1)
    table.engine(backend).open_()
    table.live[0].fill_(math.nan)  # what the memory steps did is not looked at
    table.engine(backend).close_()
    assert table.fields["reject"] == 0
    assert torch.equal(integers(table.live[0]), integers(stored(mid, dtype)))
    with np.errstate(all="ignore"):  # the formula alone would give other bits
        a, m = (stored(bits, dtype).float().numpy() for bits in (anchor, mid))
        assert (rounded((a + (m - a)).astype(np.float64), dtype) != m).any()
