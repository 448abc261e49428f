"""What a bit-identical resume needs, gathered from and put back into a merger.

Everything is checked before anything is changed. Nothing is pickled here: the dict holds JSON-able
scalars and flat tensors.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch

from aimmerge_fast import kernels
from aimmerge_fast.binding import Binding
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.controller import Controller
from aimmerge_fast.distributed import Processes
from aimmerge_fast.fusion import Importances
from aimmerge_fast.memory import RehearsalMemory
from aimmerge_fast.rehearsal import Rehearsal

VERSION = 2
_HOST_FIELDS = ("S", "t", "steps", "known_t", "known_F", "memory_steps")
_CONTROLLER_FIELDS = (
    *("launched", "observed", "reported", "bad_in_a_row", "is_open", "open_known"),
    *("merge_steps", "task", "rejected", "bad_probes", "bad_at", "bad_until"),
)


@dataclasses.dataclass
class Position:
    """Where a merger is in its stream of tasks.

    Attributes:
        tasks_begun, tasks_done: tasks entered, and left without an exception.
        in_task: inside ``task()``.
        monitors: this task has a memory, so probes and merges happen.
        probe_pending: ``probe="before"``: a probe was launched for the coming update.
        steps_made: memory steps made of a merge that ``step()`` drives; None outside one.
        ending: the task was trained to its end, only its last merge may be under way.
    """

    tasks_begun: int = 0
    tasks_done: int = 0
    in_task: bool = False
    monitors: bool = False
    probe_pending: bool = False
    steps_made: int | None = None
    ending: bool = False


class Parts(NamedTuple):
    """What a merger is made of."""

    config: AIMConfig
    position: Position
    binding: Binding
    controller: Controller
    rehearsal: Rehearsal | None
    processes: Processes


def save(parts: Parts) -> dict[str, Any]:
    """The state of a merger on this rank; blocks until the device has posted all it was asked."""
    config, position, binding, controller, rehearsal, processes = parts
    controller.finish_records()
    controller.drain()
    rehearses = position.in_task and position.monitors and rehearsal is not None
    return {
        "version": VERSION,
        "world": processes.world,
        "rank": processes.rank,
        "config": config.to_dict(),
        "parameters": binding.parameters.signature(),
        **dataclasses.asdict(position),
        "controller": {name: getattr(controller, name) for name in _CONTROLLER_FIELDS},
        "host": {name: getattr(controller.host, name) for name in _HOST_FIELDS},
        "records_read": controller.mailbox.read,
        "states": [kernels.save_state(state) for state in binding.states],
        "anchors": [anchor.clone() for anchor in binding.anchors],
        "mids": [mid.clone() for mid in binding.mids],
        "rehearsal": rehearsal.state_dict() if rehearsal is not None and rehearses else None,
        "memory_optimizer": rehearsal.optimizer_state() if rehearsal is not None else None,
    }


def load(saved: dict[str, Any], parts: Parts) -> dict[str, Any] | None:
    """Check ``saved``, then put it back; returns it when a task is to be entered, else None."""
    _check(saved, parts)
    _, position, binding, controller, rehearsal, _ = parts
    binding.heal()
    for target, source in zip(binding.states, saved["states"], strict=True):
        kernels.load_state(target, source)
    for name in ("anchors", "mids"):
        for target, source in zip(getattr(binding, name), saved[name], strict=True):
            target.copy_(source)
    for name in _CONTROLLER_FIELDS:
        setattr(controller, name, saved["controller"][name])
    for name in _HOST_FIELDS:
        setattr(controller.host, name, saved["host"][name])
    controller.mailbox.read = saved["records_read"]
    if rehearsal is not None and saved["memory_optimizer"] is not None:
        rehearsal.load_optimizer_state(saved["memory_optimizer"])
    for field in dataclasses.fields(position):
        setattr(position, field.name, saved[field.name])
    position.in_task = False
    return saved if saved["in_task"] else None


def check_fusion(saved: dict[str, Any], importances: Importances | None) -> None:
    """``ValueError`` unless both the state and the merger fuse by the same settings, or neither."""
    theirs = saved.get("fusion") if isinstance(saved, dict) else None
    if (theirs is None) != (importances is None):
        with_it = "with" if theirs is not None else "without"
        raise ValueError(f"the state was saved {with_it} fusion=; build the merger {with_it} it")
    if importances is not None and theirs is not None:
        importances.check_state(theirs)


def enter(
    saved: dict[str, Any],
    name: str,
    memory: RehearsalMemory | None,
    rehearsal: Rehearsal | None,
) -> None:
    """Go on with the task that ``saved`` was saved in; an error changes nothing."""
    task = saved["controller"]["task"]
    if name != task:
        raise RuntimeError(
            f"the restored state was saved inside task {task!r}, not {name!r}; enter that task "
            "first, or build a new merger"
        )
    if saved["rehearsal"] is None:
        if memory is not None and len(memory):
            raise ValueError(f"task {task!r} was saved without rehearsal; pass memory=None")
        return
    if memory is None or rehearsal is None:
        raise ValueError(f"task {task!r} was saved with a memory; pass the same memory")
    if memory.fingerprint() != saved["rehearsal"]["memory"]:
        raise ValueError(
            f"the memory differs from the one that task {task!r} was saved with; add the same "
            "records in the same order with the same ratio and seed"
        )
    rehearsal.load_state_dict(saved["rehearsal"], memory, saved["tasks_begun"] - 1)


def _check(saved: dict[str, Any], parts: Parts) -> None:
    config, _, binding, controller, rehearsal, processes = parts
    version = saved.get("version") if isinstance(saved, dict) else None
    if version != VERSION:
        raise ValueError(f"state of version {version!r}; this package reads version {VERSION}")
    _check_types("the state", saved, _TYPES)
    for part, owner, names in (
        ("controller", controller, _CONTROLLER_FIELDS),
        ("host", controller.host, _HOST_FIELDS),
    ):
        types: _Types = {name: (type(getattr(owner, name)),) for name in names}
        for name in _MESSAGES & types.keys():
            types[name] = (str, type(None))
        _check_types(f"the state's {part!r}", saved[part], types)
    _check_config(config, saved["config"])
    _check_ranks(processes, saved["rank"], saved["world"])
    _check_parameters(binding.parameters.signature(), saved["parameters"])
    for name in ("states", "anchors", "mids"):
        mine, theirs = getattr(binding, name), saved[name]
        if not all(isinstance(t, torch.Tensor) and t.dtype == torch.uint8 for t in theirs):
            raise ValueError(f"the state's {name} are not all tensors of bytes")
        bytes_here = [kernels.SAVED_BYTES if name == "states" else t.numel() for t in mine]
        sizes = bytes_here, [t.numel() for t in theirs]
        if sizes[0] != sizes[1]:
            raise ValueError(f"the state's {name} have {sizes[1]} bytes, this model's {sizes[0]}")
    if rehearsal is not None:
        rehearsal.check_state(saved["rehearsal"], saved["memory_optimizer"])
    elif saved["rehearsal"] or saved["memory_optimizer"]:
        raise ValueError("the state holds rehearsal; give optimizer= and collate= to the merger")


_Types = dict[str, tuple[type, ...]]
_TYPES: _Types = {
    **dict.fromkeys(("config", "controller", "host"), (dict,)),
    **dict.fromkeys(("parameters", "states", "anchors", "mids"), (list,)),
    **dict.fromkeys(("in_task", "monitors", "probe_pending", "ending"), (bool,)),
    **dict.fromkeys(("tasks_begun", "tasks_done", "records_read", "rank", "world"), (int,)),
    "steps_made": (int, type(None)),
    **dict.fromkeys(("rehearsal", "memory_optimizer"), (dict, type(None))),
}
_MESSAGES = {"rejected", "bad_probes"}


def _check_types(what: str, saved: dict[str, Any], types: _Types) -> None:
    for name, kinds in types.items():
        if name not in saved:
            raise ValueError(f"{what} lacks {name!r}; it was not made by state_dict()")
        if type(saved[name]) not in kinds:
            kind = type(saved[name]).__name__
            raise ValueError(f"{what} has a {kind} as {name!r}; it was not made by state_dict()")


def _check_config(mine: AIMConfig, theirs: dict[str, Any]) -> None:
    fields = mine.to_dict()
    for name in sorted(set(fields) | set(theirs)):
        if fields.get(name) != theirs.get(name):
            raise ValueError(
                f"the state was saved with {name}={theirs.get(name)!r}, this merger has "
                f"{name}={fields.get(name)!r}; build the merger with the saved config"
            )


def _check_ranks(processes: Processes, rank: int, world: int) -> None:
    if (rank, world) != (processes.rank, processes.world):
        raise ValueError(
            f"the state is that of rank {rank} of {world}, this is rank {processes.rank} of "
            f"{processes.world}; go on with as many ranks, each with its own state"
        )


def _check_parameters(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    for index in range(max(len(mine), len(theirs))):
        a = mine[index] if index < len(mine) else None
        b = theirs[index] if index < len(theirs) else None
        if a != b:
            name = (a or b or {})["name"]
            raise ValueError(
                f"the state is of another model: parameter {index} is {b} in the state and {a} "
                f"here (first difference: {name!r})"
            )
