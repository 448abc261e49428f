"""Read a results file and turn it into lines; whatever is wrong with it is one ``ReadmeError``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Build = Callable[[Record], list[str]]


class ReadmeError(Exception):
    """Why the tables cannot be made, in one line."""


def lines(folder: Path, name: str, build: Build, absent: str | None = None) -> list[str]:
    """What ``build`` makes of a results file.

    ``absent`` is said instead where the file is not there; None: it must be.
    """
    path = folder / name
    if absent is not None and not path.exists():
        return [absent]
    record = _read(path)
    try:
        return build(record)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ReadmeError(
            f"{path} is not what its bench writes: {what}; run the bench again"
        ) from error


def _read(path: Path) -> Record:
    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ReadmeError(
            f"cannot read {path}: {reason}; run its bench, or give --results"
        ) from error
    except ValueError as error:
        raise ReadmeError(f"{path} is no JSON: {error}; run its bench again") from error
    if not isinstance(record, dict):
        raise ReadmeError(f"{path} holds no record but a {type(record).__name__}")
    return record


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no figure")
