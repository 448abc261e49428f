"""How the CUDA ops are launched: device, stream, geometry, and errors that name the op.

The driver is the emulated one, which reports what it was asked for and fails when it is told to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from aimmerge_fast.config import AIMConfig
from tests import emulated
from tests.cuda_plays import EmulatedTable
from tests.tables import DTYPES, Play, Spec

pytest.importorskip("aimmerge_fast._native", reason="there is no native module here")
F32, BF16, F16 = DTYPES
ILLEGAL_ADDRESS = 700
OPS = ("observe", "open", "close", "advance", "repair")
ENTRY_OPS = ("importance", "weighted")  # test_cuda_emulated_entries.py launches them


@pytest.fixture
def driver() -> Iterator[Any]:
    module = emulated.module()
    module.set_devices(4)
    module.take_launched()
    yield module
    module.fail_next_launch(0)


class Bound:
    """The compiled engine of a table on a device, and its ops with a stream."""

    def __init__(self, driver: Any, specs: list[Spec], device: int = 0) -> None:
        self.table = EmulatedTable.build(specs, AIMConfig())
        Play(specs).fill(self.table, 0)
        self.kept = self.table.engine("")._table
        addresses = (self.table.anchor, self.table.mid, self.table.state, self.kept.scratch)
        self.native = driver.CudaEngine(*(each.data_ptr() for each in addresses), device)
        self.native.bind(self.kept.tiles.data_ptr(), self.kept.count, self.kept.narrow)
        self.loss, self.rows = torch.tensor(1.0), torch.zeros(1, 2, dtype=torch.float64)

    def call(self, op: str, stream: int = 0) -> None:
        arguments: dict[str, tuple[int, ...]] = {
            "observe": (self.loss.data_ptr(), 0),
            "advance": (self.rows.data_ptr(), 1),
        }
        getattr(self.native, op)(*arguments.get(op, ()), stream)


@pytest.mark.parametrize("op", OPS)
def test_device_and_stream_are_the_callers(driver: Any, op: str) -> None:
    Bound(driver, [Spec(F32, 9)], device=3).call(op, stream=0x1234)
    assert [launch[:2] for launch in driver.take_launched()] == [(3, 0x1234)]
    assert driver.current_device() == 0  # put back


@pytest.mark.parametrize(
    ("specs", "threads"),
    [
        ([], 256),
        ([Spec(F32, 0)], 256),
        ([Spec(BF16, 5000), Spec(F32, 1)], 256),
        ([Spec(BF16, 5000), Spec(F32, 0), Spec(F16, 8193)], 128),
    ],
)
def test_one_launch_of_a_block_per_tile(driver: Any, specs: list[Spec], threads: int) -> None:
    bound = Bound(driver, specs)
    tiles = max(1, sum(-(-spec.entries // 4096) for spec in specs))
    for op in OPS:
        bound.call(op)
    blocks = {launch[2:] for launch in driver.take_launched()[1:3]}  # open, close
    assert blocks == {(tiles, threads)}


@pytest.mark.parametrize("op", OPS)
def test_a_failed_launch_names_the_op(driver: Any, op: str) -> None:
    bound = Bound(driver, [Spec(F32, 9)], device=2)
    before = bound.table.snapshot()
    driver.fail_next_launch(ILLEGAL_ADDRESS)
    with pytest.raises(RuntimeError, match=rf"^{op} on cuda:2: an illegal memory access"):
        bound.call(op)
    assert driver.current_device() == 0
    assert bound.table.snapshot() == before
    bound.call(op)


@pytest.mark.parametrize("op", OPS)
def test_a_device_that_does_not_exist_is_named(driver: Any, op: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{op} on cuda:7: "):
        Bound(driver, [Spec(F32, 9)], device=7).call(op)
    assert driver.take_launched() == []


def test_every_kernel_can_be_asked_about(driver: Any) -> None:
    """Asking loads a kernel, and all must be loaded before a capture."""
    names = set(driver.cuda_kernels(0))
    assert names == {*OPS, *ENTRY_OPS, "open_narrow", "close_narrow"}
    assert driver.cuda_architectures() == []  # no machine code in this build
    with pytest.raises(RuntimeError, match=r"^cuda_kernels on cuda:9: "):
        driver.cuda_kernels(9)


def test_a_table_of_too_many_tiles_is_refused(driver: Any) -> None:
    bound = Bound(driver, [Spec(F32, 9)])
    for count in (-1, 1 << 31):
        with pytest.raises(ValueError, match=f"got {count}; split the parameters"):
            bound.native.bind(bound.kept.tiles.data_ptr(), count, False)
