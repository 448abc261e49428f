"""Events made by hand, for the report."""

from __future__ import annotations

from typing import Any

from aimmerge_fast.config import AIMConfig
from aimmerge_fast.events import Close, Event, Open, TaskBegin


def begin(task: str = "a", memory: int = 20, **config: Any) -> TaskBegin:
    return TaskBegin(task, 0, memory, AIMConfig(**config).to_dict())


def merge(number: int, step: int, kind: str = "due", **fields: Any) -> list[Event]:
    """A merge that was opened and closed."""
    values: dict[str, Any] = {
        **{"task": "a", "step": step, "merge": number, "kind": f"merge_{kind}"},
        **{"t": 8, "S": 8, "F": 1, "l1": 8.0, "learning_signal": 1.0},
        **{"alpha_new": 0.5, "alpha_past": 0.5, "memory_steps": 4},
        **{"next_S": 8, "next_memory_steps": 0, "cold": False, "L_up": 1, "L_down": 2, "case": 3},
        **fields,
    }
    return [Open(**values), Close(values["task"], step, number)]


def merges(count: int, **fields: Any) -> list[Event]:
    return [event for i in range(count) for event in merge(i + 1, 8 * (i + 1), **fields)]
