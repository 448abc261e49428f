"""A run folder read back: ``results.json``, checked field by field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aimmerge_fast.cl.report.run import USUAL_RATIO, Arm, Run

#: The version of ``results.json`` that can be read here.
VERSION = 1
RESULTS = "results.json"


def read_run(out: Path) -> Run:
    """The run of a folder.

    Raises:
        OSError: ``results.json`` is missing or cannot be read.
        ValueError: it is malformed, or of another version.
    """
    path = Path(out) / RESULTS
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise OSError(
            f"cannot read {path}: {error.strerror or error}; give the folder of a run, the one "
            "`aimmerge run` was given as --out"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}") from None
    try:
        results = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    return parse_run(results, Path(out), str(path))


def parse_run(results: Any, folder: Path | None = None, source: str = RESULTS) -> Run:
    """The run in parsed ``results``; events are looked for under ``folder``.

    Raises:
        ValueError: another version, or a field that is missing or of the wrong type.
    """
    if not isinstance(results, Mapping):
        raise ValueError(f"{source} must hold an object, got {type(results).__name__}")
    version = results.get("version")
    if version != VERSION:
        raise ValueError(
            f"{source} is of version {version!r}; this version of aimmerge_fast reads version "
            f"{VERSION}. Report on it with the version that wrote it, or run it again"
        )
    fields = _Fields(results, source)
    stream = fields.mapping("stream")
    tasks = [str(name) for name in _Fields(stream, f"{source}: stream").sequence("tasks")]
    settings = fields.mapping("settings")
    ratio = float(settings.get("memory_ratio") or USUAL_RATIO)
    arms = [
        _arm(_Fields(arm, f"{source}: arms[{index}]"), len(tasks), folder, ratio)
        for index, arm in enumerate(fields.sequence("arms"))
    ]
    return Run(
        settings=settings,
        stream={**stream, "tasks": tasks},
        tasks=fields.mapping("tasks"),
        arms=tuple(arms),
        created=str(results.get("created") or ""),
        commit=results.get("commit"),
        machine=results.get("machine") or {},
        versions=results.get("versions") or {},
    )


class _Fields:
    """A JSON object whose fields are checked as they are read."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise ValueError(f"{where} must be an object, got {type(values).__name__}")
        self.values, self.where = values, where

    def get(self, name: str, kind: type | tuple[type, ...], what: str) -> Any:
        value = self.values.get(name)
        if not isinstance(value, kind) or isinstance(value, str) > (kind is str):
            raise ValueError(f"{self.where}: field {name!r} must be {what}, got {value!r:.80}")
        return value

    def optional(self, name: str, kind: type | tuple[type, ...], what: str, default: Any) -> Any:
        return default if self.values.get(name) is None else self.get(name, kind, what)

    def mapping(self, name: str) -> Mapping[str, Any]:
        return self.get(name, Mapping, "an object")  # type: ignore[no-any-return]

    def sequence(self, name: str) -> Sequence[Any]:
        return self.get(name, Sequence, "a list")  # type: ignore[no-any-return]

    def text(self, name: str) -> str:
        return self.get(name, str, "a text")  # type: ignore[no-any-return]


def _arm(fields: _Fields, tasks: int, folder: Path | None, ratio: float) -> Arm:
    values = fields.values
    scores = tuple(
        tuple(None if score is None else _number(score) for score in row)
        for row in fields.sequence("scores")
    )
    if any(len(row) != tasks for row in scores):
        raise ValueError(f"{fields.where}: each row of 'scores' must hold {tasks} values")
    losses = values.get("losses") or {}
    events = values.get("events")
    finished = bool(values.get("finished"))
    failed = None if finished else fields.optional("failed", str, "a text", None)
    return Arm(
        name=fields.text("name"),
        label=str(values.get("label") or values["name"]),
        method=fields.text("method"),
        settings=values.get("settings") or {},
        seed=fields.get("seed", int, "an integer"),
        finished=finished,
        stages=tuple(str(stage) for stage in fields.sequence("stages")),
        scores=scores,
        metrics=values.get("metrics") or {},
        losses={stage: tuple(map(_number, steps)) for stage, steps in losses.items()},
        seconds=values.get("seconds") or {},
        rows=values.get("rows") or {},
        merges=values.get("merges"),
        events_file=folder / events if folder is not None and events else None,
        memory_ratio=float(fields.optional("memory_ratio", (int, float), "a number", ratio)),
        memory_epochs=fields.optional("memory_epochs", int, "an integer", 0),
        failed=None if failed is None else " ".join(failed.split()) or "no reason recorded",
    )


def _number(value: Any) -> float:
    """A number of JSON; ``null`` and the strings "nan", "inf", "-inf" as what they stand for."""
    if isinstance(value, (int, float)) or value in ("nan", "inf", "-inf"):
        return float(value)
    if value is None:
        return math.nan
    raise ValueError(f"{value!r:.80} is no number")
