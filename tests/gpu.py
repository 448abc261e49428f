"""Where the tests of the GPU run, on which backends, and what they compare with.

Without a GPU every test of ``tests/test_gpu_*.py`` is skipped for one reason. With
``AIMMERGE_TEST_DEVICE=cpu`` they run on the CPU instead: that tests the tests and proves nothing
about a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from aimmerge_fast import kernels
from aimmerge_fast.kernels import layout
from tests.tables import Play, Table, bits_of, integers

VARIABLE = "AIMMERGE_TEST_DEVICE"


def _device() -> torch.device | None:
    name = os.environ.get(VARIABLE)
    if name:
        return torch.device(name)
    return torch.device("cuda", 0) if torch.cuda.is_available() else None


DEVICE = _device()
ON_GPU = DEVICE is not None and DEVICE.type == "cuda"
_NONE = "NO GPU HERE: torch finds no CUDA device"
#: For ``pytestmark`` of every module.
REQUIRED = pytest.mark.skipif(DEVICE is None, reason=_NONE)
#: For tests of streams, graphs, page-locked memory: a CPU cannot stand in.
CUDA_ONLY = pytest.mark.skipif(
    not ON_GPU, reason=_NONE if DEVICE is None else "needs CUDA itself, a CPU cannot stand in"
)
NATIVE = "native"


def _usable(name: str) -> Any:
    reason = kernels.available(DEVICE)[name] if DEVICE is not None else None
    marks = pytest.mark.skipif(reason is not None, reason=f"{name} does NOT work here: {reason}")
    return pytest.param(name, marks=marks)


#: For ``parametrize``: the backends whose kernels run on the GPU.
BACKENDS = [_usable("native"), _usable("triton")]
#: The CPU's kernels; a CPU that stands in for the GPU is held to the plain formulas.
REFERENCE = NATIVE if ON_GPU and kernels.available("cpu")[NATIVE] is None else "eager"


def device() -> torch.device:
    """``DEVICE``, in a test that is not skipped."""
    assert DEVICE is not None
    return DEVICE


def scalar(value: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(value, dtype=dtype).to(device())


# ---- comparisons --------------------------------------------------------------------------------
# Sums and differences of NaNs are NaNs everywhere, but which of the many depends on the processor.


class Canonical(Table):
    """A table in whose snapshots every NaN of the controller is the same NaN."""

    def snapshot(self) -> list[bytes]:
        saved = kernels.save_state(self.state)
        layout.block(saved)["state"]["ring"] = 0
        ring = saved[-layout.RING_SIZE * layout.RECORD.itemsize :].numpy().view(layout.RECORD)
        _one_nan(layout.block(saved)["state"], layout.STATE)
        _one_nan(ring, layout.RECORD)
        return [bits_of(each) for each in (*self.buffers, self.anchor, self.mid, saved)]


def _one_nan(target: Any, dtype: np.dtype[Any]) -> None:
    for name, (kind, *_) in (dtype.fields or {}).items():
        if kind.base == np.float64:
            values = np.array(target[name])
            target[name] = np.where(np.isnan(values), np.nan, values)


def one_nan(tensor: torch.Tensor) -> torch.Tensor:
    """Integers of its width on the CPU, every NaN the same."""
    host = tensor.cpu()
    return torch.where(
        torch.isnan(host), integers(torch.full_like(host, torch.nan)), integers(host)
    )


def assert_same(names: Sequence[str], expected: Sequence[bytes], found: Sequence[bytes]) -> None:
    different = [n for n, a, b in zip(names, expected, found, strict=True) if a != b]
    assert not different, f"{device()} differs from the CPU in {different}"


def names_of(play: Play) -> list[str]:
    return [*(f"{spec}" for spec in play.specs), "anchor", "mid", "state"]


def assert_parity(play: Play, backend: str) -> Table:
    """Play it on the CPU and on the device; the device's table afterwards."""
    expected = play.on(REFERENCE, Canonical.build(play.specs, play.config))
    table = Canonical.build(play.specs, play.config, device=device())
    for wanted, found in zip(expected, play.on(backend, table), strict=True):
        assert_same(names_of(play), wanted, found)
    return table


def on_both(backend: str, act: Callable[[str, torch.device], Any]) -> tuple[Any, Any]:
    """What ``act(backend, device)`` gives on the CPU and on the device."""
    return act(REFERENCE, torch.device("cpu")), act(backend, device())
