"""One stream of two tasks over any adapted model, by any of the two mergers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aimmerge_fast import AIMConfig, FastAIMMerger, ReferenceAIMMerger, RehearsalMemory
from aimmerge_fast.events import Open, Probe
from tests.peft.kinds import KINDS, batch, rows

STEPS = (3, 20)  # updates of a task without memory and of one with it
CONFIG: dict[str, Any] = {
    "s_init": 3, "s_max": 6, "gamma_forget": 1.0, "alpha_floor": 0.2, "max_grad_norm": 1.0
}  # fmt: skip


def trained_by(model: Any) -> list[Tensor]:
    """PEFT's own opinion, each memory once (tied adapters are views of another's)."""
    found: dict[int, Tensor] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            found.setdefault(parameter.data_ptr(), parameter)
    return list(found.values())


class Stream:
    """Model, optimiser, memory and merger; ``run`` trains task after task.

    Args:
        make: the merger's class.
        merged: which of the parameters that require a gradient the reference merges; default all.
    """

    def __init__(
        self,
        model: Any,
        make: type[Any] = FastAIMMerger,
        *,
        merged: list[Tensor] | None = None,
        lr: float = 0.05,
        config: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=lr, eps=1e-4
        )
        self.memory = RehearsalMemory(ratio=0.5)
        settings = AIMConfig(**(CONFIG | (config or {})))
        self.merger = make(model, settings, optimizer=self.optimizer, collate=batch, **more)
        if isinstance(self.merger, ReferenceAIMMerger):
            self.merger.parameters[:] = trained_by(model) if merged is None else merged  # type: ignore
        self.done = 0

    def update(self) -> None:
        device = next(self.model.parameters()).device
        given = batch(rows(8, seed=100 + self.done))
        self.model(**{name: tensor.to(device) for name, tensor in given.items()}).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1

    def task(self, name: str, steps: int, after: Callable[[int], None] = lambda step: None) -> None:
        memory = self.memory if len(self.memory) else None
        with self.merger.task(name, memory):
            for step in range(steps):
                self.update()
                self.merger.step()
                after(step)
        self.memory.add(name, self.memory_rows(name))

    @staticmethod
    def memory_rows(name: str) -> list[Any]:
        return rows(40, seed=len(name))

    def run(self) -> Stream:
        torch.manual_seed(7)
        self.model.train()
        self.task("first", STEPS[0])
        self.task("second", STEPS[1])
        return self

    def decisions(self) -> tuple[list[Any], list[Any]]:
        """The probes and the merges of the last task, in the reference's terms."""
        if isinstance(self.merger, ReferenceAIMMerger):
            keys = ("step", "delta_l1", "lambda", "alpha1", "alpha2")
            return (
                [tuple(step) for step in self.merger.steps],
                [tuple(merge[key] for key in keys) for merge in self.merger.merges],
            )
        last = [event for event in self.merger.events if event.task == self.merger.controller.task]
        return (
            [(e.t, e.S, e.F, e.threshold, e.code, e.loss) for e in last if isinstance(e, Probe)],
            [
                (e.step, e.l1, e.learning_signal, e.alpha_new, e.alpha_past)
                for e in last
                if isinstance(e, Open)
            ],
        )


def snapshot(model: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@functools.cache
def trained(kind: str) -> tuple[dict[str, Tensor], Stream]:
    """One of each kind, shared by the tests: its weights at the start, and after two tasks."""
    model = KINDS[kind].model()
    start = snapshot(model)
    return start, Stream(model).run()


def bits(model: Any, part: str = "") -> dict[str, bytes]:
    """The bytes of every tensor whose name contains ``part``."""
    return {
        name: tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
        for name, tensor in model.state_dict().items()
        if part in name
    }
