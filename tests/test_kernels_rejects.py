"""All or nothing: one non-finite entry anywhere undoes a half of a merge, to the bit.

``open_`` goes back to the anchor, ``close_`` to the snapshot theta_j; nothing else is changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.kernels import layout
from tests.backends import USABLE
from tests.tables import DTYPES, Play, Spec, Table, bad_bits, bits_of

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.parametrize("backend", USABLE)]
CONFIG = AIMConfig(alpha_new=0.5)
Place = tuple[int, int]


def sizes(dtype: torch.dtype) -> list[Spec]:
    """Empty neighbours, one entry, tails, whole tiles, and a mixed neighbour."""
    other = DTYPES[(DTYPES.index(dtype) + 1) % 3]
    counts = (0, 1, 0, 4097, 33, 0, 4096, 8200)
    return [*(Spec(dtype, n, n % 5) for n in counts), Spec(other, 70), Spec(dtype, 0)]


def places(table: Sequence[Spec]) -> list[Place]:
    """First, second, middle and last entry of every tensor, and both sides of a tile's border."""
    found = []
    for index, spec in enumerate(table):
        entries = {0, 1, spec.entries // 2, spec.entries - 1, 4095, 4096}
        found += [(index, entry) for entry in sorted(entries) if 0 <= entry < spec.entries]
    return found


def bits(tensors: Sequence[torch.Tensor]) -> list[bytes]:
    return [bits_of(tensor) for tensor in tensors]


def contents(table: Table) -> list[list[bytes]]:
    """Bits of live, anchor and mid."""
    arenas = (kernels.arena_views(arena, table.live) for arena in (table.anchor, table.mid))
    return [bits(table.live), *map(bits, arenas)]


def started(play: Play, table: Table, backend: str) -> kernels.Engine:
    """Anchor set, eight losses seen, theta_j in place."""
    play.fill(table, 0)
    kernels.copy_into(table.anchor, table.live)
    engine = table.engine(backend)
    for _ in range(8):
        engine.observe_(torch.tensor(1.0))
    play.fill(table, 1)
    return engine


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bad_entry_anywhere_undoes_open(backend: str, dtype: torch.dtype) -> None:
    table = Table.build(sizes(dtype), CONFIG)
    values = bad_bits(dtype)
    for count, (tensor, entry) in enumerate(places(sizes(dtype))):
        pattern = values[count % len(values)] if table.live[tensor].dtype == dtype else 0x7FC00001
        if table.live[tensor].element_size() == 2:
            pattern &= 0xFFFF
            pattern |= 0x7C00 if table.live[tensor].dtype == torch.float16 else 0x7F80
        play = Play(sizes(dtype), "normal", 5, CONFIG, bad={1: [(tensor, entry, pattern)]})
        kernels.begin_task(table.state, 0)
        engine = started(play, table, backend)
        before, anchor = table.fields.copy(), bits(kernels.arena_views(table.anchor, table.live))
        engine.open_()
        assert contents(table) == [anchor] * 3, (tensor, entry, hex(pattern))
        after = table.fields
        assert (after["reject"], after["alpha1"], after["alpha2"]) == (1, 1.0, 0.0)
        assert (after["S"], after["merges"]) == (before["S"], 0)
        assert (after["history_count"], after["t"], after["F"]) == (0, 0, 0)
        engine.close_()
        assert contents(table) == [anchor] * 3
        assert (after["reject"], after["phase"]) == (0, layout.IDLE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bad_entry_anywhere_undoes_close(backend: str, dtype: torch.dtype) -> None:
    table = Table.build(sizes(dtype), CONFIG)
    for tensor, entry in places(sizes(dtype)):
        play = Play(sizes(dtype), "normal", 5, CONFIG)
        kernels.begin_task(table.state, 0)
        engine = started(play, table, backend)
        theta_j = bits(table.live)
        engine.open_()
        learned = table.fields["lambda"]
        play.fill(table, 2)
        table.live[tensor][entry] = [torch.nan, torch.inf, -torch.inf][entry % 3]
        engine.close_()
        assert contents(table) == [theta_j] * 3, (tensor, entry)
        assert (table.fields["reject"], table.fields["merges"]) == (1, 1)
        assert table.fields["lambda"] == learned


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", [1, 2])
def test_every_bad_entry_is_counted(backend: str, dtype: torch.dtype, stage: int) -> None:
    """Every Inf and NaN, in more tiles than one thread takes."""
    table = [Spec(dtype, 4096 * 20 + 3, 1), Spec(dtype, 9)]
    planted = [(0, 997 * k, pattern) for k, pattern in enumerate(bad_bits(dtype) * 8)]
    planted += [(1, 8, bad_bits(dtype)[0]), (0, 4096 * 20 + 2, bad_bits(dtype)[1])]
    play = Play(table, "normal", 2, CONFIG, bad={stage: planted})
    built = Table.build(table, CONFIG)
    play.on(backend, built)
    halves = kernels.ring(built.state)[len(play.losses) : len(play.losses) + 2]
    assert list(halves["reject"]) == ([len(planted), 0] if stage == 1 else [0, len(planted)])
    assert list(halves["code"] & 0xFF) == [layout.OPEN, layout.CLOSE]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_result_that_only_storing_makes_infinite_is_undone(
    backend: str, dtype: torch.dtype
) -> None:
    """Half a step above the largest value (65,520 in fp16) rounds to infinity, less does not."""
    largest = torch.tensor(torch.finfo(dtype).max, dtype=dtype)
    below = torch.nextafter(largest, torch.zeros((), dtype=dtype))
    outcomes = []
    for alpha2 in (-0.49, -0.5):  # largest - alpha2 * (below - largest); the anchor is zero
        table = Table.build([Spec(dtype, 5), Spec(dtype, 4100)], CONFIG)
        table.anchor.zero_()
        for tensor in table.live:
            tensor.fill_(1.0)
        table.live[1][4099] = largest
        engine, theta_j = table.engine(backend), bits(table.live)
        engine.open_()
        assert table.fields["reject"] == 0
        table.live[1][4099] = below
        table.fields["alpha1"], table.fields["alpha2"] = 1.0, alpha2
        engine.close_()
        assert contents(table)[0] == theta_j  # 1 - alpha2 * 0, or undone
        outcomes.append(int(table.fields["reject"]))
    assert outcomes == [0, 1]


def test_the_merge_after_a_rejected_one_is_as_if_there_had_been_none(backend: str) -> None:
    specs = [Spec(dtype, 4099, 3) for dtype in DTYPES]
    played = []
    for bad in ({}, {1: [(0, 4098, 0x7F800000)]}):
        table = Table.build(specs, CONFIG)
        if bad:
            Play(specs, "normal", 6, CONFIG, bad=bad).on(backend, table)
            assert table.fields["merges"] == 0
        Play(specs, "normal", 6, CONFIG).on(backend, table)
        played.append((contents(table), table.fields["lambda"], table.fields["merges"]))
    assert played[0] == played[1]


def test_rejections_are_repaired_only_by_the_half_that_met_them(backend: str) -> None:
    """``repair_`` does nothing after an accepted half, however often it is called."""
    specs = [Spec(torch.float32, 100), Spec(torch.bfloat16, 5000)]
    table = Table.build(specs, CONFIG)
    play = Play(specs, "normal", 8, CONFIG)
    engine = started(play, table, backend)
    engine.repair_()
    engine.open_()
    play.fill(table, 2)
    before = table.snapshot()
    engine.repair_()
    assert table.snapshot() == before
    engine.close_()
    after = table.snapshot()
    engine.repair_()
    assert table.snapshot() == after


@pytest.mark.parametrize("dtype", DTYPES)
def test_monitoring_leaves_bad_entries_as_they_are(backend: str, dtype: torch.dtype) -> None:
    """Nothing is repaired where nothing may be changed; the anchor takes no bad entry over."""
    specs = [Spec(dtype, 4100, 1)]
    config = AIMConfig(schedule="monitor")
    planted = [(0, 500 * k, pattern) for k, pattern in enumerate(bad_bits(dtype)[:8])]
    play = Play(specs, "normal", 5, config, bad={1: planted})
    table = Table.build(specs, config)
    engine = started(play, table, backend)
    anchor, theta_j = bits(kernels.arena_views(table.anchor, table.live)), bits(table.live)
    engine.open_()
    assert table.fields["reject"] == len(planted)
    assert contents(table) == [theta_j, anchor, theta_j]
    engine.close_()
    assert contents(table) == [theta_j, anchor, theta_j]
