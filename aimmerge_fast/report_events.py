"""Reading a run back from its events: which task they belong to, which merges came about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from aimmerge_fast.events import Close, Event, Open, Reject, Rollback, TaskBegin


@dataclass
class TaskEvents:
    """The events of one task in order; ``begin`` is None where they start inside the task."""

    name: str
    begin: TaskBegin | None
    events: list[Event]


def split_tasks(events: Iterable[Event]) -> list[TaskEvents]:
    """Events by task. Where a resumed run repeats steps, the repetition replaces the first try."""
    tasks: list[TaskEvents] = []
    places: dict[tuple[Any, ...], int] = {}
    for event in events:
        if isinstance(event, TaskBegin):
            tasks.append(TaskEvents(event.task, event, []))
            places = {}
            continue
        if not tasks or tasks[-1].name != event.task:
            tasks.append(TaskEvents(event.task, None, []))
            places = {}
        seen = tasks[-1].events
        if not isinstance(event, Rollback):  # the one event that may come twice at a step
            key = (event.event, event.step, *(getattr(event, n, None) for n in ("merge", "half")))
            if key in places:
                del seen[places[key] :]
                places = {k: place for k, place in places.items() if place < len(seen)}
            places[key] = len(seen)
        seen.append(event)
    return tasks


def undone_merges(events: Sequence[Event]) -> set[int]:
    """Numbers of merges that were opened and then rejected or rolled back."""
    undone: set[int] = set()
    is_open: int | None = None
    for event in events:
        if isinstance(event, Open):
            is_open = event.merge
        elif isinstance(event, Close):
            is_open = None
        elif isinstance(event, Rollback) and is_open is not None:
            undone.add(is_open)
            is_open = None
        elif isinstance(event, Reject) and event.half == "close":
            undone.add(event.merge)
    return undone
