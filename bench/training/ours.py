"""AIM with ``FastAIMMerger``: the plain loop and one call per update."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch

from aimmerge_fast import AIMConfig, FastAIMMerger
from training.arms import Arm, Setup
from training.settings import CLIP, Settings

Result = TypeVar("Result")


def config(settings: Settings, probe: str) -> AIMConfig:
    """The paper's adaptive schedule with the interval held, so that blocks can be compared.

    A constant alpha (the +MGM ablation): random weights force every merge, and Eq. 8 gives a
    forced one alpha = (1, 0), whose close reads less than others'.
    """
    return AIMConfig(
        s_init=settings.s_init,
        s_min=settings.s_init,
        s_max=settings.s_init,
        alpha_new=0.6,
        probe=probe,
        history_batch=settings.history_rows,
        memory_batch=settings.memory_rows,
        max_grad_norm=CLIP,
        seed=settings.seed,
    )


class Ours(Arm):
    """One FastAIMMerger per block. ``used.engine_seconds`` is ``step()`` less the model's work."""

    name = "aim"
    title = "AIM, FastAIMMerger"

    def __init__(self, setup: Setup, chosen: AIMConfig | None = None) -> None:
        super().__init__(setup)
        self.merger = FastAIMMerger(
            setup.model,
            chosen or config(self.settings, self.settings.probe),
            optimizer=self.optimizer,
            collate=setup.bank.collate,
        )
        rehearsal: Any = self.merger.rehearsal
        rehearsal.probe = self._apart(rehearsal.probe, self._count_probe)
        rehearsal.memory_step = self._apart(rehearsal.memory_step, self._count_memory_step)
        self._rehearsing = 0.0

    def warm_up(self) -> None:
        with self.merger.task("past"):
            super().warm_up()
            self.merger.step()

    def task(self) -> AbstractContextManager[Any]:
        return self.merger.task("task", memory=self.setup.memory)

    def step(self, number: int) -> None:
        super().step(number)
        waits, rehearsing = self.merger.waits, self._rehearsing
        begin = time.perf_counter()
        self.used.merges += self.merger.step()
        taken = time.perf_counter() - begin
        self.used.engine_seconds += taken - (self._rehearsing - rehearsing)
        self.used.waits += self.merger.waits - waits

    def _apart(self, call: Callable[[], Result], count: Callable[[], None]) -> Callable[[], Result]:
        """The same call, its time kept apart from the engine's."""

        def timed() -> Result:
            begin = time.perf_counter()
            result = call()
            self._rehearsing += time.perf_counter() - begin
            count()
            return result

        return timed

    def _count_probe(self) -> None:
        self.used.history_rows += self.merger.config.history_batch

    def _count_memory_step(self) -> None:
        self.used.memory_rows += self.merger.config.memory_batch
        self.used.memory_steps += 1


class OursBefore(Ours):
    """Only to count synchronising calls and waits."""

    name = "aim-before"
    title = "AIM, FastAIMMerger, probe before"
    probe = "before"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, config(setup.settings, self.probe))


class OursAfter(OursBefore):
    """Only to count synchronising calls and waits."""

    name = "aim-after"
    title = "AIM, FastAIMMerger, probe after"
    probe = "after"


def engine_config(settings: Settings) -> AIMConfig:
    return config(settings, settings.probe)


def parameters_like(setup: Setup) -> list[torch.nn.Parameter]:
    """Parameters of the adapter's shapes and values, with memory of their own."""
    return [torch.nn.Parameter(p.detach().clone()) for p in setup.parameters]
