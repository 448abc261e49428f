"""The registered ops under ``torch.compile`` on the GPU: the bits of the uncompiled step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from tests import compilers, gpu
from tests.tables import Play, Spec, bits_of

pytestmark = [gpu.REQUIRED, pytest.mark.parametrize("backend", gpu.BACKENDS)]
SPECS = [Spec(torch.float32, 4099), Spec(torch.bfloat16, 0), Spec(torch.float16, 33)]
CONFIG = AIMConfig(s_init=2, alpha_new=0.25)
OUTCOMES: dict[str, dict[int, list[tuple[int, int, int]]]] = {
    "merged": {},
    "rejected open": {1: [(0, 6, 0x7FC00000)]},
    "rejected close": {2: [(0, 6, 0x7FC00000)]},
}


@pytest.fixture(autouse=True)
def fresh_compilers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    with compilers.fresh(monkeypatch, tmp_path):
        warnings.filterwarnings(
            "ignore", message="TensorFloat32 tensor cores"
        )  # there is no matmul
        yield


def step(
    loss: Tensor, live: list[Tensor], stages: list[list[Tensor]], buffers: list[Tensor], name: str
) -> list[Tensor]:
    """Observe, open, train, close; live is read before and after each half."""
    kernels.observe_(loss, buffers[-1], backend=name)
    reads: list[Tensor] = []
    for op, values in zip((kernels.open_, kernels.close_), stages, strict=True):
        for tensor, value in zip(live, values, strict=True):
            tensor.copy_(value)
        reads += [tensor * 2 for tensor in live]
        op(live, *buffers, backend=name)
        reads += [*(tensor * 2 for tensor in live), buffers[0] + 1, buffers[1] + 1]
    return reads


def played(
    function: Callable[..., list[Tensor]], outcome: str, name: str, device: torch.device
) -> list[bytes]:
    """Everything read or written in three steps on one table."""
    play = Play(SPECS, "normal", 3, CONFIG, bad=OUTCOMES[outcome])
    table, *values = (gpu.Canonical.build(SPECS, CONFIG, device=device) for _ in range(3))
    for stage, target in enumerate((table, *values)):
        play.fill(target, stage)
    kernels.copy_into(table.anchor, table.live)
    table.live = [tensor.clone() for tensor in table.live]  # a compiler's aliasing rules
    stages = [[tensor.clone() for tensor in value.live] for value in values]
    found: list[bytes] = []
    for number in range(3):
        loss = torch.tensor(1.0 + number, dtype=torch.float64).to(device)
        buffers = [table.anchor, table.mid, table.state]
        reads: list[Any] = [*function(loss, table.live, stages, buffers, name), *table.live]
        found += [bits_of(gpu.one_nan(t)) if t.is_floating_point() else bits_of(t) for t in reads]
        found += table.snapshot()
    return found


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_a_compiled_step_gives_the_bits_of_the_uncompiled(backend: str, compiler: str) -> None:
    made = compilers.compiled(step, compiler)
    for outcome in OUTCOMES:
        expected = played(step, outcome, gpu.REFERENCE, torch.device("cpu"))
        for function in (step, made):
            found = played(function, outcome, backend, gpu.device())
            gpu.assert_same([str(k) for k in range(len(found))], expected, found)
