"""The open-loop simulation: its numbers on every backend, schedules, odd values."""

from __future__ import annotations

import math
from typing import Any

import pytest

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.simulate import Simulation, simulate
from tests.recorded import agree
from tests.traces import Trace, config_of, load_traces

BACKENDS = [name for name, missing in kernels.available().items() if missing is None]
TRACES = load_traces()
NAN = math.nan


@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: trace["id"])
def test_traces_on_every_backend(trace: Trace) -> None:
    results = [
        simulate(config_of(trace), trace["history_loss"], trace["delta_l1"], backend=backend)
        for backend in BACKENDS
    ]
    assert agree(results[0].steps, trace["steps"])
    assert agree(results[0].merges, trace["merges"])
    assert not results[0].ran_out
    assert all(result == results[0] for result in results)  # the same bits


def test_the_worked_example_by_hand() -> None:
    trace = next(trace for trace in TRACES if trace["id"] == "paper-00-worked-example")
    result = simulate(AIMConfig(), trace["history_loss"], trace["delta_l1"])
    assert [(m["step"], m["kind"], m["next_S"]) for m in result.merges] == [
        (10, "merge_deferred", 8),
        (26, "merge_forced", 8),
        (34, "merge_due", 8),
        (50, "merge_forced", 16),
    ]
    assert [m["memory_steps"] for m in result.merges] == [5, 8, 4, 8]


def paper(backend: str = "auto", losses: int = 40, **fields: Any) -> Simulation:
    """Quiet losses, so adaptive merges are forced at 2S; changes 8, 7, 6, ..."""
    config = AIMConfig(s_init=4, **fields)
    return simulate(config, [0.1] * losses, [8.0 - i for i in range(8)], backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_schedules(backend: str) -> None:
    def steps(**fields: Any) -> list[int]:
        return [merge["step"] for merge in paper(backend, **fields).merges]

    assert steps(losses=20) == [8, 16]
    assert steps(schedule="fixed", losses=10) == [4, 8]
    assert steps(schedule="at", merge_at=(3, 11), losses=20) == [3, 11]
    assert steps(schedule="random", s_hi=6, losses=12)[0] in range(2, 7)
    assert steps(schedule="single", losses=20) == [20]
    assert steps(losses=18, merge_at_task_end=True) == [8, 16, 18]
    assert steps(losses=16, merge_at_task_end=True) == [8, 16]  # nothing unfinished


def test_a_final_merge_is_named_so() -> None:
    merge = paper(schedule="single", losses=20).merges[-1]
    assert (merge["kind"], merge["S_actual"], merge["memory_steps"]) == ("merge_final", 20, 10)
    assert merge["lambda"] == 8.0 / 20


def test_monitor_measures_and_never_merges() -> None:
    result = paper(schedule="monitor", losses=10)
    assert result.merges == []
    assert result.steps["code"][3] == result.steps["code"][7] == "measure"
    assert result.measures == [
        {"step": 4, "S_actual": 4, "delta_l1": 8.0, "lambda": 2.0},
        {"step": 8, "S_actual": 4, "delta_l1": 7.0, "lambda": 1.75},
    ]


def test_the_task_number_reaches_the_random_schedule() -> None:
    config = AIMConfig(schedule="random", s_hi=60)
    first = [simulate(config, [0.1], [], task=task).steps["S"][0] for task in range(6)]
    assert len(set(first)) > 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_stops_when_the_changes_run_out(backend: str) -> None:
    result = simulate(AIMConfig(s_init=4), [0.1] * 40, [8.0], backend=backend)
    assert result.ran_out
    assert len(result.merges) == 1
    assert len(result.steps["t"]) == 16  # the decision that could not be carried out is there
    assert result.steps["code"][-1] == "merge_forced"
    at_end = simulate(AIMConfig(schedule="single"), [0.1] * 5, [], backend=backend)
    assert at_end.ran_out
    assert len(at_end.steps["t"]) == 5


@pytest.mark.parametrize("policy", ["paper", "released"])
def test_nothing_runs_out_unless_it_is_needed(policy: str) -> None:
    result = simulate(AIMConfig(policy=policy), [0.1] * 15, [])
    assert not result.ran_out
    assert len(result.steps["t"]) == 15
    assert simulate(AIMConfig(policy=policy), [], []).steps["t"] == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [None, "nan", NAN, "inf", -math.inf])
def test_a_loss_that_is_not_finite_counts_as_a_step_only(bad: Any, backend: str) -> None:
    result = simulate(AIMConfig(s_init=4), [0.1, bad, bad, bad, 9.0], [1.0], backend=backend)
    assert result.steps["t"] == [1, 2, 3, 4, 5]
    assert result.steps["threshold"][1] == 0.2  # of the one finite sample
    assert result.steps["F"] == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", ["paper", "released"])
def test_a_change_that_is_not_finite_is_a_rejected_merge(policy: str, backend: str) -> None:
    config = AIMConfig(policy=policy, s_init=4)
    changes: list[float | str] = [8.0, 9.0, 7.0, 6.0, 5.0, 4.0, 3.0]
    result = simulate(config, [0.1] * 64, [8.0, "nan", *changes[1:]], backend=backend)
    assert result.rejected == [16]
    # it recorded no Lambda and kept S: the rest is as if those 8 steps had not been
    alone = simulate(config, [0.1] * 56, changes, backend=backend)
    assert len(alone.merges) >= 4
    late = [{**merge, "step": merge["step"] + 8} for merge in alone.merges[1:]]
    assert result.merges == [alone.merges[0], *late]


@pytest.mark.parametrize(
    ("losses", "changes", "named"),
    [
        ([0.1, "x"], [], r"history_loss\[1\] is 'x', not a number"),
        ([True], [], r"history_loss\[0\] is True"),
        ([0.1], [[2.0]], r"delta_l1\[0\] is \[2.0\]"),
        ([0.1], [1.0, -2.0], r"delta_l1\[1\] is -2.0; it must be 0 or more"),
    ],
)
def test_what_is_no_number_is_named(losses: Any, changes: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        simulate(AIMConfig(), losses, changes)


def test_an_integer_beyond_any_float_is_infinite() -> None:
    assert simulate(AIMConfig(s_init=4), [10**400], [10**400]).steps["threshold"] == [None]


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"unknown backend 'tpu'; choose one of auto, native"):
        simulate(AIMConfig(), [], [], backend="tpu")
