"""The quantile of the scores of all entries, against numpy, ``torch.quantile`` and by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aimmerge_fast import kernels
from aimmerge_fast.kernels import importance
from tests.tables import examples

Tensor = torch.Tensor


def made(*scores: Sequence[float], dtype: torch.dtype = torch.float32) -> kernels.Importance:
    """An importance whose S * U are these: S = 2 score, U = 1/2, so that padding would be 0."""
    found = kernels.new_importance([torch.zeros(len(each), dtype=dtype) for each in scores])
    for (first, entries), each in zip(found.places, scores, strict=True):
        found.sensitivity[first : first + entries] = 2 * torch.tensor(each, dtype=torch.float32)
        found.uncertainty[first : first + entries] = 0.5
    return found


@pytest.mark.parametrize(
    ("q", "expected"), [(0.0, 1.0), (1.0, 16.0), (0.5, 4.0), (0.25, 2.0), (0.8, 9.6), (0.9, 12.8)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_by_hand(q: float, expected: float, dtype: torch.dtype) -> None:
    """Over all tensors; what lies between them (zeros) does not count."""
    found = kernels.quantile(made([16.0, 1.0], [], [2.0], [4.0, 8.0], dtype=dtype), q)
    assert (found.shape, found.dtype) == ((), torch.float32)
    assert float(found) == np.float32(expected)


def test_one_entry() -> None:
    assert [float(kernels.quantile(made([3.0]), q)) for q in (0.0, 0.3, 1.0)] == [3.0] * 3


def test_several_importances_count_as_one() -> None:
    parts = [made([16.0, 1.0]), made([2.0], [4.0, 8.0])]
    assert float(kernels.quantile(parts, 0.8)) == np.float32(9.6)


@examples(150)
@given(
    scores=st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=40),
    cut=st.integers(0, 40),
    q=st.floats(0, 1),
)
def test_any_scores(scores: list[float], cut: int, q: float) -> None:
    found = float(kernels.quantile(made(scores[:cut], scores[cut:]), q))
    assert found == np.float32(np.quantile(np.array(scores, np.float64), q)) or math.isclose(
        found, np.quantile(np.array(scores, np.float64), q), rel_tol=2e-7
    )


def test_as_torch_does_where_it_can() -> None:
    scores = torch.rand(10_001, generator=torch.Generator().manual_seed(2))
    for q in (0.0, 0.25, 0.5, 0.75, 1.0):  # the ranks are whole
        found = kernels.quantile(made(scores.tolist()), q)
        assert torch.equal(found, torch.quantile(scores, q))
    found = kernels.quantile(made(scores.tolist()), 0.8123)
    torch.testing.assert_close(found, torch.quantile(scores, 0.8123), rtol=1e-6, atol=0.0)


def test_the_way_of_other_devices_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted instead of partitioned."""
    scores = torch.rand(1001, generator=torch.Generator().manual_seed(3))

    def by_sorting(values: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
        ordered = torch.sort(values).values
        return ordered[low].double(), ordered[high].double()

    ours = [kernels.quantile(made(scores.tolist()), q) for q in (0.0, 0.333, 0.8, 1.0)]
    monkeypatch.setattr(importance, "_smallest", by_sorting)
    assert ours == [kernels.quantile(made(scores.tolist()), q) for q in (0.0, 0.333, 0.8, 1.0)]


def test_special_scores() -> None:
    nan, inf = math.nan, math.inf
    assert math.isnan(kernels.quantile(made([1.0, nan, 2.0]), 0.0))  # as torch.quantile
    assert kernels.quantile(made([1.0, inf, inf]), 0.75) == inf  # halfway between two infinities
    assert kernels.quantile(made([1.0, 3.0, inf]), 0.25) == 2.0
    assert kernels.quantile(made([0.0] * 9 + [1.0]), 0.5) == 0.0


def test_denormals_are_ordered_where_torch_flushes_them() -> None:
    scores = made([k * 2.0**-149 for k in (5, 1, 4, 2, 3)])
    torch.set_flush_denormal(True)
    try:
        found = kernels.quantile(scores, 0.75)
    finally:
        torch.set_flush_denormal(False)
    assert found.item() == 4 * 2.0**-149


def test_more_entries_than_torch_takes() -> None:
    """The scores are 0, 1, 2, ... in descending order; beyond 2^24 fp32 has gaps."""
    entries = (1 << 24) + 3
    numbers = torch.arange(entries, dtype=torch.float32).flip(0)
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(numbers, 0.8)
    many = kernels.Importance(numbers, torch.ones(entries), ((0, entries),))
    found = kernels.quantile(many, 0.8)
    assert float(found) == pytest.approx(0.8 * (entries - 1), rel=2**-24)
    assert (numbers[0], numbers[-1]) == (entries - 1, 0)  # the scores were ordered, not these


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_q_is_checked(q: float) -> None:
    with pytest.raises(ValueError, match=f"q must be between 0 and 1, got {q}"):
        kernels.quantile(made([1.0]), q)


@pytest.mark.parametrize("none", [[], [made()], [made([], [])]])
def test_no_entry_has_no_quantile(none: list[kernels.Importance]) -> None:
    with pytest.raises(ValueError, match="a quantile of no entries"):
        kernels.quantile(none, 0.5)
