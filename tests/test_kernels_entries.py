"""The per-entry ops compute what their formulas say, with the same bits on every backend."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aimmerge_fast import kernels
from aimmerge_fast.kernels import eager_entries, registry
from tests.backends import USABLE
from tests.entry_cases import Case, problems, public
from tests.tables import DTYPES, Spec, examples, specs

F32, BF16, F16 = DTYPES
#: Tiles whole and not, aligned and not, empty tensors, several tiles of each dtype.
MIXED = [
    *(Spec(d, n, n % 8) for d in DTYPES for n in (1, 33, 4096, 4097)),
    *(Spec(F32, 0), Spec(F32, 8192), Spec(BF16, 9000, 1), Spec(F16, 0)),
]
BACKENDS = pytest.mark.parametrize("backend", USABLE)
KINDS = ("normal", "specials", "bad")


@BACKENDS
@pytest.mark.parametrize("kind", KINDS)
def test_mixed_tensors(backend: str, kind: str) -> None:
    assert problems(Case(MIXED, kind, 1, without=(0, 3, 13)), public(backend)) == []


@BACKENDS
@examples(100)
@given(
    table=specs(longest=4),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1 << 16),
    weights=st.lists(st.tuples(*[st.sampled_from([0.0, 0.3, 1.0])] * 2), min_size=4, max_size=4),
    without=st.sets(st.integers(0, 3)),
)
def test_any_table_by_pattern(
    backend: str,
    table: list[Spec],
    kind: str,
    seed: int,
    weights: list[tuple[float, float]],
    without: set[int],
) -> None:
    case = Case(table, kind, seed, weights, sorted(without))
    assert problems(case, public(backend)) == []


@BACKENDS
@pytest.mark.parametrize("specs", [[], [Spec(F32, 0)], [Spec(BF16, 0), Spec(F16, 0)]])
def test_no_entry_is_no_error(backend: str, specs: list[Spec]) -> None:
    assert problems(Case(specs), public(backend)) == []


def test_more_threads_and_every_instruction_set_give_the_same_bits() -> None:
    native = pytest.importorskip("aimmerge_fast._native", exc_type=ImportError)
    # 18 tiles are shared among threads, while no operation of torch's is large enough to be
    case, before = Case([Spec(d, 8000, 1) for d in DTYPES * 3], "specials", 3), native.isa()
    torch.set_num_threads(2)
    for isa in native.isa_available():
        native.set_isa(isa)
        found = problems(case, public("native"))
        native.set_isa(before)
        assert found == [], isa


# ---- by hand ------------------------------------------------------------------------------------


@BACKENDS
def test_two_steps_by_hand(backend: str) -> None:
    theta = [torch.tensor([2.0, -1.0]), torch.tensor([[4.0]], dtype=torch.bfloat16)]
    made = kernels.new_importance(theta)
    s, u = made.sensitivity, made.uncertainty
    assert made.places == ((0, 2), (64, 1))
    first = [torch.tensor([-3.0, 0.0]), torch.tensor([[0.5]], dtype=torch.bfloat16)]
    kernels.importance_(theta, first, s, u, 0.5, 0.25, backend=backend)  # u = 6, 0, 2
    assert [s[0], s[1], s[64]] == [3.0, 0.0, 1.0]
    assert [u[0], u[1], u[64]] == [2.25, 0.0, 0.75]  # 0.75 * |6 - 3|, 0, 0.75 * |2 - 1|
    second = [torch.tensor([1.0, 1.0]), None]
    kernels.importance_(theta, second, s, u, 0.5, 0.25, backend=backend)  # u = 2, 1, 0
    assert [s[0], s[1], s[64]] == [2.5, 0.5, 0.5]
    # 0.25 * 2.25 + 0.75 * |2 - 2.5|, 0.75 * |1 - 0.5|, 0.25 * 0.75 + 0.75 * 0.5
    assert [u[0], u[1], u[64]] == [0.9375, 0.375, 0.5625]
    assert [each.tolist() for each in made.scores()] == [[2.34375, 0.1875], [0.28125]]
    assert s.count_nonzero() == u.count_nonzero() == 3


def importance_of(scores: Sequence[float], live: Sequence[torch.Tensor]) -> kernels.Importance:
    made = kernels.new_importance(live)
    made.sensitivity[: len(scores)] = torch.tensor(scores)
    made.uncertainty[: len(scores)] = 1.0
    return made


@BACKENDS
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fusion_by_hand(backend: str, dtype: torch.dtype) -> None:
    """Entries important to both, to new, to past, to neither; equal to the threshold; NaN."""
    nan = math.nan
    live = [torch.zeros(6, dtype=dtype)]
    new = importance_of([2.0, 2.0, 0.5, 0.5, 1.0, nan], live)
    past = importance_of([5.0, 1.0, 5.0, 1.0, 4.0, 5.0], live)
    anchor, mid = kernels.new_arena(live), kernels.new_arena(live)
    kernels.copy_into(anchor, live)
    live[0].fill_(10.0)
    kernels.copy_into(mid, live)
    live[0].fill_(30.0)  # tau_new = 10, tau_past = 20
    thresholds = torch.tensor([1.0, 4.0])
    weights = ((0.5, 0.25), (1.0, 0.0), (0.0, 1.0), (0.25, 0.5))
    fuse = (live, anchor, mid, new, past, thresholds, weights)
    assert int(kernels.weighted_(*fuse, backend=backend)) == 0
    assert live[0].tolist() == [10.0, 10.0, 20.0, 12.5, 12.5, 20.0]
    live[0].fill_(30.0)
    again = (live, anchor, mid, new, past, (torch.tensor(nan), torch.tensor(4.0)), weights)
    kernels.weighted_(*again, backend=backend)  # nothing is greater than NaN
    assert live[0].tolist() == [20.0, 12.5, 20.0, 12.5, 12.5, 20.0]


@BACKENDS
def test_entries_that_are_new_only_store_mid_itself(backend: str) -> None:
    """a + (m - a) is another number for a quarter of them; and live may be infinite there."""
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(5000, generator=generator) for _ in range(2)]
    assert not torch.equal(values[0] + (values[1] - values[0]), values[1])
    live = [values[0].clone()]
    anchor, mid = kernels.new_arena(live), kernels.new_arena(live)
    kernels.copy_into(anchor, live)
    live[0].copy_(values[1])
    kernels.copy_into(mid, live)
    live[0].fill_(math.inf)
    new, past = importance_of([1.0] * 5000, live), importance_of([0.0] * 5000, live)
    zero = torch.zeros(2)
    assert int(kernels.weighted_(live, anchor, mid, new, past, zero, backend=backend)) == 0
    assert torch.equal(live[0], values[1])


@BACKENDS
def test_bad_results_are_counted_and_can_be_undone(backend: str) -> None:
    live = [torch.ones(5000), torch.ones(70, dtype=torch.float16)]
    none = kernels.new_importance(live)
    anchor, mid = kernels.new_arena(live), kernels.new_arena(live)
    kernels.copy_into(anchor, live)
    for tensor in live:
        tensor.fill_(2.0)
    kernels.copy_into(mid, live)
    live[0][4999], live[0][0], live[1][69] = math.nan, -math.inf, 65504.0
    weights = ((0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.5, 3.0))  # the last one overflows
    bad = kernels.weighted_(live, anchor, mid, none, none, torch.zeros(2), weights, backend=backend)
    assert (int(bad), bad.shape, bad.dtype) == (3, (), torch.int64)
    kernels.copy_out(live, mid)
    assert all(bool((tensor == 2.0).all()) for tensor in live)


@BACKENDS
def test_what_a_gradient_that_is_not_finite_touches(backend: str) -> None:
    theta = [torch.tensor([1.0, 0.0, 1.0]), torch.tensor([math.inf])]
    gradients = [torch.tensor([math.inf, math.inf, 1.0]), None]
    made = kernels.new_importance(theta)
    kernels.importance_(theta, gradients, made.sensitivity, made.uncertainty, backend=backend)
    (s, u), rest = (each[:3].tolist() for each in made.state_dict().values()), made.scores()[1]
    assert s[0] == math.inf
    assert all(map(math.isnan, (u[0], s[1], u[1])))
    assert s[2] == pytest.approx(0.15)
    assert rest.tolist() == [0.0]  # no gradient: u = 0 whatever theta is


@pytest.mark.parametrize("backend", [name for name in USABLE if name != "triton"])
def test_denormals_are_kept(backend: str) -> None:
    theta, gradient = [torch.full((100,), 1e-30)], [torch.full((100,), 1e-12)]
    found = []
    for flush in (False, True):
        made = kernels.new_importance(theta)
        torch.set_flush_denormal(flush)
        try:
            kernels.importance_(theta, gradient, *made.state_dict().values(), backend=backend)
            found.append([*made.state_dict().values()])
        finally:
            torch.set_flush_denormal(False)
    assert found[0][0][0] > 0.0
    assert all(map(torch.equal, *found))


# ---- planted faults -----------------------------------------------------------------------------

FAULTS = {
    "fused multiply-add": (
        "s.copy_(keep1 * s + take1 * seen)",
        "s.mul_(keep1).add_(seen, alpha=take1)",
    ),
    "the old S": ("(seen - s).abs()", "(seen - s / keep1).abs()"),
    "one average's factor for both": ("u.copy_(keep2", "u.copy_(keep1"),
    "the sign stays": ("(theta * gradient).abs()", "(theta * gradient)"),
    "as important as the threshold": (" > threshold", " >= threshold"),
    "past for new": ("new, past = important", "past, new = important"),
    "another order": ("w_new * (m - a) + w_past * (x - m))", "w_new * (m - a)) + w_past * (x - m)"),
    "mid is computed": ("fused = torch.where((w_new", "torch.where((w_new"),
    "bad entries are not counted": ("(~torch.isfinite(tensor))", "torch.isnan(tensor)"),
}


def faulty(tmp_path: Path, old: str, new: str) -> ModuleType:
    """eager_entries with one change."""
    text = Path(eager_entries.__file__).read_text(encoding="utf-8")
    assert old in text, f"eager_entries.py has changed: {old!r} is gone"
    file = tmp_path / "faulty_entries.py"
    file.write_text(text.replace(old, new), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("faulty_entries", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = faulty(tmp_path, *FAULTS[fault])
    monkeypatch.setitem(sys.modules, "aimmerge_fast.kernels.eager_entries", module)
    assert registry.load("eager", "entries") is module
    found: list[str] = []
    for kind in KINDS:
        found += problems(Case(MIXED, kind, 1, without=(0, 3, 13)), public("eager"))
    assert found
