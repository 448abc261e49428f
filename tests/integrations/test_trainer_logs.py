"""What a merger does shows in the trainer's logs, in every tracker, and on the progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, integrations

from aimmerge_fast import AIMConfig
from aimmerge_fast.events import Open, Probe, Reject
from aimmerge_fast.integrations.transformers import AIMMergeCallback
from aimmerge_fast.integrations.transformers.metrics import Metrics
from aimmerge_fast.mailbox import Mailbox
from tests import made_events
from tests.integrations import trainers
from tests.integrations.trainers import callback, made, merges, remembered

pytestmark = [pytest.mark.filterwarnings(noise) for noise in trainers.NOISE]
NAMES = {
    *("interval", "merges", "history_loss", "threshold", "activations"),
    *("alpha_new", "alpha_past", "learning_signal", "waits"),
}


def ours(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in entries if any(name.startswith("aim/") for name in entry)]


class Tracker(TrainerCallback):
    """Stands in for W&B and its like: the Trainer builds it for its name in ``report_to``."""

    seen: list[dict[str, Any]] = []  # noqa: RUF012 (one run at a time)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        Tracker.seen.append(dict(kwargs["logs"]))


def test_log_history_holds_what_the_events_say(tmp_path: Path) -> None:
    aim = callback()
    trainer = trainers.trained(aim, tmp_path, logging_steps=2)
    entries = ours(trainer.state.log_history)
    assert [entry["step"] for entry in entries] == [2, 4, 6, 8, 10, 10]
    assert merges(aim.events) >= 2
    for entry in entries:
        seen = [event for event in aim.events if event.step <= entry["step"]]
        probe = [event for event in seen if isinstance(event, Probe)][-1]
        opens = [event for event in seen if isinstance(event, Open)]
        assert entry["aim/merges"] == len(opens)
        assert entry["aim/history_loss"] == probe.loss
        assert entry["aim/activations"] == probe.F
        assert entry.get("aim/threshold") == probe.threshold
        if opens:
            newest = opens[-1]
            assert (entry["aim/alpha_new"], entry["aim/alpha_past"]) == (
                newest.alpha_new,
                newest.alpha_past,
            )
            assert entry["aim/learning_signal"] == newest.learning_signal
            later = newest.step == probe.step
            assert entry["aim/interval"] == (newest.next_S if later else probe.S)
        assert entry["aim/waits"] <= trainer_waits(aim)
    assert set(entries[-1]) >= {f"aim/{name}" for name in NAMES - {"threshold"}}


def trainer_waits(aim: AIMMergeCallback) -> int:
    assert aim.merger is not None
    return aim.merger.waits


def test_the_trainers_own_entries_are_as_without_us(tmp_path: Path) -> None:
    """Ours come beside them: each logging step still has its loss and learning rate."""
    aim = AIMMergeCallback(AIMConfig(schedule="monitor", s_init=3), memory=remembered())
    watched = trainers.trained(aim, tmp_path, logging_first_step=True).state.log_history
    alone = trainers.trained(None, tmp_path, logging_first_step=True).state.log_history
    theirs = [entry for entry in watched if entry not in ours(watched)]
    assert [entry for entry in theirs if "loss" in entry] == [e for e in alone if "loss" in e]
    assert len(theirs) == len(alone)
    assert len(ours(watched)) == 7


@pytest.mark.parametrize("fields", [{"logging_steps": 5}, {"logging_strategy": "epoch"}])
def test_every_target_gets_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    monkeypatch.setitem(integrations.integration_utils.INTEGRATION_TO_CALLBACK, "fake", Tracker)
    monkeypatch.setattr(Tracker, "seen", [])
    aim = callback()
    trainer = trainers.trained(aim, tmp_path, report_to="fake", **fields)
    assert merges(aim.events) >= 1
    history = [{k: v for k, v in e.items() if k != "step"} for e in trainer.state.log_history]
    assert ours(Tracker.seen) == ours(history)
    assert len(ours(Tracker.seen)) == (3 if "logging_steps" in fields else 2)


def test_a_task_without_memory_logs_nothing_of_ours(tmp_path: Path) -> None:
    aim = callback(trainers.RehearsalMemory(ratio=0.5))
    trainer = trainers.trained(aim, tmp_path)
    assert ours(trainer.state.log_history) == []
    assert aim.tasks_done == 1


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever fetches a value from a device, or waits for one, is an error."""

    def forbidden(*args: Any, **keywords: Any) -> Any:
        raise AssertionError("a synchronising call")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__"):
            patch.setattr(torch.Tensor, name, forbidden)
        for name in ("wait_for", "wait_until"):
            patch.setattr(Mailbox, name, forbidden)
        yield


class Watched(AIMMergeCallback):
    def on_log(self, *args: Any, **kwargs: Any) -> None:
        with no_waiting():
            super().on_log(*args, **kwargs)


def test_logging_waits_for_nothing(tmp_path: Path) -> None:
    aim = Watched(AIMConfig(**trainers.CONFIG), memory=remembered())
    trainer = trainers.trained(aim, tmp_path)
    assert merges(aim.events) >= 1
    assert len(ours(trainer.state.log_history)) == 6
    with pytest.raises(AssertionError, match="a synchronising call"), no_waiting():
        torch.ones(()).item()


class Bar:
    """What ``ProgressCallback`` draws, at every update of the bar."""

    def __init__(self) -> None:
        self.postfix: dict[str, Any] = {}
        self.drawn: list[dict[str, Any]] = []

    def set_postfix(self, postfix: dict[str, Any], refresh: bool) -> None:
        assert refresh is False  # the bar draws itself no more often than without us
        self.postfix = dict(postfix)

    def update(self, steps: int) -> None:
        self.drawn.append(dict(self.postfix))

    def write(self, text: str) -> None: ...

    def close(self) -> None: ...


def test_the_progress_bar_shows_interval_and_merges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bar = Bar()
    monkeypatch.setattr("transformers.trainer_callback.tqdm", lambda **keywords: bar)
    aim = callback()
    trainers.trained(aim, tmp_path, disable_tqdm=False)
    made_by = [
        sum(isinstance(event, Open) and event.step <= step for event in aim.events)
        for step in range(1, trainers.STEPS + 1)
    ]
    assert [drawn["merges"] for drawn in bar.drawn] == made_by
    assert made_by[-1] >= 2
    newest = [event for event in aim.events if isinstance(event, Open)][-1]
    if newest.step == trainers.STEPS:
        assert bar.drawn[-1]["interval"] == newest.next_S
    assert {drawn["interval"] for drawn in bar.drawn} <= {2, 3, 4}


def test_a_real_bar_takes_the_postfix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aim = callback()
    trainer = made(aim, tmp_path, disable_tqdm=False)
    aim.attach(trainer, task="now")
    trainer.train()
    assert f"merges={merges(aim.events)}" in capsys.readouterr().err


# ---- the numbers themselves --------------------------------------------------------------------


def test_a_merge_that_was_undone_is_not_counted() -> None:
    metrics = Metrics(merges=3)
    for event in [*made_events.merge(4, 8), Reject("a", 8, 4, "close", 5)]:
        metrics(event)
    assert metrics.logs(0)["aim/merges"] == 3
    for event in made_events.merge(5, 16):
        metrics(event)
    assert metrics.postfix()["merges"] == 4
    metrics(Reject("a", 24, 6, "open", 5))  # no Open event came before it
    assert metrics.logs(7)["aim/merges"] == 4
    assert metrics.logs(7)["aim/waits"] == 7


def test_a_loss_that_is_not_finite_is_left_out() -> None:
    metrics = Metrics()
    metrics(Probe("now", 1, 1, 8, 0, 2.5, 3.5, "monitor"))
    assert metrics.logs(0)["aim/history_loss"] == 2.5
    metrics(Probe("now", 2, 2, 8, 0, float("nan"), None, "monitor"))
    assert set(metrics.logs(0)) == {"aim/interval", "aim/activations", "aim/merges", "aim/waits"}
