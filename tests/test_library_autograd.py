"""The ops and autograd: kernels write past its version counters, so the ops raise them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from tests import compilers
from tests.backends import USABLE
from tests.op_cases import WRITES, Case
from tests.tables import Spec, Table

BACKENDS = pytest.mark.parametrize("backend", USABLE)
OPS = pytest.mark.parametrize("op", WRITES)


@pytest.fixture(autouse=True)
def fresh_compilers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    with compilers.fresh(monkeypatch, tmp_path):
        yield


def versions(arguments: dict[str, Any]) -> dict[str, list[int]]:
    lists = {n: v if isinstance(v, list) else [v] for n, v in arguments.items()}
    return {name: [tensor._version for tensor in tensors] for name, tensors in lists.items()}


@BACKENDS
@OPS
def test_versions_of_what_is_written_go_up(backend: str, op: str) -> None:
    table = {"observe_": "float32[]", "advance_": "three rows"}.get(op, "mixed")
    arguments = Case(op, table).build()
    before = versions(arguments)
    getattr(kernels, op)(*arguments.values(), backend=backend)
    after = versions(arguments)
    for name in arguments:
        raised = [new > old for old, new in zip(before[name], after[name], strict=True)]
        assert raised == [name in WRITES[op]] * len(raised), name


def trained(backend: str) -> tuple[torch.Tensor, torch.Tensor, Table]:
    """A parameter, a loss whose gradient needs its value, and a table over it."""
    table = Table.build([Spec(torch.float32, 7)], AIMConfig(alpha_new=0.5))
    table.live[0].fill_(2.0)
    kernels.copy_into(table.anchor, [torch.ones(7)])
    kernels.copy_into(table.mid, [torch.ones(7)])
    weight = torch.full((7,), 2.0, requires_grad=True)
    table.live = [weight.detach()]
    return weight, (weight * weight).sum(), table


@BACKENDS
@pytest.mark.parametrize("op", [kernels.open_, kernels.close_, kernels.repair_])
def test_a_graph_kept_across_a_half_raises(backend: str, op: Any) -> None:
    weight, loss, table = trained(backend)
    op(table.live, table.anchor, table.mid, table.state, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    (weight * weight).sum().backward()  # one built afterwards uses the new weights
    assert torch.equal(weight.grad, 2 * weight.detach())


@BACKENDS
def test_a_graph_kept_across_an_observation_is_good(backend: str) -> None:
    weight, loss, table = trained(backend)
    kernels.observe_(loss, table.state, backend=backend)
    loss.backward()
    assert torch.equal(weight.grad, 2 * weight.detach())


@BACKENDS
def test_parameters_themselves_may_be_live(backend: str) -> None:
    """A leaf that requires a gradient is written like an optimizer writes it, outside autograd."""
    weight, _, table = trained(backend)
    kernels.close_([weight], table.anchor, table.mid, table.state, backend=backend)
    assert weight.is_leaf
    assert weight._version > 0
    assert torch.equal(weight, kernels.arena_views(table.anchor, [weight])[0])


@BACKENDS
def test_inference_tensors_have_no_version_and_are_written(backend: str) -> None:
    _, _, table = trained(backend)
    with torch.inference_mode():
        live = [tensor.clone() for tensor in table.live]
        kernels.close_(live, table.anchor, table.mid, table.state, backend=backend)
        assert live[0].is_inference()
        assert torch.equal(live[0], kernels.arena_views(table.anchor, live)[0])


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_a_graph_kept_across_a_compiled_close_raises(compiler: str) -> None:
    weight, loss, table = trained("native")
    close = compilers.compiled(kernels.close_, compiler)
    close(table.live, table.anchor, table.mid, table.state)
    assert torch.equal(weight.detach(), torch.ones(7))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_a_compiled_forward_whose_weights_are_overwritten_raises(compiler: str) -> None:
    """The backward pass of one graph must not use what a later op of that graph left behind."""
    weight, _, table = trained("native")

    def step(weight: torch.Tensor, *buffers: torch.Tensor) -> torch.Tensor:
        loss = (weight * weight).sum()
        kernels.close_([weight.detach()], *buffers)
        return loss

    made = compilers.compiled(step, compiler)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        made(weight, table.anchor, table.mid, table.state).backward()


def test_a_graph_around_a_close_that_needs_no_old_weights() -> None:
    weight, _, table = trained("native")

    def step(weight: torch.Tensor, *buffers: torch.Tensor) -> torch.Tensor:
        before = weight.sum()
        kernels.close_([weight.detach()], *buffers)
        return before + (weight * weight).sum()

    loss = compilers.compiled(step, "aot_eager")(weight, table.anchor, table.mid, table.state)
    assert loss == 7 * 2.0 + 7 * 1.0
    loss.backward()
    assert torch.equal(weight.grad, torch.full((7,), 1.0 + 2.0 * 1.0))


def test_a_backward_pass_leaves_the_merged_weights_alone() -> None:
    """Under ``no_grad`` inductor (torch 2.13) took the weights that an op of any library had
    written for a buffer of its own, and the backward pass put the gradient there."""
    weight, _, table = trained("native")

    def step(weight: torch.Tensor, *buffers: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            kernels.close_([weight.detach()], *buffers)
        return (weight * weight * weight).sum()

    compilers.compiled(step, "inductor")(weight, table.anchor, table.mid, table.state).backward()
    assert torch.equal(weight.detach(), torch.ones(7))
    assert torch.equal(weight.grad, torch.full((7,), 3.0))


@BACKENDS
def test_a_refused_call_raises_no_version(backend: str) -> None:
    weight, loss, table = trained(backend)
    with pytest.raises(ValueError, match="state has 1 bytes"):
        kernels.close_(table.live, table.anchor, table.mid, table.state[:1], backend=backend)
    loss.backward()
    assert torch.equal(weight.grad, 2 * weight.detach())
