"""What a bit-identical resume needs, gathered from and put back into a merger.

Everything is checked before anything is changed. Nothing is pickled here: the dict holds JSON-able
scalars and flat tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.memory import RehearsalMemory

if TYPE_CHECKING:
    from aimmerge_fast.merger import FastAIMMerger

VERSION = 1
_HOST_FIELDS = ("S", "t", "steps", "known_t", "known_F", "memory_steps")
_CONTROLLER_FIELDS = (
    *("launched", "observed", "reported", "bad_in_a_row", "is_open", "open_known"),
    *("merge_steps", "task", "rejected", "bad_probes"),
)


def save(merger: FastAIMMerger) -> dict[str, Any]:
    """The merger's state; blocks until the device has posted all it was asked for."""
    controller, binding = merger.controller, merger.binding
    controller.finish_records()
    controller.drain()
    saved: dict[str, Any] = {
        "version": VERSION,
        "config": merger.config.to_dict(),
        "parameters": binding.parameters.signature(),
        "tasks_begun": merger.tasks_begun,
        "in_task": merger.in_task,
        "monitors": merger.monitors,
        "probe_pending": merger.probe_pending,
        "controller": {name: getattr(controller, name) for name in _CONTROLLER_FIELDS},
        "host": {name: getattr(controller.host, name) for name in _HOST_FIELDS},
        "records_read": controller.mailbox.read,
        "states": [state.clone() for state in binding.states],
        "anchors": [anchor.clone() for anchor in binding.anchors],
        "mids": [mid.clone() for mid in binding.mids],
        "rehearsal": None,
        "memory_optimizer": merger.rehearsal.optimizer_state() if merger.rehearsal else None,
    }
    if merger.in_task and merger.monitors and merger.rehearsal is not None:
        saved["rehearsal"] = merger.rehearsal.state_dict()
    return saved


def load(merger: FastAIMMerger, saved: dict[str, Any]) -> None:
    """Check ``saved`` against the merger, then put it back; see ``FastAIMMerger``."""
    _check(merger, saved)
    controller, binding = merger.controller, merger.binding
    binding.heal()
    for name in ("states", "anchors", "mids"):
        for target, source in zip(getattr(binding, name), saved[name], strict=True):
            if name == "states":
                kernels.load_state(target, source)
            else:
                target.copy_(source)
    for name in _CONTROLLER_FIELDS:
        setattr(controller, name, saved["controller"][name])
    for name in _HOST_FIELDS:
        setattr(controller.host, name, saved["host"][name])
    controller.mailbox.read = saved["records_read"]
    if merger.rehearsal is not None and saved["memory_optimizer"] is not None:
        merger.rehearsal.load_optimizer_state(saved["memory_optimizer"])
    merger.tasks_begun = saved["tasks_begun"]
    merger.monitors = saved["monitors"]
    merger.probe_pending = saved["probe_pending"]
    merger.resumed = saved if saved["in_task"] else None


def resume(merger: FastAIMMerger, name: str, memory: RehearsalMemory | None) -> None:
    """Enter the task that the loaded state was saved in."""
    saved = merger.resumed
    assert saved is not None
    task = saved["controller"]["task"]
    if name != task:
        raise RuntimeError(
            f"the restored state was saved inside task {task!r}, not {name!r}; enter that task "
            "first, or build a new merger"
        )
    if saved["rehearsal"] is None and memory is not None and len(memory):
        raise ValueError(f"task {task!r} was saved without rehearsal; pass memory=None")
    if saved["rehearsal"] is not None:
        if memory is None or merger.rehearsal is None:
            raise ValueError(f"task {task!r} was saved with a memory; pass the same memory")
        fingerprint = saved["rehearsal"]["memory"]
        if memory.fingerprint() != fingerprint:
            raise ValueError(
                f"the memory differs from the one that task {task!r} was saved with; add the same "
                "records in the same order with the same ratio and seed"
            )
        merger.rehearsal.load_state_dict(saved["rehearsal"], memory, merger.tasks_begun - 1)
    merger.resumed = None


def _check(merger: FastAIMMerger, saved: dict[str, Any]) -> None:
    version = saved.get("version") if isinstance(saved, dict) else None
    if version != VERSION:
        raise ValueError(f"state of version {version!r}; this package reads version {VERSION}")
    _check_types("the state", saved, _TYPES)
    controller = merger.controller
    for part, owner, names in (
        ("controller", controller, _CONTROLLER_FIELDS),
        ("host", controller.host, _HOST_FIELDS),
    ):
        types: _Types = {name: (type(getattr(owner, name)),) for name in names}
        for name in _MESSAGES & types.keys():
            types[name] = (str, type(None))
        _check_types(f"the state's {part!r}", saved[part], types)
    _check_config(merger.config, saved["config"])
    _check_parameters(merger.binding.parameters.signature(), saved["parameters"])
    for name in ("states", "anchors", "mids"):
        mine, theirs = getattr(merger.binding, name), saved[name]
        if not all(isinstance(t, torch.Tensor) and t.dtype == torch.uint8 for t in theirs):
            raise ValueError(f"the state's {name} are not all tensors of bytes")
        sizes = [t.numel() for t in mine], [t.numel() for t in theirs]
        if sizes[0] != sizes[1]:
            raise ValueError(f"the state's {name} have {sizes[1]} bytes, this model's {sizes[0]}")
    if (saved["rehearsal"] or saved["memory_optimizer"]) and merger.rehearsal is None:
        raise ValueError("the state holds rehearsal; give optimizer= and collate= to the merger")


_Types = dict[str, tuple[type, ...]]
_TYPES: _Types = {
    **dict.fromkeys(("config", "controller", "host"), (dict,)),
    **dict.fromkeys(("parameters", "states", "anchors", "mids"), (list,)),
    **dict.fromkeys(("in_task", "monitors", "probe_pending"), (bool,)),
    **dict.fromkeys(("tasks_begun", "records_read"), (int,)),
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
