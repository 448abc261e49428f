"""``save_total_limit``: set aside while a checkpoint is completed, and at no other time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from aimmerge_fast.durable import seal
from aimmerge_fast.integrations.transformers import checkpoints as ours
from tests.integrations import trainers
from tests.integrations.resumable import NOISE, STEPS, Crash, Run, checkpoint, checkpoints, memory
from tests.integrations.test_just_in_time import stopped

pytestmark = [pytest.mark.filterwarnings(noise) for noise in (NOISE, *trainers.NOISE)]


def test_the_limit_of_checkpoints_is_the_users_again_after_the_training(tmp_path: Path) -> None:
    run = Run(tmp_path, save_total_limit=2)
    run.train()
    assert run.trainer.args.save_total_limit == 2
    assert checkpoints(tmp_path) == [f"checkpoint-{STEPS - 1}", f"checkpoint-{STEPS}"]


def test_an_older_checkpoint_stays_until_the_new_one_is_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    present: list[list[str]] = []

    def looking(folder: Path, info: dict[str, Any]) -> None:
        present.append(checkpoints(tmp_path))
        seal(folder, info)

    monkeypatch.setattr(ours, "seal", looking)
    Run(tmp_path, save_total_limit=1).train()
    names = [f"checkpoint-{step}" for step in range(1, STEPS + 1)]
    assert present == [names[:1], *map(list, zip(names[:-1], names[1:], strict=True))]


def test_it_stays_also_where_the_new_one_is_written_just_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    present: list[list[str]] = []

    def looking(folder: Path, info: dict[str, Any]) -> None:
        present.append(checkpoints(tmp_path))
        seal(folder, info)

    monkeypatch.setattr(ours, "seal", looking)
    run = stopped(tmp_path, "step_begin", 4, save_steps=3, save_total_limit=1)
    assert present == [["checkpoint-3"], ["checkpoint-3", "checkpoint-4"]]
    assert run.trainer.args.save_total_limit == 1


# ---- where a training ends in an exception ---------------------------------------------------


def crash(*_: Any, **__: Any) -> Any:
    raise Crash


class In(TrainerCallback):
    """Raises in ``event`` of step 3; it comes after ours."""

    def __init__(self, event: str) -> None:
        setattr(self, f"on_{event}", self._raise)

    def _raise(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise Crash


def in_a_pass(run: Run, patch: pytest.MonkeyPatch) -> None:
    """Of the update after the third: a loss that cannot be computed."""

    def step(*args: Any) -> Any:
        if run.trainer.state.global_step == 3:
            raise Crash
        return Trainer.training_step(run.trainer, *args)

    patch.setattr(run.trainer, "training_step", step)


def in_the_seal(run: Run, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ours, "seal", crash)


def in_our_step(run: Run, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("aimmerge_fast.merger.FastAIMMerger.step", crash)


def after(event: str) -> Callable[[Run, pytest.MonkeyPatch], None]:
    return lambda run, patch: run.trainer.add_callback(In(event))


EVENTS = ("step_begin", "pre_optimizer_step", "step_end", "save")
PLACES = {"a pass": in_a_pass, "the seal": in_the_seal, "our step": in_our_step}
PLACES |= {event: after(event) for event in EVENTS}


@pytest.mark.parametrize("place", PLACES)
def test_an_exception_leaves_the_users_value(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, save_total_limit=2)
    PLACES[place](run, monkeypatch)
    with pytest.raises(Crash):
        run.train()
    assert run.trainer.args.save_total_limit == 2


def test_a_second_training_without_attach_leaves_it_too(tmp_path: Path) -> None:
    run = Run(tmp_path, In("step_end"), save_total_limit=2)
    with pytest.raises(Crash):
        run.train()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not attached to this training"):
            run.train()
        assert run.trainer.args.save_total_limit == 2


@pytest.mark.parametrize("merged", [False, True])
def test_the_trainer_goes_on_with_another_callback_or_none(merged: bool, tmp_path: Path) -> None:
    """A new one finds nothing of the training that crashed, and neither does the Trainer."""
    run = Run(tmp_path, In("step_end"), save_total_limit=2)
    with pytest.raises(Crash):
        run.train()
    run.trainer.remove_callback(In)
    run.trainer.remove_callback(type(run.aim))
    if merged:
        run.aim = trainers.callback(memory())
        run.trainer.add_callback(run.aim)
        run.aim.attach(run.trainer, task="now")
    run.train()
    assert checkpoints(tmp_path) == [f"checkpoint-{STEPS - 1}", f"checkpoint-{STEPS}"]
    assert run.trainer.args.save_total_limit == 2


def test_it_is_the_value_that_is_saved(tmp_path: Path) -> None:
    Run(tmp_path, save_total_limit=2, max_steps=2).train()
    for step in (1, 2):
        path = checkpoint(tmp_path, step) / "training_args.bin"
        assert torch.load(path, weights_only=False).save_total_limit == 2


# ---- the Trainer's own ways ------------------------------------------------------------------


def test_the_best_one_is_all_that_is_left_as_without_us(tmp_path: Path) -> None:
    """``load_best_model_at_end`` and a limit of 1: the Trainer deletes the last one at its end."""
    fields = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    fields |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    fields |= {"greater_is_better": True, "save_total_limit": 1}  # so the first is the best
    extra = {"train_dataset": trainers.tokenised(), "eval_dataset": trainers.tokenised(8, 5)}
    trainers.made(None, tmp_path / "plain", extra=extra, **fields).train()
    aim = trainers.callback(schedule="monitor")
    trainer = trainers.made(aim, tmp_path / "ours", extra=extra, **fields)
    aim.attach(trainer, task="now", best_model=True)
    trainer.train()
    assert len(checkpoints(tmp_path / "plain")) == 1
    assert checkpoints(tmp_path / "plain") != [f"checkpoint-{trainers.STEPS}"]
    assert checkpoints(tmp_path / "ours") == checkpoints(tmp_path / "plain")


def test_our_mark_is_gone_after_the_training(tmp_path: Path) -> None:
    run = Run(tmp_path, max_steps=2)
    before = [*run.trainer.callback_handler.callbacks]
    assert run.train().trainer.callback_handler.callbacks == before
