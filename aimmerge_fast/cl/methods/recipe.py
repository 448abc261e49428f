"""The recipe of the paper's Table 9 (algorithm.md B.16): a method, then the memory, each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from aimmerge_fast.cl.data import Record
from aimmerge_fast.cl.methods.base import Method, Stage, Wrapper
from aimmerge_fast.cl.parallel import Ranks
from aimmerge_fast.cl.training import backward, fresh_moments, read_losses, seed_everything


class MemoryEpochs(Wrapper):
    """Wraps a method: after each task's own training, ``epochs`` passes over the memory.

    The memory is that of the tasks before. ``epochs * ceil(records / batch)`` updates with the
    arm's optimiser, its moments fresh, at the run's ``lr`` [R: the sources name no schedule]. A
    loss that is not finite raises FloatingPointError, which names ``arm``.
    """

    uses_memory = True

    def __init__(self, inner: Method, epochs: int, arm: str = "") -> None:
        super().__init__(inner)
        self._arm, self._ranks, self.epochs = arm, Ranks(), epochs
        self.label, self.summary = inner.label, inner.summary  # type: ignore[misc]

    @property
    def merger(self) -> Any:
        """The inner method's, where it has one: who merges is not watched a second time."""
        return self.inner.merger  # type: ignore[attr-defined]

    def end_stage(self, stage: Stage, index: int) -> None:
        super().end_stage(stage, index)
        memory, size = self.trainee.memory, self.trainee.config.batch
        if not len(memory):
            return
        fresh_moments(self.trainee.optimizer)
        for group in self.trainee.optimizer.param_groups:
            group["lr"] = self.trainee.config.lr
        stream = memory.stream("epochs", fresh=True, salt=index)
        what, made = f"arm {self._arm!r}, memory epochs of stage {stage.name!r}", 0
        for epoch in range(self.epochs):
            records, losses = stream.draw(len(memory)), list[Tensor]()
            for at in range(0, len(records), size):
                key = f"{self.trainee.seed}/{stage.name}/memory/{epoch}/{at}/{self._ranks.rank}"
                seed_everything(key)
                losses.append(self._update([dict(record) for record in records[at : at + size]]))
            made += len(losses)
            read_losses(losses, made, what, self._ranks)

    def _update(self, records: Sequence[Record]) -> Tensor:
        """One update on the mean loss of a batch's answer tokens; returns that loss, ()."""
        trainee, config = self.trainee, self.trainee.config
        loss = backward(trainee, records, self._ranks, "memory")
        if config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(trainee.parameters(), config.max_grad_norm)
        trainee.optimizer.step()
        trainee.optimizer.zero_grad(set_to_none=True)
        return loss
