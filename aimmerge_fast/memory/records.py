"""What a rehearsal record may be: checks, classes, fingerprint and JSON form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

Record = Mapping[str, Any]


def require_integer(name: str, value: object, low: int | None = None) -> None:
    """``ValueError`` naming ``name`` unless ``value`` is an int (no bool) of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int) or (low is not None and value < low):
        floor = "" if low is None else f" of at least {low}"
        raise ValueError(f"{name}={value!r} must be an integer{floor}")


def require_task(task: object) -> None:
    """``ValueError`` unless ``task`` is a name: a string that is not empty."""
    if not isinstance(task, str) or not task:
        raise ValueError(f"task={task!r} must be a string that is not empty")


def require_fields(what: str, state: object, fields: list[str]) -> None:
    """``ValueError`` unless ``state`` is a mapping with exactly these keys."""
    if not isinstance(state, Mapping):
        raise ValueError(
            f"{what} state is a {type(state).__name__}; give what state_dict() returned"
        )
    for field in [*fields, *state]:
        if field not in state or field not in fields:
            verb = "lacks" if field in fields else "has an unknown field"
            raise ValueError(f"{what} state {verb} {field!r}; its fields are {', '.join(fields)}")


def require_records(task: str, records: object) -> list[Record]:
    """The records as a list; anything with a length and integer indices will do (a Dataset).

    Raises:
        ValueError: naming the first record that is no mapping with string keys.
    """
    error = f"records of task {task!r} are a {type(records).__name__}; give a sequence of mappings"
    if isinstance(records, (str, bytes, Mapping)) or not hasattr(records, "__getitem__"):
        raise ValueError(error)
    try:
        every = [records[index] for index in range(len(records))]  # type: ignore[arg-type]
    except (TypeError, LookupError):
        raise ValueError(error) from None
    for index, record in enumerate(every):
        if not isinstance(record, Mapping) or not all(isinstance(key, str) for key in record):
            raise ValueError(
                f"record {index} of task {task!r} is of type {type(record).__name__}; each must "
                "be a mapping from strings to values"
            )
    if not every:
        raise ValueError(f"task {task!r} has no records; add at least one")
    return every


def classes_of(
    task: str, records: list[Record], label: str | Callable[[Record], Any] | None
) -> list[Any]:
    """The class of each record, hashable; one class for all where nothing gives any.

    Raises:
        ValueError: naming a record that lacks the key of its class.
    """
    if label is None:
        present = (key for key in ("output", "label") if any(key in r for r in records))
        label = next(present, None)
    if label is None:
        return [None] * len(records)
    if callable(label):
        return [_hashable(label(record)) for record in records]
    for index, record in enumerate(records):
        if label not in record:
            raise ValueError(
                f"record {index} of task {task!r} has no {label!r}, which gives its class; add it "
                "to every record, or set label= to another key or to a function"
            )
    return [_hashable(record[label]) for record in records]


def fingerprint(tasks: Mapping[str, list[Record]]) -> str:
    """sha256 of tasks and records in order; arrays and tensors count by dtype and values.

    Raises:
        ValueError: naming a record with a value that has no such form.
    """
    digest = hashlib.sha256()
    for task, records in tasks.items():
        digest.update(json.dumps([task, len(records)]).encode())
        for index, record in enumerate(records):
            try:
                text = json.dumps(record, sort_keys=True, default=_plain)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"record {index} of task {task!r} cannot be fingerprinted: {error}"
                ) from None
            digest.update(text.encode() + b"\n")
    return digest.hexdigest()


def json_copy(task: str, records: list[Any]) -> list[dict[str, Any]]:
    """A deep copy by way of JSON; ``ValueError`` names a record that JSON would change."""
    for index, record in enumerate(records):
        fault = _json_fault(record)
        if fault:
            raise ValueError(
                f"record {index} of task {task!r} cannot be saved: {fault}; keep plain values "
                "(text, numbers, lists) in records and make tensors in collate"
            )
    copy: list[dict[str, Any]] = json.loads(json.dumps(records))
    return copy


def loaded_content(content: object, *, may_be_empty: bool = False) -> dict[str, list[Record]]:
    """``[{"task", "records"}, ...]`` as saved, checked and copied, by task.

    ``may_be_empty``: all records of a task may have left.
    """
    if not isinstance(content, list):
        raise ValueError(f"memory state: content is a {type(content).__name__}, not a list")
    tasks: dict[str, list[Record]] = {}
    for entry in content:
        require_fields("memory task", entry, ["task", "records"])
        task = entry["task"]
        require_task(task)
        if task in tasks:
            raise ValueError(f"memory state names task {task!r} twice")
        records = entry["records"]
        if not (may_be_empty and records == []):
            records = require_records(task, records)
        tasks[task] = list(json_copy(task, records))
    return tasks


def _json_fault(value: object, path: str = "") -> str | None:
    """What JSON cannot give back as it is, and where; None when all of it comes back equal."""
    if value is None or isinstance(value, (str, int, float)):
        return None
    if isinstance(value, list):
        parts = {f"{path}[{index}]": item for index, item in enumerate(value)}
    elif isinstance(value, dict) and all(isinstance(key, str) for key in value):
        parts = {f"{path}.{key}" if path else key: item for key, item in value.items()}
    else:
        return f"{path or 'it'} is a {type(value).__name__}"
    faults = (_json_fault(item, where) for where, item in parts.items())
    return next((fault for fault in faults if fault), None)


def _plain(value: Any) -> Any:
    """A JSON stand-in, for fingerprints alone, of what a tokenised record may hold."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        return {"dtype": str(value.dtype), "values": value.tolist()}
    raise TypeError(f"it holds a {type(value).__name__}")


def _hashable(value: Any) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value  # a tensor hashes by identity
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value
