"""Bad batches, losses, weights and devices: named, and nothing has changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aimmerge_fast import AIMConfig, FastAIMMerger, kernels
from aimmerge_fast.events import Reject
from tests.backends import USABLE
from tests.loops import Loop, bits, collate, loss_fn, memory, net
from tests.refusals import refused


def test_rehearsal_needs_an_optimizer_and_a_collate() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for keywords in ({}, {"optimizer": optimizer}, {"collate": collate}):
        merger = FastAIMMerger(model, **keywords)  # type: ignore[arg-type]
        refusal = pytest.raises(ValueError, match="rehearsal needs optimizer= and collate=")
        with refusal, merger.task("task", memory()):
            pass
        with merger.task("task"):
            merger.observe(torch.tensor(1.0))


WRONG_LOSSES: dict[str, tuple[Any, str]] = {
    "no reduction": (
        lambda model, batch: model(batch[0]).sum(1),
        r"loss_fn must return a scalar tensor .*, got \(8,\)",
    ),
    "a float": (lambda model, batch: 1.0, "loss_fn must return a scalar tensor .*, got float"),
    "nothing": (lambda model, batch: None, "loss_fn must return a scalar tensor .*, got NoneType"),
    "an integer": (
        lambda model, batch: torch.tensor(3), r"fp64, bf16 or fp16, got a torch\.int64 tensor",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_LOSSES)
def test_loss_functions(name: str) -> None:
    """Found when the task begins, which it then has not; another try is the first task still."""
    function, message = WRONG_LOSSES[name]
    choice = [function]
    loop = Loop(keywords={"loss_fn": lambda model, batch: choice[0](model, batch)})
    refusal = refused(loop, ValueError, message, merger=False)
    with refusal, loop.merger.task("task", loop.memory):
        pass
    choice[0] = loss_fn
    torch.manual_seed(7)
    loop.run(5)
    fresh = Loop()
    torch.manual_seed(7)
    fresh.run(5)
    assert loop.merger.events == fresh.merger.events
    assert loop.bits() == fresh.bits()


def test_the_default_loss_says_what_it_needs() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    merger = FastAIMMerger(model, optimizer=optimizer, collate=collate)
    refusal = pytest.raises(TypeError, match="collate returned tuple; without loss_fn it must")
    with refusal, merger.task("task", memory()):
        pass
    merger = FastAIMMerger(model, optimizer=optimizer, collate=lambda r: {"input": collate(r)[0]})
    refusal = pytest.raises(TypeError, match=r"the model's output has no \.loss; include labels")
    with refusal, merger.task("task", memory()):
        pass


class Broken(Exception):
    pass


@pytest.mark.parametrize("probe", ["before", "after"])
@pytest.mark.parametrize("where", ["probe", "memory step"])
def test_a_loss_that_fails_in_the_middle(where: str, probe: str) -> None:
    """The caller's own error comes through; gradients, moments and generators are put back."""
    broken = [False]

    def fails(model: nn.Module, batch: Any) -> Tensor:
        if broken[0] and torch.is_grad_enabled() == (where == "memory step"):
            torch.rand(1)
            raise Broken
        return loss_fn(model, batch)

    loop = Loop(
        schedule="fixed", s_init=3, memory_optimizer="snapshot", probe=probe,
        keywords={"loss_fn": fails},
    )  # fmt: skip
    with loop.merger.task("task", loop.memory):
        loop.train(2)
        loop.update()
        loss_fn(loop.model, loop.batch()).backward()
        gradients = [p.grad for p in loop.parameters]
        theta_j, generator = loop.bits(), torch.get_rng_state()
        broken[0] = True
        with pytest.raises(Broken):
            loop.merger.step()
        assert all(p.grad is g for p, g in zip(loop.parameters, gradients, strict=True))
        assert loop.optimizer.state_dict()["state"][0]["step"] == 3
        assert torch.equal(torch.get_rng_state(), generator)
        assert all(module.training for module in loop.model.modules())
        broken[0] = False
        merges = [False, False, True]
        if where == "memory step":
            assert loop.bits() == theta_j  # the merge ended without its memory steps
            assert loop.of_type(Reject)[-1].half == "memory"
        elif probe == "after":  # step 3 was not counted: its probe failed
            merges = [True, False, False]
        assert loop.train(3) == merges  # the same task goes on
    assert loop.run(4, task="next") == [False, False, True, False]


def test_a_task_must_start_from_finite_weights() -> None:
    loop = Loop()
    with torch.no_grad():
        loop.model[3].bias[2] = float("nan")
    for given in (loop.memory, None):
        message = r"parameter '3\.bias' holds non-finite entries"
        with refused(loop, ValueError, message), loop.merger.task("task", given):
            pass
    assert loop.merger.position.tasks_begun == 0


def test_the_largest_seed_works() -> None:
    loop = Loop(seed=(1 << 63) - 1, schedule="random", s_hi=3)
    assert any(loop.run(8))


@pytest.mark.parametrize("backend", USABLE)
def test_tensors_of_several_devices_in_one_call(backend: str) -> None:
    """``meta`` stands for the other device: it is refused before anything is read."""
    live = [torch.ones(5), torch.ones(3)]
    anchor, mid = kernels.new_arena(live), kernels.new_arena(live)
    kernels.copy_into(anchor, live)
    mid.zero_()
    state = kernels.new_state(AIMConfig())
    before = bits([*live, anchor, mid, state])
    other = torch.ones(3, device="meta")
    for op in (kernels.open_, kernels.close_, kernels.repair_):
        with pytest.raises(ValueError, match=r"live\[1\] is on meta and live\[0\] on cpu"):
            op([live[0], other], anchor, mid, state, backend=backend)
        for name, arenas in (
            ("anchor", (anchor.to("meta"), mid)),
            ("mid", (anchor, mid.to("meta"))),
        ):
            with pytest.raises(ValueError, match=f"{name} is on meta and live on cpu"):
                op(live, *arenas, state, backend=backend)
    with pytest.raises(ValueError, match="history loss is on meta, the controller on cpu"):
        kernels.observe_(torch.ones((), device="meta"), state, backend=backend)
    with pytest.raises(ValueError, match="partials are on meta, the state on cpu"):
        kernels.advance_(
            torch.ones(1, 2, dtype=torch.float64, device="meta"), state, backend=backend
        )
    assert bits([*live, anchor, mid, state]) == before
