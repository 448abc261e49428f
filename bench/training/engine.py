"""What the engine takes apart from any model: observe, due and the merges, nothing between them."""

from __future__ import annotations

import dataclasses
import time

import torch

from aimmerge_fast import FastAIMMerger
from training.arms import Setup
from training.ours import engine_config, parameters_like

#: Calls between two looks at the clock: on a GPU the device is waited for there.
_BLOCK = 100


@dataclasses.dataclass(frozen=True)
class Engine:
    """Medians in µs: ``hook`` of observe and due without a wait, ``merge`` of open and close, both
    host time.

    ``per_step`` is wall-clock time per update with merges and waits shared out, the device waited
    for after every 100 updates. The adapter stays in the caches, which a model's pass would take.
    """

    backend: str
    hook: float
    merge: float
    per_step: float


def measure(setup: Setup, seconds: float) -> Engine:
    """Drive one merger over parameters of the adapter's shapes for about ``seconds``."""
    config = engine_config(setup.settings)
    merger = FastAIMMerger(parameters_like(setup), config)
    loss = torch.tensor(0.3, device=setup.device)
    hooks: list[float] = []
    merges: list[float] = []
    blocks: list[float] = []
    begin = time.perf_counter()
    with merger.task("engine"):
        while not (merges and blocks) or time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            for _ in range(_BLOCK):
                _step(merger, loss, hooks, merges)
            if setup.device.type == "cuda":
                torch.cuda.synchronize(setup.device)
            blocks.append((time.perf_counter() - start) / _BLOCK)
    return Engine(
        backend=merger.binding.choice.name,
        hook=_median(hooks),
        merge=_median(merges),
        per_step=_median(blocks),
    )


def _step(
    merger: FastAIMMerger, loss: torch.Tensor, hooks: list[float], merges: list[float]
) -> None:
    waits = merger.waits
    begin = time.perf_counter()
    merger.observe(loss)
    due = merger.due()
    middle = time.perf_counter()
    if merger.waits == waits:
        hooks.append(middle - begin)
    if due:
        merger.open_merge()
        merger.close_merge()
        merges.append(time.perf_counter() - middle)


def _median(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) // 2] * 1e6
