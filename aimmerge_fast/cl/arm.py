"""One arm of a run: a method with one seed trains the stream, is evaluated, survives being killed.

An arm owns a folder: ``arm.json`` (what it depends on and what came out), ``state.safetensors``
(everything needed to go on at the last save, to the same bits), ``events.jsonl``, ``adapters/``,
``predictions/``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from aimmerge_fast.cl.arm_folder import ArmFolder
from aimmerge_fast.cl.arm_progress import Progress
from aimmerge_fast.cl.config import ArmSpec
from aimmerge_fast.cl.context import Context
from aimmerge_fast.cl.data import TaskData
from aimmerge_fast.cl.methods import Method, Stage, Trainee, method_class
from aimmerge_fast.cl.methods.monitor import Monitor
from aimmerge_fast.cl.metrics import summary
from aimmerge_fast.cl.plain import PlainTask, score_before, single_scores
from aimmerge_fast.cl.selection import Best
from aimmerge_fast.cl.training import fresh_moments, new_optimizer, read_losses, updates
from aimmerge_fast.durable.tree import load_optimizer, packed_optimizer


class Arm:
    """``run()`` trains and evaluates what is left; ``failed`` says why it ended too early.

    ``after_stage`` is called when the arm's result file has one more stage.
    """

    def __init__(
        self,
        context: Context,
        spec: ArmSpec,
        seed: int,
        settings: Mapping[str, Any],
        after_stage: Callable[[], None] = lambda: None,
    ) -> None:
        self.context, self.spec, self.seed = context, spec, seed
        self.settings, self._after_stage = dict(settings), after_stage
        self.failed: str | None = None
        self.folder = context.folder_of(spec, seed)
        self.files = ArmFolder(self.folder, context.ranks.is_main)
        self.kind = method_class(spec.method)
        self.stages: list[Stage] = self.kind.stages(context.tasks)
        self.progress = Progress()

    @property
    def finished(self) -> bool:
        return self.progress.stage == len(self.stages)

    @property
    def _starts_plain(self) -> bool:
        """Whether the first stage is the plain training of one task."""
        last = self.context.config.select == "last"
        return self.kind.first_stage_is_plain and len(self.stages[0].tasks) == 1 and last

    def run(self) -> None:
        """Train and evaluate what is left.

        Raises: FloatingPointError (MergeRejected, BadProbes) where the numbers end it; the last
        save is from before that.
        """
        saved = self._read_progress()
        if not self.finished:
            with self._set_up(saved), self.context.ranks.equal_steps():
                while not self.finished:
                    self._one_stage()
        self.context.ranks.from_main(self._write_result)

    def fail(self, reason: str) -> None:
        """Note why the arm ended too early; its entry is that of the last save."""
        self.context.view.close()
        self._read_progress()
        self.failed = reason
        self.context.ranks.from_main(self._write_result)
        self.context.view.line(
            f"[{self.spec.name} seed {self.seed}] failed: {reason}. The same command tries it again"
        )

    def _read_progress(self) -> dict[str, Any] | None:
        saved = self.context.ranks.from_main(self.files.saved)
        self.progress = Progress() if saved is None else Progress(**saved["progress"])
        return saved

    # ---- set-up and take-down --------------------------------------------------------------

    @contextlib.contextmanager
    def _set_up(self, saved: dict[str, Any] | None) -> Any:
        context, config = self.context, self.context.config
        if context.commit not in self.progress.commits:
            self.progress.commits.append(context.commit)
        log = self.files.open_events(saved)
        context.ranks.from_main(self._write_result)  # the name is taken from here on
        self.memory = context.new_memory(self.seed, self.spec.memory_ratio)
        model = context.attach_adapter(self.seed)
        trainable = [p for p in model.parameters() if p.requires_grad]
        self.trainee = Trainee(
            model=model,
            optimizer=new_optimizer(trainable, config.lr),
            encoder=context.encoder,
            loss=context.loss,
            memory=self.memory,
            config=config,
            seed=self.seed,
            emit=log,
            device=context.ranks.device,
            signal=context.view.signal,
            rows=self.progress.rows,
        )
        try:
            self.method = self._new_method()
            self.best = Best(self.trainee, context.ranks)
            if saved is not None:
                self._restore(saved)
            elif config.initial:
                self.progress.initial = [self._score(task, None) for task in context.tasks]
            yield
            self.method.close()
        finally:
            log.close()
            context.detach_adapter(model)

    def _new_method(self) -> Method:
        method = self.kind(self.trainee, self.settings)
        if self.spec.memory_epochs:
            from aimmerge_fast.cl.methods.recipe import MemoryEpochs

            method = MemoryEpochs(method, self.spec.memory_epochs, self.spec.name)
        if self.context.config.monitor and not hasattr(method, "merger"):
            method = Monitor(method)
        return method

    # ---- one stage -------------------------------------------------------------------------

    def _one_stage(self) -> None:
        progress = self.progress
        stage = self.stages[progress.stage]
        if not progress.trained:
            self._train(stage)
            self.files.save_adapters(self.trainee.model, f"{progress.stage + 1}-{stage.name}")
            progress.trained = True
            progress.scores.append([None] * len(self.context.tasks))
            self._save()
        for place in self.context.tasks_to_score(self.stages[: progress.stage + 1]):
            if progress.scores[-1][place] is None:
                progress.scores[-1][place] = self._score(self.context.tasks[place], stage)
                self._save()
        progress.stage, progress.step, progress.trained = progress.stage + 1, 0, False
        self._save()
        self.context.ranks.from_main(self._write_result)
        self._after_stage()

    def _train(self, stage: Stage) -> None:
        progress, index = self.progress, self.progress.stage
        self._since = time.perf_counter()
        if progress.step == 0:
            fresh_moments(self.trainee.optimizer)
            self.best.reset()
            self.method.begin_stage(stage, index)
            progress.losses[stage.name] = []
        records = self.method.training_records(stage, index)
        with self.method.task(stage, index):
            if not (index == 0 and self._take_shared(stage)):
                config = self.context.config
                steps = config.steps_for(len(stage.records()), len(stage.tasks))
                self._updates(stage, records, steps)
        self.best.restore()  # what a method does at the end, it does to the selected state
        self.method.end_stage(stage, index)
        for task in stage.tasks:
            self.memory.add(task.name, task.train)
        self._count_seconds()

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        self.progress.seconds["training"] += now - self._since
        self._since = now

    def _updates(self, stage: Stage, records: list[Any], steps: int) -> None:
        progress, config = self.progress, self.context.config
        ranks, view = self.context.ranks, self.context.view
        what, pending = f"arm {self.spec.name!r}, stage {stage.name!r}", list[Tensor]()
        view.begin_stage(self.spec.name, self.seed, stage.name, progress.stage, self.stages, steps)
        for update in updates(self.method, records, stage.name, progress.step, steps, ranks):
            pending.append(update.loss)
            due = update.step % config.save_every == 0
            if due or update.step % config.log_every == 0 or update.step == steps:
                losses = progress.losses[stage.name]
                losses += read_losses(pending, update.step, what, ranks)
                view.step(update.step, losses, self.method.merges())
            if config.select == "best" and update.step % config.select_every == 0:
                self.best.offer(self._selection_tasks(), update.step)
            progress.step = update.step
            if due:
                self._count_seconds()
                self._save()

    def _take_shared(self, stage: Stage) -> bool:
        """Plain training of the first task is the same for most arms: made once per seed."""
        if self.progress.step or not self._starts_plain:
            return False
        task, size = stage.tasks[0], self.context.config.batch
        self._count_seconds()
        shared = PlainTask(self.context, task, self.seed).train(self.trainee.model)
        self._since = time.perf_counter()  # another arm may have trained it: its own seconds count
        self.trainee.rows["training"] += len(shared.losses) * min(size, len(task.train))
        self.progress.losses[stage.name] = list(shared.losses)
        self.progress.seconds["training"] += shared.seconds
        self.progress.step = len(shared.losses)
        return True

    def _selection_tasks(self) -> list[TaskData]:
        return [task for stage in self.stages[: self.progress.stage + 1] for task in stage.tasks]

    def _score(self, task: TaskData, stage: Stage | None) -> float:
        """Generate, score, and keep the predictions."""
        started = time.perf_counter()
        if stage is None:
            found = score_before(self.context, task, self.trainee.model)
        elif self.progress.stage == 0 and task in stage.tasks and self._starts_plain:
            found = PlainTask(self.context, task, self.seed).score(self.trainee.model)
        else:
            found = self.context.evaluate(self.trainee.model, task)
        seconds = time.perf_counter() - started
        self.progress.seconds["evaluation"] += seconds
        name = f"{self.progress.stage + 1}-{stage.name}" if stage else "0-before"
        self.files.save_predictions(found, name, task.name)
        when = f"after {stage.name}" if stage else "before training"
        self.context.view.line(
            f"[{self.spec.name} seed {self.seed}] {task.name} {when}: {found.score:.1f} "
            f"({task.metric}, {found.items} records, {seconds:.1f} s)"
        )
        return found.score

    # ---- files -----------------------------------------------------------------------------

    def _save(self) -> None:
        trainee = self.trainee
        self.files.save(
            {
                "progress": dataclasses.asdict(self.progress),
                "adapter": self.context.adapter_of(trainee.model),
                "optimizer": packed_optimizer(trainee.optimizer),
                "memory": self.memory.state_dict(),
                "method": self.method.state_dict(),
                "best": self.best.state_dict(),
            }
        )

    def _restore(self, saved: Mapping[str, Any]) -> None:
        trainee = self.trainee
        self.memory.load_state_dict(saved["memory"])
        self.method.prepare(saved["method"])  # adapters that later stages added
        self.context.load_adapter(trainee.model, saved["adapter"])
        load_optimizer(trainee.optimizer, saved["optimizer"])
        self.method.load_state_dict(saved["method"])
        self.best.load_state_dict(saved["best"])
        self.context.view.line(
            f"[{self.spec.name} seed {self.seed}] goes on: {self.progress.stage} stages and "
            f"{self.progress.step} updates are done"
        )

    def result(self) -> dict[str, Any]:
        """The arm's entry in ``results.json``."""
        progress = self.progress
        single = single_scores(self.context, self.seed)
        done = self.finished and self.failed is None
        metrics = summary(progress.scores, single=single, initial=progress.initial) if done else {}
        return {
            "name": self.spec.name,
            "label": self.kind.label,
            "method": self.spec.method,
            "settings": self.settings,
            "memory_epochs": self.spec.memory_epochs,
            "memory_ratio": self.spec.memory_ratio or self.context.config.memory_ratio,
            "seed": self.seed,
            "finished": done,
            "failed": self.failed,
            "stages": [stage.name for stage in self.stages],
            "scores": progress.scores,
            "initial": progress.initial,
            "single": single,
            "metrics": metrics,
            "losses": progress.losses,
            "seconds": {name: round(value, 2) for name, value in progress.seconds.items()},
            "rows": progress.rows,
            "commits": progress.commits,
            "folder": self.folder.name,
            **self.files.events(),
        }

    def _write_result(self) -> None:
        self.files.write_result(self.result())
