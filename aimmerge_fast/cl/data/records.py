"""What the loaders give: records, and a task's splits with what a table must say about them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]
SPLITS = ("train", "dev", "test")


@dataclasses.dataclass(frozen=True)
class TaskData:
    """One task as used.

    A record has the strings ``id``, ``input`` (the whole prompt) and ``output`` (the answer), and
    keeps whatever else its file has. ``metric`` is ``accuracy`` or ``rougeL``; ``labels`` are the
    answer options where the task has them. Each of ``notes`` is a sentence that a table must say:
    where the splits come from, which defects were found and what was done about them. ``sha256`` is
    of the records and the metric after repair, split and sampling.
    """

    name: str
    train: list[Record]
    dev: list[Record]
    test: list[Record]
    metric: str
    labels: tuple[str, ...] | None
    notes: tuple[str, ...]
    sha256: str


def content_hash(splits: dict[str, list[Record]], metric: str) -> str:
    """SHA-256 of the records and the metric, whatever the file they came from looked like."""
    digest = hashlib.sha256(metric.encode())
    for split in SPLITS:
        digest.update(f"\0{split}\0".encode())
        text = json.dumps(splits[split], ensure_ascii=False, sort_keys=True, default=str)
        digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def malformed(path: Path, index: int | None, field: str, problem: str) -> ValueError:
    """The error of a bad record: file, index (from 0) and field, and what is wrong there."""
    place = f", record {index}" if index is not None else ""
    return ValueError(f"{path}{place}, field {field!r}: {problem}")


def text_field(record: object, name: str, path: Path, index: int, *, empty: bool = True) -> str:
    """The string ``record[name]``; ``ValueError`` naming file, index and field if it is none."""
    if not isinstance(record, dict):
        raise malformed(path, index, name, f"the record is {_kind(record)}, not an object")
    if name not in record:
        keys = ", ".join(map(str, record)) or "none"
        raise malformed(path, index, name, f"missing; the record has the fields: {keys}")
    value = record[name]
    if not isinstance(value, str):
        raise malformed(path, index, name, f"is {_kind(value)}, needs a string")
    if not empty and not value.strip():
        raise malformed(path, index, name, "is empty; give an answer or remove the record")
    return value


def _kind(value: object) -> str:
    return "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
