"""A Trainer's run folder: which of its checkpoints are ours, broken, or in the way.

``checkpoint-N`` folders are only ever renamed here, to names that the Trainer neither looks for nor
pushes to the hub: those with an underscore.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from aimmerge_fast.durable.files import Broken, read_json, rename, write_json
from aimmerge_fast.durable.manifest import SIDE, verify

log = logging.getLogger(__name__)
MARKER = "_aimmerge-run.json"
_VERSION = 1
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def name_of(step: int) -> str:
    return f"checkpoint-{step}"


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the checkpoints that the Trainer would find, newest first."""
    if not run.is_dir():
        return []
    found = ((_CHECKPOINT.fullmatch(path.name), path) for path in run.iterdir() if path.is_dir())
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def look_over(run: Path, task: str) -> None:
    """Set broken checkpoints aside; warn when the newest whole one is of another task."""
    newest = set_aside_broken(run)
    other = newest.get("task", task) if newest is not None else task
    if other != task:
        log.warning(
            "aimmerge_fast: %s holds checkpoints of task %r, and %r is attached: "
            "resume_from_checkpoint=True would take them; give every task an output_dir of its own",
            *(run, other, task),
        )


def set_aside_broken(run: Path) -> dict[str, Any] | None:
    """Rename the newest checkpoints to ``_broken-checkpoint-N`` until one is complete, or foreign.

    Does nothing in a folder without our marker. Returns the info of the complete one.
    """
    marker = _marker(run)
    if marker is None:
        return None
    for _, path in checkpoints(run):
        if path.name in marker["foreign"] and not (path / SIDE).exists():
            return None
        try:
            return verify(path, added="ignore")
        except Broken as error:
            aside = _aside(path, "_broken")
            log.warning(
                "aimmerge_fast: %s cannot be resumed: %s. It is now %s; the newest complete "
                "checkpoint is used instead.",
                *(path, error, aside.name),
            )
    return None


def find(places: list[Path], life: str, step: int, world: int) -> int:
    """Number of the place that holds the checkpoint of this ``life`` and ``step``, complete.

    Raises: Broken, ValueError, RuntimeError; see ``TrainerCheckpoints.find``.
    """
    for number, place in enumerate(places):
        if place.is_dir():
            info = verify(place, added="warn")
            if (info["life"], info["global_step"]) == (life, step):
                _require_usable(place, info, world)
                return number
    raise RuntimeError(
        f"the checkpoint of step {step} that the Trainer resumed from is not at {places[0]}; it "
        "was moved: say where it is now with attach(..., resume_from=folder)"
    )


def take_over(run: Path, start: tuple[int, Path] | None) -> None:
    """Make way for a training that begins at ``start`` (step, checkpoint), or anew; mark ``run``.

    Checkpoints that it would overwrite are renamed to ``_earlier-checkpoint-N``. The marker names
    those that others left unsealed.
    """
    stays = start[0] if start is not None and start[1].parent == run else -1
    unsealed = []
    for step, path in checkpoints(run):
        if step > stays:
            aside = _aside(path, "_earlier")
            log.warning("aimmerge_fast: %s is of an earlier run; it is now %s", path, aside.name)
        elif not (path / SIDE).exists():
            unsealed.append(path.name)
    marker = _marker(run)
    foreign = [name for name in unsealed if marker is None or name in marker["foreign"]]
    if marker is None or marker["foreign"] != foreign:
        write_json(run / MARKER, {"version": _VERSION, "foreign": foreign})


def _require_usable(place: Path, info: dict[str, Any], world: int) -> None:
    if not info["resumable"]:
        raise ValueError(
            f"{place} was saved with save_only_model=True, so without an optimizer: resume from "
            "another checkpoint, or begin a training with its weights"
        )
    if info["world"] != world:
        raise ValueError(
            f"{place} was saved by {info['world']} processes, and {world} resume from it; resume "
            f"with {info['world']}"
        )


def _marker(run: Path) -> dict[str, Any] | None:
    path = run / MARKER
    if not path.is_file():
        return None
    marker = read_json(path)
    foreign = marker.get("foreign")
    if marker.get("version") != _VERSION or not isinstance(foreign, list):
        raise Broken(f"{path} is damaged, or of another version of aimmerge_fast; remove it")
    return marker


def _aside(path: Path, word: str) -> Path:
    name, count = f"{word}-{path.name}", 1
    while (path.parent / name).exists():
        count += 1
        name = f"{word}-{path.name}.{count}"
    rename(path, path.parent / name)
    return path.parent / name
