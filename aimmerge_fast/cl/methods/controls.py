"""Merges without adaptation, alpha = (1/2, 1/2): controls of the method."""

from __future__ import annotations

import dataclasses
import random
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from aimmerge_fast.cl.config import RunConfig
from aimmerge_fast.cl.methods.aim import AIMMerging
from aimmerge_fast.cl.methods.base import Stage, Trainee
from aimmerge_fast.config import AIMConfig


class Control(AIMMerging):
    """``match`` names an arm of the same seed that comes before: in each task as many merges.

    The run resolves it into ``counts``, merges by task. Every stage then has a merger of its own
    with schedule ``at``, or ``monitor`` where there is nothing to merge.
    """

    #: Settings that say when to merge, which ``match`` does.
    overridden: ClassVar[tuple[str, ...]] = (
        *("s_init", "s_min", "s_max", "s_hi", "merge_at", "merge_at_task_end"),
    )

    def __init__(self, trainee: Trainee, settings: Mapping[str, Any]) -> None:
        super().__init__(trainee, {k: v for k, v in settings.items() if k != "counts"})
        self.settings = dict(settings)
        self._saved: dict[str, Any] | None = None
        self._in_stage = False

    @classmethod
    @abstractmethod
    def places(cls, count: int, steps: int, key: str) -> list[int]:
        """The ``count`` updates of 1 to ``steps`` after which to merge; ``key``: seed and task."""

    @classmethod
    def stage_config(
        cls, settings: Mapping[str, Any], config: RunConfig, seed: int, name: str, steps: int
    ) -> AIMConfig:
        own = {k: v for k, v in settings.items() if k != "counts"}
        made = cls.aim_config(own, config, seed)
        if "counts" not in settings:
            return made
        count = settings["counts"].get(name, 0)
        if count > steps:
            raise ValueError(f"task {name!r}: {count} merges do not fit into {steps} updates")
        fields: dict[str, Any] = {"s_init": None, "s_hi": None}
        if not count:
            return dataclasses.replace(made, schedule="monitor", alpha_new=None, **fields)
        places = tuple(cls.places(count, steps, f"{seed}/{name}"))
        return dataclasses.replace(made, schedule="at", merge_at=places, **fields)

    def task(self, stage: Stage, index: int) -> AbstractContextManager[Any]:
        if "counts" in self.settings:
            run, seed = self.trainee.config, self.trainee.seed
            steps = run.steps_for(len(stage.records()), len(stage.tasks))
            self.config = self.stage_config(self.settings, run, seed, stage.name, steps)
            self.merger = self._new_merger()
            self.merger.position.tasks_begun = index  # draws of the memory are by stage
            self._in_stage = True
            if self._saved is not None:
                self.merger.load_state_dict(self._saved)
                self._saved = None
        return super().task(stage, index)

    def end_stage(self, stage: Stage, index: int) -> None:
        self._in_stage = False

    def state_dict(self) -> dict[str, Any]:
        if "counts" not in self.settings:
            return super().state_dict()
        merger = self.merger.state_dict() if self._in_stage else self._saved
        return {"merger": merger, "merges": self._merges}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if "counts" not in self.settings:
            super().load_state_dict(state)
            return
        self._merges = state["merges"]
        self._saved = dict(state["merger"]) if state["merger"] is not None else None


class FixedInterval(Control):
    """A merge every ``s_init`` updates; with ``match`` n merges at round(k T / n), k = 1 to n."""

    label = "fixed interval"
    summary = "control: merges every s_init updates"
    fixed: ClassVar[Mapping[str, Any]] = {"schedule": "fixed"}

    @classmethod
    def places(cls, count: int, steps: int, key: str) -> list[int]:
        return [round(k * steps / count) for k in range(1, count + 1)]


class RandomInterval(Control):
    """Intervals uniform in [s_min, s_hi] [s_hi = 14, mean 8]; with ``match`` n of the T updates."""

    label = "random intervals"
    summary = "control: merges at random intervals"
    fixed: ClassVar[Mapping[str, Any]] = {"schedule": "random"}

    @classmethod
    def aim_config(cls, settings: Mapping[str, Any], config: RunConfig, seed: int) -> AIMConfig:
        return super().aim_config({"s_hi": 14, **settings}, config, seed)

    @classmethod
    def places(cls, count: int, steps: int, key: str) -> list[int]:
        return sorted(random.Random(key).sample(range(1, steps + 1), count))
