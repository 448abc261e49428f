"""The per-entry CUDA kernels, run on the CPU, store what their formulas say."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aimmerge_fast import kernels
from aimmerge_fast.kernels import registry
from aimmerge_fast.kernels.twins import EntryTwins
from tests import emulated
from tests.entry_cases import Case, Ops, play, problems, public
from tests.tables import DTYPES, Spec, examples, specs
from tests.test_kernels_entries import KINDS, MIXED

pytest.importorskip("aimmerge_fast._native", reason="there is no native module here")


@pytest.fixture(autouse=True)
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The emulation in ascending order; ``native`` stands for it."""
    module = emulated.module()
    module.set_schedule(0, 3)
    module.take_launched()
    stand_in(module, monkeypatch)
    yield module
    module.set_schedule(0, 3)


def stand_in(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from aimmerge_fast.kernels import native_entries

    twins = EntryTwins(functools.partial(native_entries.CudaEntries, module=module))
    monkeypatch.setattr(native_entries, "importance_", twins.importance_)
    monkeypatch.setattr(native_entries, "weighted_", twins.weighted_)


def ops() -> Ops:
    return public("native")


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_tensors(driver: Any, kind: str) -> None:
    for order in range(3):
        driver.set_schedule(order, 1 + order)
        assert problems(Case(MIXED, kind, 1, without=(0, 3, 13)), ops()) == []
    assert {launch[3] for launch in driver.take_launched()} == {256}


@examples(50)
@given(
    table=specs(longest=3),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1 << 16),
    without=st.sets(st.integers(0, 2)),
    order=st.integers(0, 9),
)
def test_any_table(table: list[Spec], kind: str, seed: int, without: set[int], order: int) -> None:
    emulated.module().set_schedule(order, 1 + order % 4)
    assert problems(Case(table, kind, seed, without=sorted(without)), ops()) == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_storage_offset(dtype: torch.dtype) -> None:
    assert problems(Case([Spec(dtype, 4097, offset) for offset in range(16)]), ops()) == []


def test_gradients_of_other_alignment(driver: Any) -> None:
    """A wide tile whose gradients begin at any entry."""
    for dtype in DTYPES:
        theta = [torch.linspace(-2, 2, 8192).to(dtype)]
        buffer = torch.linspace(-1, 3, 8192 + 16).to(dtype)
        for shift in range(9):
            made = [kernels.new_importance(theta) for _ in range(2)]
            gradient = [buffer[shift : shift + 8192]]
            for each, backend in zip(made, ("native", "eager"), strict=True):
                pair = each.state_dict().values()
                kernels.importance_(theta, gradient, *pair, backend=backend)
            assert torch.equal(made[0].sensitivity, made[1].sensitivity)
            assert torch.equal(made[0].uncertainty, made[1].uncertainty)
    assert len(driver.take_launched()) == 27


def test_one_launch_each(driver: Any) -> None:
    """Five calls for four steps and a fusion; tables are made once."""
    play(Case([Spec(DTYPES[0], 5000), Spec(DTYPES[1], 3)]), ops())
    launched = driver.take_launched()
    assert [launch[2:] for launch in launched] == [(3, 256)] * 5


def test_a_failed_launch_names_the_op(driver: Any) -> None:
    theta = [torch.ones(5)]
    made = kernels.new_importance(theta)
    arenas = [kernels.new_arena(theta).zero_() for _ in range(2)]
    driver.fail_next_launch(700)
    with pytest.raises(RuntimeError, match=r"^importance on cuda:0: an illegal memory access"):
        ops()[0](theta, theta, *made.state_dict().values())
    driver.fail_next_launch(700)
    with pytest.raises(RuntimeError, match=r"^weighted on cuda:0: an illegal memory access"):
        ops()[1](theta, *arenas, made, made, torch.zeros(2))


def test_the_emulation_stands_for_native(driver: Any) -> None:
    """Else the tests above would look at the CPU kernels."""
    from aimmerge_fast.kernels import native_entries

    assert registry.load("native", "entries") is native_entries
    play(Case([Spec(DTYPES[0], 1)]), ops())
    assert driver.take_launched()


FAULTS = {
    "places of the first tile": ("importance", "step.places[blockIdx.x]", "step.places[0]"),
    "no gradient is one": (
        "importance",
        "const float seen = gradients ?",
        "const float seen = true ?",
    ),
    "rows of one tile share scores": ("weighted", "[blockIdx.x] + row * kRow", "[blockIdx.x]"),
    "mid is computed": ("weighted", "w_new == 1.0f && w_past == 0.0f", "false"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(emulated.changed_module(tmp_path, *FAULTS[fault]), monkeypatch)
    assert problems(Case(MIXED, "bad", without=range(len(MIXED))), ops())
