"""What a merger does, in the trainer's logs and on its progress bar."""

from __future__ import annotations

import math
from typing import Any

from transformers import Trainer

from aimmerge_fast.events import Event, Measure, Open, Probe, Reject


class Metrics:
    """The newest numbers of one task, from the events that have arrived: asking never waits.

    Args:
        merges: those that the task had made before this process went on with it.
    """

    def __init__(self, merges: int = 0) -> None:
        self.merges = merges
        self._values: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        """Take the numbers of one event of the merger."""
        if isinstance(event, Probe):
            self._set(interval=event.S, activations=event.F)
            self._set(history_loss=event.loss, threshold=event.threshold)
        elif isinstance(event, Open):
            self.merges += 1
            self._set(interval=event.next_S, learning_signal=event.learning_signal)
            self._set(alpha_new=event.alpha_new, alpha_past=event.alpha_past)
        elif isinstance(event, Measure):
            self._set(learning_signal=event.learning_signal)
        elif isinstance(event, Reject) and event.half != "open":
            self.merges -= 1  # one that was undone; rejected at open it has no Open event

    def logs(self, waits: int) -> dict[str, float]:
        """``{"aim/interval": ...}``; empty for a task without a memory.

        Args:
            waits: how often the host waited for a decision of the device.
        """
        if not self._values:
            return {}
        values = self._values | {"merges": self.merges, "waits": waits}
        return {f"aim/{name}": value for name, value in values.items()}

    def postfix(self) -> dict[str, int]:
        """What the progress bar shows; empty for a task without a memory."""
        if "interval" not in self._values:
            return {}
        return {"interval": int(self._values["interval"]), "merges": self.merges}

    def _set(self, **values: float | None) -> None:
        """Keep the new values; one that is not known, or not finite, is shown no more."""
        for name, value in values.items():
            if value is not None and math.isfinite(value):
                self._values[name] = value
            else:
                self._values.pop(name, None)


def log(trainer: Trainer, logs: dict[str, float]) -> None:
    """To ``log_history`` and to every ``report_to`` target.

    The base class's method: TRL's trainers empty their own metrics in theirs.
    """
    if logs:
        Trainer.log(trainer, logs)


def show(trainer: Trainer, postfix: dict[str, int]) -> None:
    """Put ``postfix`` behind the trainer's progress bar, where it has one; its update draws it."""
    for callback in trainer.callback_handler.callbacks:
        bar: Any = getattr(callback, "training_bar", None)
        if postfix and hasattr(bar, "set_postfix"):
            bar.set_postfix(postfix, refresh=False)


def is_training_log(logs: dict[str, Any] | None) -> bool:
    """Whether the Trainer logs its training, or the end of it: no evaluation, none of ours."""
    return logs is not None and ("loss" in logs or "train_loss" in logs)
