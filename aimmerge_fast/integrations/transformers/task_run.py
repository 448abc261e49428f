"""One task on one trainer: a merger over what the trainer trains, entered, stepped and left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from accelerate.optimizer import AcceleratedOptimizer
from transformers import Trainer

from aimmerge_fast.config import AIMConfig
from aimmerge_fast.events import Event
from aimmerge_fast.integrations.transformers.checkpoints import TrainerCheckpoints, restore_memory
from aimmerge_fast.integrations.transformers.metrics import Metrics
from aimmerge_fast.integrations.transformers.records import plain, rows_collate
from aimmerge_fast.memory import RehearsalMemory
from aimmerge_fast.merger import FastAIMMerger
from aimmerge_fast.passes import Collate, LossFn


@dataclasses.dataclass(frozen=True)
class Settings:
    """What stays the same over a stream.

    Attributes:
        collate: of memory records; None takes the trainer's.
        keywords: further ones of ``FastAIMMerger``.
        sink: called with every event.
    """

    config: AIMConfig
    memory: RehearsalMemory
    collate: Collate | None
    keywords: dict[str, Any]
    sink: Callable[[Event], None]


class TaskRun:
    """From ``attach`` to the end of ``train()``.

    Attributes:
        merger: None before the training begins.
        checkpoints: None for a merger beside others: a checkpoint has room for the state of one.
        context: the entered ``merger.task``; None before and after.
        tasks_before: finished tasks of the stream.
        stopped: a just-in-time checkpoint was written, so the training ends early.
    """

    def __init__(
        self,
        settings: Settings,
        trainer: Trainer,
        task: str,
        loss_fn: LossFn,
        checkpoints: TrainerCheckpoints | None,
    ) -> None:
        self.trainer, self.task = trainer, task
        self.metrics = Metrics()
        self.checkpoints = checkpoints
        self.merger: FastAIMMerger | None = None
        self.context: AbstractContextManager[Any] | None = None
        self.tasks_before = 0
        self.stopped = False
        self._settings, self._loss_fn = settings, loss_fn
        self._updates_before = 0  # of the trainer, that the merger has not seen

    def begin(self, optimizer: Any, loader: Any, tasks_before: int) -> None:
        """Build the merger and enter the task, where a checkpoint left it if one is resumed.

        The files of earlier trainings are as they were when it raises.

        Raises:
            ValueError: the checkpoint is of another task, or of one that had reached its end; or
                the memory is not what it has to be there.
        """
        trainer = self.trainer
        trainer.model_wrapped.train()  # the Trainer does it later, in its first step
        self.tasks_before, self._updates_before = tasks_before, trainer.state.global_step
        saved = self.checkpoints.find() if self.checkpoints is not None else None
        if saved is not None:
            self._go_on(saved)
        elif tasks_before and not len(self._settings.memory):
            raise ValueError(
                f"task {self.task!r}: the memory is empty though a task was trained before; call "
                "memory.add(name, trainer.train_dataset) after each trainer.train()"
            )
        try:
            self._enter(self._build(optimizer, loader), saved)
            if self.checkpoints is not None:
                self.checkpoints.own()
            if self._updates() + 1 == trainer.state.global_step:
                self.step()  # the checkpoint was written between an update and our step
        except BaseException as error:
            self.leave(error)
            raise

    def _go_on(self, saved: dict[str, Any]) -> None:
        """Take what the task began with from a checkpoint."""
        state, merger, memory = self.trainer.state, saved["merger"], self._settings.memory
        if saved["task"] != self.task:
            raise ValueError(
                f"the checkpoint is of task {saved['task']!r}, not {self.task!r}; attach that one, "
                "or give this task an output_dir of its own"
            )
        if not merger["in_task"] and state.global_step < state.max_steps:
            raise ValueError(
                f"task {self.task!r} ended with the merge that the config asks for at its end, so "
                "it cannot be trained further; train on as a new task"
            )
        rehearsed = merger["rehearsal"] is not None
        if merger["in_task"] and len(memory) and not rehearsed:
            raise ValueError(
                f"task {self.task!r} was saved with an empty memory, and this one has "
                f"{len(memory)} records; add them after the task that they are of"
            )
        restore_memory(memory, saved)
        if merger["in_task"] and rehearsed and not len(memory):
            raise ValueError(
                f"task {self.task!r} was saved with a memory of records that a checkpoint cannot "
                "hold; add the same records, in the same order, before the training"
            )
        self.tasks_before, self._updates_before = saved["tasks_done"], saved["updates_before"]

    def _enter(self, merger: FastAIMMerger, saved: dict[str, Any] | None) -> None:
        if saved is not None:
            merger.load_state_dict(saved["merger"])
            self.metrics.merges = saved["merges"]
        self.merger = merger
        if saved is None or saved["merger"]["in_task"]:
            context = merger.task(self.task, self._settings.memory)
            context.__enter__()
            self.context = context

    def step(self) -> None:
        """One update was made: probe, and merge where it is due."""
        if self.merger is None or self.context is None or self.stopped:
            return
        try:
            self.merger.step()
        except BaseException as error:
            self.leave(error)
            raise

    def end(self) -> None:
        """Leave the task as one that is done; what is unfinished is merged where the config asks.

        An evaluation may have been the last to run the model: memory steps need it to train.
        """
        context, self.context = self.context, None
        if context is None:
            return
        model = self.trainer.model_wrapped
        training = model.training
        if self.merges_at_end:
            model.train()
        context.__exit__(None, None, None)
        if not training:
            model.eval()

    def release(self) -> None:
        """Leave the trainer as it was found."""
        if self.checkpoints is not None:
            self.checkpoints.end()

    def leave(self, why: BaseException) -> None:
        """Leave the task, if it is entered, as one that did not reach its end."""
        context, self.context = self.context, None
        self.release()
        if context is not None:
            context.__exit__(type(why), why, None)

    @property
    def merges_at_end(self) -> bool:
        config = self._settings.config
        return config.schedule == "single" or config.merge_at_task_end

    def note_stop(self, event: str) -> None:
        """Seal a checkpoint that was written just in time; from then on the task stands still."""
        if self.merger is None or self.checkpoints is None:
            return
        if self.checkpoints.after_jit(self.tree, event):
            self.stopped = True

    def seal(self) -> None:
        """Complete the checkpoint that the trainer has just written."""
        if self.checkpoints is not None:
            self.checkpoints.seal(self.tree)

    def tree(self) -> dict[str, Any]:
        """What a checkpoint of the trainer needs beside its own files, on this rank."""
        assert self.merger is not None
        return {
            "merger": self.merger.state_dict(),
            "memory": plain(self._settings.memory),
            "task": self.task,
            "tasks_done": self.tasks_before,
            "updates_before": self._updates_before,
            "merges": self.metrics.merges,
        }

    def _updates(self) -> int:
        """Updates of the trainer that the merger has counted, or that came before it."""
        assert self.merger is not None
        return self._updates_before + self.merger.controller.host.steps

    def _build(self, optimizer: Any, loader: Any) -> FastAIMMerger:
        """A merger over what the trainer trains now: its optimizer is new in every ``train()``."""
        settings, trainer = self._settings, self.trainer
        if isinstance(optimizer, AcceleratedOptimizer):
            optimizer = optimizer.optimizer
        return FastAIMMerger(
            trainer.model_wrapped,
            _clipped(settings.config, trainer.args.max_grad_norm),
            optimizer=optimizer,
            collate=settings.collate or rows_collate(loader),
            loss_fn=self._loss_fn,
            scaler=trainer.accelerator.scaler,
            callbacks=[settings.sink, self.metrics],
            micro_batch=trainer.args.per_device_train_batch_size,
            tasks_before=self.tasks_before,
            **settings.keywords,
        )


def _clipped(config: AIMConfig, max_grad_norm: float | None) -> AIMConfig:
    """Memory steps are clipped as the training is, unless the config says otherwise."""
    if config.max_grad_norm is not None or not max_grad_norm:
        return config
    return dataclasses.replace(config, max_grad_norm=float(max_grad_norm))
