"""Several tables act as one: what one table decides, all do; what one rejects, all undo."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.kernels import layout
from tests.backends import USABLE
from tests.tables import DTYPES, Play, Spec, Table, bits_of

pytestmark = pytest.mark.usefixtures("one_thread")
PAIRS = list(itertools.product(USABLE, repeat=2))
BOTH = pytest.mark.parametrize("backends", PAIRS, ids="-".join)
FIRST = [Spec(torch.float32, 5000, 3), Spec(torch.bfloat16, 33)]
SECOND = [Spec(torch.float16, 4097, 1), Spec(torch.float32, 0), Spec(torch.float32, 9000)]
CONFIGS = [
    AIMConfig(s_init=2, window=1),
    AIMConfig(policy="released", s_init=2, cold_start=0),
    AIMConfig(schedule="fixed", s_init=2, alpha_new=0.3),
    AIMConfig(schedule="monitor", s_init=2),
]


def split(tables: Sequence[Table], specs: Sequence[Sequence[Spec]], play: Play, stage: int) -> None:
    """Fill each table with its part of what one table of all tensors would hold."""
    live = [tensor for table in tables for tensor in table.live]
    whole = Table([], live, tables[0].anchor, tables[0].mid, tables[0].state)
    assert len(live) == sum(map(len, specs))
    play.fill(whole, stage)


class Grouped:
    """Two tables behind one engine, played like one."""

    def __init__(self, backends: Sequence[str], config: AIMConfig) -> None:
        self.tables = [Table.build(specs, config, defer=True) for specs in (FIRST, SECOND)]
        engines = [t.engine(name) for t, name in zip(self.tables, backends, strict=True)]
        self.engine = kernels.Group(engines, [table.state for table in self.tables])

    def fill(self, play: Play, stage: int) -> None:
        split(self.tables, (FIRST, SECOND), play, stage)

    def keep(self) -> None:
        for table in self.tables:
            kernels.copy_into(table.anchor, table.live)

    def contents(self) -> list[list[bytes]]:
        """Bits of live, anchor and mid, of all tables in order."""
        parts = zip(*map(contents, self.tables), strict=True)
        return [list(itertools.chain.from_iterable(part)) for part in parts]

    def states(self) -> list[bytes]:
        return [shared_bytes(table) for table in self.tables]


def contents(table: Table) -> list[list[bytes]]:
    """Bits of live, anchor and mid."""
    views = (kernels.arena_views(arena, table.live) for arena in (table.anchor, table.mid))
    return [[bits_of(t) for t in tensors] for tensors in (table.live, *views)]


def shared_bytes(table: Table) -> bytes:
    """The state that all tables of a group have in common: all but the partial results."""
    state = table.state.clone()
    fields: Any = layout.block(state)["state"]
    for name in ("ring", "defer", "partial_l1", "partial_bad"):
        fields[name] = 0
    return bits_of(state)


def learn(engine: Any, losses: Sequence[float] = (1.0, 1.0, 1.0, 9.0)) -> None:
    for loss in losses:
        engine.observe_(torch.tensor(loss))


@BOTH
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.policy}-{c.schedule}")
def test_two_tables_decide_and_fuse_like_one(backends: tuple[str, str], config: AIMConfig) -> None:
    """Three merges; the changes are whole numbers, so that their sum is the same in any order."""
    one, two = Table.build([*FIRST, *SECOND], config), Grouped(backends, config)
    engine = one.engine(backends[0])
    play = Play([*FIRST, *SECOND], "position", 0, config)
    whole = {DTYPES[1]: torch.tensor(1.0), DTYPES[2]: torch.tensor(1.0)}
    for merge in range(3):
        for stage in (0, 1, 2):
            play.fill(one, stage)
            two.fill(play, stage)
            for live in (*one.live, *two.tables[0].live, *two.tables[1].live):
                if live.dtype in whole:
                    live.fill_(stage * (merge + 1))
            if stage == 0:
                kernels.copy_into(one.anchor, one.live)
                two.keep()
                learn(engine)
                learn(two.engine)
            else:
                engine.open_() if stage == 1 else engine.close_()
                two.engine.open_() if stage == 1 else two.engine.close_()
            assert two.contents() == contents(one)
            assert two.states() == [shared_bytes(one)] * 2
    assert one.fields["merges"] == 3
    assert one.fields["l1"] > 0


@BOTH
@pytest.mark.parametrize("where", [0, 1, 2, 4], ids=lambda index: f"live{index}")
@pytest.mark.parametrize("half", [1, 2])
def test_one_bad_entry_undoes_every_table(backends: tuple[str, str], where: int, half: int) -> None:
    config = AIMConfig(alpha_new=0.5)
    specs = [*FIRST, *SECOND]
    nan = 0x7FC00001 if specs[where].dtype == torch.float32 else 0x7FFF
    planted = {half: [(where, specs[where].entries - 1, nan)]}
    good, bad = Play(specs, "normal", 4, config), Play(specs, "normal", 4, config, bad=planted)
    group = Grouped(backends, config)
    group.fill(good, 0)
    group.keep()
    anchor = group.contents()[0]
    learn(group.engine)
    group.fill(bad, 1)
    theta_j = group.contents()[0]
    group.engine.open_()
    if half == 1:
        assert group.contents() == [anchor] * 3
    else:
        group.fill(bad, 2)
        group.engine.close_()
        assert group.contents() == [theta_j] * 3
    assert [int(table.fields["reject"]) for table in group.tables] == [1, 1]
    assert [int(table.fields["merges"]) for table in group.tables] == [half - 1] * 2
    assert len(set(group.states())) == 1


@pytest.mark.parametrize("backend", USABLE)
def test_the_steps_of_a_deferred_merge(backend: str) -> None:
    """``open_`` and ``close_`` only measure, ``advance_`` decides, ``repair_`` undoes."""
    config = AIMConfig(alpha_new=0.5)
    table = Table.build(FIRST, config, defer=True)
    play = Play(FIRST, "normal", 4, config, bad={1: [(0, 7, 0x7F800000), (0, 8, 0x7F800000)]})
    play.fill(table, 0)
    kernels.copy_into(table.anchor, table.live)
    anchor = contents(table)[0]
    learn(table.engine(backend))
    play.fill(table, 1)
    theta_j, before = contents(table)[0], table.fields.copy()
    args = (table.live, table.anchor, table.mid, table.state)
    kernels.open_(*args, backend=backend)
    assert contents(table) == [theta_j, anchor, theta_j]
    assert table.fields["partial_bad"] == 2
    changed = [n for n in layout.STATE.names or () if (table.fields[n] != before[n]).any()]
    assert set(changed) - {"change_factor", "history"} == {"partial_l1", "partial_bad"}
    kernels.repair_(*args, backend=backend)
    assert contents(table) == [theta_j, anchor, theta_j], "nothing was decided yet"
    rows = torch.tensor([[1.0, 0.0], [2.0, 2.0]], dtype=torch.float64)
    kernels.advance_(rows, table.state, backend=backend)
    assert (table.fields["l1"], table.fields["reject"]) == (3.0, 2)
    assert contents(table) == [theta_j, anchor, theta_j]
    kernels.repair_(*args, backend=backend)
    assert contents(table) == [anchor] * 3


@BOTH
def test_partial_results_are_added_in_the_order_of_the_tables(backends: tuple[str, str]) -> None:
    config = AIMConfig(schedule="fixed", s_init=4)
    group = Grouped(backends, config)
    for table, value in zip(group.tables, (2.0**53, 1.0), strict=True):
        table.anchor.zero_()
        for live in table.live:
            live.zero_()
        table.live[-1][-1:] = value  # bf16 holds 2^53 too
    learn(group.engine)
    group.engine.open_()
    assert [float(table.fields["partial_l1"]) for table in group.tables] == [2.0**53, 1.0]
    assert [float(table.fields["l1"]) for table in group.tables] == [2.0**53] * 2
