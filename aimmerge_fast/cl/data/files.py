"""JSON, JSON lines and parquet files as rows, with errors that name the file and the line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> Any:
    """A list of rows, or the object of a natural-instructions file; never empty.

    ``ValueError``: no such content (names the file and, of JSON lines, the line) or no records.
    """
    readers: dict[str, Callable[[Path], Any]] = {".jsonl": _read_lines, ".parquet": _read_parquet}
    rows = readers.get(path.suffix, read_json)(path)
    instances = rows.get("Instances") if isinstance(rows, dict) else rows
    if isinstance(instances, list) and not instances:
        raise ValueError(f"{path} holds no records; an empty split can neither train nor test")
    return rows


def read_json(path: Path) -> Any:
    """The value of a JSON file in UTF-8, or ``ValueError`` naming the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON file in UTF-8: {error}") from None


def _read_lines(path: Path) -> list[Any]:
    rows: list[Any] = []
    try:
        # Not splitlines(): a string may hold U+2028, which JSON does not escape.
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number} (record {len(rows)}) is no JSON: {error}"
            ) from None
    return rows


def _read_parquet(path: Path) -> list[Any]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        rows: list[Any] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no readable parquet file: {error}") from None
    return rows
