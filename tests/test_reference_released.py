"""Policy released against cases worked out by hand."""

from __future__ import annotations

import math

import pytest

from tests.driving import LOUD, QUIET, elapse, observe, released, until_merge

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("S", "samples", "shortest", "longest"),
    [
        (2, 2, 3, 4),
        (3, 3, 4, 6),
        (4, 3, 4, 8),
        (5, 4, 5, 10),
        (8, 6, 8, 16),
        (12, 9, 12, 24),
        (13, 9, 12, 26),
        (64, 43, 46, 128),
        (128, 86, 89, 256),
    ],
)
def test_released_possible_lengths(S: int, samples: int, shortest: int, longest: int) -> None:
    loud, quiet = released(s_init=S), released(s_init=S)
    codes = observe(loud, [QUIET] * samples)
    assert codes == ["collect"] * (samples - 1) + ["threshold"]
    until_merge(loud, [LOUD] * S)
    assert loud.t == shortest
    assert until_merge(quiet, [QUIET] * longest) == "merge_forced"
    assert (quiet.t, quiet.F) == (longest, 1)  # 19: a forced merge counts as an activation


def test_released_threshold_is_not_strict() -> None:
    """#11."""
    controller = released()
    observe(controller, [1.0] * 6)
    assert controller.observe(math.nextafter(2.0, 0.0)) == "monitor"
    assert controller.observe(2.0) == "merge_due"


def test_released_activation_at_twice_the_interval_is_deferred() -> None:
    """#20."""
    controller = released()
    assert until_merge(controller, [QUIET] * 15 + [LOUD]) == "merge_deferred"
    assert controller.F == 1


@pytest.mark.parametrize(
    ("S", "activations", "alphas"),
    [
        (70, 1, (0.6, 0.4)),
        (70, 2, (0.5, 0.5)),
        (71, 1, (0.5, 0.5)),
        (71, 2, (0.4, 0.6)),
        (70, 0, (0.6, 0.4)),
    ],
)
def test_released_weights(S: int, activations: int, alphas: tuple[float, float]) -> None:
    controller = released(s_init=S)
    samples = 2 * S // 3 + 1
    until_merge(controller, [QUIET] * samples + [LOUD] * activations + [QUIET] * 2 * S)
    merge = controller.merge(1.0)
    assert (merge["alpha1"], merge["alpha2"]) == alphas
    assert merge["F"] == max(1, activations)


@pytest.mark.parametrize(
    ("S", "previous", "signal", "after", "factor"),
    [
        (8, 2, 4, 4, 2.0),
        (8, 3, 3, 8, 1.0),
        (8, 4, 2, 24, 3.0),
        (8, 4, 3.9, 16, 4 / 3.9 + 1),
        (63, 4, 3.9, 127, 4 / 3.9 + 1),
        (64, 4, 3.9, 97, 4 / 3.9 + 0.5),
        (128, 4, 4.4, 58, 4.4 / 4),
        (64, 3, 3, 32, 1.0),
        (128, 4, 4, 64, 1.0),
        (2, 1, 10, 2, 10.0),
        # guards of the zeros
        (8, 0, 0, 8, 1.0),
        (64, 0, 0, 32, 1.0),
        (8, 4, 0, 128, INF),
        (8, 0, 4, 2, INF),
        # and of what overflowed
        (8, INF, INF, 8, 1.0),
        (8, 4, INF, 2, INF),
        (8, INF, 4, 128, INF),
        (8, 1e-300, 1e300, 2, INF),
        (8, 1e300, 1e-300, 128, INF),
        (8, 4, NAN, 16, 1.0),
    ],
)
def test_released_interval(
    S: int, previous: float, signal: float, after: int, factor: float
) -> None:
    if math.isnan(signal):
        after = S  # no change is the guard of a NaN factor
    controller = released(s_init=S, cold_start=0)
    assert elapse(controller, previous)["change_factor"] is None
    merge = elapse(controller, signal)
    assert (merge["next_S"], controller.S) == (after, after)
    assert merge["change_factor"] == pytest.approx(factor, rel=1e-14)


def test_released_halving_comes_after_the_clamp() -> None:
    """The halved interval may lie below s_min, and grows from there."""
    controller = released(s_init=64, s_min=64, cold_start=0)
    elapse(controller, 1.0)
    assert elapse(controller, 2.0)["next_S"] == 32
    assert elapse(controller, 1.6)["next_S"] == 32 * 2 + 8


def test_released_first_adjustment_is_merge_five() -> None:
    controller = released()
    merges = [elapse(controller, 2.0**b) for b in range(5)]
    assert [m["cold"] for m in merges] == [True] * 4 + [False]
    assert [m["next_S"] for m in merges] == [8] * 4 + [4]


def test_released_memory_steps_follow_the_interval_of_the_last_merge() -> None:
    controller = released(s_init=8, outer_init=3, cold_start=0)
    merges = [elapse(controller, signal) for signal in (1.0, 2.0, 8.0, 4.0)]
    assert [m["next_S"] for m in merges] == [8, 4, 2, 6]
    assert [m["memory_steps"] for m in merges] == [3, 3, 1, 1]  # 4 * 3 / 8 and 2 * 3 / 8 >= 1
    assert [m["next_memory_steps"] for m in merges] == [3, 1, 1, 2]


def test_released_signal_is_per_planned_step() -> None:
    controller = released()
    until_merge(controller, [QUIET] * 16)
    merge = controller.merge(24.0)
    assert (merge["lambda"], merge["S_actual"], merge["kind"]) == (3.0, 16, "merge_forced")
    observe(controller, [QUIET] * 4)
    assert controller.merge(24.0)["lambda"] == 6.0  # merge_final: nothing was planned for t = 4


def test_released_adaptive_false_keeps_the_interval() -> None:
    controller = released(adaptive=False, cold_start=0)
    merges = [elapse(controller, 2.0**b) for b in range(4)]
    assert {m["next_S"] for m in merges} == {8}
    assert {m["change_factor"] for m in merges} == {None}
    assert [m["cold"] for m in merges] == [True, False, False, False]
    assert merges[-1]["alpha1"] == 0.6
