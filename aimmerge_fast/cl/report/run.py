"""What a run folder holds: arms, arms grouped over their seeds, and what they ran on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aimmerge_fast.cl.report.signals import StageSignals, may_merge, stage_signals
from aimmerge_fast.events import Event, read_events

Scores = tuple[tuple[float | None, ...], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
    """One method with one seed. What is read from its events is read once.

    Attributes:
        scores: (stages done, tasks) in 0..100; None where a task was not tested.
        losses: training loss per update by stage; NaN where it was not finite.
        events_file: None where the arm recorded no events.
    """

    name: str
    label: str
    method: str
    settings: Mapping[str, Any]
    seed: int
    finished: bool
    stages: tuple[str, ...]
    scores: Scores
    metrics: Mapping[str, float | None]
    losses: Mapping[str, tuple[float, ...]]
    seconds: Mapping[str, float]
    rows: Mapping[str, int]
    merges: Mapping[str, Any] | None
    events_file: Path | None

    @property
    def done(self) -> int:
        """Stages with scores."""
        return len(self.scores)

    @functools.cached_property
    def _read(self) -> tuple[list[Event], str | None]:
        if self.events_file is None:
            return [], None
        try:
            return list(read_events(self.events_file)), None
        except FileNotFoundError:
            return [], f"{self.events_file} is missing"
        except (OSError, ValueError) as error:
            return [], str(error)

    @property
    def events(self) -> list[Event]:
        """In order; empty where there are none or the file cannot be read."""
        return self._read[0]

    @functools.cached_property
    def signals(self) -> list[StageSignals]:
        """What was measured, stage by stage."""
        return stage_signals(self.events, self.stages, self.losses)

    @functools.cached_property
    def merging(self) -> bool:
        """Whether the arm merges, as far as its events tell."""
        return may_merge(self.events)

    @functools.cached_property
    def watched(self) -> bool:
        """Whether there are history losses of an arm that does not merge."""
        return not self.merging and any(stage.probes for stage in self.signals)

    @property
    def events_problem(self) -> str | None:
        """Why events that should be there are not."""
        return self._read[1]


@dataclasses.dataclass(frozen=True)
class Group:
    """One method over its seeds."""

    name: str
    label: str
    method: str
    arms: tuple[Arm, ...]

    @property
    def used(self) -> tuple[Arm, ...]:
        """The arms that means are taken over: finished ones, else those that came farthest."""
        finished = tuple(arm for arm in self.arms if arm.finished)
        farthest = max(arm.done for arm in self.arms)
        return finished or tuple(arm for arm in self.arms if arm.done == farthest)

    @property
    def finished(self) -> bool:
        """Whether what ``used`` holds is finished."""
        return self.used[0].finished

    @property
    def state(self) -> str:
        """What is finished, in words."""
        finished = sum(arm.finished for arm in self.arms)
        if finished == len(self.arms):
            return "finished"
        if finished:
            return f"{finished} of {len(self.arms)} seeds finished"
        arm = self.used[0]
        return f"unfinished: {arm.done} of {len(arm.stages)} stages"


@dataclasses.dataclass(frozen=True)
class Run:
    """``results.json`` as parsed; ``tasks`` maps a task's name to its metric, counts and notes."""

    settings: Mapping[str, Any]
    stream: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, Any]]
    arms: tuple[Arm, ...]
    created: str
    commit: str | None
    machine: Mapping[str, Any]
    versions: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """Tasks in the order of the score columns."""
        return tuple(self.stream["tasks"])

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        """Arms of one name together, in the order in which they first appear."""
        by_name: dict[str, list[Arm]] = {}
        for arm in self.arms:
            by_name.setdefault(arm.name, []).append(arm)
        return tuple(
            Group(name, _label(arms[0]), arms[0].method, tuple(arms))
            for name, arms in by_name.items()
        )


def _label(arm: Arm) -> str:
    """The method's label; what the arm's name says beyond the method (its settings) is added."""
    rest = arm.name.removeprefix(arm.method).lstrip("-")
    return f"{arm.label} ({rest})" if rest else arm.label
