"""The host waits where the run-ahead rule says, nowhere else, and lag changes nothing."""

from __future__ import annotations

import functools
import math
import os
import random
import sys
import threading
from typing import Any

import pytest
import torch

from aimmerge_fast import mailbox
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.events import Open, Probe, to_json
from aimmerge_fast.kernels.layout import RING_SIZE
from tests.late_device import Rig

POLICIES = ("paper", "released")
STEPS = 200


def noisy(sigma: float, count: int = STEPS, *, seed: int = 3) -> list[float]:
    """Losses around 1, some of them not finite, some far above the threshold."""
    draw = random.Random(seed)
    losses = [max(0.0, draw.gauss(1.0, sigma)) for _ in range(count)]
    for number, index in enumerate(range(17, count, 23)):
        losses[index] = (50.0, math.nan, 50.0, math.inf)[number % 4]
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
    if config.use_learning_signal is False:
        return most >= 1
    if config.use_forgetting_signal is False:
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
        while arrived < len(posted) and posted[arrived] < now - lag:
            arrived += 1

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
    assert sum(merged) >= 3
    expected = [to_json(event) for event in prompt.events]
    counts = []
    for lag in (0, 1, 5):
        rig = Rig(config, lag)
        assert rig.run(noisy(sigma), ahead=ahead) == merged
        assert rig.bits() == bits
        assert [to_json(event) for event in rig.events] == expected
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


def test_more_steps_than_the_ring_holds() -> None:
    """A host that never needs an answer is stopped only when the ring would overflow."""
    config = AIMConfig(schedule="at", merge_at=(2000,), max_bad_probes=1 << 20)
    losses = noisy(0.4, 2600)
    prompt = Rig(config, lag=None)
    merged = prompt.run(losses, ahead=False)
    late = Rig(config, lag=1 << 30)
    late.controller.mailbox._check_device = late.late.run_one
    in_flight = []
    launch = late.late.enqueue

    def counted(op: Any) -> None:
        launch(op)
        in_flight.append(late.controller.launched - late.controller.mailbox.read)

    late.late.enqueue = counted  # type: ignore[method-assign]
    assert late.run(losses, ahead=False) == merged
    assert max(in_flight) == RING_SIZE - 1
    assert late.bits() == prompt.bits()
    assert [to_json(e) for e in late.events] == [to_json(e) for e in prompt.events]
    assert prompt.controller.mailbox.read == 2600 + 2 > 2 * RING_SIZE


def test_an_overwritten_record_is_an_error() -> None:
    rig = Rig(AIMConfig(schedule="single"), lag=None)
    for _ in range(RING_SIZE + 3):
        rig.controller._engine.observe_(torch.tensor(1.0))
    with pytest.raises(RuntimeError, match="were overwritten before they were read"):
        rig.controller.drain()


def test_a_dead_device_is_an_error_and_not_a_hang() -> None:
    rig = Rig(AIMConfig(s_init=2), lag=1 << 30, timeout=0.05)
    rig.controller.mailbox._check_device = lambda: False
    rig.controller.observe(torch.tensor(1.0))
    assert rig.controller.due() is False  # known without a record
    rig.controller.observe(torch.tensor(1.0))
    with pytest.raises(TimeoutError, match=r"no record from the device within 0\.05 s"):
        rig.controller.due()


def test_an_idle_device_that_posted_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "_IDLE_FOR", 0.05)
    rig = Rig(AIMConfig(s_init=2), lag=1 << 30)
    rig.controller.mailbox._check_device = lambda: True  # as after a replay that was forgotten
    rig.controller.observe(torch.tensor(1.0))
    rig.controller.due()
    rig.controller.observe(torch.tensor(1.0))
    with pytest.raises(RuntimeError, match=r"nothing to do for 0\.05 s and record 2 is not there"):
        rig.controller.due()


def test_what_the_device_check_raises_reaches_the_caller() -> None:
    def lost() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    rig = Rig(AIMConfig(s_init=2), lag=1 << 30)
    rig.controller.mailbox._check_device = lost
    rig.controller.observe(torch.tensor(1.0))
    rig.controller.due()
    rig.controller.observe(torch.tensor(1.0))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        rig.controller.due()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        rig.controller.begin_task("next", 1)


def test_a_wait_leaves_other_threads_running() -> None:
    """Of the two ways to give way, the one that never sleeps: it must give the lock away."""
    go, ran, before = threading.Event(), threading.Event(), sys.getswitchinterval()
    thread = threading.Thread(target=lambda: go.wait() and ran.set())
    thread.start()
    sys.setswitchinterval(600.0)  # no thread is made to give it away
    try:
        go.set()
        for _ in range(100_000):
            mailbox.give_way(0.0)
            if ran.is_set():
                break
    finally:
        sys.setswitchinterval(before)
    assert ran.is_set()
    thread.join()


def test_a_long_wait_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(mailbox.time, "sleep", slept.append)
    for waited in (0.0, 0.9e-3, 1.1e-3, 60.0):
        mailbox.give_way(waited, pause=2e-4)
    assert slept == ([2e-4, 2e-4] if os.name == "posix" else [2e-4] * 4)
