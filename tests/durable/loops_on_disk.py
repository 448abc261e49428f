"""Training loops that save everything a bit-identical resume needs after each thing they do."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch

from aimmerge_fast import RehearsalMemory
from aimmerge_fast.durable import load_optimizer, packed_optimizer
from aimmerge_fast.events import to_json
from tests.loops import Batch, Loop, collate, loss_fn, records

Save = Callable[[int, "DiskLoop"], None]
Merging = Callable[[bool], None]
TASKS, STEPS = ("one", "two"), 9


class NoisyLoop(Loop):
    """Its batches depend on every global generator too."""

    def batch(self) -> Batch:
        x, y = super().batch()
        return x * (1 + 0.1 * random.random()) + 0.1 * float(np.random.rand()), y


class DiskLoop:
    """A loop that calls ``save(number, self)`` at numbers that depend on its progress alone.

    ``merging`` is told when a merge begins and ends.
    """

    fields: ClassVar[dict[str, Any]] = {}

    def __init__(self, save: Save, merging: Merging) -> None:
        self.save, self.merging, self.number = save, merging, 0
        keywords = {"loss_fn": self.loss, "collate": collate}
        common = {"s_init": 3, "s_max": 6, "gamma_forget": 1.01}
        self.loop = NoisyLoop(keywords=keywords, **common, **self.fields)
        self.events: list[str] = []
        self.place: list[Any] = self.first_place()
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(7)

    def first_place(self) -> list[Any]:
        raise NotImplementedError

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        return loss_fn(model, batch)

    def tree(self) -> dict[str, Any]:
        """All of it, as ``Checkpoints`` takes it."""
        kind, words, *rest = np.random.get_state(legacy=True)
        merger = self.loop.merger
        return {
            "number": self.number,
            "place": self.place,
            "model": dict(self.loop.model.state_dict()),
            "optimizer": packed_optimizer(self.loop.optimizer),
            "merger": merger.state_dict(),
            "memory": self.loop.memory.state_dict(),
            "data": self.loop.data.get_state(),
            "torch": torch.get_rng_state(),
            "numpy": [kind, torch.from_numpy(np.array(words, dtype=np.int64)), *map(float, rest)],
            "python": list(random.getstate()),
            "events": [*self.events, *map(to_json, merger.events)],
        }

    def load(self, tree: dict[str, Any]) -> None:
        """Put a tree into these new objects, as a new process would."""
        self.number, self.place, self.events = tree["number"], tree["place"], tree["events"]
        self.loop.model.load_state_dict(tree["model"])
        load_optimizer(self.loop.optimizer, tree["optimizer"])
        self.loop.memory = RehearsalMemory(ratio=0.5)
        self.loop.memory.load_state_dict(tree["memory"])
        self.loop.data.set_state(tree["data"])
        torch.set_rng_state(tree["torch"])
        kind, words, position, has_gauss, cached = tree["numpy"]
        words = words.numpy().astype(np.uint32)
        np.random.set_state((kind, words, int(position), int(has_gauss), cached))
        version, internal, gauss = tree["python"]
        random.setstate((version, tuple(internal), gauss))
        self.loop.merger.load_state_dict(tree["merger"])

    def keep(self, number: int) -> None:
        self.number = number
        self.save(number, self)

    def go(self) -> None:
        """Train from where it is to the end."""
        raise NotImplementedError


class StepLoop(DiskLoop):
    """Two tasks with ``merger.step()``; saves after each step, task and memory step."""

    fields: ClassVar[dict[str, Any]] = {"memory_optimizer": "separate", "merge_at_task_end": True}

    def __init__(self, save: Save, merging: Merging) -> None:
        super().__init__(save, merging)
        rehearsal = self.loop.merger.rehearsal
        assert rehearsal is not None
        rehearsal.memory_optimizer.register_step_post_hook(self.after_memory_step)

    def first_place(self) -> list[Any]:
        return [0, 0]  # task, updates made in it

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        self.merging(self.loop.merger.controller.is_open)
        return super().loss(model, batch)

    def after_memory_step(self, *_: Any) -> None:
        if self.loop.merger.controller.is_open:
            self.keep(self.number + 1)

    def go(self) -> None:
        while self.place[0] < len(TASKS):
            task = self.place[0]
            with self.loop.merger.task(TASKS[task], self.loop.memory):
                self.merging(False)
                while self.place[1] < STEPS:
                    self.loop.update()
                    self.place = [task, self.place[1] + 1]
                    self.loop.merger.step()
                    self.merging(False)
                    self.keep(100 * (task * (STEPS + 1) + self.place[1]))
            self.loop.memory.add(TASKS[task], records(10, seed=task + 2))
            self.place = [task + 1, 0]
            self.keep(100 * (task + 1) * (STEPS + 1))


class PieceLoop(DiskLoop):
    """One task of observe, due, open and close; saves between any two calls."""

    fields: ClassVar[dict[str, Any]] = {"probe": "after", "memory_optimizer": "shared"}

    def first_place(self) -> list[Any]:
        return ["update", 0, 0]  # what comes next, updates made, memory steps left

    def go(self) -> None:
        with self.loop.merger.task(TASKS[0], self.loop.memory):
            while self.place[1] < 2 * STEPS:
                self.merging(self.place[0] in ("open", "memory", "close"))
                self.place = self.next_piece(*self.place)
                self.keep(self.number + 1)
            self.merging(False)

    def next_piece(self, piece: str, step: int, left: int) -> list[Any]:
        merger, rehearsal = self.loop.merger, self.loop.merger.rehearsal
        assert rehearsal is not None
        if piece == "update":
            self.loop.update()
            return ["observe", step, 0]
        if piece == "observe":
            some = records()[step % 4 * 8 :][:8]
            with torch.no_grad():
                merger.observe(loss_fn(self.loop.model, collate(some)))
            return ["due", step, 0]
        if piece == "due":
            return ["open", step, 0] if merger.due() else ["update", step + 1, 0]
        if piece == "open":
            rehearsal.save_moments()
            return ["memory", step, merger.open_merge()]
        if piece == "memory":
            rehearsal.memory_step()
            return ["memory", step, left - 1] if left > 1 else ["close", step, 0]
        rehearsal.restore_moments()
        merger.close_merge()
        return ["update", step + 1, 0]


LOOPS: dict[str, type[DiskLoop]] = {"steps": StepLoop, "pieces": PieceLoop}
