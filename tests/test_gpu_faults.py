"""A GPU that dies is a named error, soon, and not a hang; a wrong call is refused by name."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from aimmerge_fast import AIMConfig, FastAIMMerger, kernels
from tests import gpu

pytestmark = [gpu.CUDA_ONLY, pytest.mark.parametrize("backend", gpu.BACKENDS)]

#: The device traps a tenth of a second after the host asked; then the host wants a decision.
DYING = """
import os, sys
import torch
from aimmerge_fast import AIMConfig, FastAIMMerger

live = [torch.ones(5000, device="cuda", requires_grad=True)]
merger = FastAIMMerger(live, AIMConfig(s_init=2), backend=sys.argv[1])
loss = torch.ones((), device="cuda")
with merger.task("task"):
    merger.observe(loss)
    merger.due()
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)
    torch._assert_async(torch.zeros((), device="cuda"))
    try:
        merger.observe(loss)
        merger.due()  # S = 2 and one loss that is not known: it waits
    except RuntimeError as error:
        print("waiting:", str(error).splitlines()[0])
    try:
        merger.controller._engine.open_()
    except RuntimeError as error:
        print("launching:", str(error).splitlines()[0])
    sys.stdout.flush()
    os._exit(0)  # nothing can be cleaned up on a dead device
"""


def test_a_dead_device_is_an_error_and_not_a_hang(backend: str) -> None:
    root = Path(__file__).parents[1]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", DYING, backend],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,  # a wait for a record would last 600 s
        check=False,
    )
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "cuda:0 failed while a decision was awaited" in lines["waiting"]
    assert "assert" in lines["waiting"]
    assert "assert" in lines["launching"], "a launch on a dead device must raise"
    assert time.monotonic() - began < 100


def test_a_loss_elsewhere_is_moved_by_the_merger_and_refused_by_the_op(backend: str) -> None:
    live = [torch.ones(100, device=gpu.device(), requires_grad=True)]
    merger = FastAIMMerger(live, AIMConfig(), backend=backend)
    with merger.task("task"):
        merger.observe(torch.tensor(2.0))  # on the CPU
        merger.due()
        merger.controller.finish_records()
        merger.controller.drain()
        assert [e.loss for e in merger.events if hasattr(e, "threshold")] == [2.0]
    state = kernels.new_state(AIMConfig(), device=gpu.device())
    with pytest.raises(ValueError, match="the history loss is on cpu"):
        kernels.observe_(torch.tensor(2.0), state, backend=backend)


def test_tensors_of_two_devices_are_refused(backend: str) -> None:
    live = [torch.ones(100, device=gpu.device())]
    anchor, mid = kernels.new_arena(live), kernels.new_arena(live)
    state = kernels.new_state(AIMConfig())
    with pytest.raises(ValueError, match=r"state.* on .*cuda:0"):
        kernels.engine(backend, live, anchor, mid, state)


def test_several_tables_decide_together(backend: str) -> None:
    """Parameters on the CPU and on the GPU in one merger give the events of one device."""

    def run(devices: list[torch.device]) -> list[float]:
        draw = torch.Generator().manual_seed(0)
        live = [torch.randn(5000, generator=draw).to(d).requires_grad_() for d in devices]
        merger = FastAIMMerger(live, AIMConfig(schedule="fixed", s_init=3), backend="auto")
        with merger.task("task"):
            for _ in range(12):
                with torch.no_grad():
                    for tensor in live:
                        tensor.add_(torch.randn(5000, generator=draw).to(tensor.device))
                merger.observe(torch.ones((), device=devices[0]))
                if merger.due():
                    merger.open_merge()
                    merger.close_merge()
        return [event.l1 for event in merger.events if hasattr(event, "l1")]

    together = run([gpu.device(), torch.device("cpu")])
    alone = run([torch.device("cpu")] * 2)
    assert len(together) == len(alone) == 4
    assert together == pytest.approx(alone, rel=1e-12)  # other tiles, so another order
