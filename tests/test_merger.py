"""``FastAIMMerger`` in a plain loop: what a task, a step and a merge do to the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aimmerge_fast import FastAIMMerger
from aimmerge_fast.events import (
    Close,
    Event,
    Measure,
    Open,
    Probe,
    TaskBegin,
    TaskEnd,
    read_events,
    to_json,
)
from aimmerge_fast.reference.numerics import fuse, l1_order_p
from tests.backends import USABLE
from tests.loops import Loop, anchor_of, bits, net

POLICIES = ("paper", "released")
SCHEDULES: dict[str, dict[str, Any]] = {
    "adaptive": {"s_init": 2, "s_max": 6},
    "fixed": {"s_init": 5},
    "rapid+": {"s_init": 6},
    "slow+": {"s_init": 6},
    "random": {"s_hi": 7},
    "at": {"merge_at": (3, 10, 11)},
    "single": {},
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(schedule: str, policy: str) -> None:
    loop = Loop(schedule=schedule, policy=policy, **SCHEDULES[schedule])
    merged = loop.run(40)
    assert loop.merger.waits == 0  # a CPU answers at once
    opens = loop.of_type(Open)
    assert [event.step for event in opens if event.kind != "merge_final"] == [
        step for step, merges in enumerate(merged, start=1) if merges
    ]
    assert len(loop.of_type(Close)) == len(opens) == sum(loop.merger.report().merges.values())
    steps = [event.step for event in opens]
    expected = {
        "fixed": list(range(5, 41, 5)),
        "at": [3, 10, 11],
        "single": [40],
    }
    if schedule in expected:
        assert steps == expected[schedule]
    elif schedule == "adaptive":
        assert len(opens) >= 5
        assert len({event.next_S for event in opens}) > 1
    else:
        gaps = {event.t for event in opens}
        assert gaps <= {"random": set(range(2, 8))}.get(schedule, {3, 6})
        assert len(gaps) > 1
    if schedule != "adaptive":
        assert {(event.alpha_new, event.alpha_past) for event in opens} == {(0.5, 0.5)}


@pytest.mark.parametrize("probe", ["before", "after", "in_batch"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_merge_is_equation_7(policy: str, probe: str) -> None:
    """The anchor, theta_j and the memory steps taken apart and put together by hand."""
    fields: dict[str, Any] = {"policy": policy, "probe": probe, "alpha_new": 0.3}
    fields |= {"outer_init": 3} if policy == "released" else {}
    history = (torch.tensor(1.0),) if probe == "in_batch" else ()
    whole, apart = (Loop(schedule="at", merge_at=(6,), **fields) for _ in range(2))
    anchor = apart.weights()
    for loop in (whole, apart):
        torch.manual_seed(7)
        with loop.merger.task("task", loop.memory):
            for step in range(6):
                loop.update()
                if loop is whole or step < 5:
                    loop.merger.step(*history)
            if loop is apart:
                theta_j = loop.weights()
                if probe != "before":
                    loop.merger.observe(torch.tensor(1.0))
                assert loop.merger.due()
                assert loop.merger.open_merge() == 3
                assert bits(loop.parameters) == bits(theta_j)
                with rehearsal_of(loop).memory_phase():
                    for _ in range(3):
                        rehearsal_of(loop).memory_step()
                theta_m = loop.weights()
                loop.merger.close_merge()
    flat = [[t.flatten() for t in group] for group in (anchor, theta_j, theta_m)]
    fused = [fuse(*entries, 0.3, 0.7) for entries in zip(*flat, strict=True)]
    assert bits(whole.parameters) == bits(apart.parameters) == bits(fused)
    assert bits(anchor_of(whole.merger)) == bits(fused)
    assert bits(theta_j) != bits(theta_m) != bits(fused)
    (merge,) = whole.of_type(Open)
    assert merge.l1 == l1_order_p(theta_j, flat[0])
    assert (merge.memory_steps, merge.alpha_new, merge.alpha_past) == (3, 0.3, 0.7)


def rehearsal_of(loop: Loop) -> Any:
    return loop.merger.rehearsal


@pytest.mark.parametrize("policy", POLICIES)
def test_the_pieces_of_a_step_are_the_step(policy: str) -> None:
    """A custom loop of observe, due, open_merge and close_merge trains to the bits of step()."""
    fields: dict[str, Any] = {"policy": policy, "s_init": 3, "s_max": 8, "gamma_forget": 1.01}
    losses = [1.0 + 0.1 * (i * i % 7) for i in range(50)]
    whole, pieces = (Loop(probe="in_batch", **fields) for _ in range(2))
    for loop in (whole, pieces):
        torch.manual_seed(7)
        with loop.merger.task("task", loop.memory):
            for value in losses:
                loop.update()
                if loop is whole:
                    loop.merger.step(torch.tensor(value, requires_grad=True) * 1.0)
                    continue
                loop.merger.observe(torch.tensor(value))
                if loop.merger.due():
                    with rehearsal_of(loop).memory_phase():
                        for _ in range(loop.merger.open_merge()):
                            rehearsal_of(loop).memory_step()
                    loop.merger.close_merge()
    assert whole.bits() == pieces.bits()
    assert whole.merger.events == pieces.merger.events
    assert len(whole.of_type(Open)) >= 6


def test_the_low_level_needs_no_memory() -> None:
    """A caller with its own history loss and its own rehearsal gives the merger parameters only."""
    model = net()
    merger = FastAIMMerger(model.parameters(), Loop(merge=False, s_init=2).config)
    with merger.task("custom"):
        for value in (1.0, 9.0):
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.01)
            merger.observe(torch.tensor(value))
            merges = merger.due()
        assert merges
        assert merger.open_merge() == 1
        merger.close_merge()
    assert [event.event for event in merger.events] == [
        "task_begin", "probe", "probe", "open", "close", "task_end",
    ]  # fmt: skip


@pytest.mark.parametrize("backend", USABLE)
def test_events_and_their_file_agree(backend: str, tmp_path: Any) -> None:
    path = tmp_path / "events.jsonl"
    heard: list[Event] = []
    loop = Loop(
        s_init=2,
        s_max=8,
        keywords={"events": path, "callbacks": [heard.append], "backend": backend},
    )
    loop.run(20)
    events = list(read_events(path))
    assert [to_json(event) for event in events] == [to_json(event) for event in heard]
    assert heard == loop.merger.events
    kinds = [type(event) for event in heard]
    assert kinds[0] is TaskBegin
    assert kinds[-1] is TaskEnd
    assert kinds.count(Probe) == 20
    assert kinds.count(Open) == kinds.count(Close) >= 3
    assert heard[0] == TaskBegin("task", 0, 20, loop.config.to_dict())
    probes = loop.of_type(Probe)
    assert [event.step for event in probes] == list(range(1, 21))
    assert len({event.loss for event in probes}) == 20


def test_a_merge_asked_for_between_steps() -> None:
    """open_merge() may come at any time; the probe that ran ahead is made anew."""
    for probe in ("before", "after"):
        loop = Loop(schedule="fixed", s_init=4, probe=probe)
        with loop.merger.task("task", loop.memory):
            loop.train(2)
            assert loop.merger.open_merge() == 1
            loop.merger.close_merge()
            assert loop.train(9) == [step in (4, 8) for step in range(1, 10)]
        opens = [(event.step, event.t, event.kind) for event in loop.of_type(Open)]
        assert opens == [(2, 2, "merge_final"), (6, 4, "merge_due"), (10, 4, "merge_due")]
        assert [e.t for e in loop.of_type(Probe)] == [1, 2, 1, 2, 3, 4, 1, 2, 3, 4, 1]


def test_a_step_out_of_order_is_refused_and_training_goes_on() -> None:
    loop = Loop(probe="after", s_init=4)
    with loop.merger.task("one", loop.memory):
        loop.train(2)
        loop.update()
        loop.merger.observe(torch.tensor(1.0))
        with pytest.raises(RuntimeError, match="although a history loss waits for its update"):
            loop.merger.step()
        loop.merger.due()
        loop.merger.open_merge()
        with pytest.raises(RuntimeError, match="between open_merge"):
            loop.merger.step()
        loop.merger.close_merge()
        loop.train(9)
    assert len(loop.of_type(Probe)) == 12
    assert len(loop.of_type(Close)) >= 2


def test_monitor_measures_and_never_merges() -> None:
    loop = Loop(schedule="monitor")
    assert loop.run(35) == [False] * 35
    measures = loop.of_type(Measure)
    assert [(e.step, e.t) for e in measures] == [(10, 10), (20, 10), (30, 10)]
    assert all(e.learning_signal == e.l1 / 10 > 0 for e in measures)
    assert loop.of_type(Open) == loop.of_type(Close) == []
