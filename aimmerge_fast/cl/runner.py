"""The whole run: every arm with every seed on one stream, resumable, into ``results.json``."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from aimmerge_fast.cl import checkpoint
from aimmerge_fast.cl.arm import Arm
from aimmerge_fast.cl.arm_folder import RESULT
from aimmerge_fast.cl.config import ArmSpec, RunConfig
from aimmerge_fast.cl.context import Context, new_memory
from aimmerge_fast.cl.locking import held
from aimmerge_fast.cl.machine import machine, versions
from aimmerge_fast.cl.matching import matched_settings
from aimmerge_fast.cl.methods import method_class
from aimmerge_fast.cl.metrics import summary
from aimmerge_fast.cl.parallel import Ranks
from aimmerge_fast.cl.plain import single_scores, train_singles
from aimmerge_fast.cl.prepare import prepare

VERSION = 1
SETTINGS, RESULTS = "run.json", "results.json"


def run(
    config: RunConfig, console: Console | None = None, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Train and evaluate what is left of the run in ``config.out``; returns its results.

    A run that was killed goes on at its last save, to the same bits. Arms and seeds may be added
    to a finished run; several processes may work on different arms of one run: ``only`` names
    those that this one trains.

    Raises:
        ValueError: settings that cannot work, records or a model that do not fit them, a folder
            that holds another run (the first difference is named). Nothing is lost.
        OSError: files that cannot be read or written.
    """
    check_arms(config)
    known = [spec.name for spec in config.arms]
    for name in only:
        if name not in known:
            raise ValueError(f"no arm {name!r} in this run; they are {', '.join(known)}")
    context = prepare(config, console)
    claim(config.out, context)
    try:
        for seed in config.seeds:
            if config.single:
                train_singles(context, seed)
            for spec in config.arms:
                if not only or spec.name in only:
                    _one_arm(context, spec, seed)
        results = context.ranks.from_main(lambda: collect(context))
    finally:
        context.view.close()
    return results


def check_arms(config: RunConfig) -> None:
    """Every arm's method and settings, before anything is loaded; ``ValueError`` names the arm."""
    for spec in config.arms:
        try:
            kind = method_class(spec.method)
            settings = {k: v for k, v in spec.settings.items() if k != "match"}
            if "match" in spec.settings:
                kind.check_match(spec.settings["match"], [arm.name for arm in config.arms])
            kind.check(settings, config)
        except ValueError as error:
            raise ValueError(f"arm {spec.name!r}: {error}") from None
    new_memory(config, config.seeds[0])


def claim(out: Path, context: Context) -> None:
    """Write the run's settings into its folder, or compare with those there."""
    context.ranks.from_main(lambda: _claim(out, context))


def _claim(out: Path, context: Context) -> None:
    wanted: dict[str, Any] = {"version": VERSION, "identity": context.identity()}
    path = out / SETTINGS
    there = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    if SETTINGS not in there:  # one look: another process may begin the same run at this moment
        if any(not name.startswith(".") for name in there):
            raise ValueError(f"{out} is not empty and holds no run; give another folder")
        checkpoint.write_json(path, {**wanted, "settings": context.config.to_json()})
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    if found.get("version") != VERSION:
        raise ValueError(
            f"{out} holds a run of version {found.get('version')!r}, this is version {VERSION}; "
            "give another folder"
        )
    mine, theirs = _flat(wanted["identity"]), _flat(found["identity"])
    for key in [*mine, *theirs]:
        if mine.get(key) != theirs.get(key):
            raise ValueError(
                f"{out} holds a run with {key}={theirs.get(key)!r}, not {mine.get(key)!r}; repeat "
                "that run's command, or give another folder"
            )


def is_main() -> bool:
    """Whether this process is the one of its run that writes and talks."""
    return Ranks().is_main


def _one_arm(context: Context, spec: ArmSpec, seed: int) -> None:
    with held(context.folder_of(spec, seed), context.ranks):
        settings = matched_settings(context, spec, seed)
        arm = Arm(context, spec, seed, settings)
        context.ranks.from_main(lambda: _claim_arm(arm))
        arm.run()
    context.ranks.from_main(lambda: collect(context))


def _claim_arm(arm: Arm) -> None:
    """An arm's name belongs to one method and its settings."""
    path = arm.folder / RESULT
    if not path.is_file():
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    for key, mine in (
        ("method", arm.spec.method),
        ("settings", arm.settings),
        ("memory_epochs", arm.spec.memory_epochs),
        ("memory_ratio", arm.spec.memory_ratio or arm.context.config.memory_ratio),
    ):
        if found.get(key) != json.loads(json.dumps(mine)):
            raise ValueError(
                f"{arm.folder} holds an arm with {key}={found.get(key)!r}, not {mine!r}; give this "
                "arm another name"
            )


def collect(context: Context) -> dict[str, Any]:
    """All arms of the run folder as ``results.json``; those of other processes, too."""
    config = context.config
    arms = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(config.out.glob(f"*/{RESULT}"))
    ]
    for arm in arms:  # tasks alone are trained after the arms
        arm["single"] = single_scores(context, arm["seed"])
        if arm["finished"]:
            arm["metrics"] = summary(arm["scores"], single=arm["single"], initial=arm["initial"])
    order = {arm.name: place for place, arm in enumerate(config.arms)}
    arms.sort(key=lambda arm: (order.get(arm["name"], len(order)), arm["name"], arm["seed"]))
    results = {
        "version": VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": context.commit,
        "machine": machine(context.ranks.device),
        "versions": versions(),
        "settings": {**config.to_json(), "model_sha256": context.model_sha256},
        "stream": {
            "name": context.stream.name,
            "tasks": [task.name for task in context.tasks],
            "benchmark": context.stream.benchmark,
            "label": context.stream.label,
        },
        "tasks": {
            task.name: {
                "metric": task.metric,
                "train": len(task.train),
                "dev": len(task.dev),
                "test": len(task.test),
                "notes": list(task.notes),
                "sha256": task.sha256,
            }
            for task in context.tasks
        },
        "arms": arms,
    }
    checkpoint.write_json(config.out / RESULTS, results)
    return results


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        nested = isinstance(value, dict)
        flat.update(_flat(value, f"{prefix}{key}.") if nested else {prefix + key: value})
    return flat
