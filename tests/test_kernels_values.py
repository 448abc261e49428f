"""The kernels compute what the formulas say: by hand, and against oracles written another way.

L1 is compared with ``math.fsum`` of the rounded differences and with order P spelled out, the
fusion with numpy in fp32 one operation at a time.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from tests.backends import USABLE
from tests.oracles import fused, in_order_p, one_by_one, rounded, same_values, stored
from tests.tables import KINDS, Play, Spec, Table, examples, integers, specs

pytestmark = [pytest.mark.parametrize("backend", USABLE), pytest.mark.usefixtures("one_thread")]


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


@pytest.mark.parametrize(
    ("ones", "kept"),
    [
        ((1024, 3072), 2),  # rows 1 and 3 are added before they meet row 0
        ((2048, 1024), 0),  # row 2 meets row 0 first, and is lost
        ((2, 3), 2),  # then neighbours: 2 and 3 before they meet 0 and 1
        ((1, 2), 0),
        ((512, 1023), 2),  # the halves meet last
        ((511, 1023), 0),
        ((2050, 1027), 2),
    ],
)
def test_a_tile_is_summed_in_order_p(backend: str, ones: tuple[int, int], kept: int) -> None:
    """Beside 2^53 fp64 has a step of 2: a single one is lost, two that met before are not."""
    change = torch.zeros(4096)
    change[[0, *ones]] = torch.tensor([2.0**53, 1.0, 1.0])
    assert opened(backend, [torch.zeros(4096)], [change]) == 2.0**53 + kept
    assert opened(backend, [torch.zeros(4000)], [change[:4000]]) == 2.0**53 + kept


def test_partial_sums_go_over_256_lanes(backend: str) -> None:
    live = [torch.ones(1) for _ in range(257)]
    live[0].fill_(2.0**53)  # step 2: lane 0 loses the one of tile 256, then that of lane 1
    assert opened(backend, [torch.zeros(1)] * 257, live) == 2.0**53 + sum(2**k for k in range(1, 8))


@pytest.mark.parametrize("sizes", [[4096], [3], [9000, 0, 4097, 1], [5] * 700 + [12_289]])
def test_changes_are_added_in_order_p(backend: str, sizes: list[int]) -> None:
    """Changes of every size side by side, so that adding one by one gives another sum."""
    rng = np.random.default_rng(0)
    changes = [2.0 ** rng.integers(0, 40, n) * rng.integers(1, 1 << 24, n) for n in sizes]
    live = [torch.from_numpy(change.astype(np.float32)) for change in changes]
    got = opened(backend, [torch.zeros(n) for n in sizes], live)
    assert got == in_order_p([change.tolist() for change in changes])
    if sum(sizes) > 1000:
        assert got != one_by_one(x for change in changes for x in change.tolist())


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
