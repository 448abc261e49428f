"""Merges that are undone, roll-backs, history losses that are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aimmerge_fast.controller import BadProbes, MergeRejected
from aimmerge_fast.events import Close, Open, Probe, Reject, Rollback, Skip
from tests.backends import USABLE
from tests.loops import Loop, anchor_of, bits, loss_fn


def spoiled_memory_steps(value: float, when: Callable[[], bool]) -> Any:
    """A loss whose gradient is not finite on memory batches, while ``when()``."""

    def spoil(model: nn.Module, batch: Any) -> Tensor:
        loss = loss_fn(model, batch)
        ours = torch.is_grad_enabled() and len(batch[1]) == 5
        return loss * value if ours and when() else loss

    return spoil


@pytest.mark.parametrize("backend", USABLE)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_snapshot_that_is_not_finite(value: float, backend: str) -> None:
    """Raised after live is back on the anchor, every tensor of it; training goes on from there."""
    loop = Loop(schedule="fixed", s_init=3, keywords={"backend": backend})
    with loop.merger.task("task", loop.memory):
        loop.train(3)
        anchor = loop.bits()
        loop.train(2)
        loop.update()
        with torch.no_grad():
            loop.parameters[2][3, 1] = value
            loop.parameters[3][0] = value
        with pytest.raises(MergeRejected, match=r"step 6: .* at open, 2 entries of theta_j .*"):
            loop.merger.step()
        assert loop.bits() == anchor == bits(anchor_of(loop.merger))
        assert loop.train(7) == [False, False, True, False, False, True, False]
    assert loop.of_type(Reject) == [Reject("task", 6, 1, "open", 2)]
    assert [event.merge for event in loop.of_type(Open)] == [1, 2, 3]
    assert all(torch.isfinite(p).all() for p in loop.parameters)


@pytest.mark.parametrize("backend", USABLE)
@pytest.mark.parametrize("mode", ["shared", "separate", "snapshot"])
def test_memory_steps_that_explode(mode: str, backend: str) -> None:
    """Live and anchor become theta_j; the loop can continue."""
    bad = [True]
    loop = Loop(
        schedule="fixed", s_init=4, memory_batch=5, memory_optimizer=mode,
        keywords={"loss_fn": spoiled_memory_steps(math.inf, lambda: bad[0]), "backend": backend},
        optimizer=torch.optim.SGD, lr=0.1,
    )  # fmt: skip
    with loop.merger.task("task", loop.memory):
        loop.train(3)
        loop.update()
        theta_j = loop.bits()
        with pytest.raises(MergeRejected, match="step 4: the merge was rejected at close"):
            loop.merger.step()
        assert loop.bits() == theta_j == bits(anchor_of(loop.merger))
        bad[0] = False
        assert loop.train(8) == [step in (4, 8) for step in range(1, 9)]
    assert [event.half for event in loop.of_type(Reject)] == ["close"]
    assert [type(e) for e in loop.merger.events if isinstance(e, (Open, Close, Reject))] == [
        Open, Close, Reject, *[Open, Close] * 2,
    ]  # fmt: skip


@pytest.mark.parametrize("half", ["open", "close"])
def test_going_on_after_a_rejection_if_asked_to(half: str) -> None:
    bad = [half == "close"]
    loop = Loop(
        schedule="fixed", s_init=4, memory_batch=5, on_reject="continue",
        keywords={"loss_fn": spoiled_memory_steps(math.nan, lambda: bad[0])},
        optimizer=torch.optim.SGD, lr=0.1,
    )  # fmt: skip
    anchor = loop.bits()
    with loop.merger.task("task", loop.memory):
        loop.train(3)
        loop.update()
        theta_j = loop.bits()
        if half == "open":
            with torch.no_grad():
                loop.parameters[0].fill_(math.nan)
        assert loop.merger.step()
        assert loop.bits() == (anchor if half == "open" else theta_j)
        assert bits(anchor_of(loop.merger)) == loop.bits()
        bad[0] = False
        assert loop.train(4) == [False, False, False, True]
    assert [(e.step, e.half) for e in loop.of_type(Reject)] == [(4, half)]
    assert all(torch.isfinite(p).all() for p in loop.parameters)


@pytest.mark.parametrize("probe", ["before", "after"])
def test_rollback(probe: str) -> None:
    """Live is the anchor, to the bit; the interval begins anew with a probe of these weights."""
    loop = Loop(schedule="fixed", s_init=5, probe=probe, probe_dropout=False, history_batch=20)
    with loop.merger.task("task", loop.memory):
        loop.train(5)
        anchor = anchor_of(loop.merger)
        loop.train(3)
        assert loop.bits() != bits(anchor)
        loop.merger.rollback()
        assert loop.bits() == bits(anchor)
        with torch.no_grad():
            loop.model.eval()
            expected = float(loss_fn(loop.model, loop.keywords["collate"](all_records(loop))))
            loop.model.train()
        assert loop.train(5) == [False] * 4 + [True]
    assert [(e.step, e.t) for e in loop.of_type(Open)] == [(5, 5), (13, 5)]
    assert loop.of_type(Rollback) == [Rollback("task", 8)]
    probes = loop.of_type(Probe)
    assert [event.step for event in probes] == list(range(1, 14))
    assert [event.t for event in probes[8:]] == [1, 2, 3, 4, 5]
    if probe == "before":
        assert probes[8].loss == pytest.approx(expected, rel=1e-6)


def all_records(loop: Loop) -> list[Any]:
    return loop.memory.stream("all").draw(20)


@pytest.mark.parametrize("mode", ["shared", "snapshot"])
def test_rollback_abandons_an_open_merge(mode: str) -> None:
    loop = Loop(schedule="fixed", s_init=4, memory_optimizer=mode)
    with loop.merger.task("task", loop.memory):
        anchor = loop.bits()
        loop.train(3)
        loop.merger.open_merge()
        rehearsal = loop.merger.rehearsal
        assert rehearsal is not None
        rehearsal.save_moments()
        rehearsal.memory_step()
        loop.merger.rollback()
        assert loop.bits() == anchor
        assert loop.optimizer.state_dict()["state"][0]["step"] == (4 if mode == "shared" else 3)
        with pytest.raises(RuntimeError, match="close_merge"):
            loop.merger.close_merge()
        assert loop.train(4) == [False, False, False, True]
    assert loop.merger.report().merges["due"] == 1


def test_rollback_at_the_first_step_and_in_plain_training() -> None:
    loop = Loop(s_init=2)
    with loop.merger.task("task"):
        anchor = loop.bits()
        loop.train(3)
        loop.merger.rollback()
        assert loop.bits() == anchor
    with loop.merger.task("next", loop.memory):
        loop.merger.rollback()
        assert loop.bits() == anchor
        loop.train(4)
    assert len(loop.of_type(Probe)) == 4


@pytest.mark.parametrize("probe", ["before", "after", "in_batch"])
def test_ten_losses_in_a_row_that_are_not_finite_raise_and_nine_do_not(probe: str) -> None:
    value = [1.0]

    def history(model: nn.Module, batch: Any) -> Tensor:
        loss = loss_fn(model, batch)
        return loss if torch.is_grad_enabled() else loss * 0 + value[0]

    loop = Loop(schedule="fixed", s_init=40, probe=probe, keywords={"loss_fn": history})

    def steps(count: int, loss: float) -> None:
        for _ in range(count):
            value[0] = loss
            loop.update()
            loop.merger.step(*([torch.tensor(loss)] if probe == "in_batch" else []))

    with loop.merger.task("task", loop.memory):
        steps(9, math.nan)  # "before": the first of them is acted on one update later
        steps(2, 1.0)
        steps(10 if probe == "before" else 9, math.nan)
        with pytest.raises(BadProbes, match="the last 10 history losses were not finite"):
            steps(1, math.nan)
        steps(5, 1.0)  # who catches it can go on
        assert not loop.merger.controller.is_open
    skips = loop.of_type(Skip)
    assert [event.in_a_row for event in skips][:9] == list(range(1, 10))
    assert max(event.in_a_row for event in skips) == 10
    assert len(loop.of_type(Probe)) == max(event.step for event in loop.of_type(Probe))


def test_max_bad_probes_is_a_setting() -> None:
    loop = Loop(probe="in_batch", max_bad_probes=2)
    with loop.merger.task("task", loop.memory):
        loop.merger.step(torch.tensor(math.nan))
        with pytest.raises(BadProbes, match="raise max_bad_probes"):
            loop.merger.step(torch.tensor(math.inf))
