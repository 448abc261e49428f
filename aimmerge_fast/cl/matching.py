"""Controls with as many merges as another arm made: does *adaptivity* matter?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aimmerge_fast.cl.config import ArmSpec
from aimmerge_fast.cl.context import Context
from aimmerge_fast.cl.methods import method_class
from aimmerge_fast.cl.methods.aim import AIMMerging
from aimmerge_fast.cl.methods.controls import Control
from aimmerge_fast.config import MAX_MERGE_AT
from aimmerge_fast.durable.files import read_json


def check_match(spec: ArmSpec, arms: Sequence[ArmSpec]) -> None:
    """``ValueError`` unless ``match``, where it is set, names an earlier arm that can merge."""
    if "match" not in spec.settings:
        return
    other, kind = spec.settings["match"], method_class(spec.method)
    if not issubclass(kind, Control):
        raise ValueError("setting 'match' belongs to the controls fixed and random")
    for name in kind.overridden:
        if name in spec.settings:
            raise ValueError(f"setting {name!r} beside 'match', which says when to merge; drop one")
    names = [arm.name for arm in arms]
    if other not in names:
        raise ValueError(f"match={other!r} is no arm of this run; they are {', '.join(names)}")
    if other == spec.name:
        raise ValueError(f"match={other!r} is this arm itself; name an arm that comes before it")
    found = arms[names.index(other)]
    if not issubclass(method_class(found.method), AIMMerging):
        raise ValueError(f"match={other!r} names an arm of {found.method!r}, which never merges")
    if names.index(other) > names.index(spec.name):
        raise ValueError(f"match={other!r} comes after this arm; put it before")


def matched_settings(context: Context, spec: ArmSpec, seed: int) -> dict[str, Any]:
    """The arm's settings; ``match`` becomes ``counts``, the other arm's merges by task.

    Raises: ValueError when the other arm is not finished, or made more merges than can be placed.
    """
    settings = dict(spec.settings)
    other = settings.pop("match", None)
    if other is None:
        return settings
    path = context.config.out / f"{other}-s{seed}" / "arm.json"
    found = context.ranks.from_main(lambda: read_json(path) if path.is_file() else {})
    if not found.get("finished"):
        raise ValueError(
            f"arm {spec.name!r} has match={other!r}, which is not finished with seed {seed}; put "
            "it before this arm"
        )
    return with_counts(spec, merge_counts(found))


def with_counts(spec: ArmSpec, counts: Mapping[str, int]) -> dict[str, Any]:
    """The arm's settings with so many merges by task; ``ValueError`` where they are too many."""
    for task, count in counts.items():
        if count > MAX_MERGE_AT:
            raise ValueError(
                f"arm {spec.name!r} has match={spec.settings['match']!r}, which makes {count} "
                f"merges in task {task!r}; a control places at most {MAX_MERGE_AT} in a task"
            )
    settings = {key: value for key, value in spec.settings.items() if key != "match"}
    return {**settings, "counts": dict(counts)}


def merge_counts(found: Mapping[str, Any]) -> dict[str, int]:
    """Merges by task of a finished arm's entry, in the tasks that it merged in."""
    tasks = (found["merges"] or {"tasks": []})["tasks"]
    counts = {task["task"]: sum(task["merges"].values()) for task in tasks}
    return {task: count for task, count in counts.items() if count}
