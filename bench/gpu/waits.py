"""How often the host waits for a decision, for how long, and whether the GPU ran dry meanwhile.

A step's device work lasts a millisecond or two and the signal is quiet, which is when a decision
is awaited most. A wait is *exposed* when the stream has nothing left to do at its end: the GPU then
idles until the host has launched the next step. Else it only kept the host from running ahead.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from aimmerge_fast import AIMConfig, FastAIMMerger, RehearsalMemory
from gpu.stage import INFO, Found, Stage, judged

#: Share of steps with an exposed wait that may come from the machine's own interruptions.
_NOISE = 0.01


class Watched:
    """Counts and times the waits of a merger's mailbox."""

    def __init__(self, merger: FastAIMMerger, device: torch.device) -> None:
        self.waits = self.exposed = 0
        self.seconds = 0.0
        self._device = device
        self._mailbox = merger.controller.mailbox
        self._wait_for = self._mailbox.wait_for
        self._mailbox.wait_for = self._watch  # type: ignore[method-assign]

    def _watch(self, number: int) -> None:
        before, began = self._mailbox.waits, time.perf_counter()
        self._wait_for(number)
        if self._mailbox.waits > before:
            self.waits += 1
            self.seconds += time.perf_counter() - began
            if self._device.type == "cuda":
                self.exposed += torch.cuda.current_stream(self._device).query()


def run(given: Stage, backend: str) -> None:
    steps = 60 if given.quick else 1_000
    for probe in ("before", "after"):
        given.check(
            f'{backend}: waits in {steps} steps, probe="{probe}"',
            lambda p=probe: waits(backend, p, given.device, steps),
        )


def waits(backend: str, probe: str, device: torch.device, steps: int) -> Found:
    """Train a small model beside a heavy product with ``step()`` and count."""
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    memory = RehearsalMemory(ratio=1.0)
    memory.add("earlier", [{"value": float(k % 7)} for k in range(64)])
    size = 4_096 if device.type == "cuda" else 64
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    load = torch.randn(size, size, device=device).to(dtype)

    def collate(records: list[dict[str, float]]) -> Tensor:
        return torch.tensor([[record["value"]] * 64 for record in records])

    def loss_fn(net: torch.nn.Module, batch: Tensor) -> Tensor:
        return net(batch).square().mean()

    config = AIMConfig(s_init=8, s_max=8, probe=probe, history_batch=64, memory_batch=8)
    kinds: dict[str, Any] = {"optimizer": optimizer, "collate": collate, "loss_fn": loss_fn}
    merger = FastAIMMerger(model, config, backend=backend, **kinds)
    batch = torch.ones(8, 64, device=device)

    def step() -> None:
        for _ in range(8):
            torch.mm(load, load)
        loss_fn(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        merger.step()

    with merger.task("task", memory):
        for _ in range(20):
            step()
        watched = Watched(merger, device)
        began = time.perf_counter()
        for _ in range(steps):
            step()
        per_step = (time.perf_counter() - began) / steps * 1e6
    return found(watched, probe, device, steps, per_step)


def found(watched: Watched, probe: str, device: torch.device, steps: int, per_step: float) -> Found:
    figures = {
        "waits": watched.waits,
        "exposed": watched.exposed,
        "us_waited": watched.seconds * 1e6,
        "steps": steps,
        "us_per_step": per_step,
    }
    text = (
        f"{watched.waits} waits, {watched.exposed} exposed, {watched.seconds * 1e3:.1f} ms waited "
        f"in all; {per_step:,.0f} µs per step"
    )
    if device.type != "cuda" or probe != "before":
        return Found(text, INFO, figures)
    return judged(watched.exposed <= _NOISE * steps, text, **figures)
