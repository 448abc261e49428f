"""What a merger is not attached to, each in one line that says what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Trainer
from transformers.trainer_utils import HubStrategy

from aimmerge_fast import AIMConfig
from aimmerge_fast.integrations.transformers import AIMMergeCallback, trainer_loss
from tests.integrations import trainers
from tests.integrations.trainers import callback, lora, made, merges, remembered

pytestmark = [pytest.mark.filterwarnings(noise) for noise in trainers.NOISE]

BEST = {"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps"}


def refused(
    aim: AIMMergeCallback,
    trainer: Any,
    message: str,
    error: type[Exception] = ValueError,
    **kw: Any,
) -> None:
    """``attach`` raises one line that matches, and the callback is as if it was never called."""
    with pytest.raises(error, match=message) as caught:
        aim.attach(trainer, task="now", **kw)
    assert "\n" not in str(caught.value)
    assert aim._run is None


def attached(aim: AIMMergeCallback, trainer: Any, **options: Any) -> None:
    aim.attach(trainer, task="now", **options)
    assert aim._run is not None


# ---- the callback itself -----------------------------------------------------------------------


def test_a_callback_that_was_never_attached(tmp_path: Path) -> None:
    trainer = made(callback(), tmp_path)
    with pytest.raises(RuntimeError, match=r"not attached.*aim\.attach\(trainer, task=\.\.\.\)"):
        trainer.train()


def test_a_second_training_needs_an_attach_of_its_own(tmp_path: Path) -> None:
    aim = callback()
    trainer = trainers.trained(aim, tmp_path, max_steps=2)
    with pytest.raises(RuntimeError, match=r"before each trainer\.train"):
        trainer.train()
    aim.attach(trainer, task="then")
    trainer.train()
    assert aim.tasks_done == 2


def test_attached_to_another_trainer(tmp_path: Path) -> None:
    aim = callback()
    first, second = made(aim, tmp_path), made(aim, tmp_path)
    aim.attach(first, task="now")
    with pytest.raises(RuntimeError, match="not attached to this training"):
        second.train()


def test_a_trainer_that_does_not_have_the_callback(tmp_path: Path) -> None:
    """Some trainers drop the callbacks they are given."""
    aim, trainer = callback(), made(None, tmp_path)
    refused(
        aim, trainer, r"does not have this callback \(it has DefaultFlowCallback, .*add_callback"
    )
    trainer.add_callback(aim)
    attached(aim, trainer)


def test_what_is_no_trainer_and_no_name(tmp_path: Path) -> None:
    aim = callback()
    refused(aim, lora(), "takes a transformers.Trainer, got a PeftModel", TypeError)
    with pytest.raises(TypeError, match="a task's name must be a non-empty string, got ''"):
        aim.attach(made(aim, tmp_path), task="")


def test_arguments_of_the_callback() -> None:
    with pytest.raises(TypeError, match="memory must be a RehearsalMemory, got list"):
        AIMMergeCallback(memory=[])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"probe='in_batch'.*'before' or 'after'"):
        AIMMergeCallback(AIMConfig(probe="in_batch"), memory=remembered())


# ---- others that would move the weights --------------------------------------------------------


def test_two_mergers_on_one_trainer(tmp_path: Path) -> None:
    """Allowed by name, where each has adapters of its own and nothing is saved."""
    first, second = callback(), callback()
    trainer = made(first, tmp_path)
    trainer.add_callback(second)
    refused(first, trainer, "2 mergers.*beside_others=True")
    trainer.args.save_strategy = "steps"
    refused(first, trainer, "cannot share one checkpoint.*save_strategy='no'", beside_others=True)
    trainer.args.save_strategy = "no"
    attached(first, trainer, beside_others=True)
    attached(second, trainer, beside_others=True)
    trainer.train()
    assert merges(first.events) >= 1
    assert merges(second.events) >= 1


def test_a_best_model_at_the_end(tmp_path: Path) -> None:
    extra = {"train_dataset": trainers.tokenised(), "eval_dataset": trainers.tokenised(8)}
    aim = callback()
    trainer = made(aim, tmp_path, extra=extra, save_steps=5, eval_steps=5, **BEST)
    refused(aim, trainer, "load_best_model_at_end=True.*best_model=True")
    attached(aim, trainer, best_model=True)
    trainer.train()
    assert merges(aim.events) >= 1
    assert aim.tasks_done == 1
    for final in ({"schedule": "single"}, {"merge_at_task_end": True}):
        aim = callback(**final)
        trainer = made(aim, tmp_path, extra=extra, save_steps=5, eval_steps=5, **BEST)
        name = next(iter(final))
        refused(aim, trainer, f"undoes the merge at the task's end, which {name}", best_model=True)


def test_a_merged_adapter(tmp_path: Path) -> None:
    aim, model = callback(), lora()
    model.merge_adapter()
    trainer = made(aim, tmp_path, model)
    refused(aim, trainer, r"adapter 'default' is merged.*model\.unmerge_adapter\(\)")
    model.unmerge_adapter()
    attached(aim, trainer)


# ---- engines and arguments ---------------------------------------------------------------------


def with_state(**fields: Any) -> Callable[[Any], None]:
    def change(trainer: Any) -> None:
        state = SimpleNamespace(**fields.pop("state", {}))
        trainer.accelerator = SimpleNamespace(state=state, parallelism_config=None, **fields)

    return change


def with_mesh(trainer: Any) -> None:
    mesh = SimpleNamespace(tp_size=1, cp_size=2, sp_size=1)
    trainer.accelerator = SimpleNamespace(state=SimpleNamespace(), parallelism_config=mesh)


def with_argument(name: str, value: Any) -> Callable[[Any], None]:
    return lambda trainer: setattr(trainer.args, name, value)


def pushing(strategy: str) -> Callable[[Any], None]:
    fields = {"push_to_hub": True, "hub_strategy": HubStrategy(strategy), "save_strategy": "steps"}
    return lambda trainer: vars(trainer.args).update(fields)


def with_attribute(name: str) -> Callable[[Any], None]:
    return lambda trainer: setattr(trainer, name, True)


ENGINES: dict[str, tuple[Callable[[Any], None], str]] = {
    "deepspeed": (with_attribute("is_deepspeed_enabled"), "runs DeepSpeed.*DDP or FSDP2"),
    "fsdp1": (
        with_state(state={"fsdp_plugin": SimpleNamespace(fsdp_version=1)}),
        "FSDP version 1.*fsdp_config={'version': 2}",
    ),
    "fsdp on xla": (with_attribute("is_fsdp_xla_enabled"), "FSDP on XLA"),
    "context parallel": (with_mesh, "runs cp_size=2.*DDP or FSDP2 alone"),
    "sharded at load": (
        with_attribute("is_distributed_loading_by_transformers"),
        "a model that from_pretrained sharded",
    ),
    "data parallel": (with_argument("_n_gpu", 2), "nn.DataParallel over 2 GPUs.*torchrun"),
    "batch size search": (
        with_argument("auto_find_batch_size", True),
        "auto_find_batch_size=True.*per_device_train_batch_size",
    ),
    "lomo": (with_argument("optim", "lomo"), "optim='lomo'.*adamw_torch"),
    "pushed too soon": (pushing("checkpoint"), "hub_strategy='checkpoint'.*'every_save' or 'end'"),
    "all too soon": (pushing("all_checkpoints"), "'all_checkpoints' pushes a checkpoint before"),
    "layerwise": (with_argument("optim", "galore_adamw_layerwise"), "'galore_adamw_layerwise'"),
}


@pytest.mark.parametrize("name", list(ENGINES))
def test_trainings_that_a_merger_cannot_follow(tmp_path: Path, name: str) -> None:
    change, message = ENGINES[name]
    aim = callback()
    trainer = made(aim, tmp_path)
    attached(aim, trainer)
    aim._run = None
    change(trainer)
    refused(aim, trainer, message)


@pytest.mark.parametrize("strategy", ["every_save", "end"])
def test_other_ways_to_push(tmp_path: Path, strategy: str) -> None:
    aim = callback()
    trainer = made(aim, tmp_path)
    pushing(strategy)(trainer)
    attached(aim, trainer)


def test_fsdp2_is_no_reason(tmp_path: Path) -> None:
    aim = callback()
    trainer = made(aim, tmp_path)
    with_state(state={"fsdp_plugin": SimpleNamespace(fsdp_version=2)})(trainer)
    attached(aim, trainer)


# ---- losses that are not the model's -----------------------------------------------------------


class Doubled(Trainer):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kw: Any) -> Any:
        return 2 * model(**inputs).loss


def halved(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    logits = outputs.logits[:, :-1].transpose(1, 2)
    loss: torch.Tensor = torch.nn.functional.cross_entropy(logits, labels[:, 1:])
    return loss / 2


OWN: dict[str, tuple[dict[str, Any], str, float]] = {
    "a class": ({"trainer": Doubled}, "Doubled has a compute_loss of its own", 2.0),
    "a function": (
        {"extra": {"compute_loss_func": halved}},
        "Trainer was given compute_loss_func",
        0.5,
    ),
    "smoothing": (
        {"label_smoothing_factor": 0.2},
        "Trainer smooths labels .label_smoothing.*0.2",
        0,
    ),
}


@pytest.mark.parametrize("name", list(OWN))
def test_a_loss_of_the_trainers_own(tmp_path: Path, name: str) -> None:
    """Refused; ``trainer_loss`` takes it, and probes it to be what the trainer trains on."""
    fields, message, factor = OWN[name]
    aim = callback()
    trainer = made(aim, tmp_path, **fields)
    refused(aim, trainer, f"{message}.*{re.escape('loss_fn=trainer_loss(trainer)')}")
    attached(aim, trainer, loss_fn=trainer_loss(trainer))
    trainer.train()
    assert merges(aim.events) >= 1
    batch = trainers.collate([trainers.without_number(row) for row in trainers.tokenised(4)])
    with torch.no_grad():
        loss = float(trainer_loss(trainer)(trainer.model.eval(), batch))
        plain = float(trainer.model(**batch).loss)
    assert set(batch) == {"input_ids", "labels", "attention_mask"}
    if factor:
        assert loss == pytest.approx(factor * plain)
    else:
        assert loss != pytest.approx(plain, rel=1e-3)


def test_a_loss_function_of_the_users_is_enough(tmp_path: Path) -> None:
    def own(model: Any, batch: Any) -> torch.Tensor:
        loss: torch.Tensor = model(**batch).loss
        return loss

    aim = AIMMergeCallback(AIMConfig(**trainers.CONFIG), memory=remembered(), loss_fn=own)
    trainer = made(aim, tmp_path, trainer=Doubled)
    attached(aim, trainer)
    trainer.train()
    assert merges(aim.events) >= 1


def test_a_model_that_returns_no_loss(tmp_path: Path) -> None:
    """Memory records whose labels the collator lost are found before the training."""
    rows = [{"input_ids": row["input_ids"]} for row in trainers.tokenised(8)]
    memory = trainers.RehearsalMemory(ratio=1.0)
    memory.add("earlier", rows)
    aim = AIMMergeCallback(
        AIMConfig(**trainers.CONFIG),
        memory=memory,
        collate=lambda chosen: {
            "input_ids": torch.tensor([row["input_ids"][:2] for row in chosen])
        },
    )
    trainer = made(aim, tmp_path)
    attached(aim, trainer)
    with pytest.raises(TypeError, match="returned no loss for a batch of memory records"):
        trainer.train()
    assert trainer.state.global_step == 0
