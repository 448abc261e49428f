"""The controllers (plain Python of the reference, eager, native) agree on random traces.

Three implementations of one text, written apart; every step and merge must be equal, floats to the
last bit. The traces mix ordinary losses with ties, infinities and NaN, and merges with rejections.
"""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from aimmerge_fast.config import SCHEDULES, AIMConfig
from aimmerge_fast.reference.controller import reference_controller
from tests.backends import USABLE, BackendController

RUNS, STEPS = 120, 100
LOSSES = [math.nan, math.inf, -math.inf, 1e308, 0.0, -1.0]
CHANGES = [0.0, 10.0, 20.0, 1e300, math.inf]


def random_config(draw: random.Random, policy: str) -> AIMConfig:
    schedule = draw.choice(["adaptive"] * 5 + list(SCHEDULES))
    s_min = draw.randint(1, 5)
    s_init = draw.randint(s_min, 20)
    fields: dict[str, Any] = {
        "policy": policy,
        "schedule": schedule,
        "s_min": s_min,
        "s_init": s_init,
        "s_max": draw.randint(s_init, 200),
        "gamma_forget": draw.choice([0.5, 1.0, 1.2, 2.0]),
        "f_max": draw.randint(1, 5),
        "s_switch": draw.choice([2, 8, 16, 64]),
    }
    if schedule == "random":
        fields["s_hi"] = draw.randint(s_min, 30)
    if schedule == "at":
        fields["merge_at"] = tuple(sorted(draw.sample(range(1, STEPS), draw.randint(1, 10))))
    if draw.random() < 0.2 and schedule != "monitor":
        fields["alpha_new"] = draw.random()
    elif policy == "paper" and schedule == "adaptive" and draw.random() < 0.2:
        fields["alpha_floor"] = draw.random() / 2
    if policy == "released":
        fields |= {"cold_start": draw.randint(0, 4), "s_weight": draw.choice([4, 70])}
        fields |= {"adaptive": draw.random() < 0.8, "outer_init": draw.randint(1, 20)}
    else:
        fields |= {"window": draw.choice([1, 2, 3, 8, 32]), "p_new_cold": draw.choice([0.0, 1.0])}
        if schedule == "adaptive" and "alpha_floor" not in fields and draw.random() < 0.3:
            fields[draw.choice(["use_learning_signal", "use_forgetting_signal"])] = False
    return AIMConfig(**fields)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    return type(a) is type(b) and bool(a == b)


def run(draw: random.Random, config: AIMConfig, backend: str) -> tuple[int, int]:
    """Drive both through one random trace; returns how many steps and merges were compared."""
    task, merges = draw.randint(0, 5), 0
    oracle: Any = reference_controller(config, task=task)
    controller = BackendController(config, backend, task=task)
    for step in range(STEPS):
        loss = draw.choice(LOSSES) if draw.random() < 0.15 else draw.choice([draw.random(), 0.5])
        code, expected = controller.observe(loss), oracle.observe(loss)
        assert code == expected, f"step {step}: {code}, expected {expected}; {config}"
        for name in ("t", "S", "F", "threshold"):
            assert same(getattr(controller, name), getattr(oracle, name)), f"step {step}: {name}"
        if not (code.startswith("merge_") or code == "measure" or draw.random() < 0.03):
            continue
        merges += 1
        if config.schedule != "monitor" and draw.random() < 0.1:
            controller.reject()
            oracle.reject()
            continue
        change = draw.choice(CHANGES) if draw.random() < 0.3 else 100 * draw.random()
        got, wanted = controller.merge(change), oracle.merge(change)
        wrong = [name for name in wanted if not same(got[name], wanted[name])]
        assert set(got) == set(wanted)
        assert not wrong, f"step {step}: {wrong[0]} {got[wrong[0]]} {wanted[wrong[0]]}; {config}"
    return STEPS, merges


@pytest.mark.parametrize("backend", USABLE)
@pytest.mark.parametrize("policy", ["paper", "released"])
def test_random_traces(policy: str, backend: str) -> None:
    draw = random.Random(f"{policy} {backend}")
    counts = [run(draw, random_config(draw, policy), backend) for _ in range(RUNS)]
    assert sum(steps for steps, _ in counts) == RUNS * STEPS
    assert sum(merges for _, merges in counts) > 5 * RUNS
