"""Rejected and deferred halves on the emulated CUDA kernels, bit for bit as on the CPU."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from tests import emulated
from tests.cuda_plays import (
    BF16,
    CONFIG,
    F16,
    F32,
    MIXED,
    NARROW,
    EmulatedTable,
    HostTable,
    agree,
    same,
)
from tests.oracles import one_by_one
from tests.tables import Play, Spec, bad_bits

pytest.importorskip("aimmerge_fast._native", reason="there is no native module here")


@pytest.mark.parametrize("table", [MIXED, NARROW], ids=["mixed", "narrow"])
@pytest.mark.parametrize("stage", [1, 2])
def test_a_bad_entry_anywhere_undoes_a_half(table: list[Spec], stage: int) -> None:
    """First, middle and last entries, both sides of a tile's border, and several at once."""
    found = []
    for k, spec in enumerate(table):
        entries = {0, spec.entries // 2, 4095, 4096, spec.entries - 1}
        kept = sorted(each for each in entries if each < spec.entries)
        found += [(k, entry, bad_bits(spec.dtype)[entry % 10]) for entry in kept if entry >= 0]
    counts = (1, 0) if stage == 1 else (0, 1)
    for place in found:
        agree(Play(table, "normal", 5, CONFIG, bad={stage: [place]}), rejects=counts)
    many = (len(found), 0) if stage == 1 else (0, len(found))
    agree(Play(table, "normal", 5, CONFIG, bad={stage: found}), rejects=many)


@pytest.mark.parametrize("table", [MIXED, NARROW], ids=["mixed", "narrow"])
def test_monitoring_and_keeping_theta_j(table: list[Spec]) -> None:
    bad = {1: [(0, 4096, bad_bits(table[0].dtype)[3])]}
    for planted in ({}, bad):
        agree(Play(table, "bits", 4, AIMConfig(schedule="monitor"), bad=planted))
        agree(Play(table, "bits", 4, AIMConfig(alpha_new=1.0), bad=planted))


def test_scratch_is_ready_again_after_every_merge() -> None:
    """120 merges on one engine, some rejected at either half, each compared with the CPU's."""
    table = [Spec(F32, 5000, 1), Spec(BF16, 70), Spec(F16, 4096)]
    host = HostTable.build(table, CONFIG)
    device = EmulatedTable.build(table, CONFIG)
    engines = host.engine("native"), device.engine("")
    draw = random.Random(5)
    for merge in range(120):
        emulated.module().set_schedule(merge % 7, 3)
        for stage in (1, 2):
            bad = {stage: [(1, 69, 0x7F80)]} if draw.random() < 0.2 else {}
            play = Play(table, "normal", merge, CONFIG, bad=bad)
            for each, engine in zip((host, device), engines, strict=True):
                play.fill(each, stage)
                engine.open_() if stage == 1 else engine.close_()
            same(f"merge {merge}, half {stage}", table, host.snapshot(), device.snapshot())
            header = device.scratch()
            assert not header.any(), f"merge {merge}: ticket or count left at {header.tolist()}"


@pytest.mark.parametrize("bad", [{}, {1: [(0, 4096, 0x7FC00001)]}, {2: [(2, 4095, 0xFC00)]}])
def test_two_tables_with_one_controller(bad: dict[int, Any]) -> None:
    """Deferred halves: open, advance, repair, close, advance, repair, each on both tables."""
    tables = (MIXED, NARROW[2:])
    groups = []
    for kind in (HostTable, EmulatedTable):
        built = [kind.build(each, CONFIG, defer=True) for each in tables]
        for each, table in zip(built, tables, strict=True):
            Play(table, "normal", 1, CONFIG).fill(each, 0)
            kernels.copy_into(each.anchor, each.live)
        engines = [each.engine("native") for each in built]
        groups.append((built, kernels.Group(engines, [each.state for each in built])))
    for stage in (1, 2):
        for built, group in groups:
            group.observe_(torch.tensor(1.0))
            planted = (bad.get(stage, ()), ())
            for each, table, here in zip(built, tables, planted, strict=True):
                Play(table, "normal", 1, CONFIG, bad={stage: here}).fill(each, stage)
            group.open_() if stage == 1 else group.close_()
        for table, host, device in zip(tables, groups[0][0], groups[1][0], strict=True):
            same(f"half {stage}", table, host.snapshot(), device.snapshot())
            assert bool(device.fields["reject"]) == (stage in bad)


@pytest.mark.parametrize("stage", [1, 2])
def test_repair_of_more_tiles_than_it_has_blocks(stage: int) -> None:
    """700 tiles, the last of them bad; repair launches at most 512 blocks."""
    table = [Spec(BF16, 1 + k % 3, k % 5) for k in range(700)]
    snapshots = []
    for kind in (HostTable, EmulatedTable):
        built = kind.build(table, CONFIG, defer=True)
        play = Play(table, "normal", 1, CONFIG, bad={stage: [(699, 0, 0x7F80)]})
        play.fill(built, 0)
        kernels.copy_into(built.anchor, built.live)
        group = kernels.Group([built.engine("native")], [built.state])
        for half in range(1, stage + 1):
            play.fill(built, half)
            group.open_() if half == 1 else group.close_()
        assert built.fields["reject"] == 1
        snapshots.append(built.snapshot())
    same(f"half {stage}", table, *snapshots)


def test_advance_adds_rows_in_their_order() -> None:
    """Sums that depend on the order, and counts that no int32 holds."""
    draw = random.Random(2)
    extremes = [0.0, 5e-324, 1e308, float("inf")]
    counts = [0.0, 0.0, 0.0, 0.0, 1.0, 3e9, 1e300, float("inf"), float("nan"), -1.0]
    states = [kind.build([], CONFIG) for kind in (HostTable, EmulatedTable)]
    engines = [each.engine("native") for each in states]
    sums = set()
    for half in range(400):
        changes = [1.0, *(draw.uniform(0, 2**-51) for _ in range(half % 7))]
        draw.shuffle(changes)
        if draw.random() < 0.1:
            changes[0] = draw.choice(extremes)
        rows = torch.tensor([[each, draw.choice(counts)] for each in changes], dtype=torch.float64)
        for engine in engines:
            engine.advance_(rows)
        same(f"half {half}", [], *(each.snapshot() for each in states))
        sums.add(one_by_one(changes) == one_by_one(reversed(changes)))
    assert sums == {True, False}
