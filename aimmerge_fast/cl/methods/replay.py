"""LoRAReplay: the memory mixed into every later task."""

from __future__ import annotations

from aimmerge_fast.cl.data import Record
from aimmerge_fast.cl.methods.base import Method, Stage


class LoRAReplay(Method):
    """Trains on D_k and M_<k together, each memory record once per epoch."""

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
