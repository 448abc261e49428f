"""Converters: the 15 classification tasks from their primary public datasets to record files.

Writes ``{train,dev,test}/<task>_T5.json``. Tested on recorded rows in each dataset's columns; not
run against the hub.

A seed-42 shuffle of the training split gives 1,000 train and the next 500 dev records; the labelled
test split (of GLUE and SuperGLUE the validation split) gives at most 500 test records of a class.
The released records take dev from the very records that test; these do not. Where the training
split has 1,000 rows or fewer (cb, copa), all of them train and there is no dev file.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aimmerge_fast.cl.data.prompts import choice_prompt
from aimmerge_fast.cl.data.records import Record
from aimmerge_fast.cl.data.sources import SOURCES, Row, Source
from aimmerge_fast.cl.streams import task_name

Rows = Sequence[Row]
Loader = Callable[[Source, str], Rows]

TRAIN, DEV, TEST_OF_A_CLASS = 1000, 500, 500
_UNLABELLED = ("-1", "-", "None")


def hub_rows(source: Source, split: str) -> Rows:
    """A split of a hub dataset, indexable by row; needs the network or the hub's cache."""
    import datasets  # type: ignore[import-untyped]

    names = {"column_names": list(source.names)} if source.names else {}
    rows: Rows = datasets.load_dataset(
        source.path, source.config, split=split, revision=source.revision, **names
    )
    return rows


def convertible(tasks: Sequence[str]) -> list[str]:
    """The names here of ``tasks``, or ``ValueError`` naming those with no converter."""
    names = [task_name(task) for task in tasks]
    unknown = [name for name in names if name not in SOURCES]
    if unknown:
        raise ValueError(
            f"no converter for {', '.join(unknown)}; there are converters for "
            f"{', '.join(SOURCES)}. SuperNI and TRACE are read from their own files as they are"
        )
    return names


def convert_task(
    task: str, out: Path, *, loader: Loader = hub_rows, seed: int = 42, overwrite: bool = False
) -> dict[str, int]:
    """Write a task's files under ``out``; returns the counts of what was written by split.

    ``FileExistsError``: a file is there already. ``ValueError``: a row lacks a column or its label
    is no class (names dataset, split, row and column).
    """
    (name,) = convertible([task])
    paths = {split: out / split / f"{name}_T5.json" for split in ("train", "dev", "test")}
    there = [path for path in paths.values() if path.exists()]
    if there and not overwrite:
        raise FileExistsError(f"{there[0]} exists; remove it, or overwrite it with --overwrite")
    source = SOURCES[name]
    train = _records(source, name, "train", loader, TRAIN + DEV, seed)
    test = _records(source, name, source.test, loader, None, seed)
    parts = {"train": train[:TRAIN], "dev": train[TRAIN:], "test": test}
    for split, records in parts.items():
        if records:
            _write(paths[split], _numbered(records, name))
    return {split: len(records) for split, records in parts.items()}


def _records(
    source: Source, task: str, split: str, loader: Loader, items: int | None, seed: int
) -> list[Record]:
    """``items`` labelled records of a seeded shuffle, or all up to 500 of a class."""
    rows = loader(source, split)
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    offset = _offset(source, rows, order)
    counts: Counter[str] = Counter()
    records: list[Record] = []
    for index, row in _labelled(source, rows, order):
        answer = _answer(source, row, offset, f"{source.path}, split {split}, row {index}")
        if items is None and counts[answer] >= TEST_OF_A_CLASS:
            continue
        counts[answer] += 1
        _check(source, row, f"{source.path}, split {split}, row {index}")
        prompt = choice_prompt(task, source.prompted, source.fields(row))
        records.append({"input": prompt, "output": answer})
        full = items is None and all(counts[c] >= TEST_OF_A_CLASS for c in source.classes)
        if full or len(records) == items:
            break
    if not records:
        raise ValueError(f"{source.path}, split {split}: no labelled row among {len(rows)}")
    return records


def _labelled(source: Source, rows: Rows, order: Sequence[int]) -> Iterator[tuple[int, Row]]:
    for index in order:
        row = rows[index]
        if source.label not in row:
            raise ValueError(
                f"{source.path}, row {index}, column {source.label!r}: missing; the row has "
                f"{', '.join(map(str, row))}"
            )
        label = str(row[source.label])
        # Unlabelled test rows, and the header row of a CSV read by column names.
        if label not in _UNLABELLED and label != source.label:
            yield index, row


def _offset(source: Source, rows: Rows, order: Sequence[int]) -> int:
    """1 where classes count from 1 (the original CSV files of the review sets), else 0."""
    top = str(len(source.classes))
    return int(
        any(str(row[source.label]) == top for _, row in _labelled(source, rows, order[:2000]))
    )


def _answer(source: Source, row: Row, offset: int, place: str) -> str:
    try:
        number = int(row[source.label]) - offset
    except (TypeError, ValueError):
        number = -1
    if not 0 <= number < len(source.classes):
        raise ValueError(
            f"{place}, column {source.label!r}: {row[source.label]!r} is no class of "
            f"{len(source.classes)} ({', '.join(source.classes)})"
        )
    return source.classes[number]


def _check(source: Source, row: Row, place: str) -> None:
    for column in source.columns:
        if not isinstance(row.get(column), str):
            raise ValueError(
                f"{place}, column {column!r}: needs a string; the row has "
                f"{', '.join(map(str, row))}"
            )


def _numbered(records: Sequence[Mapping[str, Any]], name: str) -> list[Record]:
    return [{"id": f"{name}_{index}", **record} for index, record in enumerate(records)]


def _write(path: Path, records: list[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(records, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
