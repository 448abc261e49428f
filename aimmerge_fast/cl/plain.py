"""Plain training of one task from the first adapter: the first stage of most arms, and a_{0,i}.

Kept by content: what depends on nothing but settings, model, records and seed is made once.
"""

from __future__ import annotations

import dataclasses
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from aimmerge_fast.cl.context import Context
from aimmerge_fast.cl.data import TaskData
from aimmerge_fast.cl.evaluate import TaskScore
from aimmerge_fast.cl.locking import held
from aimmerge_fast.cl.methods.base import Stage, Trainee
from aimmerge_fast.cl.methods.seqlora import SeqLoRA
from aimmerge_fast.cl.selection import Best
from aimmerge_fast.cl.training import new_optimizer, read_losses, updates
from aimmerge_fast.durable.files import read_json, write_json
from aimmerge_fast.durable.tree import load_optimizer, load_tree, packed_optimizer, save_tree

STATE, SCORE = "state.safetensors", "score.json"


@dataclasses.dataclass(frozen=True)
class Plain:
    """What plain training gave: a loss per update, and how long it took."""

    losses: list[float]
    seconds: float


class PlainTask:
    """One task, trained alone with a seed, in a folder of the run named after its content."""

    def __init__(self, context: Context, task: TaskData, seed: int) -> None:
        self.context, self.task, self.seed = context, task, seed
        key = context.key(task=task.name, records=task.sha256, seed=seed)
        self.folder = context.config.out / "plain" / f"{task.name}-s{seed}-{key}"

    def train(self, model: Any) -> Plain:
        """Leave the trained adapter in ``model``, from the folder or by training it.

        Processes that work on different arms of a run wait for one of them to train it.
        """
        with _held(self.context, self.folder):
            return self._train(model)

    def _train(self, model: Any) -> Plain:
        context = self.context
        steps = context.config.steps_for(len(self.task.train))
        saved = context.ranks.from_main(self._saved)
        losses: list[float] = list(saved["losses"]) if saved else []
        if saved is not None and len(losses) == steps:
            context.load_adapter(model, saved["adapter"])
            return Plain(losses, float(saved["seconds"]))
        trainee = self._trainee(model)
        best = Best(trainee, context.ranks)
        if saved is not None:
            context.load_adapter(model, saved["adapter"])
            load_optimizer(trainee.optimizer, saved["optimizer"])
            best.load_state_dict(saved["best"])
        stage = Stage(self.task.name, (self.task,))
        context.view.begin_stage("plain", self.seed, stage.name, 0, [stage], steps)
        return self._updates(trainee, best, losses, float(saved["seconds"]) if saved else 0.0)

    def _updates(self, trainee: Trainee, best: Best, losses: list[float], seconds: float) -> Plain:
        config, ranks, task = self.context.config, self.context.ranks, self.task
        steps = config.steps_for(len(task.train))
        selects = config.select == "best" and bool(task.dev)
        started, pending = time.perf_counter(), list[torch.Tensor]()
        method, what = SeqLoRA(trainee, {}), f"plain training of task {task.name!r}"
        for update in updates(method, task.train, task.name, len(losses), steps, ranks):
            pending.append(update.loss)
            last = update.step == steps
            due = last or update.step % config.save_every == 0
            if due or update.step % config.log_every == 0:
                losses += read_losses(pending, update.step, what, ranks)
                self.context.view.step(update.step, losses, 0)
            if selects and update.step % config.select_every == 0:
                best.offer([task], update.step)
            if last:
                best.restore()
            if due:
                now = time.perf_counter()
                seconds, started = seconds + now - started, now
                self._save(trainee, best, losses, seconds)
        return Plain(losses, seconds)

    def score(self, model: Any) -> TaskScore:
        """Of the trained adapter, which ``model`` holds."""
        return _kept_score(self.context, self.folder, self.task, model)

    def known_score(self) -> float | None:
        scored = _scored(self.folder)
        return None if scored is None else float(scored["score"])

    # ---- internals -------------------------------------------------------------------------

    def _trainee(self, model: Any) -> Trainee:
        context = self.context
        trainable = [p for p in model.parameters() if p.requires_grad]
        return Trainee(
            model=model,
            optimizer=new_optimizer(trainable, context.config.lr),
            encoder=context.encoder,
            loss=context.loss,
            memory=context.new_memory(self.seed),
            config=context.config,
            seed=self.seed,
            emit=lambda event: None,
            device=context.ranks.device,
        )

    def _saved(self) -> dict[str, Any] | None:
        path = self.folder / STATE
        return load_tree(path) if path.is_file() else None

    def _save(self, trainee: Trainee, best: Best, losses: list[float], seconds: float) -> None:
        if self.context.ranks.is_main:
            tree = {
                "adapter": self.context.adapter_of(trainee.model),
                "optimizer": packed_optimizer(trainee.optimizer),
                "best": best.state_dict(),
                "losses": losses,
                "seconds": seconds,
            }
            save_tree(self.folder / STATE, tree)


def score_before(context: Context, task: TaskData, model: Any) -> TaskScore:
    """Before training, when the adapter in ``model`` changes nothing: whatever arm and seed."""
    key = context.key(task=task.name, records=task.sha256, before=True)
    folder = context.config.out / "plain" / f"{task.name}-before-{key}"
    return _kept_score(context, folder, task, model)


def single_scores(context: Context, seed: int) -> list[float | None] | None:
    """a_{0,i} of each task as far as it is known.

    None where the run does not ask for them, unless an earlier call has made them all.
    """
    found = [PlainTask(context, task, seed).known_score() for task in context.tasks]
    return found if context.config.single or None not in found else None


def train_singles(context: Context, seed: int) -> None:
    """Train and score every task alone (those that were not); one that diverges has no score."""
    known = context.ranks.from_main(lambda: single_scores(context, seed)) or []
    for task in (task for task, score in zip(context.tasks, known, strict=True) if score is None):
        head = f"[alone, seed {seed}] {task.name}"
        model = context.attach_adapter(seed)
        try:
            plain = PlainTask(context, task, seed)
            plain.train(model)
            context.view.line(f"{head}: {plain.score(model).score:.1f} ({task.metric})")
        except FloatingPointError as error:
            context.view.close()
            context.view.line(f"{head} failed: {error}. The same command tries it again")
        finally:
            context.detach_adapter(model)


def _held(context: Context, folder: Path) -> AbstractContextManager[None]:
    said = f"waits for another process that trains or scores in {folder}"
    return held(folder, context.ranks, lambda: context.view.line(said))


def _scored(folder: Path) -> dict[str, Any] | None:
    path = folder / SCORE
    return read_json(path) if path.is_file() else None


def _kept_score(context: Context, folder: Path, task: TaskData, model: Any) -> TaskScore:
    """The score in ``folder``; the first who asks makes it."""
    with _held(context, folder):
        known = context.ranks.from_main(lambda: _scored(folder))
        if known is not None:
            return TaskScore(**known)
        found = context.evaluate(model, task)
        if context.ranks.is_main:
            write_json(folder / SCORE, dataclasses.asdict(found))
        return found
