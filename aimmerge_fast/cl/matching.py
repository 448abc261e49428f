"""Controls with as many merges as another arm made: does *adaptivity* matter?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aimmerge_fast.cl.config import ArmSpec
from aimmerge_fast.cl.context import Context
from aimmerge_fast.cl.methods import method_class


def matched_settings(context: Context, spec: ArmSpec, seed: int) -> dict[str, Any]:
    """The arm's settings; ``match`` becomes the intervals that give the other arm's merges.

    Raises: ValueError when the other arm is not finished, or never merged.
    """
    settings = dict(spec.settings)
    other = settings.pop("match", None)
    if other is None:
        return settings
    path = context.config.out / f"{other}-s{seed}" / "arm.json"
    found = context.ranks.from_main(
        lambda: json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    )
    if not found.get("finished"):
        raise ValueError(
            f"arm {spec.name!r} has match={other!r}, which is not finished with seed {seed}; put "
            "it before this arm"
        )
    mean = mean_interval(found)
    if mean is None:
        raise ValueError(f"arm {spec.name!r} has match={other!r}, which made no merge")
    return {**settings, **method_class(spec.method).intervals(mean, settings)}


def mean_interval(found: Mapping[str, Any]) -> float | None:
    """Updates per merge of a finished arm's entry, in the tasks that it merged in; None: never."""
    merged = (found["merges"] or {"tasks": []})["tasks"]
    tasks = [task for task in merged if sum(task["merges"].values())]
    merges = sum(sum(task["merges"].values()) for task in tasks)
    return sum(task["steps"] for task in tasks) / merges if merges else None
