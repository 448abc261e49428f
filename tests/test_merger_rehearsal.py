"""The memory steps and the probes: whose moments, whose gradients, what each setting changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aimmerge_fast.events import Open, Probe
from tests.loops import Loop, collate, loss_fn

ONE_MERGE: dict[str, Any] = {"schedule": "at", "merge_at": (4,)}


def moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of all tensors of an optimiser's state, in a fixed order."""
    states = optimizer.state_dict()["state"]
    return [states[i][name].clone() for i in sorted(states) for name in sorted(states[i])]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def around_the_merge(loop: Loop) -> tuple[list[Tensor], list[Tensor]]:
    """Moments of the training optimiser right before and right after its one merge."""
    with loop.merger.task("task", loop.memory):
        loop.train(3)
        loop.update()
        before = moments(loop.optimizer)
        theta_j = loop.bits()
        assert loop.merger.step()
        assert loop.bits() != theta_j
        return before, moments(loop.optimizer)


def test_a_shared_optimizer_steps_with_the_moments_of_training() -> None:
    loop = Loop(**ONE_MERGE)
    before, after = around_the_merge(loop)
    assert not same(before, after)
    steps = loop.optimizer.state_dict()["state"][0]["step"]
    assert steps == 4 + 2  # M = 4 // 2
    assert loop.merger.rehearsal is not None
    assert loop.merger.rehearsal.memory_optimizer is loop.optimizer


@pytest.mark.parametrize("mode", ["separate", "snapshot"])
@pytest.mark.parametrize(
    "optimizer", [torch.optim.AdamW, torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad]
)
def test_the_moments_of_training_do_not_see_the_memory_steps(
    mode: str, optimizer: type[torch.optim.Optimizer]
) -> None:
    loop = Loop(memory_optimizer=mode, optimizer=optimizer, **ONE_MERGE)
    before, after = around_the_merge(loop)
    assert same(before, after)
    assert all(not p.grad.any() for p in loop.parameters if p.grad is not None)


def test_a_separate_optimizer_keeps_moments_of_its_own_and_follows_the_rate() -> None:
    loop = Loop(memory_optimizer="separate", schedule="fixed", s_init=2)
    schedule = torch.optim.lr_scheduler.StepLR(loop.optimizer, 1, 0.5)
    with loop.merger.task("task", loop.memory):
        for _ in range(6):
            loop.update()
            schedule.step()
            rate = loop.optimizer.param_groups[0]["lr"]
            loop.merger.step()
            assert loop.optimizer.param_groups[0]["lr"] == rate
    assert loop.merger.rehearsal is not None
    mine = loop.merger.rehearsal.memory_optimizer
    assert mine.param_groups[0]["lr"] == pytest.approx(0.01 * 0.5**6)
    assert mine.state_dict()["state"][0]["step"] == 3
    assert loop.optimizer.state_dict()["state"][0]["step"] == 6


def test_a_snapshot_keeps_the_learning_rate_of_now() -> None:
    """The moments are put back, a rate that a schedule set in between is not."""
    loop = Loop(memory_optimizer="snapshot", **ONE_MERGE)
    rehearsal = loop.merger.rehearsal
    assert rehearsal is not None
    with loop.merger.task("task", loop.memory):
        loop.train(2)
        with rehearsal.memory_phase():
            rehearsal.memory_step()
            loop.optimizer.param_groups[0]["lr"] = 0.25
    assert loop.optimizer.param_groups[0]["lr"] == 0.25
    assert loop.optimizer.state_dict()["state"][0]["step"] == 2


@pytest.mark.parametrize("mode", ["shared", "separate", "snapshot"])
def test_accumulated_gradients_survive_a_merge(mode: str) -> None:
    loop = Loop(memory_optimizer=mode, **ONE_MERGE)
    with loop.merger.task("task", loop.memory):
        loop.train(3)
        loop.update()
        loss_fn(loop.model, loop.batch()).backward()  # half of the next update
        held = [p.grad for p in loop.parameters]
        values = [g.clone() for g in held if g is not None]
        assert loop.merger.step()
    for parameter, gradient, value in zip(loop.parameters, held, values, strict=True):
        assert parameter.grad is gradient
        assert torch.equal(parameter.grad, value)


def memory_move(**fields: Any) -> Tensor:
    """How far one memory step by SGD moves theta_j; alpha = (0, 1) leaves nothing else."""
    first = {"outer_init": 1} if fields.get("policy") == "released" else {}
    loop = Loop(
        schedule="at", merge_at=(2,), optimizer=torch.optim.SGD, lr=0.1, alpha_new=0.0,
        memory_batch=8, **first, **fields,
    )  # fmt: skip
    anchor = loop.weights()
    torch.manual_seed(7)
    loop.run(2)
    assert loop.of_type(Open)[0].memory_steps == 1
    return torch.cat([(p - a).flatten() for p, a in zip(loop.weights(), anchor, strict=True)])


def test_accumulation_divides_memory_losses() -> None:
    whole = memory_move(policy="released")
    quarter = memory_move(policy="released", accumulation=4)
    assert torch.allclose(4 * quarter, whole, rtol=1e-4, atol=1e-7)
    assert whole.norm() > 1e-3


def test_max_grad_norm_clips_the_memory_steps() -> None:
    free = memory_move()
    clipped = memory_move(max_grad_norm=0.01)
    assert clipped.norm() == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert torch.allclose(clipped / clipped.norm(), free / free.norm(), atol=1e-4)
    assert torch.equal(free, memory_move(max_grad_norm=1e6))


@pytest.mark.parametrize(("history", "steps"), [(3, 5), (20, 7), (99, 99)])
def test_batch_sizes(history: int, steps: int) -> None:
    """Records per probe and per memory step, at most what the memory holds."""
    sizes: list[tuple[bool, int]] = []

    def spy(model: nn.Module, batch: Any) -> Tensor:
        sizes.append((torch.is_grad_enabled(), len(batch[1])))
        return loss_fn(model, batch)

    loop = Loop(history_batch=history, memory_batch=steps, keywords={"loss_fn": spy}, **ONE_MERGE)
    with loop.merger.task("task", loop.memory):
        sizes.clear()
        for _ in range(4):
            loop.update()
            sizes.pop()
            with torch.no_grad():  # must not reach the memory steps
                loop.merger.step()
    assert sizes == [(False, min(20, history))] * 3 + [(True, min(20, steps))] * 2 + [
        (False, min(20, history))
    ]


@pytest.mark.parametrize("probe", ["before", "after"])
def test_dropout_in_probes_is_a_choice(probe: str) -> None:
    def losses(dropout: bool) -> list[float]:
        loop = Loop(probe=probe, probe_dropout=dropout, history_batch=20, schedule="single", lr=0.0)
        loop.run(5)
        assert loop.model.training
        assert all(module.training for module in loop.model)
        return [round(event.loss, 6) for event in loop.of_type(Probe)]

    assert len(set(losses(False))) == 1  # the whole memory, the same weights
    assert len(set(losses(True))) == 5


def test_batches_may_be_dicts_lists_or_tensors() -> None:
    made = {
        "dict": lambda chosen: dict(zip("xy", collate(chosen), strict=True)),
        "list": lambda chosen: list(collate(chosen)),
        "tensor": lambda chosen: collate(chosen)[0],
    }

    def any_loss(model: Any, batch: Any) -> Tensor:
        x = batch["x"] if isinstance(batch, dict) else batch if torch.is_tensor(batch) else batch[0]
        return model(x).square().mean()

    ends = set()
    for function in made.values():
        loop = Loop(keywords={"collate": function, "loss_fn": any_loss}, **ONE_MERGE)
        torch.manual_seed(7)
        with loop.merger.task("task", loop.memory):
            for _ in range(4):
                any_loss(loop.model, loop.batch()).backward()
                loop.optimizer.step()
                loop.optimizer.zero_grad()
                loop.merger.step()
        ends.add(loop.bits())
    assert len(ends) == 1


def test_a_separate_optimizer_learns_of_parameter_groups_added_later() -> None:
    loop = Loop(memory_optimizer="separate", **ONE_MERGE)
    assert loop.merger.rehearsal is not None
    memory_optimizer = loop.merger.rehearsal.memory_optimizer
    more = nn.Parameter(torch.ones(3))
    loop.optimizer.add_param_group({"params": [more], "lr": 0.5})
    loop.run(4)
    assert [group["lr"] for group in memory_optimizer.param_groups] == [0.01, 0.5]
    assert memory_optimizer.param_groups[1]["params"] == [more]
