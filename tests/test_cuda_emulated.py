"""The CUDA kernels, run on the CPU, give the bits of the CPU kernels: live tensors, fences, arenas,
state and every record; and leave their scratch ready for the next launch.

``tests/emulated.py`` compiles ``csrc/cuda`` itself; only the PTX of ``device.cuh`` is replaced.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aimmerge_fast.config import AIMConfig
from aimmerge_fast.kernels import layout
from tests import emulated
from tests.backends import BackendController
from tests.cuda_plays import (
    BF16,
    CONFIG,
    F16,
    F32,
    MIXED,
    NARROW,
    AbsorbingPlay,
    EmulatedTable,
    HostTable,
    Ops,
    agree,
    same,
)
from tests.tables import DTYPES, KINDS, SIZES, Play, Spec, bad_bits, examples, specs
from tests.test_kernels_parity import configs
from tests.traces import Trace, config_of, load_traces, run_trace

pytest.importorskip("aimmerge_fast._native", reason="there is no native module here")


@pytest.fixture(autouse=True)
def driver() -> Iterator[Any]:
    """The emulation, in ascending order; other orders do not outlive a test."""
    module = emulated.module()
    module.set_schedule(0, 3)
    yield module
    module.set_schedule(0, 3)


def places(table: Sequence[Spec]) -> st.SearchStrategy[list[tuple[int, int, int]]]:
    """Non-finite entries somewhere in the table; mostly none."""
    held = [k for k, spec in enumerate(table) if spec.entries]
    if not held:
        return st.just([])
    one = st.sampled_from(held).flatmap(
        lambda k: st.tuples(
            st.just(k),
            st.sampled_from([0, table[k].entries // 2, table[k].entries - 1]),
            st.sampled_from(bad_bits(table[k].dtype)),
        )
    )
    return st.one_of(st.just([]), st.lists(one, max_size=3))


@examples(400)
@given(
    table=specs(longest=4),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1 << 16),
    config=configs(),
    losses=st.lists(st.sampled_from([0.5, 1.0, 8.0, float("nan")]), max_size=4),
    order=st.integers(0, 9),
    data=st.data(),
)
def test_any_table_gives_the_same_bits(
    table: list[Spec],
    kind: str,
    seed: int,
    config: AIMConfig,
    losses: list[float],
    order: int,
    data: st.DataObject,
) -> None:
    emulated.module().set_schedule(order, 1 + order % 4)
    bad = {stage: data.draw(places(table)) for stage in (1, 2)}
    agree(Play(table, kind, seed, config, losses, bad))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_size_at_once(dtype: torch.dtype, kind: str) -> None:
    """Empty tensors first, last and between, and every border of tiles, rows and vectors."""
    sizes = [Spec(dtype, 0), *(Spec(dtype, n, n % 16) for n in SIZES), Spec(dtype, 0)]
    agree(Play(sizes, kind, 3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_storage_offset(dtype: torch.dtype) -> None:
    agree(Play([Spec(dtype, 4097, offset) for offset in range(16)], "bits", 9))


@pytest.mark.parametrize("kind", ["bits", "position"])
def test_more_tiles_than_lanes(kind: str) -> None:
    """330 tensors of mixed dtypes, some empty; the tiles' sums wrap around the 256 lanes."""
    agree(Play([Spec(DTYPES[k % 3], 17 * k % 90, k % 16) for k in range(330)], kind, 5))


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_more_tiles_than_the_final_sum_loads_at_once(dtype: torch.dtype) -> None:
    """2,100 tiles: the lanes of the final sum go round a ninth time."""
    agree(AbsorbingPlay([Spec(dtype, 1 + k % 3, k % 5) for k in range(2100)], losses=()))


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_changes_are_added_in_order_p(dtype: torch.dtype) -> None:
    """Within a tile, and over more tiles than there are lanes."""
    for seed in range(6):
        for table in (
            [Spec(dtype, 4096, 4), Spec(dtype, 9000, 1)],
            [Spec(dtype, 1 + k % 3) for k in range(300)],
        ):
            agree(AbsorbingPlay(table, seed=seed, losses=()))


@pytest.mark.parametrize("table", [[], [Spec(F32, 0)], [Spec(BF16, 0), Spec(F16, 0)]])
@pytest.mark.parametrize("config", [CONFIG, AIMConfig(schedule="monitor")])
def test_a_table_without_a_tile(table: list[Spec], config: AIMConfig) -> None:
    agree(Play(table, "normal", 1, config))


@pytest.mark.parametrize("table", [MIXED, NARROW], ids=["mixed", "narrow"])
def test_the_order_of_blocks_changes_no_bit(driver: Any, table: list[Spec]) -> None:
    play = Play(table, "bits", 6, CONFIG)
    seen = set()
    for order in range(12):
        driver.set_schedule(order, 1 + order % 5)
        played = play.on("emulated", EmulatedTable.build(table, CONFIG))
        seen.add(tuple(each for half in played for each in half))
    assert len(seen) == 1


def test_the_ring_wraps_around() -> None:
    states, losses = [], random.Random(3)
    values = [losses.choice([0.5, 1.0, 9.0, float("nan")]) for _ in range(layout.RING_SIZE + 50)]
    for kind in (HostTable, EmulatedTable):
        table = kind.build([], AIMConfig())
        engine = table.engine("native")
        for step, value in enumerate(values):
            dtype = (*DTYPES, torch.float64)[step % 4]
            engine.observe_(torch.tensor(value, dtype=dtype))
        states.append(table.snapshot())
    same("after every loss", [], *states)


@pytest.mark.parametrize("trace", load_traces(), ids=lambda trace: trace["id"])
def test_trace(trace: Trace) -> None:
    controller = BackendController(config_of(trace), "", ops=Ops())
    compared = run_trace(controller, trace)
    assert compared == 5 * trace["T"] + len(trace["merges"][0]) * len(trace["merges"])
