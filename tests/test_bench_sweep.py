"""bench/sweep: which adapters are swept, the check that needs no copies, the fit, the verdicts."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from overhead import gate, timing
from overhead.ceiling import Ceiling
from overhead.ours import Ours
from sweep import cases, fit, tables
from sweep.cases import BY_ENTRIES, BY_TENSORS, Case, Drawn
from sweep.measure import Measured, needed_bytes

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
TILE = 4_096
TOP = Ceiling(2_900.0, None, 3_000.0, "note", 3_000.0)

# ---- cases --------------------------------------------------------------------------------------


def test_sizes_and_numbers_are_half_decades() -> None:
    swept = cases.cases(10**9, quick=False)
    assert [case.entries for case in swept if case.grows == BY_ENTRIES] == [
        *(100_000, 316_228, 1_000_000, 3_162_278, 10_000_000, 31_622_777, 100_000_000),
        *(316_227_766, 1_000_000_000),
    ]
    numbers = [case.tensors for case in swept if case.grows == BY_TENSORS]
    assert numbers == [10, 32, 100, 316, 1_000, 3_162, 10_000]
    assert {case.tensors for case in swept if case.grows == BY_ENTRIES} == {128}
    assert {case.entries for case in swept if case.grows == BY_TENSORS} == {4_194_304}


@pytest.mark.parametrize("case", cases.cases(10**9, quick=False), ids=Case.text)
def test_a_case_has_the_entries_and_tensors_that_it_claims(case: Case) -> None:
    sizes = case.sizes()
    assert len(sizes) == case.tensors
    assert sum(sizes) == case.entries
    assert min(sizes) > 0.6 * case.entries / case.tensors
    assert max(sizes) < 1.4 * case.entries / case.tensors
    assert all(size % TILE for size in sizes)


def test_the_default_depends_on_device_and_effort() -> None:
    assert cases.most_entries(None, GPU, quick=False) == 10**9
    assert cases.most_entries(None, CPU, quick=False) == 10**8
    assert cases.most_entries(None, GPU, quick=True) == 10**7
    assert cases.most_entries("3e8", CPU, quick=True) == 300_000_000
    quick = cases.cases(10**7, quick=True)
    assert [case.entries for case in quick[:3]] == [10**5, 10**6, 10**7]
    assert [case.tensors for case in quick[3:]] == [10, 316, 10_000]


def test_memory_is_that_of_the_rotating_sets() -> None:
    assert needed_bytes(Case(BY_ENTRIES, 1_000, 8), 3) == 3 * 12_000 * 1.25
    assert needed_bytes(Case(BY_TENSORS, 1_000, 8), 3) == 2 * 3 * 12_000 * 1.25  # foreach too


# ---- the check ----------------------------------------------------------------------------------


def eager(live: list[torch.Tensor]) -> Ours:
    return Ours("eager", live)


def test_values_are_the_same_whenever_they_are_drawn() -> None:
    values = Drawn([7_000, 3_001], CPU)
    start, first, second = (torch.cat(list(values.pieces(stage))) for stage in range(3))
    assert torch.equal(torch.cat(values.tensors()), start)
    assert torch.equal(torch.cat(list(values.pieces(2))), second)
    for vector, scale in ((start, 2e-2), (first, 1e-3), (second, 5e-4)):
        assert float(vector.std()) == pytest.approx(scale, rel=0.05)
    assert abs(float(torch.corrcoef(torch.stack((start, first)))[0, 1])) < 0.05


class Few(Drawn):
    """Fails when more than a few pieces are kept."""

    most = 0

    def tensors(self) -> list[torch.Tensor]:
        return list(super().pieces(0))

    def pieces(self, stage: int) -> Iterator[torch.Tensor]:
        seen: list[weakref.ref[torch.Tensor]] = []
        for piece in super().pieces(stage):
            seen.append(weakref.ref(piece))
            yield piece
            Few.most = max(Few.most, sum(ref() is not None for ref in seen))


def test_a_check_keeps_no_copy_of_the_values() -> None:
    gate.check("eager", eager, Few([500] * 40, CPU), ours=True)
    assert 1 <= Few.most <= 2


def test_a_check_sees_one_entry_of_the_last_tensor() -> None:
    class Wrong(Ours):
        def __init__(self, live: list[torch.Tensor]) -> None:
            super().__init__("eager", live)
            right = self.close_

            def close() -> None:
                right()
                self.live[-1][6] += 1e-6

            self.close_ = close

    message = r"^wrong: live: 1 of 310 entries differ from Eq. 7; the first is entry 306: "
    with pytest.raises(gate.GateError, match=message):
        gate.check("wrong", Wrong, Drawn([100, 200, 10], CPU), ours=True)


# ---- the fit and the verdicts -------------------------------------------------------------------


def test_a_slope_by_hand() -> None:
    assert fit.slope([(1, 2), (10, 20), (100, 200)]) == pytest.approx(1.0)
    # logs (0, 0), (1, 1), (2, 1): (2/3 + 1/3) / 2
    assert fit.slope([(1, 1), (10, 10), (100, 10)]) == pytest.approx(0.5)
    assert fit.slope([(5, 3)]) is None
    assert fit.slope([]) is None


def test_a_slope_is_numpy_s() -> None:
    generator = np.random.default_rng(0)
    for count in (2, 3, 9):
        xs = np.exp(generator.uniform(0, 20, count))
        ys = np.exp(generator.uniform(0, 20, count))
        expected = np.polyfit(np.log(xs), np.log(ys), 1)[0]
        found = fit.slope(list(zip(xs.tolist(), ys.tolist(), strict=True)))
        assert found == pytest.approx(float(expected), rel=1e-9)


def test_bandwidth_bound_is_ten_times_the_launches() -> None:
    assert fit.bandwidth_bound(80.0)
    assert not fit.bandwidth_bound(79.9)


def made(grows: str, grown: int, us: float, **changes: Any) -> dict[str, Any]:
    entries, tensors = (grown, 128) if grows == BY_ENTRIES else (4_194_304, grown)
    case = {"backend": "native", "grows": grows, "entries": entries, "tensors": tensors}
    return case | {"skipped": None, "us": us, "bandwidth_bound": True, "foreach_us": us} | changes


def grown(power: float) -> list[dict[str, Any]]:
    return [made(BY_ENTRIES, n, 1e-4 * n**power) for n in (10**6, 10**7, 10**8)]


@pytest.mark.parametrize(
    ("power", "linear"), [(0.949, False), (0.951, True), (1.049, True), (1.051, False)]
)
def test_linear_is_a_slope_of_one(power: float, linear: bool) -> None:
    found = fit.growth("native", grown(power))
    assert found["slope"] == pytest.approx(power, rel=1e-5)
    assert found["linear"] is linear
    assert ("MISSED" in tables.entries_text(found)) is not linear


def test_only_bandwidth_bound_sizes_that_were_run_are_judged() -> None:
    launches = [made(BY_ENTRIES, n, 8.0, bandwidth_bound=False) for n in (10**4, 10**5)]
    skipped = {**made(BY_ENTRIES, 10**9, 0.0), "skipped": "needs more"}
    other = made(BY_ENTRIES, 10**6, 1.0, backend="triton")
    found = fit.growth("native", [*launches, *grown(1.0), skipped, other])
    assert (found["slope"], found["linear"]) == (pytest.approx(1.0), True)
    assert (found["sizes"], found["bandwidth_bound_sizes"]) == (5, 3)
    assert found["bandwidth_bound_from"] == 10**6
    # log10 of (N, us) is (4, .9), (5, .9), (6, 2), (7, 3), (8, 4): .90309 is log10 of 8
    assert found["slope_all"] == pytest.approx((2 * 3.09691 + 1 * 2.09691) / 10, rel=1e-5)


@pytest.mark.parametrize(("largest", "flat"), [(1.149, True), (1.151, False)])
def test_flat_is_a_ratio(largest: float, flat: bool) -> None:
    times = [(10, 1.0), (100, largest), (1_000, 1.1)]
    found = fit.growth("native", [made(BY_TENSORS, n, 50 * us) for n, us in times])
    assert (found["tensors_ratio"], found["flat"]) == (pytest.approx(largest), flat)
    assert ("MISSED" in tables.tensors_text(found)) is not flat


def test_too_few_sizes_are_no_verdict() -> None:
    two = [*grown(1.0)[:2], made(BY_TENSORS, 10, 1.0), made(BY_TENSORS, 99, 1.0)]
    found = fit.growth("native", two)
    assert (found["slope"], found["linear"]) == (pytest.approx(1.0), None)
    assert (found["tensors_ratio"], found["flat"]) == (1.0, None)
    assert tables.tensors_text(found).count("too few sizes") == 1
    nothing = fit.growth("native", [])
    assert (nothing["slope"], nothing["linear"], nothing["flat"]) == (None, None, None)
    assert "fewer than two" in tables.entries_text(nothing)
    assert tables.tensors_text(nothing) == "tensors: not run"


@pytest.mark.parametrize(("us", "within"), [(20.26, True), (20.27, False)])
def test_a_gpu_s_case_holds_its_target(us: float, within: bool) -> None:
    spread = timing.Spread(1.0, us, 99.0)
    one = Measured(
        case=Case(BY_ENTRIES, 10**6, 128),
        backend="native",
        bytes_per_merge=32 * 10**6,
        cold={"native": spread},
        wall={"native": timing.Spread(1.0, 41.0, 99.0)},
        launches=2,
        host_us=8.0,
        merge_host_us=90.0,
    )
    found = tables.record(one, TOP, GPU)
    assert (found["us"], found["floor_us"]) == (us, pytest.approx(32e6 / 3e6, rel=1e-5))
    assert found["target_us"] == pytest.approx(1.15 * 32 / 3 + 8, rel=1e-5)  # 20.267
    assert (found["within_target"], found["bandwidth_bound"]) == (within, False)
    assert (found["wall_us"], found["foreach_wall_us"]) == (41.0, None)
    text = tables.row(one, TOP, GPU)
    assert ("target 20.3: ok; wall 41.0" in text) is within
    on_cpu = tables.record(one, TOP, CPU)
    assert on_cpu["us"] == 1.0  # p20
    assert "target_us" not in on_cpu
