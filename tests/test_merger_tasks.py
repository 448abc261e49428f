"""Tasks: plain training first, counts of their own, and how an interval ends with its task."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aimmerge_fast import RehearsalMemory
from aimmerge_fast.events import Open, Probe, TaskBegin, TaskEnd
from tests.loops import Loop, loss_fn, memory


@pytest.mark.parametrize("with_memory", ["none", "empty"])
def test_the_first_task_is_plain_training(with_memory: str) -> None:
    plain = Loop(merge=False)
    plain.train(12, step=False)
    loop = Loop(s_init=2, merge_at_task_end=True)
    first = RehearsalMemory() if with_memory == "empty" else None
    with loop.merger.task("first", memory=first) as merger:
        assert merger is loop.merger
        assert loop.train(12) == [False] * 12
    assert loop.bits() == plain.bits()
    assert [type(event) for event in loop.merger.events] == [TaskBegin, TaskEnd]
    assert loop.merger.events[-1] == TaskEnd("first", 12)


@pytest.mark.parametrize("probe", ["before", "after"])
def test_the_end_of_a_task_merges_what_is_unfinished(probe: str) -> None:
    for wanted in (False, True):
        loop = Loop(schedule="fixed", s_init=4, probe=probe, merge_at_task_end=wanted)
        loop.run(10)
        opens = [(event.step, event.t, event.kind) for event in loop.of_type(Open)]
        final = [(10, 2, "merge_final")] if wanted else []
        assert opens == [(4, 4, "merge_due"), (8, 4, "merge_due"), *final]
        assert len(loop.of_type(Probe)) == 10
        loop = Loop(schedule="fixed", s_init=5, probe=probe, merge_at_task_end=wanted)
        loop.run(10)
        assert [event.step for event in loop.of_type(Open)] == [5, 10]


@pytest.mark.parametrize("probe", ["before", "after"])
def test_a_final_merge_weighs_the_activations_so_far(probe: str) -> None:
    """And not what a probe ahead of an update that never came would add to them."""
    losses = iter([1.0] * 5 + [9.0, 1.0, 9.0])

    def history(model: nn.Module, batch: Any) -> Tensor:
        loss = loss_fn(model, batch)
        return loss if torch.is_grad_enabled() else loss * 0 + next(losses)

    loop = Loop(probe=probe, merge_at_task_end=True, keywords={"loss_fn": history})
    loop.run(7)
    (merge,) = loop.of_type(Open)
    assert (merge.kind, merge.t, merge.F, merge.memory_steps) == ("merge_final", 7, 1, 3)
    assert merge.alpha_new == 1 / (1 + 1 / 3)  # P_new = 1 in the cold start, P_past = F / F_max
    assert merge.learning_signal == merge.l1 / 7


def test_tasks_are_apart() -> None:
    """Counts, threshold and interval are per task; streams of memory and dropout are new ones."""
    loop = Loop(s_init=2, s_max=8)
    loop.run(11, task="one")
    loop.run(11, task="two")
    for name in ("one", "two"):
        first = next(e for e in loop.of_type(Probe) if e.task == name)
        assert (first.step, first.t, first.S, first.F) == (1, 1, 2, 0)
        assert next(e for e in loop.of_type(Open) if e.task == name).merge == 1


@pytest.mark.parametrize(
    "fields",
    [{"probe_dropout": False, "history_batch": 5}, {"history_batch": 1}],
    ids=["draws", "dropout"],
)
def test_tasks_have_random_streams_of_their_own(fields: dict[str, Any]) -> None:
    """The same weights in every task: other records are drawn, other units dropped."""

    def losses(seed: int) -> list[float]:
        loop = Loop(schedule="single", lr=0.0, seed=seed, **fields)
        if fields["history_batch"] == 1:
            loop.memory = memory(count=2)  # of which one record is kept: nothing to draw
        for task in ("one", "two"):
            loop.run(2, task=task)
        return [round(event.loss, 6) for event in loop.of_type(Probe)]

    assert len(set(losses(42))) == 4
    assert losses(42) == losses(42)
    if "probe_dropout" not in fields:  # records are drawn by the memory's own seed
        assert set(losses(42)).isdisjoint(losses(43))


@pytest.mark.parametrize("name", ["", None, 3, ["a"]])
def test_a_task_has_a_name(name: Any) -> None:
    loop = Loop()
    refusal = pytest.raises(TypeError, match="name must be a non-empty string, got")
    with refusal, loop.merger.task(name, loop.memory):
        pass
    assert loop.merger.events == []


def test_an_exception_leaves_the_task_and_the_next_one_works() -> None:
    loop = Loop(schedule="fixed", s_init=4)

    def interrupted() -> None:
        with loop.merger.task("one", loop.memory):
            loop.train(6)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not any(isinstance(event, TaskEnd) for event in loop.merger.events)
    assert loop.run(5, task="two") == [False, False, False, True, False]
