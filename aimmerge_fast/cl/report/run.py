"""What a run folder holds: arms, arms grouped over their seeds, and what they ran on."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aimmerge_fast.cl.report.signals import StageSignals, may_merge, stage_signals
from aimmerge_fast.events import Event, read_events

#: Memory of each task where a run does not say: the paper's.
USUAL_RATIO = 0.02
#: Characters of why an arm failed that its state shows.
_SHORT = 60

Scores = tuple[tuple[float | None, ...], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
    """One method with one seed. What is read from its events is read once.

    Attributes:
        scores: (stages done, tasks) in 0..100; None where a task was not tested.
        losses: training loss per update by stage; NaN where it was not finite.
        events_file: None where the arm recorded no events.
        memory_ratio: of each task. memory_epochs: passes over the memory after each task.
        failed: why the arm ended without being finished; None where it did not.
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
    memory_ratio: float
    memory_epochs: int
    failed: str | None

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
        """What is finished or failed, in words."""
        finished = sum(arm.finished for arm in self.arms)
        if finished == len(self.arms):
            return "finished"
        parts = [f"{finished} of {len(self.arms)} seeds finished"] if finished else []
        failed = [arm.failed for arm in self.arms if arm.failed]
        if failed:
            seeds = f"{len(failed)} of {len(self.arms)} seeds " if len(self.arms) > 1 else ""
            parts.append(f"{seeds}failed: {_short(failed[0])}")
        arm = self.used[0]
        return ", ".join(parts) or f"unfinished: {arm.done} of {len(arm.stages)} stages"

    @property
    def failed(self) -> tuple[Arm, ...]:
        return tuple(arm for arm in self.arms if arm.failed)

    @property
    def memory_ratio(self) -> float:
        return self.arms[0].memory_ratio

    @property
    def memory_epochs(self) -> int:
        return self.arms[0].memory_epochs


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
        labels = {name: _label(arms, self.memory_ratio) for name, arms in by_name.items()}
        uses = collections.Counter(labels.values())
        for name, label in labels.items():
            if uses[label] > 1:
                labels[name] = _with(label, [name])
        return tuple(
            Group(name, labels[name], arms[0].method, tuple(arms)) for name, arms in by_name.items()
        )

    @property
    def memory_ratio(self) -> float:
        """Of each task, in the arms that have none of their own."""
        return float(self.settings.get("memory_ratio") or USUAL_RATIO)


def _label(arms: Sequence[Arm], usual_ratio: float) -> str:
    """The method's label, and what all seeds of the arm have that is not the method's usual."""
    return _with(arms[0].label, list(_unusual(arms, usual_ratio)))


def _unusual(arms: Sequence[Arm], usual_ratio: float) -> Iterator[str]:
    arm = arms[0]
    if arm.memory_epochs:
        # "+memory" is the recipe of the paper's Table 9, two passes
        yield "+memory" if arm.memory_epochs == 2 else f"+memory: {arm.memory_epochs} passes"
    for key, value in arm.settings.items():
        if key == "counts":  # another arm's merges by task, which may differ from seed to seed
            yield "merges matched"
        elif all(key in one.settings and one.settings[key] == value for one in arms):
            yield f"{key}={value}"
    if percent(arm.memory_ratio) != percent(usual_ratio):
        yield f"memory {percent(arm.memory_ratio)}"


def _with(label: str, parts: Sequence[str]) -> str:
    """``label (parts)``; parts go into the parentheses that a label ends with."""
    if not parts:
        return label
    start = f"{label[:-1]}, " if label.endswith(")") else f"{label} ("
    return f"{start}{', '.join(parts)})"


def percent(ratio: float) -> str:
    """``0.02`` as ``2%``."""
    return f"{100 * ratio:g}%"


def _short(reason: str) -> str:
    return reason if len(reason) <= _SHORT else f"{reason[: _SHORT - 1].rstrip()}…"
