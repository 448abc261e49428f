"""The schedules and ablations of the reference controllers, worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from aimmerge_fast.config import SCHEDULES, AIMConfig
from aimmerge_fast.reference.controller import PaperController, reference_controller
from aimmerge_fast.reference.schedules import ReferenceController
from tests.driving import LOUD, QUIET, elapse, observe, paper, until_merge


def _schedule(name: str, policy: str, **fields: Any) -> ReferenceController:
    fields |= {"s_hi": 8} if name == "random" else {}
    fields |= {"merge_at": (3, 7)} if name == "at" else {}
    return reference_controller(AIMConfig(policy=policy, schedule=name, **fields))


@pytest.mark.parametrize("policy", ["paper", "released"])
def test_monitor_measures_every_ten_steps_and_never_merges(policy: str) -> None:
    controller = _schedule("monitor", policy)
    losses = [QUIET] * 7 + [LOUD, LOUD, LOUD]
    for _ in range(2):
        codes = observe(controller, losses)
        assert codes[-1] == "measure"
        assert codes.count("activate") == 2
        assert controller.F == 3
        record = controller.merge(50.0)
        assert record["lambda"] == 5.0
        assert (record["kind"], record["memory_steps"]) == ("measure", 0)
        assert (record["alpha1"], record["alpha2"], record["next_S"]) == (1.0, 0.0, 10)
    assert controller.step == 20
    assert record["next_S"] == 10


@pytest.mark.parametrize(("policy", "samples"), [("paper", 5), ("released", 6)])
def test_fixed_merges_by_the_interval_alone(policy: str, samples: int) -> None:
    """The history loss is judged and counted, but F decides nothing."""
    controller = _schedule("fixed", policy)
    for activations in (8 - samples, 0):
        losses = [QUIET] * samples + [LOUD if activations else QUIET] * (8 - samples)
        codes = observe(controller, losses)
        assert codes[samples - 1] == "threshold"
        assert codes[samples:-1] == ["activate" if activations else "monitor"] * (7 - samples)
        assert codes[-1] == "merge_due"
        merge = controller.merge(16.0)
        assert (merge["F"], merge["lambda"], merge["next_S"]) == (activations, 2.0, 8)
        assert (merge["alpha1"], merge["alpha2"]) == (0.5, 0.5)
        assert merge["memory_steps"] == (4 if policy == "paper" else 8)


@pytest.mark.parametrize("policy", ["paper", "released"])
@pytest.mark.parametrize(
    ("name", "s_min", "intervals"),
    [
        ("rapid+", 2, [9, 4, 4, 9, 9, 9]),
        ("slow+", 2, [9, 9, 9, 9, 4, 4]),
        ("rapid+", 6, [9, 6, 6, 9, 9, 9]),
    ],
)
def test_rapid_and_slow(policy: str, name: str, s_min: int, intervals: list[int]) -> None:
    """S / 2 after a rise (rapid+) or a fall (slow+), else s_init; a tie is neither."""
    controller = _schedule(name, policy, s_init=9, s_min=s_min)
    merges = [elapse(controller, signal) for signal in (1.0, 2.0, 4.0, 4.0, 2.0, 1.0)]
    assert [m["next_S"] for m in merges] == intervals
    assert {m["kind"] for m in merges} == {"merge_due"}
    assert [m["memory_steps"] for m in merges[:2]] == ([4, 4] if policy == "paper" else [9, 9])


def test_random_draws_from_a_known_generator() -> None:
    """The first outputs of SplitMix64 seeded with 0, modulo 7 above 2."""
    words = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC)
    controller = _schedule("random", "paper", seed=0)
    drawn = [controller.S]
    for _ in words[1:]:
        merge = elapse(controller, 1.0)
        assert merge["kind"] == "merge_due"
        drawn.append(merge["next_S"])
    assert drawn == [2 + word % 7 for word in words]


def test_random_depends_on_seed_and_task_and_wraps() -> None:
    step = 0xD1B54A32D192ED03
    config = {"schedule": "random", "s_hi": 1_000_000}
    by_task = PaperController(AIMConfig(seed=5, **config), task=3).S  # type: ignore[arg-type]
    by_seed = PaperController(AIMConfig(seed=(5 + 3 * step) % 2**64 % 2**63, **config)).S  # type: ignore[arg-type]
    other = PaperController(AIMConfig(seed=6, **config), task=3).S  # type: ignore[arg-type]
    assert (5 + 3 * step) % 2**64 < 2**63  # so that the seed is one that a config takes
    assert by_task == by_seed
    assert by_task != other


@pytest.mark.parametrize("policy", ["paper", "released"])
def test_random_under_released_divides_by_elapsed_steps(policy: str) -> None:
    controller = _schedule("random", policy)
    steps = controller.S
    observe(controller, [QUIET] * steps)
    assert controller.merge(4.0 * steps)["lambda"] == 4.0


@pytest.mark.parametrize("policy", ["paper", "released"])
def test_at_merges_at_the_named_steps(policy: str) -> None:
    controller = _schedule("at", policy)
    codes = []
    for _ in range(30):
        codes.append(controller.observe(QUIET))
        if codes[-1] == "merge_due":
            merge = controller.merge(6.0)
            assert merge["lambda"] == 6.0 / merge["S_actual"]
            assert (merge["S"], merge["next_S"]) == (8, 8)
    assert [i + 1 for i, code in enumerate(codes) if code == "merge_due"] == [3, 7]
    assert set(codes[7:]) == {"collect", "threshold", "monitor"}  # 2S passes without a merge
    assert controller.F == 0


@pytest.mark.parametrize("policy", ["paper", "released"])
def test_single_merges_when_asked(policy: str) -> None:
    controller = _schedule("single", policy)
    codes = observe(controller, [QUIET] * 20 + [LOUD] * 5)
    assert codes[-6:] == ["monitor"] + ["activate"] * 5
    merge = controller.merge(50.0)
    assert (merge["kind"], merge["F"], merge["S_actual"]) == ("merge_final", 5, 25)
    assert (merge["lambda"], merge["alpha1"], merge["alpha2"]) == (2.0, 0.5, 0.5)
    assert merge["memory_steps"] == (12 if policy == "paper" else 8)


@pytest.mark.parametrize("policy", ["paper", "released"])
@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "monitor"])
def test_alpha_new_holds_in_every_schedule_that_merges(policy: str, name: str) -> None:
    merge = elapse(_schedule(name, policy, alpha_new=0.3), 1.0)
    assert (merge["alpha1"], merge["alpha2"]) == (0.3, 0.7)


def test_without_learning_signal() -> None:
    """-LS: the first activation merges, no cap at 2S, S fixed."""
    controller = paper(use_learning_signal=False, window=1)
    expected = {5: "merge_early", 7: "merge_due", 40: "merge_deferred"}
    for quiet, kind in expected.items():
        assert until_merge(controller, [QUIET] * quiet + [LOUD]) == kind
        merge = controller.merge(float(quiet * (quiet + 1)))
        assert (merge["F"], merge["S_actual"], merge["next_S"]) == (1, quiet + 1, 8)
        assert (merge["alpha1"], merge["alpha2"]) == (0.5, 0.5)
        assert merge["memory_steps"] == (quiet + 1) // 2
    assert (merge["L_up"], merge["L_down"], merge["case"]) == (1, 0, 1)


def test_without_forgetting_signal() -> None:
    """-FS: merges at S, adapts S, looks at no history loss."""
    controller = paper(use_forgetting_signal=False, window=1)
    for signal, after in ((1.0, 8), (2.0, 5), (1.0, 10)):
        codes = observe(controller, [LOUD, math.nan] + [LOUD] * (controller.S - 2))
        assert codes == ["monitor"] * (controller.S - 1) + ["merge_due"]
        assert (controller.F, controller.threshold) == (0, None)
        merge = controller.merge(signal * controller.S)
        assert (merge["next_S"], merge["alpha1"], merge["alpha2"]) == (after, 0.5, 0.5)
