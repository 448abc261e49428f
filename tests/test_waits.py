"""The host waits where the run-ahead rule says, nowhere else, and lag changes nothing."""

from __future__ import annotations

import functools
import math
import random
from typing import Any

import pytest

from aimmerge_fast.config import AIMConfig
from aimmerge_fast.events import Open, Probe
from tests.late_device import Rig

POLICIES = ("paper", "released")
STEPS = 240


def noisy(sigma: float, count: int = STEPS, *, seed: int = 3) -> list[float]:
    """Losses around 1, some of them not finite, some far above the threshold."""
    draw = random.Random(seed)
    losses = [max(0.0, draw.gauss(1.0, sigma)) for _ in range(count)]
    for index in range(17, count, 41):
        losses[index] = draw.choice([math.nan, math.inf, 50.0])
    return losses


@functools.cache
def prompt_run(config: AIMConfig, sigma: float) -> tuple[Rig, list[bool], tuple[bytes, ...]]:
    """What happens without any lag."""
    rig = Rig(config, lag=None)
    merged = rig.run(noisy(sigma), ahead=False)
    return rig, merged, rig.bits()


def rule_waits(config: AIMConfig, S: int, t: int, t_s: int, F_s: int) -> bool:
    """kernels.md's rule: neither impossible nor certain."""
    n = 2 * S // 3 + 1 if config.policy == "released" else max(1, 2 * S // 3)
    most = F_s + max(0, t - max(t_s, n))
    if not config.__dict__.get("use_learning_signal", True):
        return most >= 1
    if not config.__dict__.get("use_forgetting_signal", True):
        return False
    possible = most >= config.f_max or (t >= S and most >= 1) or t >= 2 * S
    certain = t >= 2 * S or (t >= S and F_s >= 1)
    return possible and not certain


def expected_waits(config: AIMConfig, sigma: float, lag: int, *, ahead: bool) -> int:
    """Counted from what a prompt device did, by the ages of the records."""
    rig, merged, _ = prompt_run(config, sigma)
    probes = [event for event in rig.events if isinstance(event, Probe)]
    opens = iter([event for event in rig.events if isinstance(event, Open)])
    posted: list[int] = []  # tick at which each record was asked for
    now = arrived = waits = interval_start = 0
    numbers: list[int] = []  # record number of each step

    def tick() -> None:
        nonlocal now, arrived
        now += 1
        arrived = max(arrived, sum(asked < now - lag for asked in posted))

    def need(number: int) -> None:
        nonlocal arrived, waits
        waits += arrived < number
        arrived = max(arrived, number)

    def observe() -> None:
        posted.append(now)
        numbers.append(len(posted))

    if ahead:
        observe()
    for step, probe in enumerate(probes):
        tick()
        if not ahead:
            observe()
        known = [i for i in range(interval_start, step + 1) if numbers[i] <= arrived]
        t_s, F_s = (probes[known[-1]].t, probes[known[-1]].F) if known else (0, 0)
        if t_s < probe.t and rule_waits(config, probe.S, probe.t, t_s, F_s):
            need(numbers[step])
        if merged[step]:
            posted.append(now)
            for _ in range(next(opens).memory_steps):
                tick()
            need(len(posted))  # the open record names the next interval
            posted.append(now)
            interval_start = step + 1
        if ahead and step + 1 < len(probes):
            observe()
    return waits


CONFIGS: dict[str, dict[str, Any]] = {
    "paper": {},
    "released": {"policy": "released"},
    "paper-long": {"s_init": 33, "f_max": 2},
    "released-long": {"policy": "released", "s_init": 24, "f_max": 5},
    "no-learning-signal": {"use_learning_signal": False},
    "no-forgetting-signal": {"use_forgetting_signal": False},
}


@pytest.mark.parametrize("ahead", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("sigma", [0.1, 0.8])
@pytest.mark.parametrize("name", CONFIGS)
def test_lag_costs_waits_and_changes_nothing(name: str, sigma: float, ahead: bool) -> None:
    config = AIMConfig(**CONFIGS[name])
    prompt, merged, bits = prompt_run(config, sigma)
    assert prompt.controller.mailbox.waits == 0
    assert sum(merged) >= 4
    counts = []
    for lag in (0, 1, 2, 5, 40):
        rig = Rig(config, lag)
        assert rig.run(noisy(sigma), ahead=ahead) == merged
        assert rig.bits() == bits
        assert rig.events == prompt.events
        assert rig.controller.mailbox.waits == expected_waits(config, sigma, lag, ahead=ahead)
        counts.append(rig.controller.mailbox.waits)
    print(name, sigma, "before" if ahead else "after", counts, "of", STEPS)
    if ahead:
        assert counts[0] == 0  # a whole training step hides the answer
    assert sorted(counts) == counts


@pytest.mark.parametrize("policy", POLICIES)
def test_a_quiet_signal_after_the_update_waits_half_of_the_time(policy: str) -> None:
    """Everywhere in S <= t < 2S where a loss is judged, and nowhere else."""
    config = AIMConfig(policy=policy, schedule="adaptive", s_max=8)
    rig = Rig(config, lag=0)
    rig.run([1.0] * 160, ahead=False)
    assert {event.kind for event in rig.events if isinstance(event, Open)} == {"merge_forced"}
    probes = [event for event in rig.events if isinstance(event, Probe)]
    judged = [event for event in probes if event.code in ("monitor", "activate")]
    inside = sum(event.S <= event.t < 2 * event.S for event in judged)
    assert rig.controller.mailbox.waits == inside
    assert 0.4 <= inside / 160 <= 0.55


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("schedule", ["fixed", "monitor", "single", "rapid+"])
def test_schedules_never_wait_for_a_decision(schedule: str, policy: str) -> None:
    config = AIMConfig(policy=policy, schedule=schedule)
    rig = Rig(config, lag=0)
    rig.run(noisy(0.4), ahead=False)
    waits = rig.controller.mailbox.waits
    measures = STEPS // 10 if schedule == "monitor" else 0  # no memory step hides these
    assert waits == measures
