"""The updates of a stage against a loop written out by hand."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aimmerge_fast.cl import runner
from aimmerge_fast.cl.batches import batch_at
from aimmerge_fast.cl.context import Context
from aimmerge_fast.cl.methods import Method, Trainee
from aimmerge_fast.cl.methods.seqlora import SeqLoRA
from aimmerge_fast.cl.training import fresh_moments, new_optimizer, seed_everything, updates
from tests.cl.tiny import finished_run, make_config

STEPS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory)


def new_trainee(context: Context, seed: int = 7) -> Trainee:
    model = context.attach_adapter(seed)
    trainable = [p for p in model.parameters() if p.requires_grad]
    return Trainee(
        model=model,
        optimizer=new_optimizer(trainable, context.config.lr),
        encoder=context.encoder,
        loss=context.loss,
        memory=context.new_memory(seed),
        config=context.config,
        seed=seed,
        emit=lambda event: None,
        device=context.ranks.device,
    )


def trained(
    folder: Path, kind: type[Method] = SeqLoRA, done: int = 0, seed: int = 7, **fields: Any
) -> tuple[list[Tensor], list[float], Trainee]:
    """(adapter, losses) after the updates of the first task."""
    context = runner.prepare(make_config(folder, **{"steps": STEPS, "dropout": 0.0, **fields}))
    trainee = new_trainee(context, seed)
    records = context.tasks[0].train
    made = list(updates(kind(trainee, {}), records, "first", done, STEPS, context.ranks))
    assert [update.step for update in made] == list(range(done + 1, STEPS + 1))
    adapter = [p.detach().clone() for p in trainee.parameters()]
    return adapter, [float(update.loss) for update in made], trainee


def by_hand(folder: Path) -> tuple[list[Tensor], list[float]]:
    """The same training, written out: whole batches and the losses of transformers."""
    config = make_config(folder, steps=STEPS, dropout=0.0)
    context = runner.prepare(config)
    model = context.attach_adapter(7)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0)
    losses = []
    for step in range(1, STEPS + 1):
        rate = 0.01 * (0 if step == 1 else (STEPS - (step - 1)) / (STEPS - 1))  # warm-up of 1
        optimizer.param_groups[0]["lr"] = rate
        batch = context.encoder.collate(batch_at(context.tasks[0].train, step, 4, "7/first"))
        loss = model(**batch).loss  # the mean over the batch's answer tokens
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        for parameter in parameters:
            parameter.grad *= min(1.0, 1.0 / (float(norm) + 1e-6))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return [p.detach() for p in parameters], losses


def close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-6) -> bool:
    return all(
        torch.allclose(one, two, rtol=0, atol=tolerance)
        for one, two in zip(found, expected, strict=True)
    )


def test_updates_are_those_of_a_plain_loop(folder: Path) -> None:
    adapter, losses, trainee = trained(folder)
    expected, expected_losses = by_hand(folder)
    assert losses == pytest.approx(expected_losses, abs=1e-5)
    assert close(adapter, expected)
    assert not close(adapter, [p.detach() for p in new_trainee_start(folder)])  # it did train
    assert trainee.rows == {"training": 4 * STEPS, "memory": 0, "probe": 0}


def new_trainee_start(folder: Path) -> list[Tensor]:
    context = runner.prepare(make_config(folder, dropout=0.0))
    return list(new_trainee(context).parameters())


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_micro_batches_are_the_whole_batch(folder: Path, micro_batch: int) -> None:
    """The mean is over the batch's tokens, not the mean of the passes' means."""
    whole, losses, _ = trained(folder)
    parts, part_losses, _ = trained(folder, micro_batch=micro_batch)
    assert part_losses == pytest.approx(losses, abs=1e-6)
    assert close(parts, whole)


def test_a_stage_goes_on_where_it_stopped(folder: Path) -> None:
    """Batch and dropout of an update depend on its number alone."""
    context = runner.prepare(make_config(folder, steps=STEPS, dropout=0.3))
    results = []
    for cut in (None, 2):
        trainee = new_trainee(context)
        method, records = SeqLoRA(trainee, {}), context.tasks[0].train
        if cut is not None:
            for update in updates(method, records, "first", 0, STEPS, context.ranks):
                if update.step == cut:
                    break
            torch.manual_seed(123)  # another process has another state of its generators
        list(updates(method, records, "first", cut or 0, STEPS, context.ranks))
        results.append([p.detach().clone() for p in trainee.parameters()])
        context.detach_adapter(trainee.model)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_seed_dropout_and_buckets_matter(folder: Path) -> None:
    plain, losses, _ = trained(folder)
    assert losses != trained(folder, seed=8)[1]
    dropped = trained(folder, dropout=0.5)[0]
    assert not close(plain, dropped)
    assert close(dropped, trained(folder, dropout=0.5)[0], 0)
    assert losses != trained(folder, bucket=3)[1]


def test_the_learning_rate_is_set_before_each_update(folder: Path) -> None:
    config = make_config(folder, steps=STEPS, warmup=2)
    context = runner.prepare(config)
    trainee = new_trainee(context)
    rates = []
    for update in updates(
        SeqLoRA(trainee, {}), context.tasks[0].train, "first", 0, STEPS, context.ranks
    ):
        assert trainee.optimizer.param_groups[0]["lr"] == update.learning_rate
        rates.append(update.learning_rate)
    assert rates == pytest.approx([0, 0.005, 0.01, 0.02 / 3, 0.01 / 3])


class Watching(SeqLoRA):
    """Notes what the hooks see."""

    def __init__(self, trainee: Trainee, settings: Any) -> None:
        super().__init__(trainee, settings)
        self.seen: list[str] = []
        self.norms: list[float] = []
        trainee.memory.watching = self  # type: ignore[attr-defined]

    def after_backward(self) -> None:
        gradients = [p.grad for p in self.trainee.parameters()]
        assert all(gradient is not None for gradient in gradients)
        norms = [gradient.norm() for gradient in gradients if gradient is not None]
        self.norms.append(float(torch.stack(norms).norm()))
        self.seen.append("backward")

    def after_update(self) -> None:
        assert all(p.grad is None for p in self.trainee.parameters())
        self.seen.append("update")


def test_hooks_see_clipped_gradients_then_none(folder: Path) -> None:
    clipped, free = (
        trained(folder, Watching, max_grad_norm=norm)[2].memory.watching  # type: ignore[attr-defined]
        for norm in (0.01, None)
    )
    assert clipped.seen == ["backward", "update"] * STEPS
    assert max(clipped.norms) <= 0.01 * (1 + 1e-5)
    assert max(free.norms) > 0.02


def test_fresh_moments(folder: Path) -> None:
    _, _, trainee = trained(folder)
    assert len(trainee.optimizer.state) == len(trainee.parameters())
    fresh_moments(trainee.optimizer)
    assert not trainee.optimizer.state


def test_seeding_reaches_every_generator() -> None:
    def drawn(key: str) -> tuple[float, float, float]:
        seed_everything(key)
        return float(torch.rand(())), float(np.random.rand()), random.random()

    assert drawn("a/1") == drawn("a/1")
    assert all(one != two for one, two in zip(drawn("a/1"), drawn("a/2"), strict=True))


def test_only_the_adapter_is_trained(folder: Path) -> None:
    context = runner.prepare(make_config(folder))
    before = {name: p.clone() for name, p in context.base.named_parameters()}
    trainee = new_trainee(context)
    assert {id(p) for p in trainee.parameters()} == {
        id(p) for p in context.adapter_of(trainee.model).values()
    }
    list(updates(SeqLoRA(trainee, {}), context.tasks[0].train, "x", 0, 3, context.ranks))
    context.detach_adapter(trainee.model)
    after = dict(context.base.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
