"""``+memory``, the recipe of Table 9: passes over the memory after each task, for any method."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from aimmerge_fast.cl.methods import Method, Stage, Trainee
from aimmerge_fast.cl.methods.monitor import Monitor
from aimmerge_fast.cl.methods.recipe import MemoryEpochs
from tests.cl.bare import FIRST, SECOND, adapter, bench, task, train


class Spy(Method):
    """Notes the hooks that are called."""

    def __init__(self, trainee: Trainee) -> None:
        super().__init__(trainee, {})
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if callable(found) and name in vars(Method):
            self.calls.append(name)
        return found


def collated(trainee: Trainee, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Ids of the batches that are trained on from here on."""
    batches: list[list[str]] = []
    collate = trainee.encoder.collate

    def note(records: Any) -> Any:
        batches.append([record["id"] for record in records])
        return collate(records)

    monkeypatch.setattr(trainee.encoder, "collate", note)
    return batches


@pytest.mark.parametrize(("epochs", "ratio"), [(2, 0.2), (3, 0.25), (1, 0.05)])
def test_epochs_times_batches_of_the_memory(
    epochs: int, ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = bench(memory_ratio=ratio)
    trainee = work.trainee
    method = MemoryEpochs(work.method("seqlora"), epochs)
    made: list[float] = []
    trainee.optimizer.register_step_post_hook(lambda o, *_: made.append(o.param_groups[0]["lr"]))
    batches = collated(trainee, monkeypatch)
    train(method, FIRST, 0, 5)
    assert len(made) == 5  # nothing to rehearse yet
    kept = int(ratio * 40)
    for index, data in enumerate((SECOND, task("third", 3)), start=1):
        before, n = len(made), len(trainee.memory)
        assert n == kept * index
        batches.clear()
        train(method, data, index, 5)
        updates = epochs * math.ceil(n / 4)
        assert len(made) - before == 5 + updates
        assert set(made[-updates:]) == {trainee.config.lr}
        seen = Counter(name for batch in batches[5:] for name in batch)
        assert set(seen.values()) == {epochs}
        assert len(seen) == n
        assert {name.split("-")[0] for name in seen} <= {"first", "second"} - {data.name}
    assert trainee.rows["memory"] == epochs * (kept + 2 * kept)


@pytest.mark.parametrize("micro", [4, 2, 1])
def test_the_loss_is_the_mean_of_the_batch_however_it_is_cut(micro: int) -> None:
    """A memory of one batch: the gradient is that of the mean over all its answer tokens."""
    work = bench(dropout=0.0, memory_ratio=0.1, max_grad_norm=None, micro_batch=micro)
    trainee = work.trainee
    method = MemoryEpochs(work.method("seqlora"), 1)
    train(method, FIRST, 0, 4)
    memory = trainee.memory.stream("all").draw(4)
    trainee.loss(trainee.model, trainee.collate(memory)).backward()
    expected = [p.grad.clone() for p in trainee.parameters() if p.grad is not None]
    trainee.optimizer.zero_grad()
    found: list[Any] = []
    trainee.optimizer.register_step_pre_hook(
        lambda *_: found.extend(p.grad.clone() for p in trainee.parameters() if p.grad is not None)
    )
    train(method, SECOND, 1, 0)
    assert len(found) == len(expected) == 8
    assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(found, expected, strict=True))


def test_a_loss_that_is_no_number_ends_the_arm() -> None:
    """Update 5 of 2 epochs of 2 updates: the third of the memory's, after 2 of the task's own."""
    work = bench()
    method = MemoryEpochs(work.method("seqlora"), 2, "mine")
    train(method, FIRST, 0, 2)
    total, calls = work.trainee.loss.total, [0]

    def failing(model: Any, batch: Any) -> Any:
        calls[0] += 1
        loss, tokens = total(model, batch)
        return loss * (math.nan if calls[0] == 5 else 1.0), tokens

    work.trainee.loss.total = failing  # type: ignore[method-assign]
    message = r"arm 'mine', memory epochs of stage 'second': the training loss of update 3 is nan"
    with pytest.raises(FloatingPointError, match=message):
        train(method, SECOND, 1, 2)


def test_the_rows_of_a_batch_are_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As rank 1 of 2: every second record passes through the model, all of them are counted."""
    work = bench(memory_ratio=0.1)
    method = MemoryEpochs(work.method("seqlora"), 1)
    train(method, FIRST, 0, 2)
    method._ranks.rank, method._ranks.world = 1, 2
    monkeypatch.setattr(method._ranks, "add_gradients", lambda parameters: None)
    monkeypatch.setattr(method._ranks, "total", lambda value: value)
    monkeypatch.setattr(method._ranks, "of_main", lambda value: value)
    total, seen = work.trainee.loss.total, []

    def noting(model: Any, batch: Any) -> Any:
        seen.append(len(batch["labels"]))
        return total(model, batch)

    work.trainee.loss.total = noting  # type: ignore[method-assign]
    train(method, SECOND, 1, 0)
    assert seen == [2]
    assert work.trainee.rows["memory"] == 4


def test_one_update_is_adams_first() -> None:
    """Moments are fresh: every entry with a gradient moves by lr, whatever its size."""
    work = bench(dropout=0.0, memory_ratio=0.1, max_grad_norm=None)
    method = MemoryEpochs(work.method("seqlora"), 1)
    train(method, FIRST, 0, 4)
    after: list[Any] = []
    flat = torch.nn.utils.parameters_to_vector
    work.trainee.optimizer.register_step_post_hook(
        lambda *_: after.append(flat(work.trainee.parameters()).detach())
    )
    train(method, SECOND, 1, 3)
    assert len(after) == 4
    moved = (after[3] - after[2]).abs()
    assert float(moved.median()) == pytest.approx(0.01, rel=1e-3)
    assert float(moved.max()) < 0.0101


def test_every_hook_reaches_the_inner_method() -> None:
    work = bench()
    spy = Spy(work.trainee)
    method = MemoryEpochs(spy, 1)
    stage = Stage("second", (SECOND,))
    method.task(stage, 1)
    method.begin_stage(stage, 1)
    assert len(method.training_records(stage, 1)) == 40
    method.after_backward()
    method.after_update()
    method.end_stage(stage, 1)
    method.load_state_dict(method.state_dict())
    method.prepare({})
    method.merges()
    method.close()
    hooks = {name for name, value in vars(Method).items() if callable(value) and name[0] != "_"}
    assert set(spy.calls) >= hooks - {"check", "stages"}


def test_a_method_that_merges_is_not_watched_twice() -> None:
    work = bench()
    assert hasattr(MemoryEpochs(work.method("aim"), 2), "merger")
    assert not hasattr(MemoryEpochs(work.method("seqlora"), 2), "merger")


@pytest.mark.parametrize("name", ["seqlora", "inclora", "tasl"])
def test_watching_changes_no_bit(name: str) -> None:
    """``monitor``: probes have their own randomness; the recipe's passes are not probed."""
    ends = []
    for wrap in (lambda method: method, Monitor):
        work = bench()
        method: Any = wrap(MemoryEpochs(work.method(name), 1))
        train(method, FIRST, 0, 3)
        train(method, SECOND, 1, 5)
        ends.append(adapter(work.trainee))
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    assert work.trainee.rows["probe"] == 5 * 4
