"""The ops in ``torch.library``: schemas that tell the truth, version counters, registration."""

from __future__ import annotations

import gc
import importlib
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.kernels import library, native, tiles
from aimmerge_fast.kernels.twins import Twins
from tests import op_cases
from tests.backends import USABLE
from tests.op_cases import CASES, WRITES, Case, overload
from tests.tables import Table

pytestmark = pytest.mark.usefixtures("one_thread")
BACKENDS = pytest.mark.parametrize("backend", USABLE)
OPS = pytest.mark.parametrize("op", WRITES)


# ---- schemas ------------------------------------------------------------------------------------


@BACKENDS
@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck(backend: str, case: Case) -> None:
    op_cases.opcheck(case, backend)


@OPS
def test_a_schema_declares_what_is_written(op: str) -> None:
    arguments = overload(op)._schema.arguments
    assert {argument.name for argument in arguments if argument.is_write} == WRITES[op]


@BACKENDS
@OPS
def test_what_is_declared_is_written_and_nothing_else(backend: str, op: str) -> None:
    """A tensor declared in vain costs a compiler a copy; one undeclared gives stale values."""
    cases = [case for case in CASES if case.op == op]
    written = set[str]().union(*(op_cases.changed(case, backend) for case in cases))
    assert written == WRITES[op]


@BACKENDS
@OPS
def test_another_tensor_than_a_state_is_refused(backend: str, op: str) -> None:
    table = {"observe_": "float32[]", "advance_": "three rows"}.get(op, "mixed")
    *arguments, state = Case(op, table).build().values()
    with pytest.raises(
        ValueError, match=f"state has {len(state) - 1} bytes, expected {len(state)}"
    ):
        getattr(kernels, op)(*arguments, state[:-1], backend=backend)
    with pytest.raises(
        ValueError, match=r"the contiguous uint8 tensor of new_state\(\), got torch\.int8"
    ):
        getattr(kernels, op)(*arguments, state.view(torch.int8), backend=backend)


# ---- registration -------------------------------------------------------------------------------


def test_a_second_import_finds_the_ops_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    name = library.__name__
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(kernels, "library", library)  # an import sets it
    again = importlib.import_module(name)
    assert again is not library
    assert again.close_ is library.close_
    del again
    monkeypatch.undo()
    gc.collect()
    importlib.reload(library)
    state = kernels.new_state(AIMConfig())
    kernels.observe_(torch.tensor(1.0), state)
    assert kernels.read_state(state)["state"]["t"] == 1


def test_the_public_ops_go_through_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """And an engine's methods do not: they cost a call into the compiled module and no more."""
    table = Table.build(op_cases.MIXED, AIMConfig())
    arenas = (table.anchor, table.mid, table.state)

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        names: list[str] = []  # noqa: RUF012

        def __torch_dispatch__(self, func: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
            self.names.append(func.name())
            return func(*args, **kwargs)

    engine = table.engine("native")
    losses, rows = torch.tensor(1.0), torch.zeros(1, 2, dtype=torch.float64)
    with Seen() as seen:
        engine.observe_(losses)
        engine.open_()
        engine.close_()
        engine.repair_()
        engine.advance_(rows)
        assert seen.names == []
        kernels.observe_(losses, table.state)
        for op in (kernels.open_, kernels.close_, kernels.repair_):
            op(tuple(table.live), *arenas)
        kernels.advance_(rows, table.state)
    assert seen.names == [
        f"aimmerge_fast::{op}" for op in ("observe_", *op_cases.HALVES, "advance_")
    ]


@OPS
def test_graph_compilers_leave_the_ops_out_of_cuda_graphs(op: str) -> None:
    assert torch.Tag.cudagraph_unsafe in overload(op).tags


# ---- capture ------------------------------------------------------------------------------------


class Launches:
    """Stands for the compiled module: counts launches on engines that it hands out."""

    def __init__(self) -> None:
        self.launched = 0

    def cuda_kernels(self, device: int) -> None: ...

    def CudaEngine(self, *addresses: int) -> Any:
        return SimpleNamespace(bind=lambda *_: None, open=self._count, observe=self._count)

    def _count(self, *_: int) -> None:
        self.launched += 1


def test_an_address_not_seen_before_a_capture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module, capturing = Launches(), SimpleNamespace(on=False)
    on_device = Twins(partial(native.CudaEngine, module=module))
    for name in ("open_", "observe_"):
        monkeypatch.setattr(native, name, getattr(on_device, name))
    monkeypatch.setattr(tiles, "is_capturing", lambda device: capturing.on)
    seen, other = (Table.build(op_cases.MIXED, AIMConfig()) for _ in range(2))
    arguments = (seen.anchor, seen.mid, seen.state)
    kernels.open_(seen.live, *arguments, backend="native")
    kernels.observe_(torch.tensor(1.0), seen.state, backend="native")
    capturing.on = True
    kernels.open_(seen.live, *arguments, backend="native")
    kernels.observe_(torch.tensor(2.0), seen.state, backend="native")
    assert module.launched == 4
    for live, state in ((other.live, seen.state), (seen.live, other.state)):
        with pytest.raises(RuntimeError, match="call the op once on these tensors before the capt"):
            kernels.open_(live, seen.anchor, seen.mid, state, backend="native")
    with pytest.raises(RuntimeError, match="while a CUDA graph is captured"):
        kernels.observe_(torch.tensor(1.0), other.state, backend="native")
    assert module.launched == 4
