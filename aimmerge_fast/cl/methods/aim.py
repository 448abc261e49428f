"""AIMMerging and its ablations (Table 3): all of them `FastAIMMerger` at work."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from aimmerge_fast.cl.config import RunConfig
from aimmerge_fast.cl.expected import Expected, expected_merging
from aimmerge_fast.cl.methods.base import Method, Stage, Trainee
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.events import Event, Open, Probe
from aimmerge_fast.fusion import EntryFusion
from aimmerge_fast.merger import FastAIMMerger


class AIMMerging(Method):
    """The method (policy ``paper``). Settings are the fields of ``AIMConfig``."""

    label = "AIMMerging"
    summary = "merges with its recent past at adaptive moments (Eq. 1-8)"
    uses_memory = True
    fixed: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, trainee: Trainee, settings: Mapping[str, Any]) -> None:
        super().__init__(trainee, settings)
        self._merges = 0
        self.config = self.aim_config(settings, trainee.config, trainee.seed)
        self.merger = self._new_merger()

    @classmethod
    def check(cls, settings: Mapping[str, Any], config: RunConfig) -> None:
        found = cls.aim_config(settings, config, config.seeds[0])
        if config.select == "best" and (found.schedule == "single" or found.merge_at_task_end):
            raise ValueError(
                "select='best' takes a state from before the merge at a task's end, which would be "
                "lost; use select='last' with schedule='single' or merge_at_task_end=True"
            )

    @classmethod
    def aim_config(cls, settings: Mapping[str, Any], config: RunConfig, seed: int) -> AIMConfig:
        """The arm's ``AIMConfig``: history and memory batches are the training batch (A.5 #33)."""
        own = {field.name for field in dataclasses.fields(AIMConfig)}
        for name in settings:
            if name in cls.fixed or name not in own | set(cls.defaults):
                known = ", ".join(sorted((own | set(cls.defaults)) - set(cls.fixed)))
                raise ValueError(f"unknown setting {name!r}; this method's settings are {known}")
        if settings.get("probe") == "in_batch":
            raise ValueError("probe='in_batch' needs a loop that hands the history loss over")
        fields = {
            "history_batch": config.batch,
            "memory_batch": config.batch,
            "max_grad_norm": config.max_grad_norm,
            "seed": seed,
            **cls.fixed,
            **settings,
        }
        if fields.get("policy") == "released":
            fields.setdefault("accumulation", config.accumulation)
        return AIMConfig.from_dict({k: v for k, v in fields.items() if k not in cls.defaults})

    @classmethod
    def stage_config(
        cls, settings: Mapping[str, Any], config: RunConfig, seed: int, name: str, steps: int
    ) -> AIMConfig:
        """Of the stage ``name`` of so many updates."""
        return cls.aim_config(settings, config, seed)

    @classmethod
    def expected(
        cls,
        settings: Mapping[str, Any],
        config: RunConfig,
        seed: int,
        index: int,
        name: str,
        steps: int,
    ) -> Expected:
        made = cls.stage_config(settings, config, seed, name, steps)
        return expected_merging(made, index, steps)

    def fusion(self) -> EntryFusion | None:
        """What weighs the entries instead of alpha."""
        return None

    def task(self, stage: Stage, index: int) -> AbstractContextManager[Any]:
        return self.merger.task(stage.name, memory=self.trainee.memory)

    def after_update(self) -> None:
        self.merger.step()

    def state_dict(self) -> dict[str, Any]:
        return {"merger": self.merger.state_dict(), "merges": self._merges}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.merger.load_state_dict(dict(state["merger"]))
        self._merges = state["merges"]

    def merges(self) -> int:
        return self._merges

    def _new_merger(self) -> FastAIMMerger:
        trainee = self.trainee
        return FastAIMMerger(
            trainee.model,
            self.config,
            optimizer=trainee.optimizer,
            collate=trainee.collate,
            loss_fn=trainee.loss,
            callbacks=[trainee.emit, self._count],
            fusion=self.fusion(),
            process_group=None,  # every rank rehearses all rows: ``Ranks`` keeps them equal
        )

    def _count(self, event: Event) -> None:
        rows = self.trainee.rows
        kept = len(self.trainee.memory)
        if isinstance(event, Probe):
            rows["probe"] += min(self.config.history_batch, kept)
            self.trainee.signal(event.S, event.threshold)
        if isinstance(event, Open):
            self._merges += 1
            rows["memory"] += event.memory_steps * min(self.config.memory_batch, kept)


class Released(AIMMerging):
    """AIMMerging as the authors' code does it (policy ``released``)."""

    label = "AIMMerging (released)"
    summary = "AIMMerging as the authors' code does it"
    fixed: ClassVar[Mapping[str, Any]] = {"policy": "released"}


class WithoutLearningSignal(AIMMerging):
    """-LS: S stays s_init, a merge at the first activation, alpha = (1/2, 1/2)."""

    label = "AIMMerging - LS"
    summary = "ablation: no learning signal"
    fixed: ClassVar[Mapping[str, Any]] = {"use_learning_signal": False}


class WithoutForgettingSignal(AIMMerging):
    """-FS: merges exactly at S, S adapted by Eq. 4, alpha = (1/2, 1/2)."""

    label = "AIMMerging - FS"
    summary = "ablation: no forgetting signal"
    fixed: ClassVar[Mapping[str, Any]] = {"use_forgetting_signal": False}


class ManualMerging(AIMMerging):
    """+MGM: constant weights; ``alpha_new`` [0.5] is searched over a grid by hand."""

    label = "AIMMerging + MGM"
    summary = "ablation: constant weights (alpha_new)"

    @classmethod
    def aim_config(cls, settings: Mapping[str, Any], config: RunConfig, seed: int) -> AIMConfig:
        return super().aim_config({"alpha_new": 0.5, **settings}, config, seed)


class SingleMerge(AIMMerging):
    """Control: one merge, at the end of each task."""

    label = "single merge"
    summary = "control: one merge at the end of each task"
    fixed: ClassVar[Mapping[str, Any]] = {"schedule": "single"}
