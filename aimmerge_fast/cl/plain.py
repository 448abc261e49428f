"""Plain training of one task from the first adapter: the first stage of most arms, and a_{0,i}.

Kept by content: what depends on nothing but settings, model, records and seed is made once.
"""

from __future__ import annotations

import dataclasses
import json
import time
from contextlib import AbstractContextManager
from typing import Any

import torch

from aimmerge_fast.cl import checkpoint
from aimmerge_fast.cl.context import Context
from aimmerge_fast.cl.data import TaskData
from aimmerge_fast.cl.evaluate import TaskScore
from aimmerge_fast.cl.locking import held
from aimmerge_fast.cl.methods.base import Stage, Trainee
from aimmerge_fast.cl.methods.seqlora import SeqLoRA
from aimmerge_fast.cl.training import new_optimizer, updates

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
        with self._held():
            return self._train(model)

    def _train(self, model: Any) -> Plain:
        context, config = self.context, self.context.config
        stage = Stage(self.task.name, (self.task,))
        steps = config.steps_for(len(self.task.train))
        saved = context.ranks.from_main(self._saved)
        losses: list[float] = list(saved["losses"]) if saved else []
        seconds = float(saved["seconds"]) if saved else 0.0
        if saved is not None and len(losses) == steps:
            context.load_adapter(model, saved["adapter"])
            return Plain(losses, seconds)
        trainee = self._trainee(model)
        start = saved["adapter"] if saved else self._start(model)
        context.load_adapter(model, start)
        if saved is not None:
            checkpoint.load_optimizer(trainee.optimizer, saved["optimizer"])
        context.view.begin_stage("plain", self.seed, stage.name, 0, [stage], steps)
        started, pending = time.perf_counter(), list[torch.Tensor]()
        method = SeqLoRA(trainee, {})
        for update in updates(
            method, self.task.train, stage.name, len(losses), steps, context.ranks
        ):
            pending.append(update.loss)
            last = update.step == steps
            if update.step % config.log_every == 0 or last:
                losses += _finite(torch.stack(pending).tolist(), stage.name, update.step)
                pending.clear()
                context.view.step(update.step, losses, 0)
            if (update.step % config.save_every == 0 and not pending) or last:
                now = time.perf_counter()
                seconds, started = seconds + now - started, now
                self._save(trainee, losses, seconds)
        return Plain(losses, seconds)

    def score(self, model: Any) -> TaskScore:
        """Of the trained adapter, which ``model`` holds."""
        with self._held():
            known = self.context.ranks.from_main(self._scored)
            if known is not None:
                return TaskScore(**known)
            found = self.context.evaluate(model, self.task)
            if self.context.ranks.is_main:
                checkpoint.write_json(self.folder / SCORE, dataclasses.asdict(found))
            return found

    def known_score(self) -> float | None:
        scored = self._scored()
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

    def _start(self, model: Any) -> dict[str, torch.Tensor]:
        """The adapter as the arm attached it: nothing has been trained yet."""
        return {n: p.detach().clone() for n, p in self.context.adapter_of(model).items()}

    def _held(self) -> AbstractContextManager[None]:
        context, name = self.context, self.task.name
        said = f"[plain seed {self.seed}] waits for another process that trains {name}"
        return held(self.folder, context.ranks, lambda: context.view.line(said))

    def _scored(self) -> dict[str, Any] | None:
        path = self.folder / SCORE
        if not path.is_file():
            return None
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def _saved(self) -> dict[str, Any] | None:
        path = self.folder / STATE
        return checkpoint.load_tree(path) if path.is_file() else None

    def _save(self, trainee: Trainee, losses: list[float], seconds: float) -> None:
        if self.context.ranks.is_main:
            tree = {
                "adapter": self.context.adapter_of(trainee.model),
                "optimizer": checkpoint.packed_optimizer(trainee.optimizer),
                "losses": losses,
                "seconds": seconds,
            }
            checkpoint.save_tree(self.folder / STATE, tree)


def single_scores(context: Context, seed: int) -> list[float | None] | None:
    """a_{0,i} of each task as far as it is known; None when the run does not ask for them."""
    if not context.config.single:
        return None
    return [PlainTask(context, task, seed).known_score() for task in context.tasks]


def train_singles(context: Context, seed: int) -> None:
    """Train and score every task alone (those that were not)."""
    known = context.ranks.from_main(lambda: single_scores(context, seed)) or []
    for task in (task for task, score in zip(context.tasks, known, strict=True) if score is None):
        model = context.attach_adapter(seed)
        try:
            plain = PlainTask(context, task, seed)
            plain.train(model)
            score = plain.score(model).score
            context.view.line(f"[alone, seed {seed}] {task.name}: {score:.1f} ({task.metric})")
        finally:
            context.detach_adapter(model)


def _finite(values: list[float], stage: str, last: int) -> list[float]:
    for step, value in enumerate(values, last - len(values) + 1):
        if value != value or value in (float("inf"), float("-inf")):
            raise FloatingPointError(
                f"the training loss of task {stage!r} is {value} at update {step}; lower lr, or "
                "set max_grad_norm (the state before it is saved)"
            )
    return values
