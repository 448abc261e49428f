"""LoRAReplay: the memory mixed into every later task."""

from __future__ import annotations

from aimmerge_fast.cl.data import Record
from aimmerge_fast.cl.methods.base import Method, Stage


class LoRAReplay(Method):
    """Trains on D_k and M_<k together, each memory record at most once per epoch of the pool.

    The number of updates is that of the task's own records alone, so the pool is not gone through
    as often as they would be. It is permuted per epoch, and the last partial batch is dropped.
    """

    label = "LoRAReplay"
    summary = "the memory mixed into every later task"
    uses_memory = True

    def training_records(self, stage: Stage, index: int) -> list[Record]:
        memory = self.trainee.memory
        kept = (
            [dict(r) for r in memory.stream("replay", salt=index).draw(len(memory))]
            if len(memory)
            else []
        )
        return stage.records() + kept
