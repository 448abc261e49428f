"""``AIMMergeCallback`` in the Trainer of transformers: the same bits as in a plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from aimmerge_fast import AIMConfig
from aimmerge_fast.events import Probe
from tests.integrations import trainers
from tests.integrations.trainers import Plain, again, callback, causal_loss, lora, made, merges
from tests.memories import content

pytestmark = [pytest.mark.filterwarnings(noise) for noise in trainers.NOISE]


def both(folder: Path, plain: Plain, dropout: float = 0.0, **fields: Any) -> tuple[Any, Any, Any]:
    """A trainer with a merger, and what a plain loop makes of its batches."""
    aim = callback()
    trainer = made(aim, folder, lora(dropout), trainers.recording(Trainer), **fields)
    aim.attach(trainer, task="now")
    trainer.train()
    model = lora(dropout)
    merger = again(trainer, model, aim.config, trainers.remembered(), plain)
    assert merges(aim.events) >= 2
    return trainer, aim, (model, merger)


def same(trainer: Any, aim: Any, plain: Any) -> None:
    model, merger = plain
    assert aim.events == merger.events
    assert trainers.weights(trainer.model) == trainers.weights(model)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_bits_of_a_plain_loop(tmp_path: Path, dropout: float, accumulation: int) -> None:
    same(*both(tmp_path, Plain(causal_loss), dropout, gradient_accumulation_steps=accumulation))


def test_memory_steps_are_clipped_as_the_training_is(tmp_path: Path) -> None:
    """At a norm that cuts every gradient; a config's own norm goes before the trainer's."""
    trainer, aim, plain = both(tmp_path, Plain(causal_loss), max_grad_norm=0.01)
    same(trainer, aim, plain)
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert min(norms) > 0.01
    assert aim.merger.config.max_grad_norm == 0.01
    own = callback(max_grad_norm=0.5)
    other = trainers.trained(own, tmp_path, max_grad_norm=0.01)
    assert own.merger is not None
    assert own.merger.config.max_grad_norm == 0.5
    assert trainers.weights(other.model) != trainers.weights(trainer.model)


def test_no_clipping_where_the_trainer_has_none(tmp_path: Path) -> None:
    trainer, aim, plain = both(tmp_path, Plain(causal_loss), max_grad_norm=0)
    same(trainer, aim, plain)
    assert aim.merger.config.max_grad_norm is None


def test_bf16_autocast(tmp_path: Path) -> None:
    """Accelerate wraps the model's forward, and ours go through it too."""
    plain = Plain(causal_loss, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    trainer, aim, again = both(tmp_path, plain, bf16=True)
    same(trainer, aim, again)
    full = trainers.trained(callback(), tmp_path)
    assert trainers.weights(full.model) != trainers.weights(trainer.model)


class Fp16(Trainer):
    """Mixed fp16 as on a GPU: accelerate itself gives a CPU neither autocast nor a scaler."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.accelerator.native_amp = True
        self.accelerator.scaler = scaler()


def scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3)


def test_the_scaler_of_fp16(tmp_path: Path) -> None:
    """One scaler for updates and memory steps; the first scale overflows: updates are skipped."""
    aim = callback()
    trainer = made(aim, tmp_path, lora(), trainers.recording(Fp16), fp16=True)
    aim.attach(trainer, task="now")
    trainer.train()
    model, plain_scaler = lora(), scaler()
    plain = Plain(
        causal_loss, autocast=lambda: torch.autocast("cpu", torch.float16), scaler=plain_scaler
    )
    merger = again(trainer, model, aim.config, trainers.remembered(), plain)
    assert merges(aim.events) >= 2
    same(trainer, aim, (model, merger))
    ours = trainer.accelerator.scaler
    assert ours.state_dict() == plain_scaler.state_dict()
    assert ours.get_scale() < 2.0**20
    assert trainer.accelerator.optimizer_step_was_skipped is False


def test_micro_batches_are_the_trainers(tmp_path: Path) -> None:
    """No forward of ours holds more records than one of the training."""
    sizes: list[int] = []

    def counted(model: Any, batch: Any) -> torch.Tensor:
        sizes.append(len(batch["input_ids"]))
        loss: torch.Tensor = model(**batch).loss
        return loss

    aim = callback(history_batch=6, memory_batch=5)
    trainer = made(aim, tmp_path)
    aim.attach(trainer, task="now", loss_fn=counted)
    trainer.train()
    assert merges(aim.events) >= 1
    assert set(sizes) == {4, 2, 1}


def test_the_history_loss_is_the_mean_over_all_labels(tmp_path: Path) -> None:
    """Of all 15 records in 4 passes, each weighed by its labels; the oracle takes one pass."""
    memory = trainers.remembered()
    aim = callback(memory, history_batch=len(memory))
    trainers.trained(aim, tmp_path, max_steps=1)
    records = [trainers.without_number(row) for row in content(memory)]
    batch = trainers.collate(records)
    with torch.no_grad():
        logits = lora()(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits
    labels = batch["labels"][:, 1:]
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels)
    probes = [event for event in aim.events if isinstance(event, Probe)]
    assert probes[0].loss == pytest.approx(float(expected), rel=1e-5)


def test_the_first_probe_finds_a_model_that_trains(tmp_path: Path) -> None:
    """The Trainer turns dropout on in its first step only; the probe before it needs it too."""
    modes: list[bool] = []

    def noted(model: Any, batch: Any) -> torch.Tensor:
        modes.append(model.training)
        loss: torch.Tensor = model(**batch).loss
        return loss

    model = lora().eval()
    aim = callback()
    trainer = made(aim, tmp_path, model, max_steps=2)
    aim.attach(trainer, task="now", loss_fn=noted)
    trainer.train()
    assert modes
    assert all(modes)


def test_monitoring_trains_to_the_same_bits(tmp_path: Path) -> None:
    settings = {"gradient_accumulation_steps": 2}
    alone = trainers.trained(None, tmp_path, lora(dropout=0.2), **settings)
    aim = trainers.AIMMergeCallback(
        AIMConfig(schedule="monitor", s_init=3), memory=trainers.remembered()
    )
    watched = trainers.trained(aim, tmp_path, lora(dropout=0.2), **settings)
    assert trainers.weights(watched.model) == trainers.weights(alone.model)
    assert torch.equal(trainers_losses(watched), trainers_losses(alone))
    assert [event.event for event in aim.events].count("measure") == 3


def trainers_losses(trainer: Any) -> torch.Tensor:
    kept = [entry for entry in trainer.state.log_history if "loss" in entry]
    return torch.tensor(
        [[entry["loss"], entry["grad_norm"]] for entry in kept], dtype=torch.float64
    )


def test_a_stream_with_one_callback(tmp_path: Path) -> None:
    """Each task has a trainer and a merger of its own; memory, seeds and events go on."""
    memory = trainers.RehearsalMemory(ratio=0.5)
    aim = callback(memory)
    model = lora()
    for number, name in enumerate(("one", "two", "three")):
        extra = {"train_dataset": trainers.tokenised(30, seed=number, shift=number)}
        trainer = made(aim, tmp_path / name, model, extra=extra)
        aim.attach(trainer, task=name)
        trainer.train()
        assert aim.merger is not None
        assert aim.merger.position.tasks_done == aim.tasks_done == number + 1
        memory.add(name, trainer.train_dataset)
    reports = aim.report().tasks
    assert [task.task for task in reports] == ["one", "two", "three"]
    assert [sum(task.merges.values()) > 0 for task in reports] == [False, True, True]
    assert [task.steps for task in reports] == [trainers.STEPS] * 3
    assert len(memory) == 45


def test_columns_that_the_trainer_drops_are_dropped_from_records(tmp_path: Path) -> None:
    """A torch dataset has no columns to drop: there the Trainer's collator does it."""
    rows = list(trainers.tokenised())
    aims = []
    for dataset in (trainers.tokenised(), rows):
        aim = callback()
        trainer = made(aim, tmp_path, extra={"train_dataset": dataset})
        aim.attach(trainer, task="now")
        trainer.train()
        aims.append(aim)
        assert merges(aim.events) >= 1
    assert "number" in rows[0]
    assert aims[0].events == aims[1].events


def test_a_collate_of_the_users(tmp_path: Path) -> None:
    """Gets memory records as they were added."""
    seen: list[set[str]] = []

    def own(rows: list[Any]) -> Any:
        seen.extend(set(row) for row in rows)
        return trainers.collate([trainers.without_number(row) for row in rows])

    settings = AIMConfig(**trainers.CONFIG)
    aim = trainers.AIMMergeCallback(settings, memory=trainers.remembered(), collate=own)
    trainers.trained(aim, tmp_path)
    other = callback()
    trainers.trained(other, tmp_path)
    assert merges(aim.events) >= 1
    assert aim.events == other.events
    assert all("number" in keys for keys in seen)


def test_weights_differ_from_those_without_a_merger(tmp_path: Path) -> None:
    merged = trainers.trained(callback(), tmp_path)
    alone = trainers.trained(None, tmp_path)
    assert trainers.weights(merged.model) != trainers.weights(alone.model)
