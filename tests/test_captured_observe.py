"""``observe()`` in a CUDA graph: its replays judge, ``due()`` counts them; on a stand-in graph.

What a captured call launches is kept here and run at each replay, where no Python of the merger
runs: so must every test see the same events and bits as when ``observe()`` is called each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from aimmerge_fast import AIMConfig, FastAIMMerger, kernels
from aimmerge_fast.controller import Controller
from aimmerge_fast.events import Event, Open, to_json
from aimmerge_fast.kernels.layout import RING_SIZE
from tests.late_device import Rig
from tests.loops import bits
from tests.test_waits import noisy


class Graph:
    """Keeps what an engine is told while a capture is on, and runs it at ``replay``."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.capturing = False
        self.ops: list[Callable[[], None]] = []
        self.loss = torch.zeros((), dtype=torch.float64)

    def observe_(self, loss: torch.Tensor) -> None:
        op = lambda: self.engine.observe_(loss)  # noqa: E731
        self.ops.append(op) if self.capturing else op()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    @contextmanager
    def capture(self) -> Iterator[None]:
        self.capturing = True
        try:
            yield
        finally:
            self.capturing = False

    def replay(self, loss: float) -> None:
        self.loss.fill_(loss)
        for op in self.ops:
            op()


class Run:
    """A merger over two parameters, and a graph around its engine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
        self.noise = torch.Generator().manual_seed(1)
        draw = torch.Generator().manual_seed(0)
        self.live = [torch.randn(n, generator=draw).requires_grad_() for n in (9, 4100)]
        self.merger = FastAIMMerger(self.live, AIMConfig(**fields))
        self.graph = Graph(self.merger.controller._engine)
        self.merger.controller._engine = self.graph  # type: ignore[assignment]
        monkeypatch.setattr(kernels, "is_capturing", lambda _: self.graph.capturing)

    def capture(self) -> None:
        with self.graph.capture():
            self.merger.observe(self.graph.loss)

    def update(self) -> None:
        with torch.no_grad():
            for tensor in self.live:
                tensor.add_(0.01 * torch.randn(tensor.shape, generator=self.noise))

    def step(self, judge: Callable[[float], None], loss: float) -> bool:
        self.update()
        judge(loss)
        due = self.merger.due()
        if due:
            for _ in range(self.merger.open_merge()):
                self.update()
            self.merger.close_merge()
        return due

    def observe(self, loss: float) -> None:
        self.merger.observe(torch.tensor(loss, dtype=torch.float64))

    def history(self) -> tuple[list[str], bytes]:
        return [to_json(event) for event in self.merger.events], bits(self.live)


@pytest.mark.parametrize("fields", [{}, {"policy": "released"}, {"schedule": "fixed", "s_init": 3}])
def test_replays_decide_as_calls_do(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    histories = []
    for captured in (False, True):
        run = Run(monkeypatch, **fields)
        for task in ("one", "two"):
            with run.merger.task(task):
                if captured and task == "one":
                    run.capture()
                judge = run.graph.replay if captured else run.observe
                merged = sum(run.step(judge, loss) for loss in noisy(0.4, 90))
            assert merged >= 3
        histories.append(run.history())
    assert histories[0] == histories[1]


def captured_late(rig: Rig) -> Callable[[float], None]:
    """A graph on the late device of ``rig``; returns its replay."""
    loss, queued = torch.zeros((), dtype=torch.float64), len(rig.late._queue)
    rig.controller.capture(loss)
    op = rig.late._queue.pop()[1]  # captured, so not to run yet
    assert len(rig.late._queue) == queued
    return lambda value: rig.late.enqueue(lambda: (loss.fill_(value), op()))


@pytest.mark.parametrize("lag", [0, 5])
def test_replays_on_a_late_device_wait_as_calls_do(lag: int) -> None:
    losses = noisy(0.4)
    eager = Rig(AIMConfig(), lag)
    expected = eager.run(losses, ahead=False)
    rig = Rig(AIMConfig(), lag)
    replay = captured_late(rig)
    merged = []
    for loss in losses:
        rig.train()
        replay(loss)
        merged.append(rig.controller.due())
        if merged[-1]:
            rig.merge()
    assert merged == expected
    assert sum(merged) >= 3
    assert rig.bits() == eager.bits()
    assert [to_json(e) for e in rig.events] == [to_json(e) for e in eager.events]
    assert rig.controller.mailbox.waits == eager.controller.mailbox.waits > 0


def test_replays_never_overrun_the_ring() -> None:
    config = AIMConfig(schedule="single", max_bad_probes=1 << 20)
    rig = Rig(config, lag=1 << 30)
    rig.controller.mailbox._check_device = rig.late.run_one
    replay = captured_late(rig)
    for _ in range(2 * RING_SIZE + 100):
        replay(1.0)
        assert len(rig.late._queue) <= RING_SIZE - 1
        rig.controller.due()
    rig.late.finish()
    rig.controller.drain()
    assert rig.controller.reported == 2 * RING_SIZE + 100


def test_nothing_runs_and_nothing_counts_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    run.capture()  # also before a task: nothing runs
    with run.merger.task("task"):
        run.capture()
        controller = run.merger.controller
        assert (controller.launched, controller.observed, controller.captured) == (0, 0, True)
        assert not kernels.ring(run.merger.binding.states[0])["sequence"].any()


def test_a_pending_loss_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """observe() outside the graph still stands for one update, as before."""
    run = Run(monkeypatch)
    with run.merger.task("task"):
        run.capture()
        assert not run.step(run.observe, 1.0)
        assert run.merger.controller.launched == 1
        run.observe(1.0)
        with pytest.raises(RuntimeError, match="a history loss waits for its update"):
            run.observe(1.0)


def test_without_a_graph_due_still_asks_for_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    with run.merger.task("task"), pytest.raises(RuntimeError, match="without a new history loss"):
        run.merger.due()


def test_more_replays_than_decisions_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, schedule="single")
    with run.merger.task("task"):
        run.capture()
        run.step(run.graph.replay, 1.0)
        run.graph.replay(1.0)
        with pytest.raises(RuntimeError, match="step 2: the device judged more history losses"):
            run.step(run.graph.replay, 1.0)
        run.merger.rollback()  # which forgets what was not counted
        assert not run.step(run.graph.replay, 1.0)


def test_replays_before_a_task_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    run, plain = Run(monkeypatch), Run(monkeypatch)
    monkeypatch.setattr(kernels, "is_capturing", lambda _: run.graph.capturing)
    run.capture()
    for _ in range(3):
        run.graph.replay(5.0)
    for one, judge in ((run, run.graph.replay), (plain, plain.observe)):
        with one.merger.task("task"):
            for loss in noisy(0.4, 60):
                one.step(judge, loss)
    assert run.history() == plain.history()
    assert any(isinstance(event, Open) for event in run.merger.events)


def test_non_finite_losses_of_replays_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, max_bad_probes=2)
    with run.merger.task("task"):
        run.capture()
        run.step(run.graph.replay, math.nan)
        with pytest.raises(FloatingPointError, match="the last 2 history losses were not finite"):
            run.step(run.graph.replay, math.inf)


@pytest.mark.parametrize("piece", ["due", "open_merge", "close_merge", "rollback", "step"])
def test_only_observe_can_be_captured(monkeypatch: pytest.MonkeyPatch, piece: str) -> None:
    run = Run(monkeypatch)
    with run.merger.task("task"):
        message = rf"{piece}\(\) while a CUDA graph is captured.*capture observe\(\) alone"
        with run.graph.capture(), pytest.raises(RuntimeError, match=message):
            getattr(run.merger, piece)()
        assert run.merger.controller.host.steps == 0


def test_a_loss_of_another_device_cannot_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its copy would be part of the graph, from memory that is gone at the replay."""
    run = Run(monkeypatch)
    elsewhere = torch.zeros((), device="meta")
    with run.graph.capture(), pytest.raises(RuntimeError, match="got one on meta for cpu"):
        run.merger.observe(elsewhere)
    assert not run.merger.controller.captured


def test_several_devices_cannot_be_captured() -> None:
    """The other device's stream is not part of the capture: its launch would run at once."""
    events: list[Event] = []
    states = [kernels.new_state(AIMConfig(), defer=True) for _ in range(2)]
    controller = Controller(AIMConfig(), Graph(None), states, events.append)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="got one on cpu for cpu, cpu"):
        controller.capture(torch.zeros(()))
