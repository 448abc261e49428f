"""AIMMerging, its ablations and controls: what each of them fixes, and what its merges then are."""

from __future__ import annotations

from typing import Any

import pytest

from aimmerge_fast.cl.methods import method_class
from aimmerge_fast.events import Open, Probe, Skip
from tests.cl.bare import FIRST, SECOND, bench, train
from tests.cl.tiny import make_config

FIXED = {
    "aim": {"policy": "paper", "schedule": "adaptive", "alpha_new": None},
    "aim-released": {"policy": "released", "schedule": "adaptive", "s_weight": 70},
    "aim-ls": {"use_learning_signal": False, "use_forgetting_signal": True},
    "aim-fs": {"use_learning_signal": True, "use_forgetting_signal": False},
    "aim-mgm": {"schedule": "adaptive", "alpha_new": 0.5},
    "aim-ifm": {"schedule": "adaptive", "alpha_new": 1.0},
    "kif": {"schedule": "fixed", "alpha_new": 1.0, "s_init": 8, "memory_optimizer": "shared"},
    "fixed": {"schedule": "fixed", "s_init": 8},
    "random": {"schedule": "random", "s_min": 2, "s_hi": 14},
    "single": {"schedule": "single"},
}


@pytest.mark.parametrize("name", FIXED)
def test_what_a_variant_fixes(name: str, tmp_path: Any) -> None:
    config = make_config(tmp_path, max_grad_norm=0.5)
    made = method_class(name).aim_config({}, config, 7)  # type: ignore[attr-defined]
    assert {field: getattr(made, field) for field in FIXED[name]} == FIXED[name]
    shared = (made.history_batch, made.memory_batch, made.max_grad_norm, made.seed)
    assert shared == (4, 4, 0.5, 7)
    with pytest.raises(ValueError, match=r"unknown setting 'gamma'; .*gamma_forget"):
        method_class(name).check({"gamma": 1}, config)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("aim-released", {"policy": "paper"}),
        ("aim-ls", {"use_learning_signal": True}),
        ("fixed", {"schedule": "adaptive"}),
    ],
)
def test_what_is_fixed_cannot_be_set(name: str, settings: dict[str, Any], tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=f"unknown setting '{next(iter(settings))}'"):
        method_class(name).check(settings, make_config(tmp_path))


def test_bad_values_are_refused_before_anything_is_loaded(tmp_path: Any) -> None:
    config = make_config(tmp_path)
    with pytest.raises(ValueError, match="s_init=1 lies outside"):
        method_class("aim").check({"s_init": 1}, config)
    with pytest.raises(ValueError, match="in_batch"):
        method_class("aim").check({"probe": "in_batch"}, config)


def test_released_divides_by_the_accumulation(tmp_path: Any) -> None:
    config = make_config(tmp_path, batch=8, micro_batch=2)
    made = method_class("aim-released").aim_config({}, config, 1)  # type: ignore[attr-defined]
    assert made.accumulation == 4


def merges(name: str, steps: int = 20, **settings: Any) -> tuple[list[Open], Any]:
    work = bench()
    method = work.method(name, **settings)
    train(method, FIRST, 0, 3)
    assert not work.events[2:]  # no memory: begin and end of a plain task
    train(method, SECOND, 1, steps)
    found = [event for event in work.events if isinstance(event, Open)]
    assert method.merges() == len(found)
    return found, work


def test_fixed_merges_every_s_init_updates_by_halves() -> None:
    found, work = merges("fixed", s_init=5)
    assert [(e.step, e.alpha_new, e.alpha_past) for e in found] == [
        (step, 0.5, 0.5) for step in (5, 10, 15, 20)
    ]
    assert work.trainee.rows == {"training": 92, "memory": 4 * 2 * 4, "probe": 80}


def test_without_learning_signal() -> None:
    """A merge at each activation: just when the threshold is passed, S as it was."""
    found, work = merges("aim-ls", gamma_forget=0.9, s_init=4)
    assert found
    assert {(e.S, e.F, e.alpha_new) for e in found} == {(4, 1, 0.5)}
    probes = {e.step: e for e in work.events if isinstance(e, Probe)}
    for event in found:
        probe = probes[event.step]
        assert probe.threshold is not None
        assert probe.loss > probe.threshold


def test_without_forgetting_signal() -> None:
    found, work = merges("aim-fs", s_init=4)
    assert all(e.t == e.S and e.alpha_new == 0.5 for e in found)
    assert all(e.threshold is None for e in work.events if isinstance(e, Probe))


def test_manual_weights() -> None:
    found, _ = merges("aim-mgm", alpha_new=0.7, s_init=4)
    assert found
    assert {e.alpha_new for e in found} == {0.7}


def test_single_merges_at_the_end() -> None:
    found, _ = merges("single")
    assert [(e.step, e.kind) for e in found] == [(20, "merge_final")]


def test_random_intervals_lie_in_their_range() -> None:
    found, _ = merges("random", s_min=2, s_hi=5)
    assert all(2 <= e.t <= 5 for e in found)
    assert len({e.t for e in found}) > 1


def test_rows_of_a_probe_that_was_no_number_count_once() -> None:
    work = bench()
    method = work.method("aim", max_bad_probes=50)
    train(method, FIRST, 0, 3)
    passes = method.merger.rehearsal._passes
    loss = passes.loss_fn
    passes.loss_fn = lambda model, batch: loss(model, batch) * float("nan")
    train(method, SECOND, 1, 4)
    assert sum(isinstance(event, Skip) for event in work.events) == 4
    assert work.trainee.rows["probe"] == 4 * 4
