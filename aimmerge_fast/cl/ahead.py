"""Arms before they run: updates, merges, rehearsal rows and time of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aimmerge_fast.cl.arm_folder import RESULT
from aimmerge_fast.cl.config import ArmSpec, RunConfig
from aimmerge_fast.cl.context import new_memory
from aimmerge_fast.cl.cost import Speed, Tokens
from aimmerge_fast.cl.data import TaskData
from aimmerge_fast.cl.expected import Expected, Span
from aimmerge_fast.cl.matching import merge_counts, with_counts
from aimmerge_fast.cl.methods import Stage, method_class
from aimmerge_fast.config import MAX_MERGE_AT
from aimmerge_fast.durable.files import read_json


@dataclasses.dataclass(frozen=True)
class ArmPlan:
    """One arm with one seed. A span is (least, most), equal where the number is certain.

    Attributes:
        updates: of training, over all stages. kept: records in the memory after each stage.
        memory_rows, probe_rows: records of the memory that pass through the model in updates on
            the memory, and in measuring the history loss.
        shares_first: its first stage is the plain training that arms share; not in ``seconds``.
        seconds: rough. done: "finished", "2 of 3 stages", or "" where nothing is there yet.
    """

    name: str
    method: str
    seed: int
    updates: int
    kept: tuple[int, ...]
    merges: Span
    memory_rows: Span
    probe_rows: int
    shares_first: bool
    seconds: Span
    done: str


class Ahead:
    """Looks at the arms of a run.

    Args:
        tokens: by task name. speed: of this machine.
    """

    def __init__(
        self,
        config: RunConfig,
        tasks: Sequence[TaskData],
        tokens: Mapping[str, Tokens],
        speed: Speed,
    ) -> None:
        self.config, self.tasks, self.tokens, self.speed = config, tasks, tokens, speed
        self._known: dict[tuple[str, int], dict[str, Span]] = {}  # merges by task

    def arm(self, spec: ArmSpec, seed: int) -> ArmPlan:
        """Arms that match another come after it."""
        config, kind = self.config, method_class(spec.method)
        alternatives = self._settings(spec, seed)
        memory = new_memory(config, seed, spec.memory_ratio)
        stages = kind.stages(self.tasks)
        shares = kind.first_stage_is_plain and len(stages[0].tasks) == 1
        shares = shares and config.select == "last"
        sums, always, kept = _Sums(), 0.0, list[int]()
        merges = self._known[spec.name, seed] = {}
        for index, stage in enumerate(stages):
            steps = config.steps_for(len(stage.records()), len(stage.tasks))
            past = [task for before in stages[:index] for task in before.tasks]
            if len(memory):
                found = [
                    kind.expected(s, config, seed, index, stage.name, steps) for s in alternatives
                ]
                expected = self._watched(_union(found), steps)
                merges[stage.name] = expected.merges
                sums.add(expected, len(memory), spec.memory_epochs, self._row(past), self.speed)
            seen = [*past, *stage.tasks]
            if not (shares and index == 0):
                always += self._training(stage, steps, seen) + self._scoring(seen)
            for task in stage.tasks:
                memory.add(task.name, task.train)
            kept.append(len(memory))
        if config.initial:
            always += self._scoring(self.tasks)
        return ArmPlan(
            name=spec.name,
            method=spec.method,
            seed=seed,
            updates=sum(
                config.steps_for(len(stage.records()), len(stage.tasks)) for stage in stages
            ),
            kept=tuple(kept),
            merges=sums.merges,
            memory_rows=sums.memory_rows,
            probe_rows=sums.probe_rows,
            shares_first=shares,
            seconds=(round(always + sums.seconds[0]), round(always + sums.seconds[1])),
            done=_done(config.out / f"{spec.name}-s{seed}"),
        )

    def plain(self, task: TaskData) -> float:
        """Seconds to train and score one task alone."""
        stage = Stage(task.name, (task,))
        steps = self.config.steps_for(len(task.train))
        return self._training(stage, steps, []) + self._scoring([task], every=False)

    # ---- seconds ---------------------------------------------------------------------------

    def _training(self, stage: Stage, steps: int, seen: Sequence[TaskData]) -> float:
        config = self.config
        seconds = self.speed.update(steps * config.batch * self._row(stage.tasks))
        if config.select == "best":
            rows = sum(min(config.select_items, len(task.dev)) for task in seen)
            passes = steps // config.select_every
            seconds += self.speed.forward(passes * rows * self._row(stage.tasks))
        return seconds

    def _scoring(self, seen: Sequence[TaskData], every: bool = True) -> float:
        tasks = self.tasks if every and self.config.evaluate == "all" else seen
        return sum(
            self.speed.generate(len(task.test) * (found.prompt + found.answer))
            for task, found in ((task, self.tokens[task.name]) for task in tasks)
        )

    def _row(self, tasks: Sequence[TaskData]) -> float:
        """Mean tokens of a training row of these tasks."""
        rows = sum(len(task.train) for task in tasks)
        return sum(len(task.train) * self.tokens[task.name].row for task in tasks) / rows

    # ---- what methods do -------------------------------------------------------------------

    def _watched(self, expected: Expected, steps: int) -> Expected:
        """With the probes of ``monitor``, where the method has none itself."""
        if expected.probes or not self.config.monitor:
            return expected
        return dataclasses.replace(expected, probes=steps, probe_batch=self.config.batch)

    def _settings(self, spec: ArmSpec, seed: int) -> list[dict[str, Any]]:
        """The arm's settings; two ends of them where they depend on merges still to come."""
        other = spec.settings.get("match")
        if other is None:
            return [dict(spec.settings)]
        found = _entry(self.config.out / f"{other}-s{seed}")
        if found.get("finished"):
            return [with_counts(spec, merge_counts(found))]
        if (other, seed) not in self._known:
            raise ValueError(f"arm {spec.name!r} has match={other!r}; put that arm before it")
        merges = self._known[other, seed].items()
        least = {task: low for task, (low, _) in merges}
        most = {task: max(low, min(high, MAX_MERGE_AT)) for task, (low, high) in merges}
        return [with_counts(spec, counts) for counts in (least, most)]


class _Sums:
    """Over the stages of an arm."""

    def __init__(self) -> None:
        self.merges: Span = (0, 0)
        self.memory_rows: Span = (0, 0)
        self.probe_rows = 0
        self.seconds: tuple[float, float] = (0.0, 0.0)

    def add(self, expected: Expected, kept: int, epochs: int, row: float, speed: Speed) -> None:
        """One stage with ``kept`` records of ``row`` tokens in the memory."""
        drawn = min(expected.memory_batch, kept)
        rows = (
            expected.memory_steps[0] * drawn + epochs * kept,
            expected.memory_steps[1] * drawn + epochs * kept,
        )
        probes = expected.probes * min(expected.probe_batch, kept)
        self.merges = (
            self.merges[0] + expected.merges[0],
            self.merges[1] + expected.merges[1],
        )
        self.memory_rows = (self.memory_rows[0] + rows[0], self.memory_rows[1] + rows[1])
        self.probe_rows += probes
        probing = speed.forward(probes * row)
        low, high = (speed.update(count * row) + probing for count in rows)
        self.seconds = (self.seconds[0] + low, self.seconds[1] + high)


def _union(found: Sequence[Expected]) -> Expected:
    merges = [count for one in found for count in one.merges]
    memory = [count for one in found for count in one.memory_steps]
    return dataclasses.replace(
        found[0],
        merges=(min(merges), max(merges)),
        memory_steps=(min(memory), max(memory)),
    )


def _entry(folder: Path) -> dict[str, Any]:
    path = folder / RESULT
    return read_json(path) if path.is_file() else {}


def _done(folder: Path) -> str:
    found = _entry(folder)
    if not found:
        return ""
    if found["finished"]:
        return "finished"
    return f"{max(0, len(found['scores']) - 1)} of {len(found['stages'])} stages"
