"""A method at work on a tiny model without a run folder: what an arm does, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aimmerge_fast.cl import models
from aimmerge_fast.cl.context import new_memory
from aimmerge_fast.cl.data import Record, TaskData
from aimmerge_fast.cl.encode import AnswerLoss, Encoder
from aimmerge_fast.cl.methods import Method, Stage, Trainee, method_class
from aimmerge_fast.cl.parallel import Ranks
from aimmerge_fast.cl.training import fresh_moments, new_optimizer, updates
from aimmerge_fast.durable.tree import load_optimizer, load_tree, packed_optimizer, save_tree
from aimmerge_fast.events import Event
from tests.cl.tiny import make_config
from tests.cl.tiny_models import causal_model, records, word_tokenizer


def task(name: str, seed: int, n: int = 40) -> TaskData:
    """``n`` train records, ids unlike those of other names."""
    train: list[Record] = [
        {**record, "id": f"{name}-{record['id']}"} for record in records(n, seed, longest=5)
    ]
    return TaskData(name, train, train[:4], train[:4], "accuracy", None, (), f"sha of {name}")


FIRST, SECOND = task("first", 1), task("second", 2)


@dataclasses.dataclass
class Bench:
    """A trainee on a tiny model, and what was emitted."""

    trainee: Trainee
    events: list[Event]

    def method(self, name: str, **settings: Any) -> Any:
        return method_class(name)(self.trainee, settings)


def bench(dropout: float = 0.05, **fields: Any) -> Bench:
    """Rank 2 on the q and v of 2 layers, updates of 4 records, a memory of 8 per task."""
    settings = {"dropout": dropout, "steps": 12, **fields}
    config = make_config(Path("nowhere"), **settings)
    model = models.add_lora(
        causal_model(), rank=config.rank, alpha=4, dropout=config.dropout, targets=None, seed=3
    )
    model.train()
    events: list[Event] = []
    trainee = Trainee(
        model=model,
        optimizer=new_optimizer([p for p in model.parameters() if p.requires_grad], config.lr),
        encoder=Encoder(word_tokenizer(), seq2seq=False, max_input=32, max_target=8),
        loss=AnswerLoss(model, False),
        memory=new_memory(config, 42),
        config=config,
        seed=42,
        emit=events.append,
        device=torch.device("cpu"),
    )
    return Bench(trainee, events)


def train(method: Method, data: TaskData, index: int, steps: int, done: int = 0) -> Stage:
    """Updates ``done + 1`` to ``steps`` of a task, up to ``end_stage`` and the memory."""
    stage = Stage(data.name, (data,))
    begin(method, stage, index, done)
    with method.task(stage, index):
        run_updates(method, stage, index, done, steps)
    method.end_stage(stage, index)
    method.trainee.memory.add(data.name, data.train)
    return stage


def begin(method: Method, stage: Stage, index: int, done: int = 0) -> None:
    if done == 0:
        fresh_moments(method.trainee.optimizer)
        method.begin_stage(stage, index)


def run_updates(method: Method, stage: Stage, index: int, done: int, steps: int) -> None:
    pool = method.training_records(stage, index)
    for _ in updates(method, pool, stage.name, done, steps, Ranks()):
        pass


def adapter(trainee: Trainee) -> dict[str, torch.Tensor]:
    """A copy of every LoRA tensor, trained or frozen, by name."""
    named = trainee.model.named_parameters()
    return {name: p.detach().clone() for name, p in named if "lora_" in name}


def save(path: Path, method: Method) -> None:
    """What an arm saves of a method."""
    trainee = method.trainee
    save_tree(
        path,
        {
            "adapter": adapter(trainee),
            "optimizer": packed_optimizer(trainee.optimizer),
            "memory": trainee.memory.state_dict(),
            "method": method.state_dict(),
        },
    )


def restore(path: Path, method: Method) -> None:
    """In the order of an arm."""
    saved: Mapping[str, Any] = load_tree(path)
    trainee = method.trainee
    trainee.memory.load_state_dict(saved["memory"])
    method.prepare(saved["method"])
    named = dict(trainee.model.named_parameters())
    with torch.no_grad():
        for name, tensor in saved["adapter"].items():
            named[name].copy_(tensor)
    load_optimizer(trainee.optimizer, saved["optimizer"])
    method.load_state_dict(saved["method"])


class Watch:
    """Every update of an optimizer: theta and gradient before it, theta after it.

    One list per update, with one fp64 array per parameter.
    """

    def __init__(self, trainee: Trainee) -> None:
        self.before: list[list[np.ndarray]] = []
        self.gradients: list[list[np.ndarray]] = []
        self.after: list[list[np.ndarray]] = []
        parameters = trainee.parameters()

        def note_before(*_: Any) -> None:
            self.before.append([_array(p) for p in parameters])
            self.gradients.append([_array(p.grad) for p in parameters])

        def note_after(*_: Any) -> None:
            self.after.append([_array(p) for p in parameters])

        trainee.optimizer.register_step_pre_hook(note_before)
        trainee.optimizer.register_step_post_hook(note_after)

    def forget(self) -> None:
        self.before, self.gradients, self.after = [], [], []

    def scores(self, first: int, last: int, start: Any = None) -> tuple[list[Any], Any]:
        """Importance S * U after updates ``first`` to ``last`` - 1, from ``start`` or zeros.

        The second value is (S, U), from which a later call may go on.
        """
        zeros = [np.zeros_like(array) for array in self.before[0]]
        smooth, spread = start or (zeros, zeros)
        for step in range(first, last):
            pairs = zip(self.before[step], self.gradients[step], strict=True)
            seen = [abs(theta * gradient) for theta, gradient in pairs]
            smooth = [0.85 * s + 0.15 * x for s, x in zip(smooth, seen, strict=True)]
            away = [abs(x - s) for x, s in zip(seen, smooth, strict=True)]
            spread = [0.85 * u + 0.15 * x for u, x in zip(spread, away, strict=True)]
        return [s * u for s, u in zip(smooth, spread, strict=True)], (smooth, spread)


def _array(tensor: Any) -> np.ndarray:
    array: np.ndarray = tensor.detach().double().numpy().copy()
    return array
