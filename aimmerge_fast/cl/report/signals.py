"""An arm's events as series: what was measured when, and what became of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from aimmerge_fast.cl.report.statistics import mean
from aimmerge_fast.events import Event, Measure, Open, Probe, Skip, TaskBegin
from aimmerge_fast.report.events import TaskEvents, split_tasks, undone_merges

if TYPE_CHECKING:
    from aimmerge_fast.cl.report.run import Arm, Group, Run

#: Methods that are the paper's, under either policy.
OURS = ("aim", "aim-released")
#: Steps on either side of a merge that the mean course around merges shows.
AROUND = 8


@dataclasses.dataclass(frozen=True)
class StageSignals:
    """One stage of an arm; steps count from 1 within it.

    Attributes:
        offset: updates of the arm before this stage. steps: of this stage.
        undone: numbers of the merges that were rejected or rolled back.
        entry_wise: weights of their own per entry moved the parameters; alpha says nothing.
    """

    name: str
    offset: int
    steps: int
    losses: tuple[float, ...]
    probes: tuple[Probe, ...]
    skips: tuple[Skip, ...]
    merges: tuple[Open, ...]
    measures: tuple[Measure, ...]
    undone: frozenset[int]
    entry_wise: bool = False

    @property
    def any(self) -> bool:
        return bool(self.probes or self.skips or self.merges or self.measures)

    @property
    def activations(self) -> int:
        """History losses above the threshold; a forced merge of ``released`` is none."""
        count, before = 0, 0
        for probe in self.probes:
            if probe.t == 1:
                before = 0
            if probe.code != "merge_forced":
                count += max(0, probe.F - before)
            before = probe.F
        return count

    @property
    def judged(self) -> int:
        """History losses that were compared with a threshold."""
        return sum(probe.code not in ("collect", "threshold") for probe in self.probes)

    @property
    def learning_signal(self) -> float | None:
        """Mean Lambda over the stage's merges, or over its measurements where it never merges."""
        return mean(event.learning_signal for event in self.merges or self.measures)


def stage_signals(
    events: Sequence[Event], planned: Sequence[str], losses: Mapping[str, tuple[float, ...]]
) -> list[StageSignals]:
    """An arm's stages in order, those without events too: steps then come from the losses."""
    tasks = {task.name: task for task in split_tasks(events)}
    stages, offset = [], 0
    for name in [*planned, *(name for name in tasks if name not in planned)]:
        stage = _stage(name, offset, tasks.get(name), losses.get(name, ()))
        stages.append(stage)
        offset += stage.steps
    return stages


def _stage(
    name: str, offset: int, task: TaskEvents | None, losses: tuple[float, ...]
) -> StageSignals:
    events = task.events if task is not None else []
    begin = task.begin if task is not None else None
    return StageSignals(
        name=name,
        offset=offset,
        steps=max([len(losses), *(event.step for event in events)]),
        losses=losses,
        probes=tuple(event for event in events if isinstance(event, Probe)),
        skips=tuple(event for event in events if isinstance(event, Skip)),
        merges=tuple(event for event in events if isinstance(event, Open)),
        measures=tuple(event for event in events if isinstance(event, Measure)),
        undone=frozenset(undone_merges(events)),
        entry_wise=begin is not None and "fusion" in begin.config,
    )


def may_merge(events: Sequence[Event]) -> bool:
    """Whether the events hold a merge, or are of a controller that could have made one."""
    return any(
        isinstance(event, Open)
        or (
            isinstance(event, TaskBegin)
            and event.memory > 0
            and event.config.get("schedule", "monitor") != "monitor"
        )
        for event in events
    )


def drawn(group: Group) -> Arm:
    """The one seed whose signals are drawn: the first finished one, else the farthest."""
    return group.used[0]


def pairs(run: Run) -> list[tuple[Group, Group]]:
    """(plain, merging) arms whose history losses can be held against each other.

    Plain is replay where that was monitored, with the same memory if there is one, else the
    first monitored arm; merging are the arms of ``OURS``, or the first one that merges.
    """
    plain = [group for group in run.groups if drawn(group).watched]
    merging = [group for group in run.groups if drawn(group).merging]
    ours = [group for group in merging if group.method in OURS] or merging[:1]
    return [(_nearest(plain, group), group) for group in ours] if plain else []


def _nearest(plain: Sequence[Group], group: Group) -> Group:
    return min(plain, key=lambda one: (not is_replay(one), not same_memory(one, group)))


def is_replay(group: Group) -> bool:
    """Whether it is replay as such: not with further passes over the memory."""
    return group.method == "replay" and not group.memory_epochs


def same_memory(one: Group, other: Group) -> bool:
    return math.isclose(one.memory_ratio, other.memory_ratio)


def finished_replays(run: Run) -> list[Group]:
    """The finished replay arms, those with the run's memory ratio first."""
    found = [group for group in run.groups if is_replay(group) and group.finished]
    return sorted(found, key=lambda one: not math.isclose(one.memory_ratio, run.memory_ratio))


def around_merges(
    stages: Sequence[StageSignals], kind: str
) -> tuple[list[int], list[list[float]], int]:
    """Losses around merges that moved the parameters: closed, and alpha_past > 0 or entry-wise.

    ``kind``: "training" or "history". Returns offsets -AROUND+1 ... AROUND in steps from the
    merge, the values at each offset, and the number of merges. The loss at offset 0 was taken
    before the merge, that at 1 is the first after it.
    """
    offsets = list(range(1 - AROUND, AROUND + 1))
    values: list[list[float]] = [[] for _ in offsets]
    count = 0
    for stage in stages:
        if kind == "training":
            course = dict(enumerate(stage.losses, start=1))
        else:
            course = {probe.step: probe.loss for probe in stage.probes}
        for merge in stage.merges:
            idle = merge.alpha_past == 0 and not stage.entry_wise
            if merge.merge in stage.undone or idle:
                continue
            count += 1
            for place, offset in enumerate(offsets):
                loss = course.get(merge.step + offset, math.nan)
                if math.isfinite(loss):
                    values[place].append(loss)
    return offsets, values, count
