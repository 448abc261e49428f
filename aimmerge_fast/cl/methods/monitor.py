"""Watches an arm that does not merge: history loss and learning signal, to the same bits."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from aimmerge_fast.cl.methods.base import Method, Stage, Wrapper
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.events import Event, Probe
from aimmerge_fast.merger import FastAIMMerger


class Monitor(Wrapper):
    """Wraps a method; its own `FastAIMMerger` runs ``schedule="monitor"``, anew in each stage."""

    def __init__(self, inner: Method) -> None:
        super().__init__(inner)
        self.merger: FastAIMMerger | None = None
        self._saved: dict[str, Any] | None = None

    def task(self, stage: Stage, index: int) -> AbstractContextManager[Any]:
        trainee = self.trainee
        batch = trainee.config.batch
        config = AIMConfig(
            schedule="monitor", history_batch=batch, memory_batch=batch, seed=trainee.seed
        )
        self.merger = FastAIMMerger(
            trainee.model,
            config,
            optimizer=trainee.optimizer,
            collate=trainee.collate,
            loss_fn=trainee.loss,
            callbacks=[trainee.emit, self._count],
            process_group=None,
        )
        if self._saved is not None:
            self.merger.load_state_dict(self._saved)
            self._saved = None
        stack = ExitStack()
        stack.enter_context(super().task(stage, index))
        stack.enter_context(self.merger.task(stage.name, memory=trainee.memory))
        return stack

    def after_update(self) -> None:
        super().after_update()
        assert self.merger is not None  # task() was entered
        self.merger.step()

    def end_stage(self, stage: Stage, index: int) -> None:
        super().end_stage(stage, index)
        self.merger = None

    def state_dict(self) -> dict[str, Any]:
        merger = self.merger.state_dict() if self.merger is not None else None
        return {"inner": super().state_dict(), "merger": merger}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state["inner"])
        self._saved = dict(state["merger"]) if state["merger"] is not None else None

    def prepare(self, state: Mapping[str, Any]) -> None:
        super().prepare(state["inner"])

    def _count(self, event: Event) -> None:
        if isinstance(event, Probe):
            rows = self.trainee.rows
            rows["probe"] += min(self.trainee.config.batch, len(self.trainee.memory))
