"""``AIMMergeCallback`` in TRL's SFTTrainer: its loss, and metrics that hold none of our passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import peft
import pytest
import torch

from aimmerge_fast import AIMConfig, RehearsalMemory
from aimmerge_fast.integrations.transformers import AIMMergeCallback, trainer_loss
from tests.cl.tiny_models import causal_model, word_tokenizer
from tests.integrations import trainers
from tests.integrations.trainers import Pass, Plain, again, merges

trl = pytest.importorskip("trl")
pytestmark = [pytest.mark.filterwarnings(noise) for noise in trainers.NOISE]
METRICS = ("entropy", "mean_token_accuracy", "num_tokens", "loss", "grad_norm")


def lines(count: int = 40, seed: int = 1, shift: int = 0) -> datasets.Dataset:
    return datasets.Dataset.from_list(trainers.texts(count, seed, shift))


def made(
    aim: AIMMergeCallback | None, folder: Path, kind: type[Any] = trl.SFTTrainer, **fields: Any
) -> Any:
    """TRL makes the adapter, tokenises the lines and collates them."""
    settings = {"r": 2, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
    return kind(
        model=causal_model(seed=3),
        args=trainers.arguments(folder, trl.SFTConfig, **{"max_length": 16, **fields}),
        train_dataset=lines(),
        processing_class=word_tokenizer(),
        peft_config=peft.LoraConfig(**settings),
        callbacks=[aim] if aim is not None else None,
    )


def prepared(folder: Path) -> RehearsalMemory:
    """Rows of an earlier task as TRL prepares them."""
    memory = RehearsalMemory(ratio=0.5)
    memory.add("earlier", made(None, folder).train_dataset)
    return memory


def trained(aim: AIMMergeCallback | None, folder: Path, task: str = "now", **fields: Any) -> Any:
    trainer = made(aim, folder, **fields)
    if aim is not None:
        aim.attach(trainer, task=task)
    trainer.train()
    return trainer


def logged(trainer: Any) -> list[dict[str, float]]:
    """What TRL and the Trainer logged while training."""
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{name: entry[name] for name in METRICS} for entry in entries]


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16 autocast"])
def test_the_bits_of_a_plain_loop(tmp_path: Path, bf16: bool) -> None:
    aim = AIMMergeCallback(AIMConfig(**trainers.CONFIG), memory=prepared(tmp_path))
    fields = {"max_grad_norm": 0.5, "bf16": bf16}  # TRL's default is True
    trainer = made(aim, tmp_path, trainers.recording(trl.SFTTrainer), **fields)
    aim.attach(trainer, task="now")
    trainer.train()
    assert merges(aim.events) >= 2
    twin = made(None, tmp_path)
    model, pad = twin.model, twin.data_collator

    def loss(model: Any, one: Pass, passes: int) -> torch.Tensor:
        outputs = model(**one.inputs, fused_lm_head=True)
        mean: torch.Tensor = (-outputs.log_probs).sum() / one.items
        return mean

    def rehearse(model: Any, batch: Any) -> torch.Tensor:
        outputs = model(**batch, fused_lm_head=True)
        mean: torch.Tensor = -outputs.log_probs.sum() / (batch["labels"][:, 1:] != -100).sum()
        return mean

    columns = set(trainer.callback_handler.train_dataloader.dataset.column_names)
    plain = Plain(
        loss,
        rehearse,
        collate=lambda rows: pad([{k: v for k, v in row.items() if k in columns} for row in rows]),
        autocast=lambda: torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    )
    merger = again(trainer, model, aim.config, prepared(tmp_path), plain)
    assert aim.events == merger.events
    assert trainers.weights(trainer.model) == trainers.weights(model)


@pytest.mark.parametrize("own_loss", [False, True], ids=["model's loss", "trainer's loss"])
def test_trl_counts_none_of_our_passes(tmp_path: Path, own_loss: bool) -> None:
    """Under ``monitor`` nothing differs but the order of our own entries: metrics are the same."""
    alone = trained(None, tmp_path)
    config = AIMConfig(schedule="monitor", s_init=3)
    aim = AIMMergeCallback(config, memory=prepared(tmp_path))
    trainer = made(aim, tmp_path)
    aim.attach(trainer, task="now", loss_fn=trainer_loss(trainer) if own_loss else None)
    trainer.train()
    assert [event.event for event in aim.events].count("measure") == 3
    assert logged(trainer) == logged(alone) != []
    assert trainers.weights(trainer.model) == trainers.weights(alone.model)
    assert trainer._total_train_tokens == alone._total_train_tokens
    ours = [entry for entry in trainer.state.log_history if "aim/interval" in entry]
    assert len(ours) == 6  # at five logging steps and at the end
    assert not any(set(METRICS) & set(entry) for entry in ours)


def test_both_ways_to_the_loss_agree(tmp_path: Path) -> None:
    """The fused head of the model gives what ``compute_loss`` gives, on every probe and step."""
    ways = []
    for own_loss in (False, True):
        aim = AIMMergeCallback(AIMConfig(**trainers.CONFIG), memory=prepared(tmp_path))
        trainer = made(aim, tmp_path)
        aim.attach(trainer, task="now", loss_fn=trainer_loss(trainer) if own_loss else None)
        trainer.train()
        assert merges(aim.events) >= 2
        ways.append((aim.events, trainers.weights(trainer.model)))
    assert ways[0] == ways[1]


def test_a_stream_of_two_tasks(tmp_path: Path) -> None:
    """The example of the class: rows of a finished task's ``train_dataset`` are the memory."""
    memory = RehearsalMemory(ratio=0.5)
    aim = AIMMergeCallback(AIMConfig(**trainers.CONFIG), memory=memory)
    first = trained(aim, tmp_path / "one", task="one")
    memory.add("one", first.train_dataset)
    # the adapter that the first trainer made, trained on by another one
    trainer = trl.SFTTrainer(
        model=first.model,
        args=trainers.arguments(tmp_path / "two", trl.SFTConfig, max_length=16),
        train_dataset=lines(seed=2, shift=3),
        processing_class=word_tokenizer(),
        callbacks=[aim],
    )
    aim.attach(trainer, task="two")
    trainer.train()
    assert [sum(task.merges.values()) > 0 for task in aim.report().tasks] == [False, True]
    assert aim.tasks_done == 2


REFUSED = {
    "label smoothing": {"label_smoothing_factor": 0.1},
    "loss_type": {"loss_type": "dft"},
}


@pytest.mark.filterwarnings("ignore:`label_smoothing_factor` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", list(REFUSED))
def test_losses_that_the_model_does_not_compute(tmp_path: Path, name: str) -> None:
    """Refused without loss_fn; with the trainer's own, the run merges and counts clean."""
    word = {"label smoothing": "smooths labels", "loss_type": "loss_type='dft'"}[name]
    aim = AIMMergeCallback(AIMConfig(**trainers.CONFIG), memory=prepared(tmp_path))
    trainer = made(aim, tmp_path, **REFUSED[name])
    with pytest.raises(ValueError, match=f"{word}.*loss_fn=trainer_loss\\(trainer\\)"):
        aim.attach(trainer, task="now")
    aim.attach(trainer, task="now", loss_fn=trainer_loss(trainer))
    trainer.train()
    assert merges(aim.events) >= 1
    alone = trained(None, tmp_path, **REFUSED[name])
    assert trainer._total_train_tokens == alone._total_train_tokens


def pairs(count: int = 24) -> datasets.Dataset:
    rows = trainers.texts(count, seed=5)
    made = [
        {"prompt": row["text"], "chosen": " " + row["text"], "rejected": " red red"} for row in rows
    ]
    return datasets.Dataset.from_list(made)


def test_dpo_needs_the_trainers_loss(tmp_path: Path) -> None:
    fields = {"max_length": 32, "activation_checkpointing": False}  # its reference pass warns

    def trainer_of(aim: AIMMergeCallback | None) -> Any:
        return trl.DPOTrainer(
            model=causal_model(seed=3),
            args=trainers.arguments(tmp_path, trl.DPOConfig, **fields),
            train_dataset=pairs(),
            processing_class=word_tokenizer(),
            peft_config=peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
            callbacks=[aim] if aim is not None else None,
        )

    memory = RehearsalMemory(ratio=0.5)
    memory.add("earlier", trainer_of(None).train_dataset)
    aim = AIMMergeCallback(AIMConfig(**trainers.CONFIG), memory=memory)
    trainer = trainer_of(aim)
    with pytest.raises(ValueError, match="DPOTrainer has a compute_loss of its own"):
        aim.attach(trainer, task="now")
    aim.attach(trainer, task="now", loss_fn=trainer_loss(trainer))
    trainer.train()
    assert merges(aim.events) >= 1
    alone = trainer_of(None)
    alone.train()
    counts = [entry["num_tokens"] for entry in trainer.state.log_history if "loss" in entry]
    assert counts == [entry["num_tokens"] for entry in alone.state.log_history if "loss" in entry]
