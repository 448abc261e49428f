"""The ops as functions of tensors: engines are kept by address, tensors are not kept at all."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.kernels import twins
from tests.backends import USABLE

BOUND = [name for name in USABLE if name != "eager"]  # eager has no engines to keep
Tensor = torch.Tensor


def tensors(entries: int = 5000) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    live = [torch.linspace(-1, 1, entries)]
    anchor, mid = (kernels.new_arena(live).zero_() for _ in range(2))
    return live, anchor, mid, kernels.new_state(AIMConfig(alpha_new=0.5))


@pytest.mark.parametrize("backend", BOUND)
def test_tensors_are_let_go(backend: str) -> None:
    held = tensors()
    gone = [weakref.ref(t) for t in (*held[0], *held[1:])]
    kernels.open_(*held, backend=backend)
    kernels.close_(*held, backend=backend)
    del held
    assert [each() for each in gone] == [None] * 4


@pytest.mark.parametrize("backend", BOUND)
def test_other_tensors_at_the_same_addresses(backend: str) -> None:
    memory = torch.zeros(5000)
    _, anchor, mid, state = tensors()
    for value in (1.0, 2.0):
        live = [memory[:]]  # a new tensor each time
        live[0].fill_(value)
        kernels.open_(live, anchor, mid, state, backend=backend)
        assert torch.equal(mid[:20000].view(torch.float32), memory)
        kernels.close_(live, anchor, mid, state, backend=backend)
        del live


def test_an_engine_in_a_captured_graph_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    class Made:
        def open_(self) -> None: ...
        def let_go(self) -> None: ...

    def build(*_: object) -> Made:
        built.append(Made())
        return built[-1]

    ops = twins.Twins(build)  # type: ignore[arg-type]  # it has what is called here
    captured = tensors()
    ops.open_(*captured)
    monkeypatch.setattr(twins, "is_capturing", lambda device: True)
    ops.open_(*captured)
    monkeypatch.undo()
    others = [tensors(entries) for entries in range(1, 40)]
    for other in others:
        ops.open_(*other)
    ops.open_(*captured)
    assert len(built) == 40  # the first one was not built again
    ops.open_(*others[0])
    assert len(built) == 41  # while one that no graph needs was


def test_a_state_made_under_inference_mode_is_an_ordinary_one() -> None:
    with torch.inference_mode():
        state = kernels.new_state(AIMConfig())
    kernels.observe_(torch.tensor(1.0), state)
    address = kernels.ring(state).ctypes.data
    gc.collect()  # rings of others' states are given back now, not between these two lines
    del state
    assert kernels.ring(kernels.new_state(AIMConfig())).ctypes.data == address
