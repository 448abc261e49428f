"""Random runs: merges asked for, roll-backs, weights that explode, and restarts in between.

The same run without any restart, and on the other backend, must end with the same bits, the same
events and the same state.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from aimmerge_fast.controller import MergeRejected
from aimmerge_fast.events import to_json
from tests import checkpoints
from tests.backends import USABLE
from tests.checkpoints import require_equal, through_json
from tests.loops import Loop


def settings(dice: random.Random) -> dict[str, Any]:
    schedule = dice.choice([*["adaptive"] * 5, "fixed", "random", "rapid+", "single", "monitor"])
    fields: dict[str, Any] = {
        "policy": dice.choice(["paper", "released"]),
        "schedule": schedule,
        "s_init": dice.randint(2, 5),
        "s_max": 9,
        "f_max": dice.randint(1, 3),
        "gamma_forget": 1.02,
        "probe": dice.choice(["before", "after", "in_batch"]),
        "memory_optimizer": dice.choice(["shared", "separate", "snapshot"]),
        "probe_dropout": dice.random() < 0.7,
        "max_grad_norm": dice.choice([None, 0.5]),
        "on_reject": dice.choice(["raise", "continue"]),
    }
    if schedule != "monitor":
        fields["merge_at_task_end"] = dice.random() < 0.5
    if schedule == "random":
        fields["s_hi"] = 6
    return fields


class Run:
    """Two tasks of 25 updates; what happens beside them depends on ``seed`` alone."""

    def __init__(self, seed: int, backend: str, *, restarts: bool) -> None:
        self.dice, self.when = random.Random(seed), random.Random(-1 - seed)
        self.fields, self.backend = settings(self.dice), backend
        self.results: list[Any] = []
        self.events: list[str] = []
        self.loop = self.new_loop()
        torch.manual_seed(7)
        for task in ("one", "two"):
            self.enter(task)
            for _ in range(25):
                self.update()
                if restarts and self.when.random() < 0.2:
                    self.restart(task)
            self.within.__exit__(None, None, None)
        self.events += map(to_json, self.loop.merger.events)
        self.end = checkpoints.save(self.loop)

    def new_loop(self) -> Loop:
        return Loop(lr=0.02, keywords={"backend": self.backend}, **self.fields)

    def enter(self, task: str) -> None:
        self.within = self.loop.merger.task(task, self.loop.memory)
        self.within.__enter__()

    def restart(self, task: str) -> None:
        saved = checkpoints.save(self.loop)
        self.events += map(to_json, self.loop.merger.events)
        self.loop = self.new_loop()
        checkpoints.load(self.loop, saved | {"merger": through_json(saved["merger"])})
        self.enter(task)

    def update(self) -> None:
        act, loss = self.dice.random(), torch.tensor(1.0 + 0.1 * self.dice.random())
        self.loop.update()
        if act < 0.05:
            with torch.no_grad():
                self.loop.parameters[0][0, 0] = float("nan")
        try:
            given = (loss,) if self.fields["probe"] == "in_batch" else ()
            self.results.append(self.loop.merger.step(*given))
            if act > 0.9 and self.loop.merger.controller.host.t and self.may_merge():
                self.merge(abandon=act > 0.97)
        except MergeRejected as error:
            self.results.append(str(error))
        exploded = not all(bool(torch.isfinite(p).all()) for p in self.loop.parameters)
        if exploded or 0.1 < act < 0.2:
            self.loop.merger.rollback()

    def may_merge(self) -> bool:
        return self.fields["schedule"] != "monitor"

    def merge(self, *, abandon: bool) -> None:
        merger, rehearsal = self.loop.merger, self.loop.merger.rehearsal
        assert rehearsal is not None
        merger.open_merge()
        with rehearsal.memory_phase():
            rehearsal.memory_step()
        merger.rollback() if abandon else merger.close_merge()


@pytest.mark.parametrize("seed", range(25))
def test_restarts_and_backends_change_nothing(seed: int) -> None:
    whole = Run(seed, USABLE[0], restarts=False)
    others = [Run(seed, USABLE[0], restarts=True)]
    others += [Run(seed, backend, restarts=False) for backend in USABLE[1:]]
    for other in others:
        assert other.results == whole.results
        assert other.events == whole.events
        require_equal(other.end, whole.end)
