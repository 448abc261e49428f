"""The run-ahead rule, exhaustively: never a wrong verdict, never a wait that was not needed.

For every interval S, limit F_max and record (t_s, F_s) that the host may hold, all losses that the
device may see from there on are tried. The device is the eager controller on injected states; each
of its steps is checked against the reference controller too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.kernels.eager_controller import is_merge, observe_step
from aimmerge_fast.reference.controller import reference_controller
from aimmerge_fast.runahead import RunAhead, Verdict

INTERVALS = (*range(1, 34), 48, 64, 65, 97, 128)
LIMITS = range(1, 9)
#: The collected losses are all 1, so the threshold is 2: quiet, on it, above it, not finite.
LOSSES = (1.0, 2.0, 3.0, math.nan)

#: What decides an interval beside S and t: activations, and whether a finite loss was collected.
Inner = tuple[int, int]
Step = Callable[[int, Inner, float], tuple[Inner, bool]]


@functools.cache
def plain_block(config: AIMConfig) -> dict[str, dict[str, Any]]:
    """A state tensor's fields as plain numbers: the transitions are the same and much faster."""
    shared = kernels.read_state(kernels.new_state(config))
    return {
        part: {name: shared[part][name].tolist() for name in shared[part].dtype.names}
        for part in ("config", "state")
    }


def device(config: AIMConfig, S: int) -> Step:
    """``step(t, inner, loss)``: the inner state after step t of an interval, and if it merges."""
    block = plain_block(config)
    state = block["state"]
    twin: Any = reference_controller(config)

    @functools.cache
    def step(t: int, inner: Inner, loss: float) -> tuple[Inner, bool]:
        F, samples = inner
        judges = config.policy == "released" or config.use_forgetting_signal
        last = 2 * S // 3 + 1 if config.policy == "released" else max(1, 2 * S // 3)
        known = judges and t > last and samples > 0
        state.update(S=S, t=t - 1, F=F, sum=float(samples), samples=samples, code=0)
        state.update(threshold=2.0, has_threshold=int(known))
        observe_step(block, [None], loss)
        merges = is_merge(state["code"])
        twin.S, twin.t, twin.F, twin._sum, twin._count = S, t - 1, F, float(samples), samples
        twin.threshold = 2.0 if known else None
        assert twin.observe(loss).startswith("merge_") == merges
        assert twin.F == state["F"]
        return (state["F"], min(1, state["samples"])), merges

    return step


def futures(step: Step) -> Callable[[int, set[Inner]], tuple[set[Inner], set[bool]]]:
    """``futures(t, inners)``: inner states that go on after step t, and its possible decisions."""

    @functools.cache
    def of_one(t: int, inner: Inner) -> tuple[set[Inner], set[bool]]:
        results = {step(t, inner, loss) for loss in LOSSES}
        return {state for state, merges in results if not merges}, {m for _, m in results}

    def of_all(t: int, inners: set[Inner]) -> tuple[set[Inner], set[bool]]:
        ahead, decisions = zip(*(of_one(t, inner) for inner in inners), strict=True)
        return set().union(*ahead), set().union(*decisions)

    return of_all


def check_interval(config: AIMConfig, S: int, longest: int) -> dict[Verdict, int]:
    """Every record the host may hold in an interval S, every step it may be used at."""
    proceed = futures(device(config, S))
    host = RunAhead(config)
    verdicts = dict.fromkeys(Verdict, 0)
    reached: set[Inner] = {(0, 0)}
    for t_s in range(longest):
        for F_s in {F for F, _ in reached}:
            inners = {inner for inner in reached if inner[0] == F_s}
            host.begin_interval(S)
            host.learn(t_s, F_s)
            for t in range(t_s + 1, longest + 1):
                host.t = t
                inners, decisions = proceed(t, inners)
                verdict = host.verdict()
                verdicts[verdict] += 1
                expected = {
                    frozenset({False}): Verdict.IMPOSSIBLE,
                    frozenset({True}): Verdict.CERTAIN,
                }.get(frozenset(decisions), Verdict.WAIT)
                assert verdict is expected, f"S={S}, F_max={config.f_max}, {(t_s, F_s)}, t={t}"
                if verdict is not Verdict.IMPOSSIBLE:
                    break
        reached = proceed(t_s + 1, reached)[0] if reached else reached
    return verdicts


def check_all(limits: range, longest: Callable[[int], int], **fields: Any) -> dict[Verdict, int]:
    total = dict.fromkeys(Verdict, 0)
    for f_max in limits:
        config = AIMConfig(f_max=f_max, **fields)
        for S in INTERVALS:
            for verdict, count in check_interval(config, S, longest(S)).items():
                total[verdict] += count
    return total


@pytest.mark.parametrize("policy", ["paper", "released"])
def test_policies(policy: str) -> None:
    verdicts = check_all(LIMITS, lambda S: 2 * S, policy=policy)
    print(policy, verdicts)
    assert sum(verdicts.values()) > 30_000
    assert min(verdicts.values()) > 2_000


def test_without_learning_signal_the_first_activation_is_never_certain() -> None:
    verdicts = check_all(range(1, 4), lambda S: 3 * S + 2, use_learning_signal=False)
    print(verdicts)
    assert sum(verdicts.values()) > 2_900
    assert verdicts[Verdict.CERTAIN] == 0


def test_without_forgetting_signal_nothing_is_waited_for() -> None:
    verdicts = check_all(range(1, 4), lambda S: S, use_forgetting_signal=False)
    assert sum(verdicts.values()) > 4_400
    assert verdicts[Verdict.WAIT] == 0


def test_the_record_of_the_step_itself_decides() -> None:
    """Having read record t, a WAIT at t costs nothing; anything else must be right."""
    for policy in ("paper", "released"):
        for f_max in (1, 3):
            config = AIMConfig(policy=policy, f_max=f_max)
            for S in (1, 2, 5, 8, 13):
                step, reached = device(config, S), {(0, 0)}
                for t in range(1, 2 * S + 1):
                    for inner in reached:
                        for loss in LOSSES:
                            (F, _), merges = step(t, inner, loss)
                            host = RunAhead(config)
                            host.begin_interval(S)
                            host.t = t
                            host.learn(t, F)
                            allowed = Verdict.CERTAIN if merges else Verdict.IMPOSSIBLE
                            assert host.verdict() in (allowed, Verdict.WAIT)
                    reached, _ = futures(step)(t, reached)


SCHEDULES: list[dict[str, Any]] = [
    {"schedule": "monitor"},
    {"schedule": "fixed"},
    {"schedule": "rapid+"},
    {"schedule": "slow+"},
    {"schedule": "random", "s_hi": 12},
    {"schedule": "at", "merge_at": (3, 4, 50, 200)},
    {"schedule": "single"},
]


@pytest.mark.parametrize("policy", ["paper", "released"])
@pytest.mark.parametrize("fields", SCHEDULES, ids=lambda fields: fields["schedule"])
def test_schedules_are_known_without_a_record(fields: dict[str, Any], policy: str) -> None:
    config = AIMConfig(policy=policy, **fields)
    controller = reference_controller(config)
    host = RunAhead(config)
    host.begin_task(controller.S)
    merges = 0
    for step in range(300):
        code = controller.observe(1.0 + step % 7)
        host.count_step()
        acts = code.startswith("merge_") or code == "measure"
        assert host.verdict() is (Verdict.CERTAIN if acts else Verdict.IMPOSSIBLE)
        if acts:
            assert host.merge_memory_steps() == controller.memory_steps
            merge = controller.merge(1.0 + step % 5)
            host.memory_steps = merge.get("next_memory_steps", 0)
            host.begin_interval(merge["next_S"])
            merges += 1
    assert merges >= {"single": 0, "at": 4}.get(config.schedule, 20)
