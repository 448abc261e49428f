"""One arm of a run: a method with one seed trains the stream, is evaluated, survives being killed.

An arm owns a folder: ``arm.json`` (what it depends on and what came out), ``state.safetensors``
(everything needed to go on at the last save, to the same bits), ``events.jsonl``, ``adapters/``,
``predictions/``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from aimmerge_fast.cl import checkpoint
from aimmerge_fast.cl.arm_folder import ArmFolder
from aimmerge_fast.cl.config import ArmSpec
from aimmerge_fast.cl.context import Context
from aimmerge_fast.cl.data import TaskData
from aimmerge_fast.cl.methods import Method, Stage, Trainee, method_class
from aimmerge_fast.cl.methods.monitor import Monitor
from aimmerge_fast.cl.metrics import summary
from aimmerge_fast.cl.plain import PlainTask, single_scores
from aimmerge_fast.cl.selection import Best
from aimmerge_fast.cl.training import Update, fresh_moments, new_optimizer, updates


@dataclasses.dataclass
class Progress:
    """How far an arm is.

    ``step`` updates of stage number ``stage`` are made; ``trained``: all of them, and its scores
    are being taken. ``scores[j][i]`` of task i after stage j, 0 to 100; ``losses`` by stage.
    """

    stage: int = 0
    step: int = 0
    trained: bool = False
    scores: list[list[float | None]] = dataclasses.field(default_factory=list)
    initial: list[float | None] | None = None
    losses: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"training": 0.0, "evaluation": 0.0}
    )
    commits: list[str | None] = dataclasses.field(default_factory=list)


class Arm:
    """``run()`` trains and evaluates what is left, and returns the arm's entry of the results."""

    def __init__(
        self, context: Context, spec: ArmSpec, seed: int, settings: Mapping[str, Any]
    ) -> None:
        self.context, self.spec, self.seed = context, spec, seed
        self.settings = dict(settings)
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

    def run(self) -> dict[str, Any]:
        """Train and evaluate what is left; the arm's entry of ``results.json``."""
        saved = self.context.ranks.from_main(self.files.saved)
        if saved is not None:
            self.progress = Progress(**saved["progress"])
        if not self.finished:
            with self._set_up(saved), self.context.ranks.equal_steps():
                while not self.finished:
                    self._one_stage()
        return self.context.ranks.from_main(self._write_result)

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

            method = MemoryEpochs(method, self.spec.memory_epochs)
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

    def _train(self, stage: Stage) -> None:
        progress, index = self.progress, self.progress.stage
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

    def _updates(self, stage: Stage, records: list[Any], steps: int) -> None:
        progress, config = self.progress, self.context.config
        view = self.context.view
        view.begin_stage(self.spec.name, self.seed, stage.name, progress.stage, self.stages, steps)
        started, pending = time.perf_counter(), list[Tensor]()
        steps_made = updates(
            self.method, records, stage.name, progress.step, steps, self.context.ranks
        )
        for update in steps_made:
            pending.append(update.loss)
            due = update.step % config.save_every == 0
            if due or update.step % config.log_every == 0 or update.step == steps:
                self._take_losses(stage, pending, update)
                view.step(update.step, progress.losses[stage.name], self.method.merges())
            if config.select == "best" and update.step % config.select_every == 0:
                self.best.offer(self._selection_tasks(), update.step)
            progress.step = update.step
            if due:
                now = time.perf_counter()
                progress.seconds["training"] += now - started
                started = now
                self._save()
        progress.seconds["training"] += time.perf_counter() - started

    def _take_losses(self, stage: Stage, pending: list[Tensor], update: Update) -> None:
        """Read the losses since the last call; a bad one ends the arm at its last save."""
        values = torch.stack(pending).tolist()
        pending.clear()
        for place, value in enumerate(values, update.step - len(values) + 1):
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"arm {self.spec.name!r}, stage {stage.name!r}: the training loss of update "
                    f"{place} is {value}; lower lr, or set max_grad_norm (the state before it is "
                    "saved)"
                )
        self.progress.losses[stage.name] += values

    def _take_shared(self, stage: Stage) -> bool:
        """Plain training of the first task is the same for most arms: made once per seed."""
        if self.progress.step or not self._starts_plain:
            return False
        shared = PlainTask(self.context, stage.tasks[0], self.seed).train(self.trainee.model)
        self.trainee.rows["training"] += len(shared.losses) * self.context.config.batch
        self.progress.losses[stage.name] = list(shared.losses)
        self.progress.seconds["training"] += shared.seconds
        self.progress.step = len(shared.losses)
        return True

    def _selection_tasks(self) -> list[TaskData]:
        return [task for stage in self.stages[: self.progress.stage + 1] for task in stage.tasks]

    def _score(self, task: TaskData, stage: Stage | None) -> float:
        """Generate, score, and keep the predictions."""
        started = time.perf_counter()
        if stage and self.progress.stage == 0 and task in stage.tasks and self._starts_plain:
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
                "optimizer": checkpoint.packed_optimizer(trainee.optimizer),
                "memory": self.memory.state_dict(),
                "rows": trainee.rows,
                "method": self.method.state_dict(),
                "best": self.best.state_dict(),
            }
        )

    def _restore(self, saved: Mapping[str, Any]) -> None:
        trainee = self.trainee
        self.memory.load_state_dict(saved["memory"])
        trainee.rows.update(saved["rows"])
        self.method.prepare(saved["method"])  # adapters that later stages added
        self.context.load_adapter(trainee.model, saved["adapter"])
        checkpoint.load_optimizer(trainee.optimizer, saved["optimizer"])
        self.method.load_state_dict(saved["method"])
        self.best.load_state_dict(saved["best"])
        self.context.view.line(
            f"[{self.spec.name} seed {self.seed}] goes on: {self.progress.stage} stages and "
            f"{self.progress.step} updates are done"
        )

    def result(self) -> dict[str, Any]:
        """The arm's entry in ``results.json``."""
        progress = self.progress
        saved = self.files.saved() or {"rows": {}}
        single = single_scores(self.context, self.seed)
        return {
            "name": self.spec.name,
            "label": self.kind.label,
            "method": self.spec.method,
            "settings": self.settings,
            "memory_epochs": self.spec.memory_epochs,
            "memory_ratio": self.spec.memory_ratio or self.context.config.memory_ratio,
            "seed": self.seed,
            "finished": self.finished,
            "stages": [stage.name for stage in self.stages],
            "scores": progress.scores,
            "initial": progress.initial,
            "single": single,
            "metrics": summary(progress.scores, single=single, initial=progress.initial)
            if self.finished
            else {},
            "losses": progress.losses,
            "seconds": {name: round(value, 2) for name, value in progress.seconds.items()},
            "rows": saved["rows"],
            "commits": progress.commits,
            "folder": self.folder.name,
            **self.files.events(),
        }

    def _write_result(self) -> dict[str, Any]:
        result = self.result()
        self.files.write_result(result)
        return result
