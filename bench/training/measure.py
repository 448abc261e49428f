"""Measure one backbone: the checks, the counts, then the arms block by block, interleaved."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable
from typing import Any

import torch

from overhead.gate import GateError
from training import blocks, check, engine, models, phases, results
from training.arms import Arm, Matched, Setup, set_up
from training.blocks import ARMS, COUNTED, Block
from training.ours import Ours, OursAfter, OursBefore
from training.settings import DTYPES, Settings
from training.store import Store

Progress = Callable[[str], None]
#: Seconds that the engine alone is driven for.
_ENGINE_SECONDS = 2.0
#: Between them every shape of batch; what the released arms have of their own, counting warms.
_WARMING: tuple[type[Arm], ...] = (Matched, Ours)


def backbone(
    name: str,
    settings: Settings,
    device: torch.device,
    store: Store,
    progress: Progress,
    minutes: float | None,
) -> dict[str, Any]:
    """Fill the store's record of a backbone with whatever it still lacks, and return it.

    ``minutes``: no further repeat is begun that would not end in time.

    Raises: GateError before anything is timed, or when two arms trained on different batches.
    """
    begin = time.monotonic()
    found = store.backbone(name, settings.to_dict())
    if not missing(found, settings):
        progress(f"{name}: finished before")
        return found
    store.measuring(name)
    progress(f"{name}: building the model, {settings.layers} layers, {settings.dtype}")
    setup = set_up(name, settings, device, DTYPES[settings.dtype])
    found["model"] = _facts(setup.model, setup.parameters, name)
    progress(f"{name}: checking")
    found["checked"] = check.run(setup)
    if device.type == "cuda":
        progress(f"{name}: warming up")
        for kind in _WARMING:
            blocks.untimed(kind, setup)
    _count(setup, found, store, progress)
    if "engine" not in found:
        found["engine"] = dataclasses.asdict(engine.measure(setup, _ENGINE_SECONDS))
        store.save()
    longest = 0.0
    for repeat in range(settings.repeats):
        started = time.monotonic()
        spent = (started - begin + longest) / 60
        if minutes is not None and repeat and spent > minutes:
            progress(f"{name}: stopped before repeat {repeat + 1}, it would end too late")
            break
        _repeat(setup, found, store, progress, repeat)
        longest = max(longest, time.monotonic() - started)
    require_same_batches(found)
    found["summary"] = results.summarise(name, found, device)  # kept if the rest is stopped
    store.save()
    if minutes is None or (time.monotonic() - begin + longest) / 60 <= minutes:
        _phases(setup, found, store, progress)
    return found


def missing(found: dict[str, Any], settings: Settings) -> list[tuple[str, int]]:
    """Arm and repeat of the blocks that are still to be run."""
    done = {(block["arm"], block["repeat"]) for block in found["blocks"]}
    wanted = [(kind.name, repeat) for repeat in range(settings.repeats) for kind in ARMS]
    return [block for block in wanted if block not in done]


def require_same_batches(found: dict[str, Any]) -> None:
    """``GateError`` unless all arms but ``replay`` trained on the same task rows in every block."""
    plain = {b["task_rows"] for b in found["blocks"] if b["arm"] == "plain"}
    for block in found["blocks"]:
        if block["arm"] != "replay" and {block["task_rows"]} != plain:
            raise GateError(f"{block['arm']}: trained on other task rows than plain LoRA")


def _count(setup: Setup, found: dict[str, Any], store: Store, progress: Progress) -> None:
    """Synchronising calls of each arm that could have some, waits of both probe modes."""
    counted = {one["arm"] for one in found["counts"]}
    for kind in COUNTED:
        if kind.name not in counted:
            progress(f"{setup.name}: counting synchronising calls, {kind.title}")
            found["counts"].append(blocks.counted(kind, setup))
            store.save()
    if setup.device.type != "cuda":
        return  # the engine has answered when its call returns
    waited = {one["arm"] for one in found["waits"]}
    for kind in (OursBefore, OursAfter):
        if kind.name not in waited:
            progress(f"{setup.name}: counting waits, {kind.title}")
            found["waits"].append(blocks.untimed(kind, setup))
            store.save()


def _phases(setup: Setup, found: dict[str, Any], store: Store, progress: Progress) -> None:
    """Where the time goes, of the arms that AIM is held against and of AIM."""
    measured = found.setdefault("phases", [])  # a file may be older than they are
    seen = {one["arm"] for one in measured}
    for kind in phases.PHASED:
        if kind.name not in seen:
            progress(f"{setup.name}: where the time goes, {kind.title}")
            measured.append(phases.measure(kind, setup))
            store.save()


def _repeat(
    setup: Setup, found: dict[str, Any], store: Store, progress: Progress, repeat: int
) -> None:
    """Every arm's block of this repeat that is missing; each repeat begins with another arm."""
    gc.collect()  # what earlier arms kept
    for kind in _rotated(repeat):
        if (kind.name, repeat) not in missing(found, setup.settings):
            continue
        block: Block = blocks.timed(kind, setup, repeat)
        found["blocks"].append(dataclasses.asdict(block))
        store.save()
        progress(
            f"{setup.name}: repeat {repeat + 1} of {setup.settings.repeats}, {kind.title}: "
            f"{block.step_seconds:.3f} s per step"
        )


def _rotated(repeat: int) -> tuple[type[Arm], ...]:
    first = repeat % len(ARMS)
    return ARMS[first:] + ARMS[:first]


def _facts(model: Any, trained: list[torch.nn.Parameter], name: str) -> dict[str, Any]:
    return {
        "of_layers": models.all_layers(name),
        "parameters": sum(p.numel() for p in model.parameters()),
        "entries": sum(p.numel() for p in trained),
        "tensors": len(trained),
    }
