"""Our entry in ``trainer_state.json``; the Trainer asks for it in the middle of every save."""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState


class AIMMergeMark(TrainerCallback, ExportableState):
    """Says in a checkpoint which training wrote it, and that older ones have to wait for it.

    The process that deletes older checkpoints asks for it right before: then the new one is not
    complete. ``save_total_limit`` is set aside from there to ``give_back``, so an exception
    elsewhere finds the user's value in its place.

    Args:
        life, run: what it says: the training, and its folder.
        trainer: in whose present training it takes part; None, as the Trainer would build it from a
            checkpoint, in none.

    Attributes:
        limit: the ``save_total_limit`` that is set aside.
    """

    def __init__(self, life: str = "", run: str = "", trainer: Trainer | None = None) -> None:
        self.life, self.run = life, run
        self.limit: int | None = None
        self._args = trainer.args if trainer is not None else None
        self._training: TrainerState | None = trainer.state if trainer is not None else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """In another training than its own, after one that ended in an exception, it is idle."""
        if state is not self._training:
            self.give_back()
            self._args = None

    def state(self) -> dict[str, Any]:
        if self._args is not None and self._args.save_total_limit is not None:
            self.limit, self._args.save_total_limit = self._args.save_total_limit, None
        return self.entry()

    def entry(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"life": self.life, "run": self.run}}

    def give_back(self) -> None:
        if self._args is not None and self.limit is not None:
            self._args.save_total_limit, self.limit = self.limit, None


def remove_from(trainer: Trainer) -> None:
    """Take our marks off ``trainer``, also those of a training that ended in an exception."""
    for found in [*trainer.callback_handler.callbacks]:
        if isinstance(found, AIMMergeMark):
            found.give_back()
            trainer.remove_callback(found)
