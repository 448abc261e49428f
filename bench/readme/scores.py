"""Blocks ``real`` and ``methods``: scores of streams that were trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from readme import records
from readme.words import NOT_RUN, table

Arm = dict[str, Any]
#: Methods that never merge.
PLAIN = ("seqlora", "inclora", "replay", "mtl")


def real(folder: Path) -> list[str]:
    return records.lines(folder, "real_comparison.json", _real)


def methods(folder: Path) -> list[str]:
    return records.lines(folder, "every_method.json", _methods)


def _real(record: dict[str, Any]) -> list[str]:
    """Scores after the last task, in brackets the change since the task was learned."""
    tasks = list(record["tasks"])
    head = ["", *tasks, "OP", "BWT", "merges", "rehearsed rows"]
    return table(head, [_real_row(arm, len(tasks)) for arm in record["arms"]])


def _real_row(arm: Arm, tasks: int) -> list[str]:
    if not arm["finished"]:
        return [_title(arm), *["not finished"] * (tasks + 4)]
    last = arm["scores"][-1]
    cells = [
        f"{last[at]:.1f} ({_signed(last[at] - arm['scores'][at][at])})" for at in range(tasks - 1)
    ]
    metrics, rows = arm["metrics"], arm["rows"]
    rehearsed = f"{rows['memory']:,}"
    if arm["method"] == "replay":
        rehearsed = f"among the {rows['training']:,} trained"
    scores = [*cells, f"{last[-1]:.1f}", f"{metrics['OP']:.1f}", _signed(metrics["BWT"])]
    return [_title(arm), *scores, _merges(arm, forced=True), rehearsed]


def _title(arm: Arm) -> str:
    """A control of as many merges as another arm made has them in ``counts``."""
    settings = dict(arm["settings"])
    control = "control: " if settings.pop("counts", None) else ""
    given = ", ".join(f"{key}={value}" for key, value in settings.items())
    how = " (2 % mixed in)" if arm.get("method") == "replay" else ""
    return f"{control}{arm['label']}{how}" + (f", `{given}`" if given else "")


def _methods(record: dict[str, Any]) -> list[str]:
    """Scores of both tasks after each of them."""
    tasks = list(record["tasks"])
    head = ["method", *(f"after {task}" for task in tasks), "merges"]
    rows = []
    for arm in record["arms"]:
        # One that learns all tasks at once has scores after the last only.
        stages = [None] * (len(tasks) - len(arm["scores"])) + arm["scores"]
        cells = ["–" if each is None else " / ".join(map(_score, each)) for each in stages]
        rows.append([f"`{arm['name']}`", *cells, _merges(arm)])
    return table(head, rows)


def _score(value: float | None) -> str:
    return NOT_RUN if value is None else f"{value:.1f}"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−") if round(value, 1) else "0.0"


def _merges(arm: Arm, *, forced: bool = False) -> str:
    """How many were made, and how many of them because the interval had grown to its limit."""
    if arm["merges"] is None or arm.get("method") in PLAIN:
        return "–"
    kinds = arm["merges"]["total"]["merges"]
    made = sum(kinds.values())
    return f"{made} ({kinds['forced']} forced)" if forced and kinds["forced"] else f"{made}"
