"""The whole run: every arm with every seed on one stream, resumable, into ``results.json``."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from aimmerge_fast.cl.arm import Arm
from aimmerge_fast.cl.arm_folder import RESULT
from aimmerge_fast.cl.config import ArmSpec, RunConfig
from aimmerge_fast.cl.context import Context, new_memory
from aimmerge_fast.cl.locking import alone, held
from aimmerge_fast.cl.machine import machine, versions
from aimmerge_fast.cl.matching import check_match, matched_settings
from aimmerge_fast.cl.methods import method_class
from aimmerge_fast.cl.metrics import summary
from aimmerge_fast.cl.parallel import Ranks
from aimmerge_fast.cl.plain import single_scores, train_singles
from aimmerge_fast.cl.prepare import prepare
from aimmerge_fast.durable.files import read_json, write_json

VERSION = 1
SETTINGS, RESULTS = "run.json", "results.json"


def run(
    config: RunConfig, console: Console | None = None, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Train and evaluate what is left of the run in ``config.out``; returns its results.

    A run that was killed goes on at its last save, to the same bits. Arms and seeds may be added
    to a finished run; several processes may work on different arms of one run: ``only`` names
    those that this one trains. An arm that ends too early (a loss that is not finite, a merge that
    was rejected, nothing to match) has the reason as ``failed`` in the results and does not stop
    the others; the next call goes on with it at its last save.

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
        return context.ranks.from_main(lambda: collect(context))
    except BaseException:
        if context.ranks.is_main:  # what there is can be reported; the error is what matters
            with contextlib.suppress(Exception):
                collect(context)
        raise
    finally:
        context.view.close()


def failures(results: Mapping[str, Any]) -> list[str]:
    """What the run asked for and did not get, a line each: arms that failed, tasks alone."""
    settings, tasks = results["settings"], results["stream"]["tasks"]
    names = [arm["name"] for arm in settings["arms"]]
    found = []
    for arm in results["arms"]:
        if arm["name"] in names and arm["seed"] in settings["seeds"]:
            if arm.get("failed"):
                found.append(f"arm {arm['name']!r} with seed {arm['seed']} failed: {arm['failed']}")
            single = zip(tasks, arm["single"] or [], strict=False)
            lost = [name for name, score in single if score is None and settings["single"]]
            found += [f"task {name!r} alone with seed {arm['seed']} has no score" for name in lost]
    return list(dict.fromkeys(found))


def check_arms(config: RunConfig) -> None:
    """Every arm's method and settings, before anything is loaded; ``ValueError`` names the arm."""
    for spec in config.arms:
        try:
            kind = method_class(spec.method)
            settings = {k: v for k, v in spec.settings.items() if k != "match"}
            check_match(spec, config.arms)
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
        with alone(out):
            if not path.is_file():
                write_json(path, {**wanted, "settings": context.config.to_json()})
    found = read_json(path)
    if found.get("version") != VERSION:
        raise ValueError(
            f"{out} holds a run of version {found.get('version')!r}, this is version {VERSION}; "
            "give another folder"
        )
    mine, theirs = _flat(json.loads(json.dumps(wanted["identity"]))), _flat(found["identity"])
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
    """Ends it too early, ``failed`` says why: on every rank alike, whose numbers are the same."""
    ranks, reason = context.ranks, None
    with held(context.folder_of(spec, seed), ranks):
        try:
            settings = matched_settings(context, spec, seed)
        except ValueError as error:  # the arm that it matches
            settings, reason = dict(spec.settings), str(error)
        arm = Arm(context, spec, seed, settings, lambda: _collect(context))
        found = ranks.from_main(lambda: _claim_arm(arm, matched=reason is None))
        if reason is None:
            try:
                arm.run()
            except FloatingPointError as error:
                reason = str(error)
        else:
            arm.settings = found.get("settings", settings)  # those that it was trained with so far
        if reason is not None:
            arm.fail(reason)
    _collect(context)


def _claim_arm(arm: Arm, matched: bool) -> dict[str, Any]:
    """An arm's name belongs to one method and its settings; what is there under the name.

    ``matched`` False: the settings are not known.
    """
    path = arm.folder / RESULT
    if not path.is_file():
        return {}
    found, spec = read_json(path), arm.spec
    ratio = spec.memory_ratio or arm.context.config.memory_ratio
    known: list[tuple[str, list[Any]]] = [
        ("method", [spec.method]),
        ("memory_epochs", [spec.memory_epochs]),
        ("memory_ratio", [ratio]),
    ]
    if matched:  # as given: it failed before its match was known
        known.insert(1, ("settings", [arm.settings, spec.settings]))
    for key, mine in known:
        if found.get(key) not in json.loads(json.dumps(mine)):
            raise ValueError(
                f"{arm.folder} holds an arm with {key}={found.get(key)!r}, not {mine[0]!r}; give "
                "this arm another name"
            )
    return found


def _collect(context: Context) -> None:
    context.ranks.from_main(lambda: collect(context))


def collect(context: Context) -> dict[str, Any]:
    """All arms of the run folder as ``results.json``; those of other processes, too."""
    with alone(context.config.out):
        return _collected(context)


def _collected(context: Context) -> dict[str, Any]:
    config = context.config
    arms = [read_json(path) for path in sorted(config.out.glob(f"*/{RESULT}"))]
    for arm in arms:  # a later call may have trained the tasks alone
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
    write_json(config.out / RESULTS, results)
    return results


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        nested = isinstance(value, dict)
        flat.update(_flat(value, f"{prefix}{key}.") if nested else {prefix + key: value})
    return flat
