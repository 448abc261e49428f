"""What a method will do besides plain training, before it runs."""

from __future__ import annotations

import dataclasses
import functools
import itertools

from aimmerge_fast.config import AIMConfig
from aimmerge_fast.reference.controller import reference_controller

Span = tuple[int, int]
_RISE = 1000.0  # of the learning signal from merge to merge, at the one end
_MOST = 90  # merges over which it rises: a float holds no more


@dataclasses.dataclass(frozen=True)
class Expected:
    """Of one stage, (least, most): merges, updates on memory batches; and history probes.

    Attributes:
        memory_batch, probe_batch: records of each of them, where the memory has so many.
    """

    merges: Span = (0, 0)
    memory_steps: Span = (0, 0)
    probes: int = 0
    memory_batch: int = 0
    probe_batch: int = 0


def expected_merging(config: AIMConfig, task: int, steps: int) -> Expected:
    """Of ``FastAIMMerger`` in task number ``task`` (from 0) of so many updates, with a memory.

    The reference controller plays the stage with history losses that always or never activate, and
    learning signals that always rise or always fall. For the schedules of the calendar both ends
    are what will happen; random intervals are a function of the seed.
    """
    plays = [
        _play(config, task, steps, activates, rises)
        for activates, rises in itertools.product((False, True), repeat=2)
    ]
    merges, memory = zip(*plays, strict=True)
    return Expected(
        merges=(min(merges), max(merges)),
        memory_steps=(min(memory), max(memory)),
        probes=steps,
        memory_batch=config.memory_batch,
        probe_batch=config.history_batch,
    )


@functools.lru_cache(maxsize=4096)
def _play(config: AIMConfig, task: int, steps: int, activates: bool, rises: bool) -> Span:
    """(merges, memory steps) of one course of events."""
    controller = reference_controller(config, task=task)
    merges = memory = 0

    def merge() -> None:
        nonlocal merges, memory
        if config.schedule != "monitor":
            merges, memory = merges + 1, memory + controller.memory_steps
        power = min(controller.merges, _MOST)
        signal = _RISE ** (power if rises else -power)
        controller.merge(signal * (controller.S if config.policy == "released" else controller.t))

    for _ in range(steps):
        threshold = controller.threshold
        loss = 1.0 if threshold is None else 2.0 * threshold + 1.0 if activates else 0.0
        code = controller.observe(loss)
        if code.startswith("merge") or code == "measure":
            merge()
    if (config.schedule == "single" or config.merge_at_task_end) and controller.t > 0:
        merge()
    return merges, memory
