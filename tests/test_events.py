"""Events: each type through JSON and back, and the file that a crash or a stranger left behind."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
from pathlib import Path
from typing import Any

import pytest

from aimmerge_fast.config import AIMConfig
from aimmerge_fast.events import (
    CODES,
    EVENT_TYPES,
    MERGE_KINDS,
    Event,
    EventLog,
    Probe,
    Rollback,
    Skip,
    TaskBegin,
    TaskEnd,
    from_json,
    read_events,
    to_json,
)

ODD_NAMES = ("", "a\nb", "t\u00e2che \u4efb\u52a1 \U0001f600", 'quote " and \\', "\u2028", "\ud800")
ODD_FLOATS = (0.0, -0.0, 5e-324, 0.1, 1e308, -2.5, math.inf, -math.inf, math.nan)
ODD_VALUES: dict[str, tuple[Any, ...]] = {
    "str": ODD_NAMES,
    "int": (0, 1, -1, 2**31 - 1, 2**63),
    "bool": (True, False),
    "float": ODD_FLOATS,
    "float | None": (*ODD_FLOATS, None),
    "dict[str, Any]": ({}, AIMConfig().to_dict(), AIMConfig(policy="released").to_dict()),
}


def same(a: Any, b: Any) -> bool:
    """Equal in value and type, NaN and -0.0 told apart as repr tells them."""
    return type(a) is type(b) and repr(a) == repr(b)


@pytest.mark.parametrize("kind", EVENT_TYPES.values(), ids=EVENT_TYPES)
def test_odd_values_survive(kind: type[Event]) -> None:
    fields = {field.name: ODD_VALUES[str(field.type)] for field in dataclasses.fields(kind)}
    for turn in range(max(map(len, ODD_VALUES.values()))):
        event = kind(**{name: values[turn % len(values)] for name, values in fields.items()})
        line = to_json(event)
        assert "\n" not in line
        assert json.loads(line, parse_constant=pytest.fail)["event"] == kind.event
        assert same(from_json(line), event)


def test_every_merge_kind_is_a_code() -> None:
    assert MERGE_KINDS == tuple(CODES[4:9])
    assert len(CODES) == 10


PROBE = Probe("a", 1, 1, 8, 0, 0.5, None, "collect")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("", "not JSON"),
        ('{"event": "probe"', "not JSON"),
        ("[1]", "unknown event None; known are task_begin, probe"),
        ('{"event": []}', r"unknown event \[\]"),
        ('{"event": "prob"}', "unknown event 'prob'"),
        ('{"event": "rollback", "task": "a"}', "event 'rollback': field 'step' is missing"),
        (
            '{"event": "rollback", "task": "a", "step": 1, "x": 2}',
            "field 'x' is missing",
        ),
        ('{"event": "rollback", "task": "a", "step": "1"}', "field 'step' is '1', not of type int"),
        ('{"event": "rollback", "task": "a", "step": true}', "field 'step' is True"),
        ('{"event": "rollback", "task": 3, "step": 1}', "field 'task' is 3, not of type str"),
        (to_json(PROBE).replace("0.5", '"0.5"'), "field 'loss' is '0.5', not of type float"),
        (to_json(PROBE).replace("0.5", "null"), "field 'loss' is None, not of type float"),
        (to_json(PROBE).replace("0.5", "[1]"), r"field 'loss' is \[1\], not of type float"),
    ],
)
def test_a_bad_line_is_named(line: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        from_json(line)


def test_a_whole_number_in_a_float_field_is_a_float() -> None:
    assert same(from_json(to_json(PROBE).replace("0.5", "1")), dataclasses.replace(PROBE, loss=1.0))


# ---- files -----------------------------------------------------------------------------------

EVENTS = [
    TaskBegin("a", 0, 9, AIMConfig().to_dict()),
    PROBE,
    Skip("a", 2, 2, math.nan, 1),
    Rollback("a", 2),
    TaskEnd("a", 2),
]


def write(path: Path, events: list[Event]) -> None:
    log = EventLog(path)
    for event in events:
        log(event)
    log.close()


def test_a_file_and_back(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, EVENTS[:2])
    write(path, EVENTS[2:])  # a later run appends
    assert repr(list(read_events(path))) == repr(EVENTS)
    assert path.read_text().count("\n") == len(EVENTS)


def test_each_event_is_there_when_it_happened(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for count, event in enumerate(EVENTS, 1):
        log(event)
        assert len(list(read_events(tmp_path / "events.jsonl"))) == count
    log.close()


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_a_last_line_that_a_crash_cut_off(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, EVENTS[:2])
    with path.open("a") as file:
        file.write((to_json(EVENTS[3]) + "\n")[:cut])
    assert list(read_events(path)) == EVENTS[:2]
    write(path, EVENTS[4:])
    assert list(read_events(path)) == [*EVENTS[:2], *EVENTS[4:]]


def test_a_malformed_line_is_named_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for bad in (b"{}\n", b"\n", b"\xff\n", b"9" * 5000 + b"\n"):
        path.write_bytes(f"{to_json(PROBE)}\n".encode() + bad + b"{}\n")
        reader = read_events(path)
        assert next(reader) == PROBE
        with pytest.raises(ValueError, match=r"events\.jsonl, line 2: "):
            next(reader)


@pytest.mark.parametrize("where", ["missing/events.jsonl", ".", "file/events.jsonl"])
def test_an_unwritable_path_is_named(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / where
    with pytest.raises(OSError, match="cannot write events to") as error:
        EventLog(path)
    assert str(path) in str(error.value)
    assert "give a path in a folder that exists and is writable" in str(error.value)


def test_a_forgotten_log_closes_its_file(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log(PROBE)
    file = log._file
    del log
    gc.collect()
    assert file.closed


def test_reading_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.jsonl"):
        next(read_events(tmp_path / "nothing.jsonl"))
