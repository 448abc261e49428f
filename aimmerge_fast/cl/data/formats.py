"""Readers of the benchmark formats: files to records with one prompt and one answer each.

The shape of the records is recognised by their fields; the file type by its extension.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aimmerge_fast.cl.data.files import read_json, read_rows
from aimmerge_fast.cl.data.layout import TaskFiles
from aimmerge_fast.cl.data.prompts import choice_prompt, definition_prompt, joined_prompt
from aimmerge_fast.cl.data.records import Record, malformed, text_field

# Shape: the fields that a record of it has.
SHAPES = {
    "natural-instructions": ("Definition", "Instances"),
    "alpaca": ("instruction", "output"),
    "trace": ("prompt", "answer"),
    "o-lora": ("label", "sentence"),
    "aimmerging": ("input", "output"),
}
# ``jsonl`` and ``parquet`` fix the file type and leave the shape to be recognised.
FORMATS = ("auto", *SHAPES, "jsonl", "parquet")


def check_format(name: str) -> str:
    """``name`` if it is a format, else ``ValueError`` with the known."""
    if name not in FORMATS:
        raise ValueError(f"format {name!r} is not known; known: {', '.join(FORMATS)}")
    return name


@dataclasses.dataclass
class RawTask:
    """A task as read: records by split (``whole`` if it has none) and where each of them lies."""

    name: str
    splits: dict[str, list[Record]]
    places: dict[str, list[tuple[Path, int]]]
    answer_field: str  # what the file calls ``output``
    notes: list[str]


def read_task(files: TaskFiles, format: str = "auto") -> RawTask:
    """All records of a task. ``ValueError`` names file, record (from 0) and field if malformed."""
    sources = {**files.splits, **({"whole": [files.whole]} if files.whole else {})}
    parts = {
        split: [(path, _rows(path, format)) for path in paths] for split, paths in sources.items()
    }
    path, rows = (parts.get("train") or parts.get("whole") or next(iter(parts.values())))[0]
    shape = shape_of(rows, path, format)
    labels, note = _labels(files, rows, shape)
    answer = {"trace": "answer", "o-lora": "label"}.get(shape, "output")
    task = RawTask(files.name, {}, {}, answer, [note] if note else [])
    for split, contents in parts.items():
        task.splits[split], task.places[split] = [], []
        for path, rows in contents:
            records = _records(rows, path, shape, (files.name, split, labels))
            task.splits[split] += records
            task.places[split] += [(path, index) for index in range(len(records))]
    return task


def _rows(path: Path, format: str) -> Any:
    if format in ("jsonl", "parquet") and path.suffix != f".{format}":
        raise ValueError(f"{path} is no .{format} file, as format {format!r} asks; use 'auto'")
    return read_rows(path)


def shape_of(rows: Any, path: Path, format: str = "auto") -> str:
    """The name of the shape of these rows, or ``ValueError`` that lists the shapes known."""
    if not isinstance(rows, (list, dict)):
        raise ValueError(f"{path} holds a {type(rows).__name__}; {_known()}")
    first = rows[0] if isinstance(rows, list) else rows
    if not isinstance(first, dict):
        raise ValueError(f"{path}, record 0 is a {type(first).__name__}; {_known()}")
    if format in SHAPES:
        return format
    for shape, fields in SHAPES.items():
        whole = shape == "natural-instructions"
        if whole == isinstance(rows, dict) and all(field in first for field in fields):
            return shape
    found = ", ".join(map(str, first)) or "none"
    raise ValueError(f"{path}, record 0 has the fields {found}; {_known()}")


def _known() -> str:
    shapes = "; ".join(f"{name}: {', '.join(fields)}" for name, fields in SHAPES.items())
    return f"known formats and the fields they need: {shapes}"


def _records(
    rows: Any, path: Path, shape: str, task: tuple[str, str, Sequence[str]]
) -> list[Record]:
    name, split, labels = task
    convert, rows = _converter(rows, path, shape, name, labels)
    records = []
    for index, row in enumerate(rows):
        prompt, answer = convert(row, path, index)
        kept = {key: value for key, value in row.items() if key not in _CONSUMED[shape]}
        id_ = row.get("id")
        if not isinstance(id_, (str, int, type(None))):
            raise malformed(path, index, "id", f"is a {type(id_).__name__}, needs a string")
        id_ = f"{name}-{split}-{index}" if id_ is None else str(id_)
        records.append({**kept, "id": id_, "input": prompt, "output": answer})
    return records


# Fields that the prompt and the answer are made of; the others are kept as they are.
_CONSUMED = {
    "natural-instructions": ("id", "input", "output"),
    "alpaca": ("id", "input", "output"),
    "trace": ("id", "prompt", "answer"),
    "o-lora": ("id", "label", "sentence"),
    "aimmerging": ("id", "input", "output"),
}
_Convert = Callable[[Any, Path, int], tuple[str, str]]


def _converter(
    rows: Any, path: Path, shape: str, task: str, labels: Sequence[str]
) -> tuple[_Convert, list[Any]]:
    if shape == "natural-instructions":
        definition, rows = _definition(rows, path)
        if labels:  # the released preprocessing asks the task's question instead
            return lambda row, path, i: _instance_choice(row, path, i, task, labels), rows
        return lambda row, path, i: _instance(row, path, i, definition), rows
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds a {type(rows).__name__}, needs a list of records")
    simple = {"aimmerging": ("input", "output"), "trace": ("prompt", "answer")}
    if shape in simple:
        prompt, answer = simple[shape]
        return (
            lambda row, path, i: (
                text_field(row, prompt, path, i, empty=False),
                text_field(row, answer, path, i, empty=False),
            )
        ), rows
    if shape == "alpaca":
        return _alpaca, rows
    return lambda row, path, i: _labelled(row, path, i, task, labels), rows


def _alpaca(row: Any, path: Path, index: int) -> tuple[str, str]:
    instruction = text_field(row, "instruction", path, index)
    text = "" if row.get("input") is None else text_field(row, "input", path, index)
    answer = text_field(row, "output", path, index, empty=False)
    if not (instruction + text).strip():
        raise malformed(path, index, "instruction", "is empty, and so is 'input': no prompt")
    return joined_prompt(instruction, text), answer


def _labelled(
    row: Any, path: Path, index: int, task: str, labels: Sequence[str]
) -> tuple[str, str]:
    sentence = text_field(row, "sentence", path, index, empty=False)
    return choice_prompt(task, labels, sentence), text_field(row, "label", path, index)


def _instance(row: Any, path: Path, index: int, definition: str) -> tuple[str, str]:
    text = text_field(row, "input", path, index)
    return definition_prompt(definition, text), _first_answer(row, path, index)


def _instance_choice(
    row: Any, path: Path, index: int, task: str, labels: Sequence[str]
) -> tuple[str, str]:
    text = text_field(row, "input", path, index)
    return choice_prompt(task, labels, text), _first_answer(row, path, index)


def _first_answer(row: Any, path: Path, index: int) -> str:
    """Upstream files list every accepted answer; the benchmarks built from them use the first."""
    answers = row.get("output")
    if isinstance(answers, list) and answers:
        row = {"output": answers[0]}
    return text_field(row, "output", path, index, empty=False)


def _definition(rows: Any, path: Path) -> tuple[str, list[Any]]:
    if not isinstance(rows, dict):
        raise ValueError(f"{path} holds a {type(rows).__name__}, needs an object with 'Instances'")
    definition = rows.get("Definition")
    if isinstance(definition, list) and definition:
        definition = definition[0]
    if not isinstance(definition, str):
        raise malformed(path, None, "Definition", "needs a string or a list of strings")
    instances = rows.get("Instances")
    if not isinstance(instances, list):
        raise malformed(path, None, "Instances", "needs a list of records")
    return definition, instances


def _labels(files: TaskFiles, rows: Any, shape: str) -> tuple[list[str], str]:
    """The answer options of a task whose prompts are built here, and a note on where from."""
    if shape not in ("o-lora", "natural-instructions"):
        return [], ""
    if files.labels is not None:
        labels = read_json(files.labels)
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ValueError(f"{files.labels} needs a JSON list of strings, the answer options")
        if len(labels) < 2:
            raise ValueError(f"{files.labels} lists {len(labels)} options; needs two or more")
        return labels, ""
    if shape == "natural-instructions":
        return [], ""
    found = {row.get("label") for row in rows if isinstance(row, dict)}
    labels = sorted(label for label in found if isinstance(label, str))
    return labels, f"no labels.json: the options are the {len(labels)} labels of the train file"
