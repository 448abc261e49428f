"""One arm of ``real_stream.py``: trains the stream, evaluates, and survives being killed.

Arms: ``plain`` trains on each task in turn; ``replay`` mixes the rehearsal memory into every later
task's records; ``aim`` is ``plain`` with `FastAIMMerger` at work. All arms start from the same
adapter bits, see the same batches in the same order (replay: of its larger pool) and start every
task with fresh AdamW moments.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import environment
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.events import Event, EventLog, Open, read_events
from aimmerge_fast.memory import RehearsalMemory
from stream.data import Encoder, Record, Task, batch_at
from stream.model import AnswerLoss, adapter_sha256, adapter_state, load_adapter_state
from stream.score import accuracy

ARMS = ("plain", "replay", "aim")
STATE, EVENTS = "state.pt", "events.jsonl"


@dataclasses.dataclass(frozen=True)
class Setup:
    """What all arms share. ``start`` is the adapter that each of them begins with."""

    model: Any
    encoder: Encoder
    loss: AnswerLoss
    start: dict[str, Tensor]
    tasks: list[Task]
    config: AIMConfig
    steps: int
    batch: int
    lr: float
    seed: int
    memory_ratio: float
    save_every: int
    log_every: int


@dataclasses.dataclass
class Progress:
    """How far an arm is: ``step`` updates of task number ``task`` are done.

    ``before[task]`` and ``after[column][task]`` are accuracies, column = number of the last task
    trained; ``losses`` has one list per task; ``hashes`` the adapter's sha256 after each task;
    ``commits`` what each process that trained ran.
    """

    task: int = 0
    step: int = 0
    before: dict[str, float] = dataclasses.field(default_factory=dict)
    after: list[dict[str, float]] = dataclasses.field(default_factory=list)
    losses: list[list[float]] = dataclasses.field(default_factory=list)
    hashes: list[str] = dataclasses.field(default_factory=list)
    commits: list[str | None] = dataclasses.field(default_factory=list)
    seconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"training": 0.0, "evaluation": 0.0}
    )


class Arm:
    """Trains one arm in its own folder; ``run()`` continues wherever a previous process stopped."""

    def __init__(self, name: str, setup: Setup, folder: Path) -> None:
        self.name, self.setup, self.folder = name, setup, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.progress = Progress()
        self.memory = RehearsalMemory(ratio=setup.memory_ratio, seed=setup.seed)
        trainable = [p for p in setup.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=setup.lr, weight_decay=0.0)
        self.merger: Any = None
        self.merges = 0
        self._merger_state: dict[str, Any] | None = None

    def run(self) -> Progress:
        """Train and evaluate what is left; the whole of it has been saved when this returns."""
        self._restore()
        commit = environment.commit()
        if not self.finished and commit not in self.progress.commits:
            self.progress.commits.append(commit)
        if self.finished:
            return self.progress
        with contextlib.ExitStack() as stack:
            if self.name == "aim":
                log = EventLog(self.folder / EVENTS)
                stack.callback(log.close)
                self.merger = self._new_merger(log)
            while not self.finished:
                self._evaluate()
                if self.progress.task < len(self.setup.tasks):
                    self._train_task(self.setup.tasks[self.progress.task])
        return self.progress

    @property
    def finished(self) -> bool:
        done = len(self.setup.tasks)
        return len(self.progress.after) == done and len(self.progress.after[-1]) == done

    def _train_task(self, task: Task) -> None:
        progress = self.progress
        if progress.step == 0:
            self.optimizer.state.clear()  # fresh moments: the memory steps share this optimiser
            progress.losses.append([])
        records = task.train
        if self.name == "replay" and len(self.memory):
            records = records + self.memory.stream("replay").draw(len(self.memory))
        inside: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self.merger is not None:
            inside = self.merger.task(task.name, memory=self.memory)
        with inside:
            self._steps(task.name, records)
        self.memory.add(task.name, task.train)
        progress.task, progress.step = progress.task + 1, 0
        progress.hashes.append(adapter_sha256(self.setup.model))
        progress.after.append({})
        self._save()

    def _steps(self, task: str, records: list[Record]) -> None:
        progress, setup = self.progress, self.setup
        started, first = time.perf_counter(), progress.step
        while progress.step < setup.steps:
            chosen = batch_at(records, progress.step + 1, setup.batch, f"{setup.seed}/{task}")
            loss = setup.loss(setup.model, setup.encoder.collate(chosen))
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if self.merger is not None:
                self.merger.step()
            progress.losses[-1].append(loss.item())
            progress.step += 1
            now, last = time.perf_counter(), progress.step == setup.steps
            if progress.step % setup.log_every == 0 or last:
                self._log(task, (now - started) / (progress.step - first))
            if progress.step % setup.save_every == 0 or last:
                progress.seconds["training"] += now - started
                started, first = now, progress.step
                if not last:  # the end of a task is saved outside of the merger's task
                    self._save()

    def _evaluate(self) -> None:
        """Scores that are due between two tasks; an interrupted one is taken again."""
        progress, tasks = self.progress, self.setup.tasks
        if progress.step:
            return  # in the middle of a task
        column = progress.after[-1] if progress.after else {}
        due = [(column, task) for task in tasks[: progress.task]]
        due += [(progress.before, task) for task in tasks[progress.task : progress.task + 1]]
        for scores, task in due:
            if task.name in scores:
                continue
            started = time.perf_counter()
            score = accuracy(self.setup.model, self.setup.loss, self.setup.encoder, task.test)
            taken = time.perf_counter() - started
            scores[task.name] = score
            progress.seconds["evaluation"] += taken
            trained = "training" if scores is progress.before else tasks[progress.task - 1].name
            when = f"{'before' if scores is progress.before else 'after'} {trained}"
            print(
                f"[{self.name}] accuracy of {task.name} {when}: {100 * score:.1f} % "
                f"({len(task.test)} items, {taken:.1f} s)",
                flush=True,
            )
            self._save()

    def _log(self, task: str, seconds: float) -> None:
        progress, setup = self.progress, self.setup
        recent = progress.losses[-1][-setup.log_every :]
        left = (len(setup.tasks) - progress.task) * setup.steps - progress.step
        print(
            f"[{self.name}] {task} step {progress.step}/{setup.steps}"
            f"  loss {sum(recent) / len(recent):.3f}"
            + (f"  merges {self.merges}" if self.merger else "")
            + f"  {seconds:.2f} s/step  ETA {left * seconds / 60:.0f} min",
            flush=True,
        )

    def _new_merger(self, log: EventLog) -> Any:
        from aimmerge_fast import FastAIMMerger

        merger = FastAIMMerger(
            self.setup.model,
            self.setup.config,
            optimizer=self.optimizer,
            collate=self.setup.encoder.collate,
            loss_fn=self.setup.loss,
            callbacks=[log, self._count],
        )
        if self._merger_state is not None:
            merger.load_state_dict(self._merger_state)
        return merger

    def _count(self, event: Event) -> None:
        self.merges += isinstance(event, Open)

    def _save(self) -> None:
        """All of the arm in one file: written aside, synced, then renamed over the old one."""
        state: dict[str, Any] = {
            "progress": dataclasses.asdict(self.progress),
            "adapter": adapter_state(self.setup.model),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "memory": self.memory.state_dict(),
        }
        if self.merger is not None:
            state["merger"] = self.merger.state_dict()
            state["events_bytes"] = (self.folder / EVENTS).stat().st_size
        aside = self.folder / (STATE + ".tmp")
        with aside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.folder / STATE)
        folder = os.open(self.folder, os.O_RDONLY)  # makes the rename itself durable
        os.fsync(folder)
        os.close(folder)

    def _restore(self) -> None:
        path = self.folder / STATE
        if not path.is_file():
            load_adapter_state(self.setup.model, self.setup.start)
            torch.manual_seed(self.setup.seed)
            (self.folder / EVENTS).unlink(missing_ok=True)  # of a run killed before its first save
            return
        state = torch.load(path, weights_only=True)
        self.progress = Progress(**state["progress"])
        load_adapter_state(self.setup.model, state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.memory.load_state_dict(state["memory"])
        torch.set_rng_state(state["rng"])
        if "merger" in state:
            self._merger_state = state["merger"]
            # the steps after the save are taken again, and write their events again
            os.truncate(self.folder / EVENTS, state["events_bytes"])
            self.merges = sum(isinstance(e, Open) for e in read_events(self.folder / EVENTS))
        done = f"{self.progress.task} tasks and {self.progress.step} steps are done"
        text = "was finished before" if self.finished else f"continues: {done}"
        print(f"[{self.name}] {text}", flush=True)
