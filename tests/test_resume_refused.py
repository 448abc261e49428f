"""States that do not fit are refused by name, and nothing has changed then."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from aimmerge_fast import AIMConfig, FastAIMMerger, RehearsalMemory
from tests import checkpoints
from tests.checkpoints import require_equal
from tests.loops import Loop, memory, net, records

FIELDS: dict[str, Any] = {"s_init": 3, "memory_optimizer": "separate"}
State = dict[str, Any]
Make = Callable[[], Any]


@functools.cache
def original() -> State:
    loop = Loop(**FIELDS)
    with loop.merger.task("one", loop.memory):
        loop.train(7)
        return loop.merger.state_dict()


def saved() -> State:
    return copy.deepcopy(original())


def altered(*path: Any, change: Callable[[Any], Any]) -> Make:
    """The saved state with ``change`` made to what lies at ``path``."""

    def make() -> State:
        state = part = saved()
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = change(part[path[-1]])
        return state

    return make


def without(*path: Any) -> Make:
    def make() -> State:
        state = part = saved()
        for key in path[:-1]:
            part = part[key]
        del part[path[-1]]
        return state

    return make


def of_other_model(change: Callable[[nn.Sequential], Any]) -> Make:
    def make() -> State:
        model = net()
        change(model)
        return Loop(model=model, **FIELDS).merger.state_dict()

    return make


def wider(model: nn.Sequential) -> None:
    model[3] = nn.Linear(10, 5)


REFUSED: dict[str, tuple[Make, str]] = {
    "a later version": (
        altered("version", change=lambda version: version + 1),
        "version 3; this package reads version 2",
    ),
    "no dict": (lambda: [1, 2], "state of version None"),
    "an empty dict": (dict, "state of version None"),
    "a model's state": (lambda: net().state_dict(), "state of version None"),
    "another setting": (
        altered("config", "f_max", change=lambda _: 4),
        "saved with f_max=4, this merger has f_max=3; build the merger with the saved config",
    ),
    "a setting less": (without("config", "window"), "saved with window=None, .* has window=3"),
    "another policy": (
        lambda: Loop(policy="released", **FIELDS).merger.state_dict(),
        "saved with accumulation=1, this merger has accumulation=None",
    ),
    "another shape": (
        of_other_model(wider),
        r"another model: parameter 2 is .*\[5, 10\].*\[4, 10\].*first difference: '3.weight'",
    ),
    "another dtype": (
        of_other_model(lambda m: m[3].to(torch.bfloat16)),
        "another model: parameter 2 is .*bfloat16.*first difference: '3.weight'",
    ),
    "a parameter less": (
        of_other_model(lambda m: m[3].bias.requires_grad_(False)),
        "another model: parameter 3 is None in the state .*first difference: '3.bias'",
    ),
    "another name": (
        altered("parameters", 1, "name", change=lambda _: "0.offset"),
        "another model: parameter 1 .*'0.offset'.*first difference: '0.bias'",
    ),
    "a cut arena": (
        altered("anchors", change=lambda arenas: [arenas[0][:-1]]),
        "the state's anchors have .* bytes, this model's",
    ),
    "an arena of floats": (
        altered("mids", change=lambda arenas: [arenas[0].float()]),
        "mids are not all tensors of bytes",
    ),
    "an arena of text": (
        altered("mids", change=lambda _: ["x"]),
        "mids are not all tensors of bytes",
    ),
    "two devices": (altered("states", change=lambda states: 2 * states), "the state's states have"),
    "a count as text": (altered("tasks_begun", change=str), "has a str as 'tasks_begun'"),
    "a flag as number": (altered("controller", "is_open", change=int), "'controller' has a int as"),
    "no host": (altered("host", change=lambda _: None), "has a NoneType as 'host'"),
    "another world size": (altered("world", change=lambda _: 2), "that of rank 0 of 2, .* 0 of 1"),
    "another rank": (
        altered("rank", change=lambda _: 1),
        "that of rank 1 of 1, this is rank 0 of 1",
    ),
    "part of a host": (without("host", "known_F"), "'host' lacks 'known_F'"),
}
KEYS = (
    *(
        "world",
        "rank",
        "config",
        "parameters",
        "tasks_begun",
        "tasks_done",
        "in_task",
        "monitors",
        "probe_pending",
    ),
    *("steps_made", "ending", "controller"),
    *("host", "records_read", "states", "anchors", "mids", "rehearsal", "memory_optimizer"),
)
REFUSED |= {f"no {key}": (without(key), f"lacks '{key}'") for key in KEYS}


@pytest.mark.parametrize("name", REFUSED)
def test_a_state_that_does_not_fit_is_refused_and_nothing_changes(name: str) -> None:
    make, message = REFUSED[name]
    state = make()
    loop = Loop(**FIELDS)
    loop.run(5, task="earlier")
    before = checkpoints.save(loop)
    with pytest.raises(ValueError, match=message):
        loop.merger.load_state_dict(state)
    require_equal(checkpoints.save(loop), before)
    loop.run(2, task="later")  # and it still works


def test_every_key_was_tried() -> None:
    assert set(original()) == {"version", *KEYS}


def test_load_inside_a_task_is_refused() -> None:
    loop = Loop(**FIELDS)
    with loop.merger.task("one", loop.memory):
        with pytest.raises(RuntimeError, match="inside a task: load before entering task"):
            loop.merger.load_state_dict(saved())
        assert loop.train(3)[-1] in (True, False)


def test_a_state_with_rehearsal_needs_an_optimizer_and_collate() -> None:
    merger = FastAIMMerger(net(), AIMConfig(**FIELDS))
    with pytest.raises(ValueError, match="give optimizer= and collate= to the merger"):
        merger.load_state_dict(saved())
    assert merger.resumed is None


def grown() -> RehearsalMemory:
    larger = memory()
    larger.add("more", records(10, seed=2))
    return larger


OTHER_MEMORIES: dict[str, tuple[Callable[[], Any], str, type[Exception]]] = {
    "records": (lambda: memory(seed=2), "the memory differs from the one", ValueError),
    "a task more": (grown, "the memory differs from the one", ValueError),
    "none": (lambda: None, "saved with a memory; pass the same memory", ValueError),
    "empty": (RehearsalMemory, "the memory differs from the one", ValueError),
    "type": (lambda: records(), "memory must be a RehearsalMemory, got list", TypeError),
}


@pytest.mark.parametrize("name", OTHER_MEMORIES)
def test_resuming_with_another_memory_is_refused(name: str) -> None:
    make, message, error = OTHER_MEMORIES[name]
    loop = Loop(**FIELDS)
    loop.merger.load_state_dict(saved())
    before = checkpoints.save(loop)
    with pytest.raises(error, match=message), loop.merger.task("one", make()):
        raise AssertionError("the task was entered")
    require_equal(checkpoints.save(loop), before)
    with loop.merger.task("one", loop.memory):  # the right one is still accepted
        assert loop.merger.controller.host.steps == 7


def test_resuming_plain_training_with_a_memory_is_refused() -> None:
    loop = Loop(**FIELDS)
    with loop.merger.task("first"):
        loop.train(3)
        state = loop.merger.state_dict()
    again = Loop(**FIELDS)
    again.merger.load_state_dict(state)
    refused = pytest.raises(ValueError, match="saved without rehearsal; pass memory=None")
    with refused, again.merger.task("first", again.memory):
        raise AssertionError("the task was entered")
    with again.merger.task("first", RehearsalMemory()):
        again.train(2)
    assert again.merger.events[-1].step == 5


def test_resuming_another_task_is_refused() -> None:
    loop = Loop(**FIELDS)
    loop.merger.load_state_dict(saved())
    refused = pytest.raises(RuntimeError, match="saved inside task 'one', not 'two'; enter that")
    with refused, loop.merger.task("two", loop.memory):
        raise AssertionError("the task was entered")
    assert not loop.merger.position.in_task
    loop.run(3, task="one")
    assert loop.merger.events[-1].step == 10
