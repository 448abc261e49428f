"""Synchronising calls and launches of the hooks: sync-debug mode, profiler, capture in a graph."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from aimmerge_fast import AIMConfig, FastAIMMerger, RehearsalMemory
from aimmerge_fast.events import Open
from gpu.captures import captured
from gpu.stage import FAILED, INFO, Found, Stage, judged
from overhead import backbones

#: Calls of the CUDA runtime and driver that wait for the device, or allocate.
SYNCHRONISING = (
    *("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy"),
    *("cuCtxSynchronize", "cuStreamSynchronize", "cuEventSynchronize", "cudaFree"),
    *("cudaMalloc", "cudaMallocAsync", "cudaHostAlloc", "cudaFreeHost"),
)
NO_MODE = "sync-debug mode did not see .item(): nothing it says can be believed"


def run(given: Stage, backends: list[str]) -> None:
    given.needs_gpu("control: debug mode sees .item()", lambda: debug_control(given.device))
    given.needs_gpu("control: the profiler sees calls", lambda: profiler_control(given.device))
    for name in backends:
        run_backend(given, name, 40 if given.quick else 1_000)


def run_backend(given: Stage, name: str, steps: int) -> None:
    device, few = given.device, steps // 5
    given.check(f"{name}: {steps} steps, hooks alone", lambda: Hooks(name, device).run(steps))
    given.check(
        f"{name}: {few} steps of training and rehearsal", lambda: training(name, device, few)
    )
    given.needs_gpu(
        f"{name}: calls of {few} steps by the profiler", lambda: profiled(name, device, few)
    )
    given.needs_gpu(f"{name}: ops in a graph, 100 replays", lambda: captured(name, device, 100))


@contextlib.contextmanager
def sync_errors(device: torch.device) -> Iterator[None]:
    """What torch makes the host wait for raises inside; on a CPU nothing does."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def debug_control(device: torch.device) -> Found:
    value = torch.zeros((), device=device)
    try:
        with sync_errors(device):
            value.item()
    except RuntimeError as error:
        return judged("synchroniz" in str(error), str(error).splitlines()[0])
    return Found(NO_MODE, FAILED)


def without_sync(merger: FastAIMMerger, device: torch.device, steps: int) -> Found:
    """The row of steps that raised nothing under the debug mode."""
    merges = sum(isinstance(event, Open) for event in merger.events)
    figures = {"merges": merges, "waits": merger.waits, "steps": steps}
    text = f"{merges} merges, {merger.waits} waits"
    if device.type != "cuda":
        return Found(f"ran, {text}; a CPU cannot synchronise", INFO, figures)
    return judged(merges >= 3, f"no synchronising call; {text}", **figures)


# ---- a merger on parameters of a true shape -----------------------------------------------------


class Hooks:
    """observe, due and merges of a merger whose parameters change by device operations alone."""

    def __init__(self, backend: str, device: torch.device) -> None:
        draw = torch.Generator(device).manual_seed(3)
        shapes = backbones.BACKBONES["t5-large"].shapes()[:64]
        self.live = [torch.randn(s, generator=draw, device=device) for s in shapes]
        for tensor in self.live:
            tensor.requires_grad_()
        self.merger = FastAIMMerger(self.live, AIMConfig(s_init=4), backend=backend)
        self.noise = torch.rand(1_024, generator=draw, device=device)  # the history losses
        self.device = device
        self.step_of = [torch.full_like(tensor, 1e-4) for tensor in self.live]

    def update(self) -> None:
        with torch.no_grad():
            torch._foreach_add_(self.live, self.step_of)

    def step(self, number: int) -> None:
        self.update()
        self.merger.observe(self.noise[number % len(self.noise)])
        if self.merger.due():
            for _ in range(self.merger.open_merge()):
                self.update()
            self.merger.close_merge()

    def run(self, steps: int) -> Found:
        """The task's beginning and end may wait; nothing between them."""
        with self.merger.task("task"):
            self.step(0)
            with sync_errors(self.device):
                for number in range(1, steps):
                    self.step(number)
        return without_sync(self.merger, self.device, steps)


def training(backend: str, device: torch.device, steps: int) -> Found:
    """``step()`` with probes and memory steps around a small model; the loop's calls count too."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Dropout(0.1), torch.nn.Tanh())
    net = torch.nn.Sequential(net, torch.nn.Linear(256, 8)).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    memory = RehearsalMemory(ratio=1.0)
    memory.add("earlier", [{"x": [math.sin(k + i) for i in range(64)]} for k in range(64)])

    def loss_fn(model: torch.nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    def collate(records: list[dict[str, list[float]]]) -> Tensor:
        batch = torch.tensor([record["x"] for record in records])
        return batch.pin_memory() if device.type == "cuda" else batch

    config = AIMConfig(s_init=4, s_max=16, history_batch=8, memory_batch=8)
    kinds = {"optimizer": optimizer, "collate": collate, "loss_fn": loss_fn, "backend": backend}
    merger = FastAIMMerger(net, config, **kinds)
    batch = torch.randn(8, 64, device=device)

    def step() -> None:
        loss_fn(net, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        merger.step()

    with merger.task("task", memory):
        for _ in range(40):  # what is made at first use may wait
            step()
        with sync_errors(device):
            for _ in range(steps):
                step()
    return without_sync(merger, device, steps)


# ---- the profiler -------------------------------------------------------------------------------


def counted(call: Callable[[], object], device: torch.device) -> tuple[Counter[str], int]:
    """CUDA calls by name, and kernels, copies and fills on the device, during ``call``."""
    activity = torch.profiler.ProfilerActivity
    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=[activity.CPU, activity.CUDA]) as trace:
        call()
        torch.cuda.synchronize(device)
    events = trace.events()
    on_device = sum(event.device_type.name == "CUDA" for event in events)
    on_host = [event.name for event in events if event.device_type.name == "CPU"]
    return Counter(name for name in on_host if name.startswith("cu")), on_device


def synchronising(names: Counter[str]) -> int:
    return sum(names[name] for name in SYNCHRONISING)


def profiler_control(device: torch.device) -> Found:
    value = torch.zeros(8, device=device)
    none, _ = counted(lambda: None, device)
    names, kernels_seen = counted(lambda: (value.add_(1), value.sum().item()), device)
    waits = synchronising(names) - synchronising(none)
    text = f"{waits} synchronising calls and {kernels_seen} kernels of .add_().sum().item()"
    return judged(waits >= 1 and kernels_seen >= 3, text, calls=dict(names), empty=dict(none))


def profiled(backend: str, device: torch.device, steps: int) -> Found:
    """Per step and per merge: launches on the device, and synchronising calls above none's."""
    far = 1 << 20
    live = [torch.randn(4_099, device=device, requires_grad=True) for _ in range(32)]
    merger = FastAIMMerger(live, AIMConfig(s_init=far, s_max=far), backend=backend)
    loss = torch.tensor(0.3, device=device)

    def hooks() -> None:
        for _ in range(steps):
            merger.observe(loss)
            merger.due()

    def merges() -> None:
        for _ in range(steps):
            merger.observe(loss)
            merger.due()
            merger.open_merge()
            merger.close_merge()

    with merger.task("task"):
        hooks()
        empty, _ = counted(lambda: None, device)
        step_calls, step_kernels = counted(hooks, device)
        merge_calls, merge_kernels = counted(merges, device)
    waits = [synchronising(calls) - synchronising(empty) for calls in (step_calls, merge_calls)]
    launched = step_kernels / steps, (merge_kernels - step_kernels) / steps
    text = f"{launched[0]:g} launches per step, {launched[1]:g} per merge, {sum(waits)} sync calls"
    return judged(
        launched == (1, 2) and waits == [0, 0],
        text,
        step_calls=dict(step_calls),
        merge_calls=dict(merge_calls),
    )
