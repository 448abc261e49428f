"""What the arms of a run share: records, base model, encoder, memory rule, evaluation."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aimmerge_fast.cl import models
from aimmerge_fast.cl.config import ArmSpec, RunConfig
from aimmerge_fast.cl.data import TaskData
from aimmerge_fast.cl.encode import AnswerLoss, Encoder
from aimmerge_fast.cl.evaluate import TaskScore, evaluate
from aimmerge_fast.cl.methods import Stage
from aimmerge_fast.cl.parallel import Ranks
from aimmerge_fast.cl.progress import View
from aimmerge_fast.cl.streams import Stream
from aimmerge_fast.memory import RehearsalMemory


@dataclasses.dataclass
class Context:
    """One run's common things; ``base`` carries no adapter between two arms.

    Attributes:
        stream, tasks: what is trained, in this order. base: the frozen model, on its device.
        model_sha256: of the model's files. commit: of the package, where it is known.
    """

    config: RunConfig
    stream: Stream
    tasks: list[TaskData]
    base: nn.Module
    encoder: Encoder
    seq2seq: bool
    model_sha256: str
    ranks: Ranks
    view: View
    commit: str | None

    def __post_init__(self) -> None:
        self._frozen = {id(parameter) for parameter in self.base.parameters()}
        self.loss: AnswerLoss

    # ---- adapters --------------------------------------------------------------------------

    def attach_adapter(self, seed: int) -> Any:
        """The base in a PeftModel with a new adapter, whose first values are the seed's."""
        config = self.config
        model = models.add_lora(
            self.base,
            rank=config.rank,
            alpha=config.alpha,
            dropout=config.dropout,
            targets=config.targets,
            seed=seed,
        )
        model.to(self.ranks.device)
        model.train()
        self.loss = SharedLoss(model, self.seq2seq, self.ranks)
        return model

    def detach_adapter(self, model: Any) -> None:
        """Take every adapter off the base again, without folding it in."""
        self.base = model.unload()

    def adapter_of(self, model: nn.Module) -> dict[str, Tensor]:
        """Every tensor that is not the base's, by name (not cloned)."""
        return {n: p for n, p in model.named_parameters() if id(p) not in self._frozen}

    def load_adapter(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Write ``tensors`` into the adapter; ``ValueError`` unless the names are the same."""
        mine = self.adapter_of(model)
        if mine.keys() != tensors.keys():
            other = sorted(mine.keys() ^ tensors.keys())[0]
            raise ValueError(f"the saved adapter does not fit this model: {other!r} is in only one")
        with torch.no_grad():
            for name, parameter in mine.items():
                parameter.copy_(tensors[name])

    # ---- memory, evaluation, folders -------------------------------------------------------

    def new_memory(self, seed: int, ratio: float | None = None) -> RehearsalMemory:
        return new_memory(self.config, seed, ratio)

    def evaluate(self, model: Any, task: TaskData) -> TaskScore:
        """The task's test records, dealt out to the ranks, by greedy generation."""
        config, share = self.config, self.ranks.share(task.test)
        mine: list[dict[str, Any]] = []
        if share:
            found = evaluate(
                model,
                self.encoder,
                task,
                share,
                batch=config.eval_batch,
                max_new_tokens=config.max_new_tokens,
            )
            mine = found.predictions
        rows = self.ranks.gather(mine, len(task.test))
        return TaskScore.of(rows, task.metric)

    def tasks_to_score(self, stages: Sequence[Stage]) -> list[int]:
        """Places of the tasks that are scored after the last of these stages."""
        seen = {task.name for stage in stages for task in stage.tasks}
        everything = self.config.evaluate == "all"
        return [i for i, task in enumerate(self.tasks) if everything or task.name in seen]

    def folder_of(self, spec: ArmSpec, seed: int) -> Path:
        return self.config.out / f"{spec.name}-s{seed}"

    def identity(self) -> dict[str, Any]:
        """What every number of the run depends on."""
        return {
            **self.config.identity(),
            "stream": list(self.stream.tasks),
            "model_sha256": self.model_sha256,
            "tasks_sha256": {task.name: task.sha256 for task in self.tasks},
        }

    def key(self, **more: Any) -> str:
        """A name for what depends on the run's settings and ``more``, but not on its stream."""
        fields = self.identity()
        for name in ("stream", "tasks_sha256", "available", "data", "monitor", "evaluate"):
            fields.pop(name, None)
        text = json.dumps({**fields, **more}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class SharedLoss(AnswerLoss):
    """An `AnswerLoss` whose probes (no gradient) give rank 0's value on every rank."""

    def __init__(self, model: Any, seq2seq: bool, ranks: Ranks) -> None:
        super().__init__(model, seq2seq)
        self._ranks = ranks

    def __call__(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        loss = super().__call__(model, batch)
        return loss if torch.is_grad_enabled() else self._ranks.of_main(loss)


def new_memory(config: RunConfig, seed: int, ratio: float | None = None) -> RehearsalMemory:
    """The rehearsal memory of an arm; ``ValueError`` for a rule that is unknown, or its size."""
    return RehearsalMemory(
        ratio=ratio or config.memory_ratio,
        seed=seed,
        rule=config.memory_rule,
        size=config.memory_size,
    )
