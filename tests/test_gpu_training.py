"""``FastAIMMerger`` on the GPU: every backend trains to the same bits and decides as the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from aimmerge_fast import AIMConfig, FastAIMMerger
from aimmerge_fast.controller import MergeRejected
from aimmerge_fast.events import Event, Open, Probe, Reject, to_json
from tests import gpu
from tests.backends import BackendController
from tests.loops import Batch, Loop, net
from tests.tables import bits_of
from tests.test_waits import noisy

pytestmark = gpu.REQUIRED
ALL = [*gpu.BACKENDS, "eager"]
SHAPES = ((64, 130), (8200,), (0,), (33,), (8, 512))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CONFIGS: dict[str, dict[str, Any]] = {
    "paper": {"s_init": 4},
    "released": {"policy": "released", "s_init": 4, "cold_start": 1},
    "fixed": {"schedule": "fixed", "s_init": 5, "alpha_new": 0.7},
    "monitor": {"schedule": "monitor", "s_init": 6},
}


class Planned:
    """Parameters that change by given steps, so that a CPU and a GPU can hold the same bits."""

    def __init__(self, backend: str, device: torch.device, fields: dict[str, Any]) -> None:
        self.noise = torch.Generator().manual_seed(1)
        draw = torch.Generator().manual_seed(0)
        self.device = device
        self.live = [
            torch.randn(shape, generator=draw).to(DTYPES[k % 3]).to(device).requires_grad_()
            for k, shape in enumerate(SHAPES)
        ]
        self.merger = FastAIMMerger(self.live, AIMConfig(**fields), backend=backend)

    def update(self) -> None:
        with torch.no_grad():
            for tensor in self.live:
                step = 0.01 * torch.randn(tensor.shape, generator=self.noise)
                tensor.add_(step.to(tensor.dtype).to(self.device))

    def step(self, loss: float) -> None:
        self.update()
        self.merger.observe(torch.tensor(loss, dtype=torch.float64).to(self.device))
        if self.merger.due():
            for _ in range(self.merger.open_merge()):
                self.update()
            self.merger.close_merge()

    def history(self) -> tuple[list[str], list[bytes]]:
        return [to_json(event) for event in self.merger.events], [bits_of(t) for t in self.live]


def planned(backend: str, device: torch.device, fields: dict[str, Any]) -> Planned:
    run = Planned(backend, device, fields)
    for task in ("one", "two"):
        with run.merger.task(task):
            for loss in noisy(0.4, 80):
                run.step(loss)
    return run


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_updates_give_the_same_run_as_on_a_cpu(backend: str, name: str) -> None:
    """Weights and events, mixed dtypes and an empty tensor, two tasks."""
    expected, found = gpu.on_both(backend, lambda b, d: planned(b, d, CONFIGS[name]))
    assert found.history() == expected.history()
    merges = sum(isinstance(event, Open) for event in found.merger.events)
    assert merges >= 8 or name == "monitor"


@pytest.mark.parametrize("backend", gpu.BACKENDS)
def test_a_state_restored_on_the_device_goes_on_to_the_same_bits(backend: str) -> None:
    whole = planned(backend, gpu.device(), CONFIGS["paper"])
    first = Planned(backend, gpu.device(), CONFIGS["paper"])
    losses, cut = noisy(0.4, 80), 33
    second = Planned(backend, gpu.device(), CONFIGS["paper"])
    with first.merger.task("one"):
        for loss in losses[:cut]:
            first.step(loss)
        saved = copy.deepcopy(first.merger.state_dict())
        with torch.no_grad():
            for target, source in zip(second.live, first.live, strict=True):
                target.copy_(source)
    second.noise.set_state(first.noise.get_state())
    second.merger.load_state_dict(saved)
    for task, rest in (("one", losses[cut:]), ("two", losses)):
        with second.merger.task(task):
            for loss in rest:
                second.step(loss)
    assert second.history()[1] == whole.history()[1]


# ---- real training ------------------------------------------------------------------------------


class DeviceLoop(Loop):
    """The small training loop with its model and its batches on the device."""

    def __init__(self, backend: str, precision: str, **fields: Any) -> None:
        self.device = gpu.device()
        self.scaler, keywords = None, {"backend": backend}
        if precision == "amp":
            kind = self.device.type
            self.scaler = torch.amp.GradScaler(kind, init_scale=2.0**10)
            keywords |= {"scaler": self.scaler, "autocast": self.autocast}
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        super().__init__(model=net(dtype).to(self.device), keywords=keywords, **fields)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.float16)

    def batch(self) -> Batch:
        x, y = super().batch()
        return x.to(self.device), y.to(self.device)

    def update(self) -> None:
        if self.scaler is None:
            return super().update()
        with self.autocast():
            loss: Tensor = self.keywords["loss_fn"](self.model, self.batch())
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return None


def trained(backend: str, precision: str, fields: dict[str, Any]) -> DeviceLoop:
    loop = DeviceLoop(backend, precision, **fields)
    torch.manual_seed(7)  # dropout's stream too
    for task in ("one", "two"):
        loop.run(40, task=task)
    return loop


def decided(events: list[Event], task: str) -> list[Any]:
    """What the controller decided in a task, and the two signals that it decided from."""
    found: list[Any] = []
    for event in events:
        if isinstance(event, Probe) and event.task == task:
            found.append((event.loss, (event.t, event.S, event.F, event.threshold, event.code)))
        elif isinstance(event, Open) and event.task == task:
            kept = ("kind", "alpha_new", "alpha_past", "memory_steps", "next_S", "cold")
            found.append((event.l1, tuple(getattr(event, name) for name in kept)))
    return found


def decided_on_cpu(config: AIMConfig, task: int, found: list[Any]) -> list[Any]:
    """The same signals through the CPU's controller."""
    controller = BackendController(config, gpu.REFERENCE, task=task)
    again: list[Any] = []
    for signal, outcome in found:
        if len(outcome) == 5:
            code = controller.observe(signal)
            state = (controller.t, controller.S, controller.F, controller.threshold, code)
            again.append((signal, state))
        else:
            merge = controller.merge(signal)
            kept = ("kind", "alpha1", "alpha2", "memory_steps", "next_S", "cold")
            again.append((signal, tuple(merge[name] for name in kept)))
    return again


@pytest.mark.parametrize("precision", ["fp32", "bf16", "amp"])
@pytest.mark.parametrize("name", ["paper", "released"])
def test_training_gives_the_same_bits_on_every_backend(name: str, precision: str) -> None:
    fields: dict[str, Any] = {**CONFIGS[name], "s_max": 8, "history_batch": 8, "memory_batch": 8}
    usable = [each for each in ALL if not _skipped(each)]
    loops = {_name(each): trained(_name(each), precision, fields) for each in usable}
    histories = {
        each: ([to_json(e) for e in loop.merger.events], [bits_of(p) for p in loop.parameters])
        for each, loop in loops.items()
    }
    first = next(iter(histories))
    for each, history in histories.items():
        assert history == histories[first], f"{each} differs from {first}"
    loop = loops[first]
    assert len(loop.of_type(Open)) >= 6
    for number, task in enumerate(("one", "two")):
        found = decided(loop.merger.events, task)
        assert found == decided_on_cpu(loop.config, number, found)


def _name(backend: Any) -> str:
    return backend if isinstance(backend, str) else str(backend.values[0])


def _skipped(backend: Any) -> bool:
    return not isinstance(backend, str) and any(mark.args[0] for mark in backend.marks)


@pytest.mark.parametrize("backend", ALL)
def test_a_bad_merge_is_undone_and_raised(backend: str) -> None:
    """An infinite entry at either half; the parameters are back, and training goes on."""

    def spoil(run: Planned, act: Callable[[], object]) -> list[bytes]:
        with torch.no_grad():
            run.live[1][8199] = torch.inf
        with pytest.raises(MergeRejected):
            act()
        return [bits_of(t) for t in run.live]

    run = Planned(backend, gpu.device(), {"schedule": "fixed", "s_init": 3})
    with run.merger.task("task"):
        start = [bits_of(t) for t in run.live]
        for _ in range(2):
            run.update()
            run.merger.observe(gpu.scalar(1.0))
            assert not run.merger.due()

        def merge() -> None:
            run.merger.observe(gpu.scalar(1.0))
            assert run.merger.due()
            run.merger.open_merge()
            run.merger.close_merge()

        assert spoil(run, merge) == start  # the anchor
        for _ in range(3):
            run.update()
            run.merger.observe(gpu.scalar(1.0))
            due = run.merger.due()
        assert due
        theta_j = [bits_of(t) for t in run.live]
        run.merger.open_merge()
        assert spoil(run, run.merger.close_merge) == theta_j
        for loss in noisy(0.1, 9):
            run.step(loss)
    assert [e.half for e in run.merger.events if isinstance(e, Reject)] == ["open", "close"]
