"""Policy paper, and what both policies do with bad input, against cases worked out by hand.

``#n`` is the number of an open question of the paper that had to be resolved.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from aimmerge_fast.config import AIMConfig
from aimmerge_fast.reference.controller import (
    PaperController,
    ReleasedController,
    reference_controller,
)
from aimmerge_fast.reference.schedules import Merge
from tests.driving import LOUD, QUIET, elapse, observe, paper, released, until_merge

NAN, INF = math.nan, math.inf

# --- policy paper: when ---------------------------------------------------------------------------


@pytest.mark.parametrize(("S", "n"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (8, 5), (10, 6)])
def test_paper_collects_two_thirds_of_the_interval(S: int, n: int) -> None:
    """#9, #10: the threshold step is not judged, the next one is."""
    controller = paper(s_init=S, s_min=1, f_max=8)
    assert observe(controller, [1.0] * n) == ["collect"] * (n - 1) + ["threshold"]
    assert controller.threshold == 2.0
    assert controller.F == 0
    controller.observe(2.5)
    assert controller.F == 1


def test_paper_threshold_is_strict() -> None:
    """#11: the loss must exceed gamma * mean = 2."""
    controller = paper()
    observe(controller, [0.5, 1.5, 1.0, 1.0, 1.0])
    assert controller.observe(2.0) == "monitor"
    assert controller.observe(math.nextafter(2.0, 3.0)) == "activate"


def test_paper_early_needs_f_max_activations_before_the_interval() -> None:
    controller = paper(s_init=16)  # samples 1-10
    codes = observe(controller, [QUIET] * 10 + [LOUD] * 3)
    assert codes[10:] == ["activate", "activate", "merge_early"]
    assert (controller.t, controller.F) == (13, 3)


@pytest.mark.parametrize("S", range(1, 25))
def test_paper_possible_lengths(S: int) -> None:
    """An early merge needs S >= 10; S' is never below 2 and never above 2S."""
    loud, quiet = paper(s_init=S, s_min=1), paper(s_init=S, s_min=1)
    n = max(1, 2 * S // 3)
    kind = until_merge(loud, [QUIET] * n + [LOUD] * S)
    assert (kind == "merge_early") == (S >= 10)
    assert loud.t == (n + 3 if S >= 10 else max(2, S))
    assert until_merge(quiet, [QUIET] * 2 * S) == "merge_forced"
    assert quiet.t == 2 * S


@pytest.mark.parametrize("activations", [1, 2])
def test_paper_one_activation_is_enough_at_the_interval(activations: int) -> None:
    """#18: only an interval without any activation is deferred."""
    controller = paper()
    codes = observe(controller, [QUIET] * 5 + [LOUD] * activations + [QUIET] * (3 - activations))
    assert codes[-1] == "merge_due"
    assert (controller.t, controller.F) == (8, activations)


def test_paper_deferred_and_forced() -> None:
    """#19, #20: at 2S an activation wins, otherwise F stays 0."""
    controller = paper()
    assert until_merge(controller, [QUIET] * 15 + [LOUD]) == "merge_deferred"
    assert (controller.t, controller.F) == (16, 1)
    controller.merge(1.0)
    assert until_merge(controller, [QUIET] * 16) == "merge_forced"
    assert (controller.t, controller.F) == (16, 0)


@pytest.mark.parametrize("make", [paper, released])
def test_interval_state_lasts_until_the_merge_and_no_longer(make: Any) -> None:
    """#17, #21."""
    controller = make()
    observe(controller, [0.5] * 6 + [0.1] * 7)
    assert controller.threshold == 1.0
    assert controller.observe(7.0).startswith("merge_")
    assert (controller.threshold, controller.F, controller.t) == (1.0, 1, 14)
    controller.merge(1.0)
    assert (controller.threshold, controller.F, controller.t) == (None, 0, 0)
    observe(controller, [3.0] * 6)
    assert controller.threshold == 6.0


# --- policy paper: how much -----------------------------------------------------------------------


def test_paper_weights_in_the_cold_start() -> None:
    """#7: P_new = 1, so alpha1 = 1 / (1 + F / 3)."""
    controller = paper()
    for activations, alpha1, alpha2 in ((1, 0.75, 0.25), (2, 0.6, 0.4), (0, 1.0, 0.0)):
        losses = [QUIET] * 5 + [LOUD] * activations + [QUIET] * (11 - activations)
        until_merge(controller, losses)
        merge = controller.merge(1.0)
        assert merge["cold"] is True
        assert merge["alpha1"] == pytest.approx(alpha1, rel=1e-15)
        assert merge["alpha2"] == pytest.approx(alpha2, rel=1e-15)


def _fourth(signals: list[float], activations: int, **fields: Any) -> Merge:
    """The merge that follows ``signals[:-1]``, with the last of them and so many activations."""
    controller = paper(gamma_plus_small=1.0, gamma_minus_small=1.0, **fields)
    for signal in signals[:-1]:
        elapse(controller, signal)
    until_merge(controller, [QUIET] * 5 + [LOUD] * activations + [QUIET] * (11 - activations))
    return controller.merge(signals[-1] * controller.t)


@pytest.mark.parametrize(
    ("signals", "activations", "floor", "alphas"),
    [
        ([5.0, 4.0, 3.0, 2.0], 0, 0.0, (0.5, 0.5)),  # 1: nothing learned, nothing forgotten
        ([5.0, 4.0, 3.0, 2.0], 2, 0.0, (0.0, 1.0)),  # 2: literal
        ([5.0, 4.0, 3.0, 2.0], 2, 0.125, (0.125, 0.875)),
        ([1.0, 2.0, 3.0, 2.0], 0, 0.0, (1.0, 0.0)),  # 3: literal
        ([1.0, 2.0, 3.0, 2.0], 0, 0.125, (0.875, 0.125)),
        ([1.0, 2.0, 3.0, 2.0], 2, 0.125, (0.5, 0.5)),  # 2/3 against 2/3
        ([1.0, 1.0, 1.0, 2.0], 1, 0.0, (0.5, 0.5)),  # 5: ties count in the denominator: 1/3
        ([1.0, 2.0, 3.0, 4.0], 1, 0.0, (0.75, 0.25)),
    ],
)
def test_paper_weights(
    signals: list[float], activations: int, floor: float, alphas: tuple[float, float]
) -> None:
    merge = _fourth(signals, activations, alpha_floor=floor)
    assert merge["cold"] is False
    assert (merge["alpha1"], merge["alpha2"]) == pytest.approx(alphas, rel=1e-15)


def test_paper_all_zero_in_the_cold_start() -> None:
    """#1 with p_new_cold = 0."""
    merge = elapse(paper(p_new_cold=0.0), 1.0)
    assert (merge["alpha1"], merge["alpha2"]) == (0.5, 0.5)


def test_paper_ties_are_neither() -> None:
    """#5: two ties and one rise are Case 1, three ties Case 2."""
    controller = paper()
    cases = [elapse(controller, signal) for signal in (1.0, 1.0, 1.0, 1.5, 1.5, 1.5, 1.5)]
    assert [(m["L_up"], m["L_down"], m["case"]) for m in cases] == [
        (0, 0, 0),
        (0, 0, 0),
        (0, 0, 0),
        (1, 0, 1),
        (1, 0, 1),
        (1, 0, 1),
        (0, 0, 2),
    ]
    assert [m["next_S"] for m in cases] == [8, 8, 8, 5, 3, 2, 2]


@pytest.mark.parametrize(("window", "first"), [(1, 2), (3, 4), (5, 6)])
def test_paper_first_adjustment(window: int, first: int) -> None:
    """#6: at merge window + 1."""
    controller = paper(window=window)
    merges = [elapse(controller, 1.0 + b) for b in range(first)]
    assert [m["cold"] for m in merges] == [True] * window + [False]
    assert [m["next_S"] for m in merges] == [8] * window + [5]


UP = [(8, 5), (5, 3), (3, 2), (2, 2), (64, 42), (65, 32), (128, 64), (100, 50)]
DOWN = [(2, 4), (5, 10), (64, 128), (65, 97), (100, 128), (128, 128)]


@pytest.mark.parametrize(("S", "after"), UP)
def test_paper_interval_shrinks_while_learning_is_rapid(S: int, after: int) -> None:
    """#8: floor; #15: the factors of the interval before."""
    controller = paper(s_init=S, window=1)
    elapse(controller, 1.0)
    assert elapse(controller, 2.0)["next_S"] == after
    assert controller.S == after


@pytest.mark.parametrize(("S", "after"), DOWN)
def test_paper_interval_grows_while_learning_is_slow(S: int, after: int) -> None:
    controller = paper(s_init=S, window=1)
    elapse(controller, 2.0)
    assert elapse(controller, 1.0)["next_S"] == after


def test_paper_interval_survives_a_huge_factor() -> None:
    controller = paper(window=1, gamma_plus_small=1e308, gamma_minus_large=1e308)
    elapse(controller, 2.0)
    assert elapse(controller, 1.0)["next_S"] == 128
    assert elapse(controller, 2.0)["next_S"] == 2


@pytest.mark.parametrize(("elapsed", "M"), [(1, 1), (2, 1), (3, 1), (4, 2), (15, 7), (16, 8)])
def test_paper_memory_steps(elapsed: int, M: int) -> None:
    """#23; #12: the elapsed steps divide the L1 change."""
    controller = paper()
    observe(controller, [QUIET] * elapsed)
    assert controller.memory_steps == M
    merge = controller.merge(3.0 * elapsed)
    assert (merge["memory_steps"], merge["lambda"], merge["S_actual"]) == (M, 3.0, elapsed)


# --- losses that are not finite, merges that do not come to be ------------------------------------


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize(("make", "n"), [(paper, 5), (released, 6)])
def test_non_finite_loss_is_no_sample(make: Any, n: int, bad: float) -> None:
    """#50: it advances t; delta is gamma times the mean of the others."""
    controller = make()
    codes = observe(controller, [bad, 1.0] + [2.0] * (n - 3) + [bad])
    assert codes == ["collect"] * (n - 1) + ["threshold"]
    assert controller.threshold == 2.0 * ((1.0 + 2.0 * (n - 3)) / (n - 2))
    assert controller.observe(bad) == "monitor"
    assert controller.F == 0
    assert until_merge(controller, [QUIET] * (7 - n) + [bad] * 8) == "merge_forced"
    assert controller.t == 16


@pytest.mark.parametrize(("make", "n"), [(paper, 5), (released, 6)])
def test_no_finite_sample_means_no_threshold(make: Any, n: int) -> None:
    """#50: no activation either; forced at 2S."""
    controller = make()
    codes = observe(controller, [NAN] * n + [LOUD] * (16 - n))
    assert codes == ["collect"] * n + ["monitor"] * (15 - n) + ["merge_forced"]
    assert controller.threshold is None


def test_non_finite_loss_at_a_due_step_still_merges() -> None:
    controller = paper()
    assert observe(controller, [QUIET] * 5 + [LOUD, QUIET, NAN])[-1] == "merge_due"
    assert controller.F == 1


@pytest.mark.parametrize("make", [paper, released])
def test_rejected_merge_restarts_the_interval_and_records_nothing(make: Any) -> None:
    """#50: Lambda is not appended, b does not count, S and M are kept."""
    plain, disturbed = make(window=1) if make is paper else make(cold_start=0), None
    disturbed = make(window=1) if make is paper else make(cold_start=0)
    for signal in (1.0, 2.0):
        until_merge(disturbed, [QUIET] * 16)
        before = (disturbed.S, disturbed.merges)
        disturbed.reject()
        assert (disturbed.t, disturbed.F, disturbed.threshold) == (0, 0, None)
        assert (disturbed.S, disturbed.merges) == before
        expected, got = elapse(plain, signal), elapse(disturbed, signal)
        assert got.pop("step") != expected.pop("step")
        assert got == expected


def test_merge_with_no_step_since_the_last_one() -> None:
    controller = paper()
    elapse(controller, 1.0)
    merge = controller.merge(0.0)
    assert (merge["S_actual"], merge["lambda"], merge["memory_steps"]) == (0, 0.0, 1)
    assert merge["kind"] == "merge_final"


@pytest.mark.parametrize("make", [paper, released])
def test_a_due_merge_that_the_caller_lets_pass(make: Any) -> None:
    controller = make()
    assert observe(controller, [QUIET] * 6 + [LOUD] * 2)[-1] == "merge_due"
    assert controller.observe(QUIET) == "merge_deferred"


def test_reference_controller_follows_the_policy() -> None:
    assert type(reference_controller(AIMConfig())) is PaperController
    assert type(reference_controller(AIMConfig(policy="released"))) is ReleasedController
