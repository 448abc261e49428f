"""How a task ends: whole, stopped early, by an exception or for a just-in-time checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainerCallback

from aimmerge_fast.events import Open, TaskEnd
from tests.integrations import trainers
from tests.integrations.trainers import STEPS, callback, lora, made, merges, weights

pytestmark = [pytest.mark.filterwarnings(noise) for noise in trainers.NOISE]
EVALUATES = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss"}


def ends(aim: Any) -> list[Any]:
    return [event for event in aim.events if isinstance(event, TaskEnd)]


class Broken(RuntimeError):
    pass


class Breaks(TrainerCallback):
    """An exception in the middle of a training."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            raise Broken


def test_an_exception_leaves_the_callback_usable(tmp_path: Path) -> None:
    """The task does not count, and the next attach trains as a new callback would."""
    aim = callback()
    trainer = made(aim, tmp_path)
    trainer.add_callback(Breaks())
    aim.attach(trainer, task="now")
    with pytest.raises(Broken):
        trainer.train()
    assert (aim.tasks_done, ends(aim)) == (0, [])
    seen = len(aim.events)
    again = trainers.trained(aim, tmp_path)
    fresh = callback()
    expected = trainers.trained(fresh, tmp_path)
    assert merges(fresh.events) >= 1
    assert aim.events[seen:] == fresh.events
    assert weights(again.model) == weights(expected.model)
    assert aim.tasks_done == 1


def test_an_exception_of_the_mergers_ends_the_training(tmp_path: Path) -> None:
    calls = 0

    def breaks(model: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise Broken
        return model(**batch).loss

    aim = callback()
    trainer = made(aim, tmp_path)
    aim.attach(trainer, task="now", loss_fn=breaks)
    with pytest.raises(Broken):
        trainer.train()
    assert aim.merger is not None
    assert not aim.merger.position.in_task
    assert aim.tasks_done == 0
    trainers.trained(aim, tmp_path)
    assert aim.tasks_done == 1


def test_an_exception_before_the_first_step(tmp_path: Path) -> None:
    aim = callback()
    trainer = made(aim, tmp_path)

    def breaks(model: Any, batch: Any) -> Any:
        raise Broken

    aim.attach(trainer, task="now", loss_fn=breaks)
    with pytest.raises(Broken):
        trainer.train()
    trainers.trained(aim, tmp_path)
    assert aim.tasks_done == 1


def stopped_early(aim: Any, folder: Path, **fields: Any) -> Any:
    """A training that stops after its second evaluation, whatever its losses."""
    data = {"train_dataset": trainers.tokenised(), "eval_dataset": trainers.tokenised(8)}
    trainer = made(aim, folder, extra=data, **EVALUATES, **fields)
    trainer.add_callback(EarlyStoppingCallback(1, early_stopping_threshold=1e9))
    aim.attach(trainer, task="now")
    trainer.train()
    assert trainer.state.global_step == 4
    return trainer


def test_early_stopping_is_an_end(tmp_path: Path) -> None:
    aim = callback()
    stopped_early(aim, tmp_path)
    assert aim.tasks_done == 1
    assert aim.interrupted is None
    assert [event.step for event in ends(aim)] == [4]


def test_a_final_merge_after_early_stopping(tmp_path: Path) -> None:
    """An evaluation was the last to run the model; memory steps train it all the same."""
    modes: set[bool] = set()
    aim = callback(schedule="single")
    data = {"train_dataset": trainers.tokenised(), "eval_dataset": trainers.tokenised(8)}
    trainer = made(aim, tmp_path, lora(dropout=0.2), extra=data, **EVALUATES)
    trainer.add_callback(EarlyStoppingCallback(1, early_stopping_threshold=1e9))

    def noted(model: Any, batch: Any) -> Any:
        modes.add(model.training)
        return model(**batch).loss

    aim.attach(trainer, task="now", loss_fn=noted)
    trainer.train()
    assert [event.kind for event in aim.events if isinstance(event, Open)] == ["merge_final"]
    assert modes == {True}
    assert not trainer.model.training  # as the evaluation left it


@pytest.mark.parametrize(
    "fields", [{"schedule": "single"}, {"merge_at_task_end": True, "s_init": 4}]
)
def test_the_last_checkpoint_holds_the_final_merge(tmp_path: Path, fields: dict[str, Any]) -> None:
    aim = callback(**fields)
    trainer = trainers.trained(aim, tmp_path, save_strategy="steps", save_steps=STEPS)
    opens = [event for event in aim.events if isinstance(event, Open)]
    assert (opens[-1].kind, opens[-1].step) == ("merge_final", STEPS)
    saved = load_file(tmp_path / f"checkpoint-{STEPS}" / "adapter_model.safetensors")
    live = {
        name.replace(".default", ""): parameter
        for name, parameter in trainer.model.named_parameters()
        if parameter.requires_grad
    }
    assert saved.keys() == live.keys()
    assert trainers.bits(saved[name] for name in live) == trainers.bits(live.values())
    assert aim.tasks_done == 1


class Terminates(TrainerCallback):
    """What SIGTERM does, at a chosen update: ``JITCheckpointCallback`` acts on its next event."""

    def __init__(self, update: int, event: str) -> None:
        self.update, self.event = update, event
        self.manager: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.event == "pre_optimizer_step" and state.global_step == self.update - 1:
            self.manager.is_checkpoint_requested = True

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.event == "step_end" and state.global_step == self.update - 1:
            self.manager.is_checkpoint_requested = True


def terminated(aim: Any, folder: Path, event: str, update: int) -> Any:
    trainer = made(aim, folder, lora(dropout=0.2), enable_jit_checkpoint=True)
    trigger = Terminates(update, event)
    trigger.manager = next(
        c for c in trainer.callback_handler.callbacks if type(c).__name__ == "JITCheckpointCallback"
    ).jit_manager
    trainer.add_callback(trigger)
    aim.attach(trainer, task="now")
    trainer.train()
    assert trainer.state.global_step < STEPS
    return trainer


@pytest.mark.parametrize("event", ["step_end", "pre_optimizer_step"])
@pytest.mark.parametrize("update", [3, 8])
def test_a_just_in_time_checkpoint_is_no_end(tmp_path: Path, event: str, update: int) -> None:
    """The task goes on where it was cut off, to the bits of a training that was not."""
    whole = callback()
    expected = trainers.trained(whole, tmp_path / "whole", lora(dropout=0.2))
    aim = callback()
    terminated(aim, tmp_path / "cut", event, update)
    assert (aim.interrupted, aim.tasks_done, ends(aim)) == ("now", 0, [])
    other = made(aim, tmp_path / "cut")
    with pytest.raises(RuntimeError, match=r"'now' was interrupted.*resume_from_checkpoint=True"):
        aim.attach(other, task="next")
    resumed = made(aim, tmp_path / "cut", lora(dropout=0.2), enable_jit_checkpoint=True)
    aim.attach(resumed, task="now")
    resumed.train(resume_from_checkpoint=True)
    assert merges(whole.events) >= 2
    assert weights(resumed.model) == weights(expected.model)
    assert aim.events[-1] == whole.events[-1]
    assert (aim.interrupted, aim.tasks_done) == (None, 1)
    kept = [entry for entry in resumed.state.log_history if "aim/merges" in entry]
    assert kept[-1]["aim/merges"] == merges(whole.events)


def test_a_checkpoint_of_another_task_is_refused(tmp_path: Path) -> None:
    aim = callback()
    trainers.trained(aim, tmp_path, save_strategy="steps", save_steps=4)
    other = callback()
    trainer = made(other, tmp_path, save_strategy="steps", save_steps=4)
    other.attach(trainer, task="other")
    with pytest.raises(ValueError, match=r"is of task 'now', not 'other'.*output_dir of its own"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_a_task_that_was_merged_at_its_end_is_not_trained_on(tmp_path: Path) -> None:
    """Nothing left to do is done again; more to do is refused."""
    fields = {"save_strategy": "steps", "save_steps": STEPS}
    first = callback(schedule="single")
    trainer = trainers.trained(first, tmp_path, **fields)
    again = callback(schedule="single")
    resumed = made(again, tmp_path, **fields)
    again.attach(resumed, task="now")
    resumed.train(resume_from_checkpoint=True)
    assert weights(resumed.model) == weights(trainer.model)
    assert (again.tasks_done, merges(again.events)) == (1, 0)
    more = made(callback(schedule="single"), tmp_path, **{**fields, "max_steps": STEPS + 2})
    aim = more.callback_handler.callbacks[-2]
    aim.attach(more, task="now")
    with pytest.raises(ValueError, match="train on as a new task"):
        more.train(resume_from_checkpoint=True)
