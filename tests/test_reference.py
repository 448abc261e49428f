"""The reference merger: that training sees exactly what a merge should do, and nothing else."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from aimmerge_fast.config import AIMConfig
from aimmerge_fast.reference import ReferenceAIMMerger
from aimmerge_fast.reference.numerics import dense
from tests.small_training import Net, StubMemory, StubStream, loss_fn, same, train


@pytest.mark.parametrize("policy", ["paper", "released"])
def test_monitoring_is_free(policy: str) -> None:
    """Dropout included: same bits as without a merger, and the same torch generator after it."""
    plain, _ = train(None)
    state = torch.get_rng_state()
    config = AIMConfig(policy=policy, schedule="monitor")
    monitored, merger = train(config)
    assert merger is not None
    assert same(plain, monitored)
    assert torch.equal(torch.get_rng_state(), state)
    assert [record["step"] for record in merger.merges] == [10, 20, 30, 40]
    assert all(record["lambda"] > 0 for record in merger.merges)
    assert len({step.loss for step in merger.steps}) == 40


def test_no_memory_is_plain_training() -> None:
    plain, _ = train(None)
    first, merger = train(AIMConfig(s_init=2), memory=StubMemory(0))
    assert merger is not None
    assert same(plain, first)
    assert (merger.steps, merger.merges) == ([], [])


@pytest.mark.parametrize("policy", ["paper", "released"])
def test_a_merge_is_equation_7(policy: str) -> None:
    """One merge at step 4, repeated by hand from copies of model, optimiser and stream."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    released = {"outer_init": 2, "accumulation": 4} if policy == "released" else {}
    config = AIMConfig(
        policy=policy, schedule="at", merge_at=(4,), alpha_new=0.3, memory_batch=5,
        max_grad_norm=0.05, **released,
    )  # fmt: skip
    merger = ReferenceAIMMerger(
        model, config, optimizer=optimizer, collate=torch.stack, loss_fn=loss_fn
    )
    memory = StubMemory()
    start = copy.deepcopy(model)
    with merger.task("one", memory):
        for _ in range(4):
            loss_fn(model, torch.randn(4, 2, 6)).backward()
            optimizer.step()
            optimizer.zero_grad()
            twin = copy.deepcopy(model)
            merger.step()
    stream = StubStream(memory.records, str(("memory", policy == "released", 0)))
    torch.manual_seed(42 * 1_000_003 + 1)
    theta_j = [p.detach().clone() for p in twin.parameters()]
    by_hand = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(2):
        by_hand.zero_grad()
        loss = loss_fn(twin, torch.stack(stream.draw(5)))
        (loss / 4 if policy == "released" else loss).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.05)
        by_hand.step()
    pairs = zip(start.parameters(), theta_j, twin.parameters(), model.parameters(), strict=True)
    for anchor, middle, past, merged in pairs:
        if merged.requires_grad:
            past = 0.7 * (past.detach() - middle)
            expected = anchor.detach() + (0.3 * (middle - anchor.detach()) + past)
            assert torch.equal(merged.detach(), expected)
    changes = sum(
        float((j.double() - a.detach().double()).abs().sum())
        for a, j in zip(start.parameters(), theta_j, strict=True)
    )
    assert merger.merges[0]["delta_l1"] == pytest.approx(changes, rel=1e-6)


@pytest.mark.parametrize("policy", ["paper", "released"])
def test_adaptive_run_merges_and_repeats(policy: str) -> None:
    config = AIMConfig(policy=policy, s_init=4, gamma_forget=1.0)
    memory = StubMemory()
    one, first = train(config, 60, memory=memory)
    other, second = train(config, 60)
    plain, _ = train(None, 60)
    assert first is not None
    assert second is not None
    assert same(one, other)
    assert not same(one, plain)
    assert first.merges == second.merges
    assert len(first.merges) >= 6
    assert [step.code for step in first.steps if step.code.startswith("merge")] == [
        merge["kind"] for merge in first.merges
    ]
    fresh = policy == "released"
    probes = memory.streams["probe", fresh, 0].drawn
    assert probes == (60 if fresh else 61)  # "before" has drawn for an update that never came
    memory_steps = sum(merge["memory_steps"] for merge in first.merges)
    assert memory.streams["memory", fresh, 0].drawn == memory_steps


@pytest.mark.parametrize("dropout", [True, False])
@pytest.mark.parametrize("probe", ["before", "after"])
def test_probe_sees_the_parameters_it_should(probe: str, dropout: bool) -> None:
    seen: list[Tensor] = []

    def spy(model: nn.Module, batch: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            assert model.training == dropout or not isinstance(model, Net)
            seen.append(model.a.weight.detach().clone())  # type: ignore[union-attr,operator]
        return loss_fn(model, batch)

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = AIMConfig(schedule="single", probe=probe, probe_dropout=dropout)
    merger = ReferenceAIMMerger(
        model, config, optimizer=optimizer, collate=torch.stack, loss_fn=spy
    )
    weights = [model.a.weight.detach().clone()]
    with merger.task("one", StubMemory()):
        for _ in range(3):
            spy(model, torch.randn(4, 2, 6)).backward()
            optimizer.step()
            optimizer.zero_grad()
            weights.append(model.a.weight.detach().clone())
            merger.step()
        expected = weights if probe == "before" else weights[1:]
        assert all(torch.equal(x, y) for x, y in zip(seen, expected, strict=True))
        assert model.training
    assert [merge["kind"] for merge in merger.merges] == ["merge_final"]


def test_in_batch_probe_is_the_caller_s() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = AIMConfig(probe="in_batch", merge_at_task_end=True)
    merger = ReferenceAIMMerger(
        model, config, optimizer=optimizer, collate=torch.stack, loss_fn=loss_fn
    )
    with merger.task("one", StubMemory()):
        merger.step(torch.tensor(0.5))
        with pytest.raises(ValueError, match="in_batch"):
            merger.step()
    assert [step.loss for step in merger.steps] == [0.5]
    assert [merge["kind"] for merge in merger.merges] == ["merge_final"]


# --- the memory optimiser -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["shared", "separate", "snapshot"])
def test_memory_optimizer(mode: str) -> None:
    """Only the shared one lets the memory steps into the training moments."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    config = AIMConfig(schedule="at", merge_at=(4, 8), memory_optimizer=mode)
    merger = ReferenceAIMMerger(
        model, config, optimizer=optimizer, collate=torch.stack, loss_fn=loss_fn
    )
    with merger.task("one", StubMemory()):
        for _ in range(8):
            loss_fn(model, torch.randn(4, 2, 6)).backward()
            optimizer.step()
            optimizer.zero_grad()
            moments = copy.deepcopy(optimizer.state_dict())
            start = copy.deepcopy(model)
            merger.step()
    assert not same(start, model)
    after = optimizer.state_dict()["state"][1]
    steps = 12 if mode == "shared" else 8  # two merges of t // 2 = 2 memory steps
    assert after["step"] == steps
    kept = torch.equal(after["exp_avg"], moments["state"][1]["exp_avg"])
    assert kept == (mode != "shared")


# --- merges that do not come to be ----------------------------------------------------------------


def _poison(at: int) -> Callable[[int, nn.Module], None]:
    def spoil(step: int, model: nn.Module) -> None:
        if step == at:
            with torch.no_grad():
                model.b.weight[0, 0] = math.nan  # type: ignore[index,union-attr,operator]

    return spoil


def test_poisoned_parameters_go_back_to_the_anchor() -> None:
    config = AIMConfig(schedule="at", merge_at=(4, 8, 12), on_reject="continue")
    anchors: list[list[Tensor]] = []

    def spoil(step: int, model: nn.Module) -> None:
        anchors.append([p.detach().clone() for p in model.parameters()])
        _poison(8)(step, model)

    model, merger = train(config, 8, before=spoil)
    assert merger is not None
    assert [merge["step"] for merge in merger.merges] == [4]
    live = [dense(p) for p in model.parameters() if p.requires_grad]
    assert all(torch.equal(x, a) for x, a in zip(live, merger.anchor, strict=True))
    assert all(torch.isfinite(x).all() for x in live)
    with pytest.raises(FloatingPointError, match="step 8 rejected: theta_j had 1 non-finite"):
        train(AIMConfig(schedule="at", merge_at=(4, 8)), 8, before=_poison(8))


def test_overflow_while_fusing_keeps_theta_j() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(3e38)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    config = AIMConfig(schedule="at", merge_at=(1,), on_reject="continue")
    merger = ReferenceAIMMerger(
        model, config, optimizer=optimizer, collate=torch.stack,
        loss_fn=lambda model, batch: 0.0 * model.weight.sum(),  # type: ignore[union-attr,operator]
    )  # fmt: skip
    with merger.task("one", StubMemory()):
        with torch.no_grad():
            model.weight.fill_(-3e38)  # theta_j - anchor overflows
        merger.step()
    assert model.weight.item() == merger.anchor[0].item() == pytest.approx(-3e38)
    assert merger.merges[0]["lambda"] == math.inf


def test_too_many_bad_probes_in_a_row() -> None:
    config = AIMConfig(max_bad_probes=3)
    with pytest.raises(FloatingPointError, match="step 7: 3 history losses in a row"):
        train(config, 12, before=_poison(4))  # seen by the probe of update 5


# --- wrong use ------------------------------------------------------------------------------------


def test_wrong_use_is_named() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    merger = ReferenceAIMMerger(model, optimizer=optimizer, collate=torch.stack, loss_fn=loss_fn)
    with pytest.raises(RuntimeError, match="outside a task"):
        merger.step()
    with merger.task("one", StubMemory()):
        with pytest.raises(RuntimeError, match="within another task"), merger.task("two"):
            pass
        with pytest.raises(ValueError, match="'in_batch' only"):
            merger.step(0.5)
        merger.step()
    assert len(merger.steps) == 1
    with pytest.raises(ValueError, match="no trainable"):
        ReferenceAIMMerger(
            model.requires_grad_(False), optimizer=optimizer, collate=torch.stack, loss_fn=loss_fn
        )
