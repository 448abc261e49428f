"""The GPU's kernels give the bits of the CPU's: parameters, arenas, controller state, records."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.kernels import layout
from aimmerge_fast.kernels.tiles import SCRATCH_HEADER
from tests import gpu
from tests.tables import DTYPES, KINDS, SIZES, Play, Spec, Table, bad_bits, bits_of, examples, specs

pytestmark = [gpu.REQUIRED, pytest.mark.parametrize("backend", gpu.BACKENDS)]
CONFIG = AIMConfig(alpha_new=0.6)
F32, BF16, F16 = DTYPES
MIXED = [Spec(F32, 4097, 1), Spec(BF16, 0), Spec(F16, 8200, 3), Spec(BF16, 4096), Spec(F32, 33, 5)]
NARROW = [Spec(BF16, 8200, 7), Spec(F16, 4096), Spec(BF16, 0), Spec(F16, 65, 1)]
TABLES = pytest.mark.parametrize("table", [MIXED, NARROW], ids=["mixed", "narrow"])


def configs() -> st.SearchStrategy[AIMConfig]:
    alphas = st.sampled_from([None, 0.0, 0.1, 1 / 3, 0.5, 1.0])
    merging = st.builds(AIMConfig, policy=st.sampled_from(["paper", "released"]), alpha_new=alphas)
    return st.one_of(merging, merging, merging, st.just(AIMConfig(schedule="monitor")))


@examples(250)
@given(
    table=specs(),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1 << 16),
    config=configs(),
    losses=st.lists(st.sampled_from([0.5, 1.0, 8.0, float("nan")]), max_size=4),
)
def test_any_table(
    backend: str,
    table: list[Spec],
    kind: str,
    seed: int,
    config: AIMConfig,
    losses: list[float],
) -> None:
    gpu.assert_parity(Play(table, kind, seed, config, losses), backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_size_at_once(backend: str, dtype: torch.dtype, kind: str) -> None:
    """Empty tensors first, last and between, and every border of tiles, rows and vectors."""
    sizes = [Spec(dtype, 0), *(Spec(dtype, n, n % 16) for n in SIZES), Spec(dtype, 0)]
    gpu.assert_parity(Play(sizes, kind, 3), backend)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_storage_offset(backend: str, dtype: torch.dtype) -> None:
    gpu.assert_parity(Play([Spec(dtype, 8200, k) for k in range(16)], "bits", 9), backend)


@pytest.mark.parametrize("kind", ["bits", "position"])
def test_more_tiles_than_lanes(backend: str, kind: str) -> None:
    """330 tensors of mixed dtypes, some empty: the tiles' sums wrap around the 256 lanes."""
    table = [Spec(DTYPES[k % 3], 17 * k % 90, k % 16) for k in range(330)]
    gpu.assert_parity(Play(table, kind, 5), backend)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_tensors(backend: str, dtype: torch.dtype) -> None:
    """More blocks than the device holds at once, and 2,100 small tiles more."""
    table = [Spec(dtype, 150_000, 3) for _ in range(14)]
    table += [Spec(dtype, 1 + k % 3, k % 5) for k in range(2100)]
    gpu.assert_parity(Play(table, "bits", 8, CONFIG), backend)


@pytest.mark.parametrize("table", [[], [Spec(F32, 0)], [Spec(BF16, 0), Spec(F16, 0)]])
@pytest.mark.parametrize("config", [CONFIG, AIMConfig(schedule="monitor")])
def test_a_table_without_a_tile(backend: str, table: list[Spec], config: AIMConfig) -> None:
    gpu.assert_parity(Play(table, "normal", 1, config), backend)


@TABLES
@pytest.mark.parametrize("stage", [1, 2])
def test_a_bad_entry_anywhere_undoes_a_half(backend: str, table: list[Spec], stage: int) -> None:
    """First, middle and last entries, both sides of a tile's border, and all at once."""
    planted = []
    for k, spec in enumerate(table):
        entries = {0, spec.entries // 2, 4095, 4096, spec.entries - 1}
        found = sorted(each for each in entries if 0 <= each < spec.entries)
        planted += [(k, entry, bad_bits(spec.dtype)[entry % 10]) for entry in found]
    for places in (*([place] for place in planted), planted):
        play = Play(table, "normal", 5, CONFIG, bad={stage: places})
        built = gpu.assert_parity(play, backend)
        halves = kernels.ring(built.state)[len(play.losses) : len(play.losses) + 2]
        counts = [0, 0]
        counts[stage - 1] = len(places)
        assert list(halves["reject"]) == counts
        assert list(halves["code"] & 0xFF) == [layout.OPEN, layout.CLOSE]


@TABLES
@pytest.mark.parametrize("config", [AIMConfig(schedule="monitor"), AIMConfig(alpha_new=1.0)])
def test_monitoring_and_keeping_theta_j(backend: str, table: list[Spec], config: AIMConfig) -> None:
    """Nothing is fused: a plain copy, also of entries that are not finite."""
    for bad in ({}, {1: [(0, 4096, bad_bits(table[0].dtype)[3])]}):
        gpu.assert_parity(Play(table, "bits", 4, config, bad=bad), backend)


@TABLES
def test_scratch_is_ready_again_after_every_merge(backend: str, table: list[Spec]) -> None:
    """60 merges on one engine, some rejected at either half, each compared with the CPU's."""
    both = [gpu.Canonical.build(table, CONFIG, device=d) for d in ("cpu", gpu.device())]
    engines = [t.engine(b) for t, b in zip(both, (gpu.REFERENCE, backend), strict=True)]
    draw = random.Random(5)
    for merge in range(60):
        for stage in (1, 2):
            bad = {stage: [(0, 4095, bad_bits(table[0].dtype)[0])]} if draw.random() < 0.2 else {}
            play = Play(table, "normal", merge, CONFIG, bad=bad)
            for each, engine in zip(both, engines, strict=True):
                play.fill(each, stage)
                engine.open_() if stage == 1 else engine.close_()
            gpu.assert_same(gpu.names_of(play), *(each.snapshot() for each in both))
            if gpu.ON_GPU:
                header = engines[1]._table.scratch[:SCRATCH_HEADER]  # type: ignore[attr-defined]
                assert not header.any(), f"merge {merge}: left at {header.tolist()}"


@pytest.mark.parametrize("bad", [{}, {1: [(0, 4096, 0x7FC00001)]}, {2: [(2, 4095, 0xFC00)]}])
def test_deferred_halves_advance_and_repair(backend: str, bad: dict[int, Any]) -> None:
    """Two tables with one controller: open, advance, repair, close, advance, repair on both."""
    tables = (MIXED, NARROW[2:])

    def play(name: str, device: torch.device) -> list[list[bytes]]:
        built = [gpu.Canonical.build(t, CONFIG, defer=True, device=device) for t in tables]
        for each, table in zip(built, tables, strict=True):
            Play(table, "normal", 1, CONFIG).fill(each, 0)
            kernels.copy_into(each.anchor, each.live)
        group = kernels.Group([t.engine(name) for t in built], [t.state for t in built])
        snapshots = []
        for stage in (1, 2):
            group.observe_(torch.tensor(1.0, device=device))
            for k, (each, table) in enumerate(zip(built, tables, strict=True)):
                planted = {} if k else {stage: bad.get(stage, [])}
                Play(table, "normal", 1, CONFIG, bad=planted).fill(each, stage)
            group.open_() if stage == 1 else group.close_()
            assert bool(built[0].fields["reject"]) == (stage in bad)
            snapshots += [each.snapshot() for each in built]
        return snapshots

    expected, found = gpu.on_both(backend, play)
    for number, (wanted, got) in enumerate(zip(expected, found, strict=True)):
        names = gpu.names_of(Play(tables[number % 2]))
        gpu.assert_same([f"half {number // 2 + 1}: {name}" for name in names], wanted, got)


def test_losses_of_every_dtype_and_a_full_ring(backend: str) -> None:
    draw = random.Random(3)
    values = [draw.choice([0.5, 1.0, 9.0, math.nan, math.inf, 1e-7]) for _ in range(1100)]

    def play(name: str, device: torch.device) -> list[bytes]:
        table = gpu.Canonical.build([], AIMConfig(), device=device)
        engine = table.engine(name)
        for step, value in enumerate(values):
            loss = torch.tensor(value, dtype=(*DTYPES, torch.float64)[step % 4])
            engine.observe_(loss.to(device))
        return table.snapshot()

    gpu.assert_same(["anchor", "mid", "state"], *gpu.on_both(backend, play))


def test_the_cpu_and_the_device_hold_different_tensors(backend: str) -> None:
    """The comparison can fail: one bit of the device's table is turned over."""
    play = Play(NARROW, "bits", 2, CONFIG)
    table: Table = gpu.Canonical.build(play.specs, play.config, device=gpu.device())
    play.on(backend, table)
    before = table.snapshot()
    table.mid[5] ^= 1
    assert bits_of(table.mid) != before[-2]
    with pytest.raises(AssertionError, match=r"differs from the CPU in \['mid'\]"):
        gpu.assert_same(gpu.names_of(play), before, table.snapshot())
