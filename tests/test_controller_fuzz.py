"""The controllers of the backends stay equal, byte for byte, whatever they are fed.

Random configurations from the ends of their ranges, losses and changes of any value and dtype,
rejected halves, new tasks, re-started intervals, saved and loaded states. After each run the whole
state and every record in the ring are compared.
"""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aimmerge_fast import kernels
from aimmerge_fast.config import MAX_MERGE_AT, MAX_WINDOW, SCHEDULES, AIMConfig
from aimmerge_fast.events import CODES
from aimmerge_fast.kernels import layout
from tests.backends import USABLE
from tests.tables import examples

pytestmark = pytest.mark.usefixtures("one_thread")
OTHERS = [name for name in USABLE if name != "eager"]
STEPS, LONGEST = 50, 1 << 24
_VALUES = [math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 1e-310, 0.0, -0.0]
_ORDINARY = [0.25, 0.5, 0.500001, 1.0, 1.0, 1.0, 2.0, 2.000001, 5.0]
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LOSSES = [torch.tensor(v, dtype=d) for v in (*_VALUES, *_ORDINARY * 4) for d in _DTYPES]
CHANGES = [0.0, 5e-324, 1e-310, 1.0, 1.0, 1.5, 2.0, 7.0, 1e300, 1e308, math.inf]
COUNTS = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 3e9, 1e300]


def random_config(draw: random.Random) -> AIMConfig:
    policy = draw.choice(["paper", "released"])
    schedule = draw.choice([*["adaptive"] * 6, *SCHEDULES])
    s_min = draw.choice([1, 2, draw.randint(1, 9)])
    s_init = s_min + draw.choice([0, 1, draw.randint(0, 20)])
    fields: dict[str, Any] = {"policy": policy, "schedule": schedule, "s_min": s_min}
    fields |= {"s_init": s_init, "s_max": draw.choice([s_init, s_init + 30, LONGEST])}
    fields |= {"gamma_forget": draw.choice([5e-324, 0.5, 1.0, 2.0, 1e308])}
    fields |= {"f_max": draw.choice([1, 2, 3, LONGEST]), "s_switch": draw.choice([2, 8, 64])}
    fields |= {"seed": draw.getrandbits(63)}
    if schedule == "random":
        fields["s_hi"] = draw.choice([s_min, s_min + 5, LONGEST])
    if schedule == "at":
        steps = draw.sample(range(1, 2 * STEPS), draw.choice([1, 10, MAX_MERGE_AT]))
        fields["merge_at"] = tuple(sorted(steps))
    if schedule != "monitor" and draw.random() < 0.2:
        fields["alpha_new"] = draw.choice([0.0, 1.0, draw.random()])
    if policy == "released":
        fields |= {"cold_start": draw.choice([0, 1, 3]), "s_weight": draw.choice([1, 9, 70])}
        fields |= {"adaptive": draw.random() < 0.9, "outer_init": draw.choice([1, 7, LONGEST])}
        return AIMConfig(**fields)
    for name in ("plus_small", "minus_small", "plus_large", "minus_large"):
        fields[f"gamma_{name}"] = draw.choice([1.0, 1.5, 2.0, 1.0 + draw.random(), 1e308])
    fields |= {"window": draw.choice([1, 2, 3, MAX_WINDOW, draw.randint(1, MAX_WINDOW)])}
    fields |= {"p_new_cold": draw.choice([0.0, 1.0, draw.random()])}
    if schedule == "adaptive" and draw.random() < 0.3:
        fields[draw.choice(["use_learning_signal", "use_forgetting_signal"])] = False
    elif schedule == "adaptive" and "alpha_new" not in fields:
        fields["alpha_floor"] = draw.choice([0.0, 0.0, 5e-324, 0.5, draw.random() / 2])
    return AIMConfig(**fields)


def partials(draw: random.Random) -> torch.Tensor:
    rows = [
        (draw.choice(CHANGES), draw.choice(COUNTS)) for _ in range(draw.choice([1, 1, 1, 0, 4]))
    ]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)


class Run:
    """One controller on one backend, led by a random generator."""

    def __init__(self, backend: str, seed: int) -> None:
        self.draw = random.Random(seed)
        self.state = kernels.new_state(random_config(self.draw), task=seed % 3)
        self.fields = kernels.read_state(self.state)["state"]
        self.engine = kernels.engine(
            backend, [], kernels.new_arena([]), kernels.new_arena([]), self.state
        )
        self.merges = 0

    def step(self) -> None:
        draw, chance = self.draw, self.draw.random()
        if chance < 0.01:
            kernels.begin_task(self.state, draw.randint(0, 5))
        elif chance < 0.02:
            kernels.restart_interval(
                self.state, steps=draw.randint(0, 9), t=draw.randint(0, 4), F=1
            )
        elif chance < 0.03:
            kernels.load_state(self.state, kernels.save_state(self.state))
        self.engine.observe_(draw.choice(LOSSES))
        decided = CODES[self.fields["code"]]
        if decided.startswith("merge_") or decided == "measure" or draw.random() < 0.02:
            self.engine.advance_(partials(draw))
            self.engine.advance_(partials(draw))
            self.merges += 1

    def check(self) -> None:
        s = self.fields
        assert 1 <= s["S"] <= LONGEST
        assert 0 <= s["t"]
        assert 0 <= s["F"]
        assert 0.0 <= s["alpha1"] <= 1.0
        assert 0.0 <= s["alpha2"] <= 1.0
        assert s["phase"] == layout.IDLE

    def bytes(self) -> bytes:
        state = kernels.save_state(self.state)
        layout.block(state)["state"]["ring"] = 0
        return bytes(state.numpy().tobytes())


def explain(a: Run, b: Run) -> str:
    """The first record, or else the fields of the state, in which they differ."""
    for one, other in zip(kernels.ring(a.state), kernels.ring(b.state), strict=True):
        if one.tobytes() != other.tobytes():
            return f"records {dict(zip(one.dtype.names, one, strict=True))} and {other}"
    names = [n for n in layout.STATE.names or () if n != "ring"]
    return f"states differ in {[n for n in names if (a.fields[n] != b.fields[n]).any()]}"


@pytest.mark.parametrize("backend", OTHERS)
@examples(2000)
@given(seed=st.integers(0, (1 << 32) - 1))
def test_random_runs(backend: str, seed: int) -> None:
    runs = [Run(name, seed) for name in ("eager", backend)]
    for run in runs:
        for _ in range(STEPS):
            run.step()
        run.check()
    assert runs[0].bytes() == runs[1].bytes(), explain(*runs)


@pytest.mark.parametrize("backend", OTHERS)
def test_the_ring_turns(backend: str) -> None:
    """More records than the ring holds: the newest stay, each in its slot."""
    runs = [Run(name, 12) for name in ("eager", backend)]
    for run in runs:
        while run.fields["sequence"] <= layout.RING_SIZE + 100:
            run.step()
        newest = int(run.fields["sequence"])
        numbers = np.sort(kernels.ring(run.state)["sequence"])
        assert (numbers == np.arange(newest - layout.RING_SIZE, newest) + 1).all()
        slot = (newest - 1) % layout.RING_SIZE
        assert kernels.ring(run.state)["sequence"][slot] == newest
    assert runs[0].bytes() == runs[1].bytes(), explain(*runs)


def test_runs_reach_what_they_are_for() -> None:
    codes, merges, rejects = set(), 0, 0
    for seed in range(150):
        run = Run(USABLE[0], seed)
        for _ in range(STEPS):
            run.step()
            codes.add(CODES[run.fields["code"]])
        records = kernels.ring(run.state)
        codes |= {CODES[code] for code in records["code"][records["sequence"] > 0] if code < 16}
        merges, rejects = merges + run.merges, rejects + int((records["reject"] > 0).sum())
    assert codes == set(CODES) - {"merge_final"}  # that one is no decision of a step
    assert merges > 1_000
    assert rejects > 100
