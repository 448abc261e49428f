"""Exceptions, saves and loads at awkward moments leave a merger that can go on."""

from __future__ import annotations

from collections import namedtuple
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from aimmerge_fast import AIMConfig, FastAIMMerger, RehearsalMemory
from aimmerge_fast.events import Close, Open, Probe
from tests import checkpoints
from tests.loops import Loop, anchor_of, collate, loss_fn, memory, net

FIXED: dict[str, Any] = {"schedule": "fixed", "s_init": 4}


@pytest.mark.parametrize("policy", ["paper", "released"])
@pytest.mark.parametrize("optimizer", ["shared", "separate", "snapshot"])
def test_a_state_saved_inside_the_merge_of_a_step_resumes_to_the_same_bits(
    policy: str, optimizer: str
) -> None:
    fields = {**FIXED, "policy": policy, "memory_optimizer": optimizer}
    saves: list[checkpoints.Checkpoint] = []

    def save(event: Any) -> None:
        if isinstance(event, Open) and event.merge == 2:
            saves.append(checkpoints.save(whole))

    whole = Loop(keywords={"callbacks": [save]}, **fields)
    whole.run(15)
    again = Loop(**fields)
    checkpoints.load(again, saves[0])
    with again.merger.task("task", again.memory):  # makes the memory steps, closes, probes
        assert len(again.of_type(Close)) == 1
        again.train(7)
    assert again.bits() == whole.bits()
    checkpoints.require_equal(
        again.merger.state_dict()["states"], whole.merger.state_dict()["states"], ".merger.states"
    )


def test_a_state_that_was_loaded_and_not_entered_is_saved_as_it_was() -> None:
    loop = Loop(**FIXED)
    with loop.merger.task("one", loop.memory):
        loop.train(6)
        saved = loop.merger.state_dict()
    middle = Loop(**FIXED)
    middle.merger.load_state_dict(saved)
    checkpoints.require_equal(middle.merger.state_dict(), saved)
    last = Loop(**FIXED)
    last.merger.load_state_dict(middle.merger.state_dict())
    with last.merger.task("one", last.memory):
        assert last.merger.controller.host.steps == 6


def test_another_grouping_of_a_separate_optimizer_is_refused_and_nothing_changes() -> None:
    fields = {**FIXED, "memory_optimizer": "separate"}
    loop = Loop(**fields)
    loop.run(5)
    saved = loop.merger.state_dict()
    model = net()
    optimizer = torch.optim.AdamW([{"params": [p]} for p in model.parameters()])
    merger = FastAIMMerger(
        model, AIMConfig(**fields), optimizer=optimizer, collate=collate, loss_fn=loss_fn
    )
    before = merger.state_dict()
    with pytest.raises(ValueError, match=r"groups of \[4\] parameters, the optimizer here \[1, 1"):
        merger.load_state_dict(saved)
    checkpoints.require_equal(merger.state_dict(), before, ".merger")


@pytest.mark.parametrize("part", ["streams", "randomness", "memory"])
def test_part_of_a_rehearsal_is_refused_at_load(part: str) -> None:
    loop = Loop(**FIXED)
    with loop.merger.task("one", loop.memory):
        saved = loop.merger.state_dict()
    del saved["rehearsal"][part]
    with pytest.raises(ValueError, match="the state's 'rehearsal' lacks one of"):
        Loop(**FIXED).merger.load_state_dict(saved)


def test_the_first_task_can_be_tried_again() -> None:
    loop = Loop(**FIXED)
    with pytest.raises(KeyboardInterrupt), loop.merger.task("one", RehearsalMemory()):
        raise KeyboardInterrupt
    with loop.merger.task("one", RehearsalMemory()):
        loop.train(2)
    with pytest.raises(ValueError, match="the memory is empty though a task was trained before"):
        loop.merger.task("two", RehearsalMemory()).__enter__()


def test_memory_steps_leave_no_gradient_on_what_another_optimizer_trains() -> None:
    model = net()
    model[0].weight.requires_grad_(False)
    loop = Loop(model=model, **FIXED)
    model[0].weight.requires_grad_(True)
    kept = torch.ones_like(model[0].weight)
    model[0].weight.grad = kept
    assert any(loop.run(6))
    assert model[0].weight.grad is kept


def test_rehearsal_needs_the_module_itself() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(ValueError, match="give the module itself, not a list of parameters"):
        FastAIMMerger(list(model.parameters()), optimizer=optimizer, collate=collate)


class OnGpu(Tensor):
    """A loss that says it is on a GPU, and notes how it is fetched from there."""

    copies: ClassVar[list[tuple[Any, Any]]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return torch.device("cuda", 0)
        if func is Tensor.to:
            cls.copies.append((args[1:], kwargs))
            with torch._C.DisableTorchFunctionSubclass():
                return args[0].as_subclass(Tensor)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_no_copy_to_the_cpu_is_left_in_flight() -> None:
    """A non-blocking copy from a device to the host may be read before it has arrived."""
    losses: list[float] = []

    def emit(event: Any) -> None:
        if isinstance(event, Probe):
            losses.append(event.loss)

    live = [nn.Parameter(torch.ones(3))]
    merger = FastAIMMerger(live, AIMConfig(s_init=9), callbacks=[emit])
    OnGpu.copies.clear()
    with merger.task("task"):
        for loss in (torch.tensor(0.25), torch.tensor(0.5).as_subclass(OnGpu)):
            merger.observe(loss)
            assert not merger.due()
    assert losses == [0.25, 0.5]
    assert OnGpu.copies == [((torch.device("cpu"),), {"non_blocking": False})]


@pytest.mark.parametrize("name", [3, "", None])
def test_a_task_needs_a_name(name: Any) -> None:
    loop = Loop(**FIXED)
    with pytest.raises(TypeError, match="name must be a non-empty string"):
        loop.merger.task(name).__enter__()


def test_named_tuples_stay_what_they_are() -> None:
    Batch = namedtuple("Batch", ["x", "label"])
    seen = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        seen.append(type(batch))
        return loss_fn(model, (batch[0], batch[1]))

    loop = Loop(keywords={"collate": lambda r: Batch(*collate(r)), "loss_fn": loss}, **FIXED)
    loop.run(5)
    assert Batch in seen


def test_a_failed_memory_step_ends_the_merge_at_theta_j() -> None:
    fail = [False]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        if fail[0] and torch.is_grad_enabled() and loop.merger.controller.is_open:
            raise MemoryError("planted")
        return loss_fn(model, batch)

    loop = Loop(keywords={"loss_fn": loss}, **FIXED)
    with loop.merger.task("one", memory()):
        loop.train(3)
        loop.update()
        theta_j = loop.weights()
        fail[0] = True
        with pytest.raises(MemoryError):
            loop.merger.step()
        fail[0] = False
        for parameter, anchor, kept in zip(
            loop.parameters, anchor_of(loop.merger), theta_j, strict=True
        ):
            assert torch.equal(parameter, kept)
            assert torch.equal(anchor, kept.flatten())
        assert loop.train(4) == [False, False, False, True]
