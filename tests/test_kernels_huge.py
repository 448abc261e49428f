"""More than 2^31 entries in one tensor: positions are 64 bits wide from plan to last tile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.kernels import tiles
from tests import emulated
from tests.backends import USABLE
from tests.huge import ENTRIES, Map

TAIL = 4099 + 4096  # entries: the tile before 2^31, the one after it, and three more
TILES = 3
#: Kernels that are emulated or interpreted run the last tiles only: half a million take minutes.
SLOW = ["emulated", *(name for name in USABLE if name == "triton")]
Tensor = torch.Tensor


@pytest.fixture
def maps() -> Iterator[list[Map]]:
    made = [Map(2 * ENTRIES) for _ in range(3)]
    yield made
    for each in made:
        each.close()


def tails(seed: int) -> list[Tensor]:
    """What anchor, theta_j and theta_M hold at the end."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(TAIL, generator=draw).bfloat16() for _ in range(3)]


def engine_of(backend: str, *tensors: Any) -> Any:
    if backend != "emulated":
        return kernels.engine(backend, *tensors)
    from aimmerge_fast.kernels.native import CudaEngine

    return CudaEngine(*tensors, module=emulated.module())


def merge(
    backend: str, live: Tensor, anchor: Tensor, mid: Tensor, stages: list[Tensor]
) -> list[Tensor]:
    """One merge whose values are all in the tail; its three results and L1."""
    state = kernels.new_state(AIMConfig(alpha_new=0.25))
    views = [live, anchor[: 2 * live.numel()].view(live.dtype)]
    ends = [view[-TAIL:] for view in (*views, mid[: 2 * live.numel()].view(live.dtype))]
    engine = engine_of(backend, [live], anchor, mid, state)
    for end in ends[:2]:
        end.copy_(stages[0])
    ends[0].copy_(stages[1])
    engine.open_()
    l1 = torch.tensor(float(kernels.read_state(state)["state"]["l1"]), dtype=torch.float64)
    assert torch.equal(ends[2], stages[1])
    ends[0].copy_(stages[2])
    engine.close_()
    return [end.clone() for end in ends] + [l1]


def check_tail(backend: str, maps: list[Map]) -> None:
    live = maps[0].bytes.view(torch.bfloat16)
    assert live.numel() == ENTRIES
    stages = tails(3)
    huge = merge(backend, live, maps[1].bytes, maps[2].bytes, stages)
    small = torch.zeros(TAIL, dtype=torch.bfloat16)
    expected = merge("eager", small, *(kernels.new_arena([small]) for _ in range(2)), stages)
    assert all(map(torch.equal, huge, expected))
    assert not any(each.bytes[:4096].any() for each in maps)  # the bulk is still zero


@pytest.mark.skipif("native" not in USABLE, reason="there is no native module here")
def test_every_tile_on_the_cpu(maps: list[Map]) -> None:
    check_tail("native", maps)


@pytest.mark.parametrize("backend", SLOW)
def test_the_last_tiles(backend: str, maps: list[Map], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiles.plan
    monkeypatch.setattr(tiles, "plan", lambda live: whole(live)[-TILES:])
    check_tail(backend, maps)
