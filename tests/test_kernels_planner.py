"""The tile table covers every entry of every tensor exactly once, in memory and in the arenas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aimmerge_fast.kernels import arena_layout
from aimmerge_fast.kernels.arena import DTYPES
from aimmerge_fast.kernels.tiles import TILE as TILE_TYPE
from aimmerge_fast.kernels.tiles import plan, tile_count, tiles_at
from tests.tables import examples

_native = pytest.importorskip("aimmerge_fast._native", reason="there is no native module here")
TILE, WIDE = _native.numbers()["limits"]["tile"], _native.numbers()["limits"]["wide"]
BYTES = np.array([dtype.itemsize for dtype in DTYPES])  # by number in the table
EDGES = np.array([0, 0, 1, 2, 4095, 4096, 4097, 8191, 8192, 8193, 65_535, 65_536, 65_537])
TABLES = 30_000 * settings.default.max_examples // 100  # nightly: 20 times as many
Array = np.ndarray[Any, Any]


def random_table(rng: np.random.Generator) -> tuple[Array, Array, Array, Array]:
    """Addresses, entries, offsets and dtypes of 0 to 300 tensors; runs of empty ones occur."""
    n = int(rng.integers(0, 301)) if rng.random() < 0.1 else int(rng.integers(0, 12))
    entries = np.where(rng.random(n) < 0.5, rng.choice(EDGES, n), rng.integers(0, 9_000, n))
    entries[rng.random(n) < 0.02] = 1_000_000
    if rng.random() < 0.1:
        entries[: int(rng.integers(0, n + 1))] = 0
    dtypes = rng.integers(0, 3, n)
    meta = torch.device("meta")
    names = list(DTYPES)
    live = [
        torch.empty(int(k), dtype=names[d], device=meta)
        for k, d in zip(entries, dtypes, strict=True)
    ]
    addresses = rng.integers(1, 1 << 46, n) * BYTES[dtypes]  # aligned to an entry, no more
    return addresses, entries, np.array(arena_layout(live).offsets, np.int64), dtypes


def check(plan: Array, addresses: Array, entries: Array, offsets: Array, dtypes: Array) -> None:
    """``AssertionError`` unless ``plan`` (rows of address, offset, count, flags) is a partition."""
    tiles = (entries + TILE - 1) // TILE
    owner = np.repeat(np.arange(len(entries)), tiles)
    assert len(plan) == len(owner)
    address, offset, count, flags = plan.T
    size = BYTES[dtypes][owner]
    assert (flags & 3 == dtypes[owner]).all()
    assert ((count >= 1) & (count <= TILE)).all()
    first = np.append(True, owner[1:] != owner[:-1])[: len(owner)]
    last = np.append(owner[1:] != owner[:-1], True)[-len(owner) or 1 :]
    assert (address[first] == addresses[owner[first]]).all()
    assert (offset[first] == offsets[owner[first]]).all()
    follows = np.flatnonzero(~first)  # each tile begins where the one before it ends
    end = count * size
    assert (address[follows] == (address + end)[follows - 1]).all()
    assert (offset[follows] == (offset + end)[follows - 1]).all()
    assert (count[~last] == TILE).all()
    assert (np.bincount(owner, count, len(entries)) == entries).all()
    assert (((flags & WIDE) != 0) == ((count == TILE) & (address % 16 == 0))).all()
    assert (flags & ~(WIDE | 3) == 0).all()


def planned(addresses: Array, entries: Array, offsets: Array, dtypes: Array) -> Array:
    rows = _native.plan(addresses, entries, offsets, dtypes)
    return np.array(rows, np.int64).reshape(-1, 4)


def planned_in_python(addresses: Array, entries: Array, offsets: Array, dtypes: Array) -> Array:
    """What ``tiles.plan`` makes of tensors at these places."""
    parts = [np.empty(0, TILE_TYPE)]
    for place in zip(addresses, entries, offsets, dtypes, strict=True):
        numbers = np.arange(tile_count(int(place[1])), dtype=np.int64)
        parts.append(tiles_at(*(int(each) for each in place), numbers))
    tiles = np.concatenate(parts)
    return np.stack([tiles[name].astype(np.int64) for name in TILE_TYPE.names or ()], 1)


def test_both_planners_agree() -> None:
    rng = np.random.default_rng(21)
    for _ in range(TABLES // 30):
        table = random_table(rng)
        assert np.array_equal(planned_in_python(*table), planned(*table))


def test_a_table_of_live_tensors() -> None:
    live = [torch.zeros(n, dtype=d) for n, d in ((5000, torch.float16), (0, torch.float32))]
    live.append(torch.zeros(4097)[1:])
    tiles = plan(live)
    places = [t.data_ptr() for t in live], [t.numel() for t in live]
    rows = _native.plan(*places, arena_layout(live).offsets, [DTYPES[t.dtype] for t in live])
    assert tiles.tolist() == rows
    assert TILE_TYPE.itemsize == 24


def test_tiles_partition_every_table() -> None:
    rng = np.random.default_rng(20)
    tiles = 0
    for _ in range(TABLES):
        table = random_table(rng)
        plan = planned(*table)
        check(plan, *table)
        tiles += len(plan)
    assert tiles > 10 * TABLES


FAULTS: dict[str, Callable[[Array], Array]] = {
    "missing": lambda plan: plan[1:],
    "twice": lambda plan: np.vstack([plan, plan[-1:]]),
    "swapped": lambda plan: plan[[1, 0, *range(2, len(plan))]],
    "arena": lambda plan: plan + np.array([0, 2, 0, 0]),
    "address": lambda plan: plan + np.array([16, 0, 0, 0]),
    "short": lambda plan: plan - np.array([0, 0, 1, 0]),
    "dtype": lambda plan: plan ^ np.array([0, 0, 0, 1]),
    "wide": lambda plan: plan ^ np.array([0, 0, 0, WIDE]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_sees_a_wrong_table(fault: str) -> None:
    addresses, dtypes = np.array([4096, 1 << 20, 2 << 20]), np.array([0, 1, 2])
    entries, offsets = np.array([9000, 0, 4097]), np.array([0, 36096, 36096])
    plan = planned(addresses, entries, offsets, dtypes)
    check(plan, addresses, entries, offsets, dtypes)
    with pytest.raises(AssertionError):
        check(FAULTS[fault](plan), addresses, entries, offsets, dtypes)


@examples(1000)
@given(
    dtype=st.integers(0, 2),
    entries=st.one_of(
        st.integers(1, 1 << 40),
        st.builds(lambda k, d: 2**k + d, st.integers(13, 40), st.integers(-4097, 4097)),
    ),
    start=st.integers(1, 1 << 46),
    offset=st.integers(0, 1 << 45),
    data=st.data(),
)
def test_tiles_of_tensors_up_to_2_to_the_40(
    dtype: int, entries: int, start: int, offset: int, data: st.DataObject
) -> None:
    size = int(BYTES[dtype])
    last = (entries - 1) // TILE
    drawn = data.draw(st.lists(st.integers(0, last), max_size=20))
    numbers = sorted({0, last, max(0, last - 1), *drawn})
    where = start * size, entries, offset * 256, dtype
    tiles = [_native.tile(*where, k) for k in numbers]
    assert tiles_at(*where, np.array(numbers)).tolist() == tiles
    for k, (address, place, count, flags) in zip(numbers, tiles, strict=True):
        assert address == (start + k * TILE) * size
        assert place == offset * 256 + k * TILE * size
        assert count == min(TILE, entries - k * TILE)
        assert flags == dtype | (WIDE if count == TILE and address % 16 == 0 else 0)


@examples(500)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(DTYPES)),
            st.one_of(st.sampled_from(EDGES.tolist()), st.integers(0, 1 << 40)),
        ),
        max_size=300,
    )
)
def test_arenas_give_each_tensor_its_own_aligned_place(
    tensors: list[tuple[torch.dtype, int]],
) -> None:
    live = [torch.empty(n, dtype=dtype, device="meta") for dtype, n in tensors]
    layout = arena_layout(live)
    end = 0
    for tensor, offset in zip(live, layout.offsets, strict=True):
        assert offset % 256 == 0
        assert 0 <= offset - end < 256
        end = offset + tensor.numel() * tensor.element_size()
    assert layout.nbytes == end
