"""The report on a run: merges by kind, what the controller did, and what to try where it sticks.

Everything is read from the events; nothing here knows a model or a controller.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aimmerge_fast.events import (
    MERGE_KINDS,
    Event,
    Measure,
    Open,
    Probe,
    Reject,
    Rollback,
    Skip,
)
from aimmerge_fast.report.diagnoses import diagnose
from aimmerge_fast.report.events import TaskEvents, split_tasks, undone_merges

KINDS = tuple(kind.removeprefix("merge_") for kind in MERGE_KINDS)
#: Merges at either end of a task that the mean learning signals are taken over.
ENDS = 4
_COUNTS = ("no_op", "discarding", "rejected", "skipped_probes", "rollbacks", "measures")


@dataclass(frozen=True)
class TaskReport:
    """One task.

    Attributes:
        task: its name. steps: updates of the task. first_step: where its events begin; above 1 in
            a run that was resumed inside the task.
        merges: number by kind: early, due, deferred, forced, final.
        no_op: of these, merges with alpha = (1, 0), which moved the anchor only.
        discarding: of these, merges with alpha = (0, 1), which dropped the interval's progress.
        rejected: merges undone because they met non-finite entries; not among ``merges``.
        skipped_probes: history losses that were not finite. rollbacks: calls of ``rollback()``.
        measures: learning signals taken under schedule ``monitor``.
        s_low, s_high, s_last: smallest and largest interval, the one in force now.
        signal_first, signal_last: mean learning signal of the first and of the last ENDS merges.
        diagnoses: one sentence each, with what to try.
    """

    task: str
    steps: int
    first_step: int
    merges: dict[str, int]
    no_op: int
    discarding: int
    rejected: int
    skipped_probes: int
    rollbacks: int
    measures: int
    s_low: int | None
    s_high: int | None
    s_last: int | None
    signal_first: float | None
    signal_last: float | None
    diagnoses: tuple[str, ...]


@dataclass(frozen=True)
class MergeReport:
    """A run. ``print`` it, or take ``to_dict()``."""

    tasks: tuple[TaskReport, ...]

    @property
    def steps(self) -> int:
        return self.count("steps")

    @property
    def merges(self) -> dict[str, int]:
        """Merges by kind over all tasks."""
        return {kind: sum(task.merges[kind] for task in self.tasks) for kind in KINDS}

    def count(self, name: str) -> int:
        """Sum over the tasks of a counting field of ``TaskReport``, ``no_op`` for instance."""
        return sum(getattr(task, name) for task in self.tasks)

    def to_dict(self) -> dict[str, Any]:
        """``{"tasks": [...], "total": {...}}``, JSON-able."""
        tasks = [dataclasses.asdict(task) for task in self.tasks]
        for task in tasks:
            task["diagnoses"] = list(task["diagnoses"])
        total = {"steps": self.steps, "merges": self.merges}
        return {"tasks": tasks, "total": total | {name: self.count(name) for name in _COUNTS}}

    def __str__(self) -> str:
        if not self.tasks:
            return "no merges yet: no task has begun"
        return "\n".join([*_table(self), *_remarks(self)])


def summarise(events: Iterable[Event]) -> MergeReport:
    """The report on ``events``, of any number of tasks, finished or not."""
    return MergeReport(tuple(_task_report(task) for task in split_tasks(events)))


def _task_report(task: TaskEvents) -> TaskReport:
    opens = [event for event in task.events if isinstance(event, Open)]
    undone = undone_merges(task.events)
    made = [merge for merge in opens if merge.merge not in undone]
    alphas = [(merge.alpha_new, merge.alpha_past) for merge in made]
    signals = [merge.learning_signal for merge in opens]
    intervals = list(_intervals(task.events))
    config = task.begin.config if task.begin else {}
    steps = [event.step for event in task.events]
    return TaskReport(
        task=task.name,
        steps=max(steps, default=0),
        first_step=min(steps) if task.begin is None else 1,
        merges={kind: sum(m.kind == f"merge_{kind}" for m in made) for kind in KINDS},
        # a fusion entry by entry stands in for alpha, which is (1, 0) then
        no_op=0 if config.get("fusion") else alphas.count((1.0, 0.0)),
        discarding=alphas.count((0.0, 1.0)),
        rejected=_count(task.events, Reject),
        skipped_probes=_count(task.events, Skip),
        rollbacks=_count(task.events, Rollback),
        measures=_count(task.events, Measure),
        s_low=min(intervals, default=None),
        s_high=max(intervals, default=None),
        s_last=intervals[-1] if intervals else None,
        signal_first=_mean(signals[:ENDS]),
        signal_last=_mean(signals[-ENDS:]),
        diagnoses=diagnose(made, config),
    )


def _intervals(events: Iterable[Event]) -> Iterator[int]:
    for event in events:
        if isinstance(event, (Probe, Open)):
            yield event.S
        if isinstance(event, Open):
            yield event.next_S


def _count(events: Iterable[Event], kind: type[Event]) -> int:
    return sum(isinstance(event, kind) for event in events)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


# ---- as text ---------------------------------------------------------------------------------


def _table(report: MergeReport) -> list[str]:
    """One line per task, and their sum; a kind of merge that never happened has no column."""
    happened = [kind for kind in KINDS if report.merges[kind]]
    shown = [name for name in ("no_op", "discarding") if report.count(name)]
    titles = ["task", "steps", "merges", *happened, *(name.replace("_", "-") for name in shown)]
    rows = [titles]
    parts = [(task.task, MergeReport((task,))) for task in report.tasks]
    for name, part in [*parts, ("all tasks", report)] if len(parts) > 1 else parts:
        merges = [part.merges[kind] for kind in happened]
        effects = [part.count(effect) for effect in shown]
        rows.append([name, *map(str, (part.steps, sum(part.merges.values()), *merges, *effects))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]


def _remarks(report: MergeReport) -> Iterator[str]:
    """What the numbers mean, then per task how it went and what to try."""
    if not sum(report.merges.values()):
        yield "no merges yet"
    if report.count("no_op"):
        yield "no-op: alpha = (1, 0), the merge kept theta and moved the anchor only"
    if report.count("discarding"):
        yield "discarding: alpha = (0, 1), the merge dropped the progress since the last one"
    for task in report.tasks:
        parts = list(_details(task))
        if parts:
            yield f"{task.task}: {'; '.join(parts)}"
        for sentence in task.diagnoses:
            yield f"{task.task}: {sentence}"


def _details(task: TaskReport) -> Iterator[str]:
    if task.first_step > 1:
        yield f"resumed, counted from step {task.first_step} on"
    if task.s_low is not None:
        moved = task.s_low != task.s_high
        yield (
            f"S between {task.s_low} and {task.s_high}, now {task.s_last}"
            if moved
            else (f"S {task.s_last} throughout")
        )
    if task.signal_first is not None and task.signal_last is not None:
        signal = f"mean learning signal {task.signal_first:.4g}"
        if sum(task.merges.values()) > ENDS:
            signal += f" (first {ENDS} merges), {task.signal_last:.4g} (last {ENDS} merges)"
        yield signal
    for count, what in (
        (task.rejected, "rejected merges"),
        (task.skipped_probes, "probes skipped as not finite"),
        (task.rollbacks, "roll-backs"),
        (task.measures, "measurements without a merge"),
    ):
        if count:
            yield f"{what}: {count}"
