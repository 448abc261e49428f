"""Tensors that no kernel can work on are refused by name, on every backend, and nothing changes."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from tests.backends import USABLE
from tests.tables import DTYPES, Spec, Table, examples

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.parametrize("backend", USABLE)]
Bind = Callable[[list[torch.Tensor], str], object]


def bind(live: list[torch.Tensor], backend: str) -> None:
    """An engine over ``live`` with arenas of its own."""
    size = kernels.arena_layout(live).nbytes + 1
    anchor, mid = (torch.zeros(size, dtype=torch.uint8) for _ in range(2))
    kernels.engine(backend, live, anchor, mid, kernels.new_state(AIMConfig()))


def functional(live: list[torch.Tensor], backend: str) -> None:
    """The same through the ops that take tensors."""
    size = kernels.arena_layout(live).nbytes + 1
    anchor, mid = (torch.zeros(size, dtype=torch.uint8) for _ in range(2))
    kernels.open_(live, anchor, mid, kernels.new_state(AIMConfig()), backend=backend)


WAYS = pytest.mark.parametrize("way", [bind, functional])


# ---- aliasing -----------------------------------------------------------------------------------


@WAYS
def test_a_tensor_listed_twice_is_refused(backend: str, way: Bind) -> None:
    shared = torch.zeros(50)
    live = [torch.zeros(3), shared, torch.zeros(7), shared]
    with pytest.raises(ValueError, match=r"live\[1\] and live\[3\] share memory"):
        way(live, backend)


@WAYS
def test_one_shared_entry_is_refused_and_a_shared_border_is_not(backend: str, way: Bind) -> None:
    storage = torch.zeros(100)
    way([storage[50:], storage[:50], storage[50:50]], backend)
    with pytest.raises(ValueError, match=r"live\[1\] and live\[0\] share memory"):
        way([storage[49:], storage[:50]], backend)


def test_views_of_another_dtype_are_refused(backend: str) -> None:
    storage = torch.zeros(64)
    with pytest.raises(ValueError, match="share memory"):
        bind([storage[:8], storage.view(torch.bfloat16)[15:20]], backend)


@examples(500)
@given(
    spans=st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 25), st.sampled_from(DTYPES)), max_size=12
    )
)
def test_any_overlap_is_found(backend: str, spans: list[tuple[int, int, torch.dtype]]) -> None:
    storage = torch.zeros(2048, dtype=torch.uint8)
    live, taken = [], []
    for start, entries, dtype in spans:
        begin, end = 4 * start, 4 * start + entries * dtype.itemsize
        live.append(storage[begin:end].view(dtype))
        taken.append(set(range(begin, end)))
    overlaps = {
        (i, j) for i in range(len(live)) for j in range(len(live)) if i != j and taken[i] & taken[j]
    }
    if not overlaps:
        return bind(live, backend)
    with pytest.raises(ValueError, match="share memory") as error:
        bind(live, backend)
    assert tuple(map(int, re.findall(r"live\[(\d+)\]", str(error.value)))) in overlaps


def test_arenas_that_share_memory_are_refused(backend: str) -> None:
    live = [torch.ones(100)]
    arena, other = kernels.new_arena(live), kernels.new_arena(live)
    state = kernels.new_state(AIMConfig())
    with pytest.raises(ValueError, match="anchor and mid share memory"):
        kernels.engine(backend, live, arena, arena, state)
    with pytest.raises(ValueError, match="anchor and mid share memory"):
        kernels.open_(live, arena, arena, state, backend=backend)
    inside = kernels.arena_views(other, live)
    with pytest.raises(ValueError, match=r"(live\[0\] and mid|mid and live\[0\]) share memory"):
        kernels.engine(backend, inside, arena, other, state)


# ---- layout, dtype and device -------------------------------------------------------------------

SHAPES = {
    "matrix": torch.zeros(4, 6),
    "transposed": torch.zeros(4, 6).t(),
    "every second": torch.zeros(12)[::2],
    "expanded": torch.zeros(1).expand(6),
    "scalar": torch.zeros(()),
    "channels last": torch.zeros(1, 2, 3, 4).to(memory_format=torch.channels_last),
}


@WAYS
@pytest.mark.parametrize("shape", SHAPES)
def test_other_layouts_are_refused_by_name(backend: str, way: Bind, shape: str) -> None:
    tensor = SHAPES[shape]
    with pytest.raises(ValueError, match=re.escape(f"live[1] has shape {tuple(tensor.shape)}")):
        way([torch.zeros(5), tensor, torch.zeros(5)], backend)


@examples(250)
@given(
    size=st.lists(st.integers(0, 5), max_size=4),
    stride=st.lists(st.integers(0, 9), min_size=4, max_size=4),
)
def test_one_dimension_without_gaps_is_all_that_is_taken(
    backend: str, size: list[int], stride: list[int]
) -> None:
    tensor = torch.zeros(200).as_strided(size, stride[: len(size)])
    if len(size) == 1 and (size[0] < 2 or stride[0] == 1):
        return bind([tensor], backend)
    with pytest.raises(ValueError, match=r"live\[0\] has shape .*; pass 1-D contiguous views"):
        bind([tensor], backend)


@WAYS
@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.float8_e4m3fn])
def test_other_dtypes_are_refused_by_name(backend: str, way: Bind, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=rf"live\[1\] is {dtype}; the kernels take float32, "):
        way([torch.zeros(5), torch.zeros(5).to(dtype)], backend)


@WAYS
def test_tensors_of_several_devices_are_refused_by_name(backend: str, way: Bind) -> None:
    live = [torch.zeros(5), torch.zeros(5), torch.zeros(5, device="meta")]
    with pytest.raises(ValueError, match=r"live\[2\] is on meta and live\[0\] on cpu; one call"):
        way(live, backend)


@pytest.mark.parametrize("op", [kernels.open_, kernels.close_, kernels.repair_])
@pytest.mark.parametrize("name", ["anchor", "mid", "state"])
def test_buffers_of_another_device_or_size_are_refused_by_name(
    backend: str, op: Callable[..., None], name: str
) -> None:
    table = Table.build([Spec(torch.float32, 70), Spec(torch.float16, 3)], AIMConfig())
    good = {"anchor": table.anchor, "mid": table.mid, "state": table.state}
    before = table.snapshot()
    elsewhere = "new_state" if name == "state" else "live on cpu"
    with pytest.raises(ValueError, match=f"{name} is on meta.* {elsewhere}"):
        op(table.live, **{**good, name: good[name].to("meta")}, backend=backend)
    with pytest.raises(ValueError, match=f"{name} has {good[name].numel() - 1} bytes"):
        op(table.live, **{**good, name: good[name][:-1]}, backend=backend)
    assert table.snapshot() == before


def test_losses_and_partial_results_of_another_kind_are_refused(backend: str) -> None:
    state = kernels.new_state(AIMConfig())
    before = state.clone()
    for loss in (torch.zeros(2), torch.zeros(()).long(), torch.zeros((), device="meta"), 1.0):
        with pytest.raises(ValueError, match="the history loss "):
            kernels.observe_(loss, state, backend=backend)
    wrong = [torch.zeros(2), torch.zeros(1, 3), torch.zeros(1, 2), torch.zeros(0, 2, dtype=int)]
    for partials in (*wrong, torch.zeros(1, 2, dtype=torch.float64, device="meta")):
        with pytest.raises(ValueError, match="partials"):
            kernels.advance_(partials, state, backend=backend)
    assert torch.equal(state, before)


@pytest.mark.parametrize("name", ["anchor", "mid", "state"])
def test_buffers_are_dense_bytes_at_every_call(backend: str, name: str) -> None:
    """Also when an engine for these addresses exists already."""
    live = [torch.zeros(100)]
    buffers = {
        "anchor": kernels.new_arena(live).zero_(),
        "mid": kernels.new_arena(live).zero_(),
        "state": kernels.new_state(AIMConfig()),
    }
    kernels.open_(live, *buffers.values(), backend=backend)
    wide = torch.zeros(2 * buffers[name].numel(), dtype=torch.uint8)
    for wrong in (buffers[name].view(torch.int8), wide[::2]):
        given = {**buffers, name: wrong}
        with pytest.raises(ValueError, match=f"{name} must be .* uint8 tensor"):
            kernels.close_(live, *given.values(), backend=backend)
