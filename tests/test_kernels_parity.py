"""Every backend gives the same bits: parameters, arenas, controller state and every record.

``eager`` is the reference here; its own values are held to oracles in test_kernels_values.py.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from tests.backends import USABLE
from tests.tables import DTYPES, FENCE, KINDS, SIZES, Play, Spec, Table, bits_of, examples, specs

pytestmark = pytest.mark.usefixtures("one_thread")
OTHERS = [name for name in USABLE if name != "eager"]

ALPHAS = st.one_of(
    st.sampled_from([None, 0.0, 0.1, 1 / 3, 0.5, 0.75, 1.0]),
    st.floats(0.0, 1.0),
)


def configs() -> st.SearchStrategy[AIMConfig]:
    merging = st.builds(AIMConfig, policy=st.sampled_from(["paper", "released"]), alpha_new=ALPHAS)
    return st.one_of(merging, merging, merging, st.just(AIMConfig(schedule="monitor")))


def assert_parity(play: Play, backend: str) -> Table:
    """Play on both; the table of ``backend`` after the merge."""
    table = Table.build(play.specs, play.config)
    expected, got = play.on("eager"), play.on(backend, table)
    names = [*(f"{spec}" for spec in play.specs), "anchor", "mid", "state"]
    for half, wanted, found in zip(("open", "close"), expected, got, strict=True):
        different = [n for n, a, b in zip(names, wanted, found, strict=True) if a != b]
        assert not different, f"after {half}, {backend} differs from eager in {different}"
    return table


@pytest.mark.parametrize("backend", OTHERS)
@examples(3000)
@given(
    table=specs(),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1 << 16),
    config=configs(),
    losses=st.lists(st.sampled_from([0.5, 1.0, 8.0, float("nan")]), max_size=4),
)
def test_any_table_gives_the_same_bits(
    backend: str,
    table: list[Spec],
    kind: str,
    seed: int,
    config: AIMConfig,
    losses: list[float],
) -> None:
    assert_parity(Play(table, kind, seed, config, losses), backend)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_size_at_once(backend: str, dtype: torch.dtype, kind: str) -> None:
    """Empty tensors first, last and between, and every border of tiles, rows and vectors."""
    table = [Spec(dtype, 0), *(Spec(dtype, n, n % 16) for n in SIZES), Spec(dtype, 0)]
    assert_parity(Play(table, kind, 3), backend)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_storage_offset(backend: str, dtype: torch.dtype) -> None:
    assert_parity(Play([Spec(dtype, 4200, offset) for offset in range(16)], "bits", 9), backend)


@pytest.mark.parametrize("backend", OTHERS)
def test_more_tensors_than_lanes(backend: str) -> None:
    """300 tensors of mixed dtypes: partial sums wrap around the 256 lanes."""
    table = [Spec(DTYPES[k % 3], 17 * k % 90, k % 16) for k in range(300)]
    for kind in ("normal", "position"):
        assert_parity(Play(table, kind, 5), backend)


@pytest.mark.parametrize("backend", USABLE)
def test_nothing_but_the_tensors_is_written(backend: str) -> None:
    """Fences around live tensors, the gaps of the arenas, and the anchor during open."""
    table = Table.build(
        play_specs := [Spec(d, n, 1) for d in DTYPES for n in (1, 31, 4097)], AIMConfig()
    )
    play = Play(play_specs, "normal", 7, AIMConfig(alpha_new=0.5))
    play.fill(table, 0)
    kernels.copy_into(table.anchor, table.live)
    anchor = bits_of(table.anchor)
    play.fill(table, 1)
    theta_j = [bits_of(live) for live in table.live]
    engine = table.engine(backend)
    engine.open_()
    assert bits_of(table.anchor) == anchor
    assert [bits_of(live) for live in table.live] == theta_j
    assert [bits_of(view) for view in kernels.arena_views(table.mid, table.live)] == theta_j
    play.fill(table, 2)
    mid = bits_of(table.mid)
    engine.close_()
    assert bits_of(table.mid) == mid
    for buffer, live in zip(table.buffers, table.live, strict=True):
        inside = live.numel() * live.element_size()
        start = live.data_ptr() - buffer.data_ptr()
        outside = torch.cat([buffer[:start], buffer[start + inside :]])
        assert (outside == FENCE).all()
    for arena in (table.anchor, table.mid):
        gaps = arena.clone()
        for view in kernels.arena_views(gaps, table.live):
            view.view(torch.uint8).fill_(FENCE)
        assert (gaps == FENCE).all()
