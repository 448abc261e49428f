"""MTL (algorithm.md B.14): what joint training reaches, a bound rather than a competitor."""

from __future__ import annotations

from collections.abc import Sequence

from aimmerge_fast.cl.data import TaskData
from aimmerge_fast.cl.methods.base import Method, Stage


class MultiTask(Method):
    """One LoRA on the union of all tasks, in one stage; only OP is defined for it."""

    label = "MTL"
    summary = "all tasks at once"
    first_stage_is_plain = False

    @classmethod
    def stages(cls, tasks: Sequence[TaskData]) -> list[Stage]:
        return [Stage("all", tuple(tasks))]
