"""What only the Triton kernels need to show; collected in the process that interprets them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.kernels import layout, tiles
from tests import guarded
from tests.tables import DTYPES, Play, Spec, Table, bad_bits

pytestmark = pytest.mark.usefixtures("one_thread")
HALF = AIMConfig(alpha_new=0.5)
MIXED = [Spec(d, n, n % 8) for d in DTYPES for n in (1, 33, 4096, 4097)]
NARROW = [Spec(d, n, n % 8) for d in DTYPES[1:] for n in (0, 70, 4096, 4099)]


def one_nan(halves: list[list[bytes]]) -> list[list[bytes]]:
    """Snapshots in which a sum that is not a number has one pattern: it has none of its own."""
    for half in halves:
        state = layout.block(torch.frombuffer(bytearray(half[-1]), dtype=torch.uint8)).copy()
        for name in ("l1", "partial_l1"):
            if math.isnan(state["state"][name]):
                state["state"][name] = math.nan
        half[-1] = state.tobytes()
    return halves


def same(play: Play) -> Table:
    """Play on the native kernels and on these; the table of these."""
    table = Table.build(play.specs, play.config)
    names = [*map(str, play.specs), "anchor", "mid", "state"]
    played = [one_nan(play.on("triton", table)), one_nan(play.on("native"))]
    for got, expected in zip(*played, strict=True):
        assert [n for n, a, b in zip(names, got, expected, strict=True) if a != b] == []
    return table


def scratch(engine: Any) -> list[int]:
    """Ticket and count of non-finite entries."""
    header = engine._table.scratch[: tiles.SCRATCH_HEADER].view(torch.int64)
    return [int(value) for value in header]


@pytest.mark.parametrize("specs", [MIXED, NARROW], ids=["mixed", "narrow"])
@pytest.mark.parametrize("kind", ["normal", "bits", "specials"])
@pytest.mark.parametrize("alpha", [1.0, 0.3, None])
def test_merges(specs: Sequence[Spec], kind: str, alpha: float | None) -> None:
    same(Play(specs, kind, 4, AIMConfig(alpha_new=alpha)))


def test_monitoring_moves_the_anchor_only() -> None:
    same(Play(MIXED, "bits", 2, AIMConfig(schedule="monitor")))
    bad = {1: [(3, 4096, bad_bits(torch.float32)[0])]}
    same(Play(MIXED, "normal", 2, AIMConfig(schedule="monitor"), bad=bad))


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rejects(dtype: torch.dtype, stage: int) -> None:
    """Bad entries at the ends of tiles and tensors, several at once; the ticket is left at zero."""
    specs = [Spec(dtype, n, n % 8) for n in (1, 4097, 4096, 33)] + MIXED[:3]
    patterns = bad_bits(dtype)
    places = [(0, 0), (1, 0), (1, 4095), (1, 4096), (2, 4095), (3, 32)]
    for count, place in enumerate(places):
        same(Play(specs, "normal", 5, HALF, bad={stage: [(*place, patterns[count])]}))
    everywhere = [(*place, patterns[count]) for count, place in enumerate(places)]
    play = Play(specs, "normal", 5, HALF, bad={stage: everywhere})
    record = kernels.ring(same(play).state)[len(play.losses) + stage - 1]
    assert record["reject"] == len(places)


def test_many_merges_on_one_engine() -> None:
    """Tickets and counts start at zero each time, after a reject too; the history fills up."""
    config = AIMConfig(s_init=2, window=2)
    tables = [Table.build(MIXED[2:9], config) for _ in range(2)]
    engines = [t.engine(name) for t, name in zip(tables, ("native", "triton"), strict=True)]
    for merge in range(8):
        bad = {1: [(0, 7, bad_bits(torch.float32)[0])]} if merge == 3 else {}
        play = Play(MIXED[2:9], "normal", merge, config, (1.0, 2.0, math.nan), bad)
        seen = []
        for table, engine in zip(tables, engines, strict=True):
            if merge == 0:
                play.fill(table, 0)
                kernels.copy_into(table.anchor, table.live)
            for loss in play.losses:
                engine.observe_(torch.tensor(loss))
            seen.append(one_nan([play._half(table, stage, engine) for stage in (1, 2)]))
        assert seen[0] == seen[1], f"merge {merge}"
        assert scratch(engines[1]) == [0, 0]


def test_an_engine_is_bound_to_other_tensors() -> None:
    """More tiles, and another geometry."""
    first, second = Table.build(NARROW, HALF), Table.build(MIXED[::-1], HALF)
    size = max(first.anchor.numel(), second.anchor.numel())
    arenas = [torch.full((size,), 7, dtype=torch.uint8) for _ in range(2)]
    engine = kernels.engine("triton", first.live, *arenas, first.state)
    engine.open_()
    engine.rebind(second.live)
    oracle = kernels.engine("native", second.live, second.anchor, second.mid, second.state)
    kernels.copy_into(arenas[0], second.live)
    kernels.copy_into(second.anchor, second.live)
    kernels.copy_out(second.live, arenas[0])
    engine.close_()
    for each in (engine, oracle):
        for tensor, spec in zip(second.live, MIXED[::-1], strict=True):
            tensor.fill_(spec.entries % 100 / 7)
        each.open_()
    assert first.fields["l1"] == second.fields["l1"] > 0.0


def test_more_tiles_than_the_last_sum_takes_at_once() -> None:
    play = Play([Spec(DTYPES[k % 3], 1 + k % 3, k % 16) for k in range(258)], "normal", 5)
    tables = [Table.build(play.specs, play.config) for _ in range(2)]
    for table, name in zip(tables, ("native", "triton"), strict=True):
        play.fill(table, 0)
        kernels.copy_into(table.anchor, table.live)
        play.fill(table, 1)
        table.engine(name).open_()
    assert tables[0].fields["l1"] == tables[1].fields["l1"] > 0.0


@pytest.mark.parametrize(
    ("size", "first"), [(0, [0] * 4), (3, [22, 23, 24, 0]), (1024, [1, 2, 3, 4])]
)
def test_records_go_round(size: int, first: list[int]) -> None:
    """In a ring of a few slots, of many, and of none; every dtype of a loss."""
    states = [kernels.new_state(AIMConfig(s_init=3)) for _ in range(2)]
    for state, name in zip(states, ("native", "triton"), strict=True):
        kernels.read_state(state)["state"]["ring_size"] = size
        for k, dtype in enumerate((torch.float64, torch.float32, *DTYPES[1:]) * 2):
            for value in (1.0, -math.inf, 1e-7):
                kernels.observe_(torch.tensor(value * k, dtype=dtype), state, backend=name)
    rings = [kernels.ring(state).tobytes() for state in states]
    assert rings[0] == rings[1]
    assert list(kernels.ring(states[1])["sequence"][:4]) == first


@pytest.mark.parametrize("at_end", [True, False])
def test_nothing_beside_a_buffer_is_touched(at_end: bool) -> None:
    """Forbidden pages before or behind every buffer; a stray access ends the process."""
    for dtype in DTYPES:
        for entries in (1, 1023, 4097, 8192):
            for bad in range(3):
                specs = [Spec(dtype, entries), Spec(dtype, 0)]
                pattern = (0, entries - 1, bad_bits(dtype)[0])
                play = Play(specs, "normal", 1, HALF, bad={bad: [pattern]} if bad else {})
                play.on("triton", guarded.fenced_table(specs, HALF, at_end))
                guarded._kept.clear()
            guarded.entry_ops(specs, at_end, "triton")
            guarded._kept.clear()
