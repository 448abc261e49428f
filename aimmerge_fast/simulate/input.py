"""What ``aimmerge simulate`` reads: trace files and the ``events.jsonl`` of a run.

A trace file is ``{"format": ..., "traces": [...]}`` or one trace object. A trace has ``config``,
``history_loss`` (one per update), ``delta_l1`` (one per merge), ``policy`` (or ``config.policy``),
and if it likes ``id``, ``T`` and ``task``, the number of the task; other fields are not read.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aimmerge_fast import events
from aimmerge_fast.report.events import TaskEvents, split_tasks
from aimmerge_fast.simulate import as_numbers


@dataclass(frozen=True)
class Trace:
    """One recorded task: the configuration's fields (``policy`` among them) and the signals."""

    id: str
    config: dict[str, Any]
    history_loss: list[float]
    delta_l1: list[float]
    task: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recording:
    """All of a file; ``notes`` say what was left out of it."""

    traces: list[Trace]
    notes: list[str]


def read_recording(path: Path) -> Recording:
    """The traces of a trace file or of an ``events.jsonl``.

    Raises:
        OSError: the file cannot be read.
        ValueError: malformed JSON (with the position), a missing field or a value that is no number
            (with the trace and the field), nothing to simulate.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OSError(f"cannot read {path}: {error.strerror or error}") from None
    if not content.strip():
        raise ValueError(f"{path} is empty; expected a trace file or an events.jsonl")
    if path.suffix == ".jsonl" or _is_event(content.split(b"\n", 1)[0]):
        return _read_events(path)
    return _read_traces(path, content)


# ---- trace files -----------------------------------------------------------------------------


def _read_traces(path: Path, content: bytes) -> Recording:
    try:
        document = json.loads(content)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{path}, {where}: malformed JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, a number of 5,000 digits, 10,000 [
        raise ValueError(f"{path}: malformed JSON: {error}") from None
    is_file = isinstance(document, dict) and "traces" in document
    traces = document["traces"] if is_file else [document]
    if not isinstance(traces, list) or not traces:
        raise ValueError(f"{path}: 'traces' must be a list of at least one trace")
    return Recording([_trace(path, number, trace) for number, trace in enumerate(traces, 1)], [])


def _trace(path: Path, number: int, trace: Any) -> Trace:
    if not isinstance(trace, dict):
        raise ValueError(f"{path}: trace {number} is no object; see the format of trace files")
    name = str(trace.get("id", f"trace {number}"))
    try:
        for field, kind in (("config", dict), ("history_loss", list), ("delta_l1", list)):
            if field not in trace:
                raise ValueError(f"field {field!r} is missing")
            if not isinstance(trace[field], kind):
                raise ValueError(f"{field!r} must be a JSON {_JSON_NAMES[kind]}")
        losses = as_numbers("history_loss", trace["history_loss"])
        changes = as_numbers("delta_l1", trace["delta_l1"], at_least=0.0)
        if trace.get("T", len(losses)) != len(losses):
            raise ValueError(f"T is {trace['T']!r}, but history_loss has {len(losses)} values")
        return Trace(name, _recorded_config(trace), losses, changes, _task_number(trace))
    except ValueError as error:
        raise ValueError(f"{path}: trace {name!r}: {error}") from None


_JSON_NAMES = {dict: "object", list: "array"}


def _recorded_config(trace: dict[str, Any]) -> dict[str, Any]:
    config = trace["config"]
    policies = [place["policy"] for place in (trace, config) if "policy" in place]
    if not policies:
        raise ValueError("field 'policy' is missing")
    if policies[0] != policies[-1]:
        raise ValueError(f"policy is {policies[0]!r} and in its config {policies[-1]!r}")
    return {"policy": policies[0], **config}


def _task_number(trace: dict[str, Any]) -> int:
    task = trace.get("task", 0)
    if type(task) is not int or not 0 <= task < 1 << 31:
        raise ValueError(f"task is {task!r}; it must be the number of a task, 0 or more")
    return task


# ---- events of a run -------------------------------------------------------------------------


def _is_event(line: bytes) -> bool:
    try:
        return "event" in json.loads(line)
    except (ValueError, RecursionError, TypeError):
        return False


def _read_events(path: Path) -> Recording:
    tasks = split_tasks(events.read_events(path))
    traces: list[Trace] = []
    notes = []
    run: list[str] = []  # names of this run's tasks; one that comes again begins another run
    for task in tasks:
        run = [task.name] if task.name in run else [*run, task.name]
        if task.begin is None:
            raise ValueError(
                f"{path}: task {task.name!r} has no task_begin event, so its config is unknown; "
                "give the file that holds the whole run"
            )
        if not any(isinstance(event, events.Probe) for event in task.events):
            notes.append(f"task {task.name!r} has no probes (plain training): nothing to simulate")
            continue
        try:
            traces.append(_trace_of_events(task, task.begin, len(run) - 1, traces))
        except ValueError as error:
            raise ValueError(f"{path}: task {task.name!r}: {error}") from None
    if not traces:
        raise ValueError(f"{path}: no task with probes in it, so there is nothing to simulate")
    return Recording(traces, notes)


def _trace_of_events(
    task: TaskEvents, begin: events.TaskBegin, number: int, before: list[Trace]
) -> Trace:
    """Losses from the probes; changes from opened, rejected and measured merges in their order."""
    probes = [event for event in task.events if isinstance(event, events.Probe)]
    for expected, probe in enumerate(probes, 1):
        if probe.step != expected:
            raise ValueError(f"the probe of step {expected} is missing")
    changes = []
    for event in task.events:
        if isinstance(event, (events.Open, events.Measure)):
            changes.append(event.l1)
        elif isinstance(event, events.Reject) and event.half == "open":
            changes.append(math.nan)  # simulated as a rejected merge again
    same = sum(trace.id.split(" (run ")[0] == task.name for trace in before)
    name = f"{task.name} (run {same + 1})" if same else task.name
    losses = [probe.loss for probe in probes]
    return Trace(name, begin.config, losses, changes, number, tuple(_not_replayed(task, begin)))


def _not_replayed(task: TaskEvents, begin: events.TaskBegin) -> list[str]:
    """What a caller did to the run that no loss tells."""
    at_end = begin.config.get("merge_at_task_end") or begin.config.get("schedule") == "single"
    asked = [e.step for e in task.events if isinstance(e, events.Open) and e.kind == "merge_final"]
    if at_end:
        asked = asked[:-1]
    undone = [event.step for event in task.events if isinstance(event, events.Rollback)]
    notes = []
    if asked:
        notes.append(f"merges that the caller asked for (steps {asked}) are not replayed")
    if undone:
        notes.append(f"roll-backs (steps {undone}) are not replayed")
    return notes
