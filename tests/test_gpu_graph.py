"""CUDA itself: captured graphs, streams, page-locked records; nothing stands in for these."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from aimmerge_fast import AIMConfig, FastAIMMerger, kernels
from aimmerge_fast.events import Open, to_json
from aimmerge_fast.kernels import states
from tests import gpu
from tests.tables import DTYPES, Play, Spec, bad_bits, bits_of
from tests.test_gpu_parity import MIXED, NARROW
from tests.test_waits import noisy

pytestmark = [gpu.CUDA_ONLY, pytest.mark.parametrize("backend", gpu.BACKENDS)]
CONFIG = AIMConfig(alpha_new=0.6)
REPLAYS = 100
LONG = 1 << 31  # device cycles: about a second


def plays(table: list[Spec], count: int) -> list[Play]:
    """Merges of changing values; a half of every seventh is rejected."""
    found = []
    for k in range(count):
        bad = {1 + k % 2: [(0, 4095, bad_bits(table[0].dtype)[k % 10])]} if k % 7 == 3 else {}
        found.append(Play(table, "normal", k, CONFIG, bad=bad))
    return found


@pytest.mark.parametrize("table", [MIXED, NARROW], ids=["mixed", "narrow"])
def test_replays_of_the_captured_ops_give_the_bits_of_calls(
    backend: str, table: list[Spec]
) -> None:
    """observe, open and close in two graphs, 100 replays on changing values, against the CPU."""
    there = gpu.Canonical.build(table, CONFIG, device=gpu.device())
    here = gpu.Canonical.build(table, CONFIG)
    engine, reference = there.engine(backend), here.engine(gpu.REFERENCE)
    loss = gpu.scalar(1.0)
    first, second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    before = there.snapshot()
    with torch.cuda.graph(first):
        engine.observe_(loss)
        engine.open_()
    with torch.cuda.graph(second):
        engine.close_()
    assert there.snapshot() == before, "a capture must not run anything"
    for k, play in enumerate(plays(table, REPLAYS)):
        loss.fill_(1.0 + k % 5)
        for stage, graph in ((1, first), (2, second)):
            play.fill(there, stage)
            graph.replay()
            play.fill(here, stage)
            if stage == 1:
                reference.observe_(torch.tensor(1.0 + k % 5, dtype=torch.float64))
            reference.open_() if stage == 1 else reference.close_()
        if k % 10 == 9 or k < 8:
            gpu.assert_same(gpu.names_of(play), here.snapshot(), there.snapshot())


class Trained:
    """Parameters moved by device ops alone: what a captured training step is made of."""

    def __init__(self, backend: str) -> None:
        draw = torch.Generator().manual_seed(0)
        shapes = ((64, 33), (8200,))
        self.live = [
            torch.randn(s, generator=draw).to(DTYPES[k]).to(gpu.device()).requires_grad_()
            for k, s in enumerate(shapes)
        ]
        self.steps = [(0.01 * torch.randn(s, generator=draw)).to(gpu.device()) for s in shapes]
        self.given = gpu.scalar(0.0)
        self.merger = FastAIMMerger(self.live, AIMConfig(s_init=4), backend=backend)

    def update(self) -> None:
        with torch.no_grad():
            for tensor, step in zip(self.live, self.steps, strict=True):
                tensor.add_(step.to(tensor.dtype))
                step.mul_(-0.99)

    def update_and_observe(self) -> None:
        self.update()
        self.merger.observe(self.given * 1.0)

    def decide(self) -> None:
        if self.merger.due():
            for _ in range(self.merger.open_merge()):
                self.update()
            self.merger.close_merge()

    def history(self) -> tuple[list[str], list[bytes]]:
        return [to_json(event) for event in self.merger.events], [bits_of(t) for t in self.live]


def test_a_merger_with_a_captured_step_decides_as_without(backend: str) -> None:
    """The update and observe() are replayed; due() and the merges stay outside the graph."""
    histories = []
    for captured in (False, True):
        run, graph = Trained(backend), torch.cuda.CUDAGraph()
        for task in ("one", "two"):
            with run.merger.task(task):
                if captured and task == "one":
                    with torch.cuda.graph(graph):
                        run.update_and_observe()
                for loss in noisy(0.4, 150):
                    run.given.fill_(loss)
                    graph.replay() if captured else run.update_and_observe()
                    run.decide()
        histories.append(run.history())
        assert sum(isinstance(event, Open) for event in run.merger.events) >= 10
    assert histories[0] == histories[1]


def test_what_cannot_be_captured_says_so(backend: str) -> None:
    run, graph = Trained(backend), torch.cuda.CUDAGraph()
    refused: dict[str, Any] = {}
    with run.merger.task("task"), torch.cuda.graph(graph):
        run.update()
        for piece in ("due", "open_merge", "rollback"):
            with pytest.raises(RuntimeError, match=r"capture observe\(\) alone") as error:
                getattr(run.merger, piece)()
            refused[piece] = error.value
        with pytest.raises(RuntimeError, match="while a CUDA graph is captured"):
            run.merger.binding.engine.rebind([t.detach().view(-1).clone() for t in run.live])
    assert len(refused) == 3


def test_launches_go_to_the_current_stream(backend: str) -> None:
    """A whole merge on a side stream ends while the default stream sleeps."""
    play = Play(MIXED, "bits", 4, CONFIG)
    expected = play.on(gpu.REFERENCE, gpu.Canonical.build(MIXED, CONFIG))
    table, other = (gpu.Canonical.build(MIXED, CONFIG, device=gpu.device()) for _ in range(2))
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    engine = table.engine(backend)  # its table's upload waits for everything
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        play.on(backend, other)  # what is loaded or allocated once may wait for everything
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG)
    with torch.cuda.stream(side):
        found = play.on(backend, table, engine)
        side.synchronize()
    assert not main.query(), "the default stream was waited for, or did not sleep long enough"
    for wanted, got in zip(expected, found, strict=True):
        gpu.assert_same(gpu.names_of(play), wanted, got)
    main.synchronize()


def test_launches_are_ordered_within_their_stream(backend: str) -> None:
    """Each launch sees what the stream wrote before it, after a sleep on that same stream."""
    table = gpu.Canonical.build(NARROW, CONFIG, device=gpu.device())
    play = Play(NARROW, "position", 4, CONFIG)
    expected = play.on(gpu.REFERENCE, gpu.Canonical.build(NARROW, CONFIG))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(LONG // 8)
        found = play.on(backend, table)
    for wanted, got in zip(expected, found, strict=True):
        gpu.assert_same(gpu.names_of(play), wanted, got)


@pytest.mark.skipif(gpu.ON_GPU and torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_wrong_current_device_does_not_matter(backend: str) -> None:
    other = torch.device("cuda", 1)
    play = Play(MIXED, "bits", 4, CONFIG)
    expected = play.on(gpu.REFERENCE, gpu.Canonical.build(MIXED, CONFIG))
    with torch.cuda.device(0):
        found = play.on(backend, gpu.Canonical.build(MIXED, CONFIG, device=other))
        assert torch.cuda.current_device() == 0
    for wanted, got in zip(expected, found, strict=True):
        gpu.assert_same(gpu.names_of(play), wanted, got)


def test_records_arrive_whole_and_in_order_without_a_cuda_call(backend: str) -> None:
    """The host spins on page-locked memory while the device posts; the number comes last."""
    count = 500
    state = kernels.new_state(AIMConfig(schedule="single"), device=gpu.device())
    ring = kernels.ring(state)
    held = states._rings[int(kernels.read_state(state)["state"]["ring"])]
    assert held.is_pinned()
    empty = torch.zeros(64, dtype=torch.uint8, device=gpu.device())
    engine = kernels.engine(backend, [], empty, empty.clone(), state)
    losses = torch.arange(1, count + 1, dtype=torch.float64, device=gpu.device())
    torch.cuda.synchronize()
    for k in range(count):
        engine.observe_(losses[k])
    deadline = time.monotonic() + 30
    for k in range(count):
        while int(ring[k]["sequence"]) != k + 1:
            assert time.monotonic() < deadline, f"record {k + 1} did not arrive"
        assert (float(ring[k]["loss"]), int(ring[k]["t"])) == (k + 1.0, k + 1)
    torch.cuda.synchronize()
