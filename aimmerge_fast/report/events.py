"""Reading a run back from its events: which task they belong to, which merges came about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from aimmerge_fast.events import Close, Event, Open, Reject, Rollback, TaskBegin


@dataclass
class TaskEvents:
    """The events of one task in order; ``begin`` is None where they start inside the task."""

    name: str
    begin: TaskBegin | None
    events: list[Event] = field(default_factory=list)
    _places: dict[tuple[str, int], int] = field(default_factory=dict, repr=False)

    def add(self, event: Event) -> None:
        """Append; what happens at a step for the second time replaces all since the first."""
        if not isinstance(event, Rollback):  # the one event that may come twice at a step
            key = (event.event, event.step)
            if key in self._places:
                del self.events[self._places[key] :]
                self._places = {k: i for k, i in self._places.items() if i < len(self.events)}
            self._places[key] = len(self.events)
        self.events.append(event)


def split_tasks(events: Iterable[Event]) -> list[TaskEvents]:
    """Events by task. A run that was resumed repeats steps or tasks; the repetition counts."""
    tasks: list[TaskEvents] = []
    for event in events:
        if isinstance(event, TaskBegin):
            tasks.append(TaskEvents(event.task, event))
            continue
        while tasks and tasks[-1].name != event.task and event.task in {t.name for t in tasks}:
            tasks.pop()  # resumed from before this task began
        if not tasks or tasks[-1].name != event.task:
            tasks.append(TaskEvents(event.task, None))
        tasks[-1].add(event)
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
