"""``AIMMergeCallback``: a merger inside the Trainer of transformers, for a stream of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from aimmerge_fast.config import AIMConfig
from aimmerge_fast.events import Event
from aimmerge_fast.fusion import EntryFusion
from aimmerge_fast.integrations.transformers import mark, metrics, refusals
from aimmerge_fast.integrations.transformers.checkpoints import TrainerCheckpoints
from aimmerge_fast.integrations.transformers.loss import loss_of
from aimmerge_fast.integrations.transformers.task_run import Settings, TaskRun
from aimmerge_fast.memory import RehearsalMemory
from aimmerge_fast.merger import FastAIMMerger
from aimmerge_fast.passes import Collate, Items, LossFn
from aimmerge_fast.report import MergeReport, summarise


class Interrupted(RuntimeError):
    """What a task is left with that did not reach its end."""


class AIMMergeCallback(TrainerCallback):
    """AIMMerging in a ``transformers.Trainer`` or one that is built on it.

    ::

        memory = RehearsalMemory(ratio=0.02, seed=42)
        aim = AIMMergeCallback(AIMConfig(), memory=memory)
        for name, dataset in tasks:
            args = SFTConfig(output_dir=f"out/{name}")  # a folder for each task
            trainer = SFTTrainer(model, args=args, train_dataset=dataset, callbacks=[aim])
            aim.attach(trainer, task=name)
            trainer.train()
            memory.add(name, trainer.train_dataset)
        print(aim.report())

    Memory records are rows of the trainer's ``train_dataset``, collated as its batches are. Memory
    steps follow the trainer: its optimizer and learning rate, autocast, GradScaler, at most
    ``per_device_train_batch_size`` records a forward, clipped at ``max_grad_norm`` where the config
    sets none.

    Args:
        config: the method's settings; ``probe="in_batch"`` is refused.
        memory: records of the tasks that are done. Empty in the first task.
        adapters, backend, events, fusion: as of ``FastAIMMerger``.
        loss_fn: (model, batch) -> mean loss, by default the trainer's where the model computes it.
        collate: list of memory records -> batch, by default the trainer's.
        items: (batch) -> number of items its loss is the mean of, as of ``FastAIMMerger``.

    Attributes:
        merger: the ``FastAIMMerger`` of the present task, or of the last one.
        tasks_done: tasks that reached their end.
        interrupted: name of the task that a just-in-time checkpoint cut off, else None.
    """

    def __init__(
        self,
        config: AIMConfig | None = None,
        *,
        memory: RehearsalMemory,
        adapters: str | Sequence[str] | None = None,
        backend: str = "auto",
        loss_fn: LossFn | None = None,
        collate: Collate | None = None,
        items: Items | None = None,
        events: str | Path | None = None,
        fusion: EntryFusion | None = None,
    ) -> None:
        if not isinstance(memory, RehearsalMemory):
            raise TypeError(f"memory must be a RehearsalMemory, got {type(memory).__name__}")
        self.config = config if config is not None else AIMConfig()
        refusals.require_config(self.config)
        self.memory = memory
        self.merger: FastAIMMerger | None = None
        self.tasks_done = 0
        self.interrupted: str | None = None
        self.events: list[Event] = []
        keywords: dict[str, Any] = {"adapters": adapters, "backend": backend}
        keywords |= {"items": items, "events": events, "fusion": fusion}
        self._settings = Settings(self.config, memory, collate, keywords, self.events.append)
        self._loss_fn = loss_fn
        self._run: TaskRun | None = None

    def attach(
        self,
        trainer: Trainer,
        *,
        task: str,
        loss_fn: LossFn | None = None,
        beside_others: bool = False,
        best_model: bool = False,
        resume_from: str | Path | None = None,
    ) -> None:
        """Merge in the next ``trainer.train()``, which trains one task. Call it before each.

        Args:
            trainer: has this callback among its ``callbacks``.
            task: its name; a task that goes on after an interruption keeps it.
            loss_fn: of this task, before that of the callback; see ``trainer_loss``.
            beside_others: allow another merger on the trainer.
            best_model: allow ``load_best_model_at_end``.
            resume_from: the checkpoint to go on from, where it was moved since it was written.

        Raises:
            TypeError: no Trainer, no name. ValueError: a trainer that a merger cannot work in, with
                what to do. RuntimeError: an interrupted task was not finished.
        """
        if not isinstance(task, str) or not task:
            raise TypeError(f"a task's name must be a non-empty string, got {task!r}")
        if self.interrupted not in (None, task):
            raise RuntimeError(
                f"task {self.interrupted!r} was interrupted: attach that one and go on with "
                "trainer.train(resume_from_checkpoint=True), or make a new callback"
            )
        refusals.require_attachable(
            trainer, self, self.config, beside_others=beside_others, best_model=best_model
        )
        loss_fn = loss_fn or self._loss_fn or loss_of(trainer)
        checkpoints = None if beside_others else TrainerCheckpoints(trainer, task, resume_from)
        mark.remove_from(trainer)
        refusals.warn_of_dataset(trainer.train_dataset)
        if checkpoints is not None:
            checkpoints.look_over()
        if self._run is not None:
            self._run.leave(Interrupted("the training ended in an exception"))
        self._run = TaskRun(self._settings, trainer, task, loss_fn, checkpoints)

    def report(self) -> MergeReport:
        """Merges by kind over all tasks, what the controller did and why; ``print`` it."""
        return summarise(self.events)

    # ---- events of the Trainer -----------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Build a merger over the trainer's model and optimizer, and enter the task."""
        run = self._run
        if run is None or run.trainer.state is not state or run.merger is not None:
            if run is not None and run.trainer.state is state:
                run.leave(Interrupted("the training ended in an exception"))
            raise RuntimeError(
                "AIMMergeCallback is not attached to this training; call "
                "aim.attach(trainer, task=...) before each trainer.train()"
            )
        run.begin(kwargs["optimizer"], kwargs["train_dataloader"], self.tasks_done)
        self.merger, self.tasks_done = run.merger, run.tasks_before

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note_stop("step_begin")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note_stop("pre_optimizer_step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One update was made: probe, and merge where it is due."""
        self._note_stop("step_end")
        if self._run is None:
            return
        self._run.step()
        if control.should_training_stop and self._run.merges_at_end and not self._run.stopped:
            self._run.end()  # now, so that the last checkpoint holds the final merge
        metrics.show(self._run.trainer, self._run.metrics.postfix())

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note_stop("epoch_end")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._run is not None:
            self._run.seal()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Beside what the Trainer logs of its training, what the merger did so far."""
        run = self._run
        if run is None or run.merger is None or not metrics.is_training_log(kwargs.get("logs")):
            return
        metrics.log(run.trainer, run.metrics.logs(run.merger.waits))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The task is done, unless a just-in-time checkpoint cut it off."""
        self._note_stop("train_end")
        run, self._run = self._run, None
        if run is None:
            return
        if run.stopped:
            run.leave(Interrupted("stopped for a just-in-time checkpoint"))
            self.interrupted = run.task
            return
        try:
            run.end()
        finally:
            run.release()
        self.tasks_done += 1
        self.interrupted = None

    def _note_stop(self, event: str) -> None:
        if self._run is not None:
            self._run.note_stop(event)
