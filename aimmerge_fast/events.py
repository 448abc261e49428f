"""Typed records of everything that happens, and the ``events.jsonl`` file that holds them.

One line per event, ``{"event": "probe", ...}``. Reports, plots and ``aimmerge simulate`` read only
these. Steps count optimiser updates of the task, from 1; ``t`` counts them since the last merge.
"""

from __future__ import annotations

import dataclasses
import json
import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, TextIO

#: What one step of the controller concluded; the order is the code number in the device record.
CODES = (
    "collect",
    "threshold",
    "monitor",
    "activate",
    "merge_early",
    "merge_due",
    "merge_deferred",
    "merge_forced",
    "merge_final",  # asked for by the caller or by the end of the task, not by the signals
    "measure",  # schedule "monitor": the learning signal is taken, nothing is merged
)
MERGE_KINDS = tuple(code for code in CODES if code.startswith("merge_"))


@dataclasses.dataclass(frozen=True)
class Event:
    """Base of all records. ``task`` is the name given to ``FastAIMMerger.task``."""

    event: ClassVar[str] = ""
    task: str
    step: int


@dataclasses.dataclass(frozen=True)
class TaskBegin(Event):
    """A task started; ``memory`` is the number of rehearsal records (0: plain training)."""

    event: ClassVar[str] = "task_begin"
    memory: int
    config: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Probe(Event):
    """One history loss and what the controller made of it (``threshold`` None until computed)."""

    event: ClassVar[str] = "probe"
    t: int
    S: int
    F: int
    loss: float
    threshold: float | None
    code: str


@dataclasses.dataclass(frozen=True)
class Skip(Event):
    """A history loss that was not finite: the step counted, the loss was no sample."""

    event: ClassVar[str] = "skip"
    t: int
    loss: float
    in_a_row: int


@dataclasses.dataclass(frozen=True)
class Open(Event):
    """A merge opened: theta_j was snapshotted, the controller weighed it and set the next interval.

    ``learning_signal`` is Lambda_b = l1 / t (paper) or l1 / S (released); ``case`` is the case of
    Eq. 4 (0: cold start); L_up, L_down and case are 0 under ``released``.
    """

    event: ClassVar[str] = "open"
    merge: int
    kind: str
    t: int
    S: int
    F: int
    l1: float
    learning_signal: float
    alpha_new: float
    alpha_past: float
    memory_steps: int
    next_S: int
    next_memory_steps: int
    cold: bool
    L_up: int
    L_down: int
    case: int


@dataclasses.dataclass(frozen=True)
class Close(Event):
    """A merge closed: the weighted sum of the two task vectors is the new live and anchor."""

    event: ClassVar[str] = "close"
    merge: int


@dataclasses.dataclass(frozen=True)
class Reject(Event):
    """A merge met non-finite entries and was undone.

    ``half`` "open": theta_j was not finite, live went back to the anchor. "close": the fused result
    was not finite, live and anchor are theta_j. ``entries`` counts the non-finite entries.
    "memory": a memory step raised an exception, live and anchor are theta_j, ``entries`` is 0.
    """

    event: ClassVar[str] = "reject"
    merge: int
    half: str
    entries: int


@dataclasses.dataclass(frozen=True)
class Measure(Event):
    """Schedule ``monitor``: the parameters' L1 change over the last ``t`` steps."""

    event: ClassVar[str] = "measure"
    t: int
    l1: float
    learning_signal: float


@dataclasses.dataclass(frozen=True)
class Rollback(Event):
    """``rollback()`` put the live parameters back on the anchor and restarted the interval."""

    event: ClassVar[str] = "rollback"


@dataclasses.dataclass(frozen=True)
class TaskEnd(Event):
    """The task ended after ``step`` updates."""

    event: ClassVar[str] = "task_end"


EVENT_TYPES: dict[str, type[Event]] = {
    kind.event: kind
    for kind in (TaskBegin, Probe, Skip, Open, Close, Reject, Measure, Rollback, TaskEnd)
}


def to_json(event: Event) -> str:
    """One line of strict JSON; non-finite floats become the strings "nan", "inf" and "-inf"."""
    fields = {"event": event.event} | dataclasses.asdict(event)
    return json.dumps({key: _encode(value) for key, value in fields.items()}, allow_nan=False)


def from_json(line: str) -> Event:
    """The event of one line; ``ValueError`` names what is wrong with it."""
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    name = fields.pop("event", None) if isinstance(fields, dict) else None
    if not isinstance(name, str) or name not in EVENT_TYPES:
        raise ValueError(f"unknown event {name!r}; known are {', '.join(EVENT_TYPES)}")
    kind = EVENT_TYPES[name]
    expected = {field.name for field in dataclasses.fields(kind)}
    if set(fields) != expected:
        wrong = sorted(set(fields) ^ expected)[0]
        raise ValueError(f"event {name!r}: field {wrong!r} is missing or unknown")
    types = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    return kind(**{key: _decode(key, value, types[key]) for key, value in fields.items()})


def read_events(path: str | Path) -> Iterator[Event]:
    """Events of a file in order; ``ValueError`` names file and line of a malformed one.

    A last line without its newline is a write that a crash cut off: it is left out.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield from_json(line.decode("utf-8"))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None


class EventLog:
    """Append events to a JSONL file, one flushed line each.

    Raises:
        OSError: at construction, naming the path, when the file cannot be opened for appending.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._cut_partial_line()
            self._file: TextIO = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (kept open)
        except OSError as error:
            raise OSError(
                f"cannot write events to {self.path}: {error.strerror or error}; "
                "give a path in a folder that exists and is writable"
            ) from None
        # its owner, a merger, has no moment of closing: the file closes when the log goes away
        weakref.finalize(self, self._file.close)

    def __call__(self, event: Event) -> None:
        self._file.write(to_json(event) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _cut_partial_line(self) -> None:
        """Drop the unfinished last line a killed run may have left, or the next would join it."""
        if not self.path.is_file():
            return
        with open(self.path, "rb+") as file:
            content = file.read()
            end = content.rfind(b"\n") + 1
            if end != len(content):
                file.truncate(end)


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _decode(name: str, value: Any, kind: str) -> Any:
    """``value`` when it is of the annotated type ``kind``; numbers of a float field as float."""
    if kind.startswith("float"):
        if value is None and kind.endswith("None"):
            return None
        if type(value) in (int, float) or value in ("nan", "inf", "-inf"):
            return float(value)
    elif type(value) is _JSON_TYPES[kind]:
        return value
    raise ValueError(f"field {name!r} is {value!r}, not of type {kind}")


_JSON_TYPES = {"int": int, "str": str, "bool": bool, "dict[str, Any]": dict}
