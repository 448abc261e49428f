"""What the score matrices say, task by task and arm by arm."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from aimmerge_fast.cl.report.run import Arm, Group, Run
from aimmerge_fast.cl.report.statistics import mean, mean_sd


@dataclasses.dataclass(frozen=True)
class Kept:
    """One task in one arm: its score when it was learned and at the end.

    Attributes:
        change: final - learned; None where either is missing or nothing came between them.
    """

    learned: float | None
    final: float | None
    change: float | None


def kept(arm: Arm, task: str, place: int) -> Kept:
    """``task`` is column ``place`` of the scores. An unfinished arm's final is its last score."""
    stage = arm.stages.index(task) if task in arm.stages else None
    column = [row[place] for row in arm.scores]
    known = [j for j, score in enumerate(column) if score is not None]
    last = len(column) - 1
    if not arm.finished and known:
        last = known[-1]
    final = column[last] if column else None
    if stage is None or stage >= len(column):
        return Kept(None, final, None)
    learned = column[stage]
    if learned is None or final is None or stage == last:
        return Kept(learned, final, None)
    return Kept(learned, final, final - learned)


@dataclasses.dataclass(frozen=True)
class KeptMean:
    """``Kept`` over the seeds; ``sd`` is of the change."""

    learned: float | None
    final: float | None
    change: float | None
    sd: float | None


def kept_mean(group: Group, task: str, place: int) -> KeptMean:
    found = [kept(arm, task, place) for arm in group.used]
    change, sd = mean_sd(one.change for one in found)
    return KeptMean(
        mean(one.learned for one in found), mean(one.final for one in found), change, sd
    )


def mean_matrix(group: Group) -> list[list[float | None]]:
    """The score matrix, each entry a mean over the seeds that have it."""
    rows = max((arm.done for arm in group.used), default=0)
    places = len(group.used[0].scores[0]) if rows else 0
    return [
        [
            mean(arm.scores[j][i] if j < arm.done else None for arm in group.used)
            for i in range(places)
        ]
        for j in range(rows)
    ]


def metric(group: Group, name: str) -> tuple[float | None, float | None]:
    """Mean and sd over the seeds of a metric of finished arms."""
    return mean_sd(arm.metrics.get(name) for arm in group.used if arm.finished)


def metric_values(group: Group, name: str) -> list[float]:
    values = [arm.metrics.get(name) for arm in group.used if arm.finished]
    return [value for value in values if value is not None]


def best(values: Sequence[float | None]) -> set[int]:
    """Places of the highest value as printed (one digit); none of fewer than two, or of equals."""
    rounded = [None if value is None else round(value, 1) for value in values]
    known = [value for value in rounded if value is not None]
    if len(known) < 2 or len(set(known)) == 1:
        return set()
    return {place for place, value in enumerate(rounded) if value == max(known)}


def column_of(run: Run, place: int, group: Group) -> list[tuple[int, float, float]]:
    """(stage, mean, sd or 0) of a task over the stages that tested it."""
    points = []
    for j in range(max(arm.done for arm in group.used)):
        values = (arm.scores[j][place] if j < arm.done else None for arm in group.used)
        middle, sd = mean_sd(values)
        if middle is not None:
            points.append((j + 1, middle, sd or 0.0))
    return points
