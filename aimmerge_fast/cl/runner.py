"""The whole run: every arm with every seed on one stream, resumable, into ``results.json``."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from aimmerge_fast.cl import checkpoint, models
from aimmerge_fast.cl.arm import RESULT, Arm
from aimmerge_fast.cl.config import ArmSpec, RunConfig
from aimmerge_fast.cl.context import Context, new_memory
from aimmerge_fast.cl.data import load_stream
from aimmerge_fast.cl.encode import Encoder
from aimmerge_fast.cl.matching import matched_settings
from aimmerge_fast.cl.methods import method_class
from aimmerge_fast.cl.parallel import Ranks
from aimmerge_fast.cl.plain import train_singles
from aimmerge_fast.cl.progress import View
from aimmerge_fast.cl.streams import stream

VERSION = 1
SETTINGS, RESULTS = "run.json", "results.json"


def run(config: RunConfig, console: Console | None = None) -> dict[str, Any]:
    """Train and evaluate what is left of the run in ``config.out``; returns its results.

    A run that was killed goes on at its last save, to the same bits. Arms and seeds may be added
    to a finished run; several processes may work on different arms of one run.

    Raises:
        ValueError: settings that cannot work, records or a model that do not fit them, a folder
            that holds another run (the first difference is named). Nothing is lost.
        OSError: files that cannot be read or written.
    """
    check_arms(config)
    context = prepare(config, console)
    claim(config.out, context)
    try:
        for seed in config.seeds:
            for spec in config.arms:
                _one_arm(context, spec, seed)
            if config.single:
                train_singles(context, seed)
        results = collect(context)
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


def prepare(config: RunConfig, console: Console | None = None) -> Context:
    """Load records and model; everything that can be wrong with them shows here."""
    if config.threads:
        torch.set_num_threads(config.threads)
    ranks = Ranks()
    chosen, tasks = load_stream(
        config.data,
        stream(config.stream),
        format=config.format,
        available=config.available,
        variant=config.variant,
        test_items=config.test_items,
        dev_items=config.dev_items,
    )
    sha256 = models.fingerprint(config.model)
    loaded = models.load_model(config.model, dtype=config.dtype, attention=config.attention)
    encoder = Encoder(
        loaded.tokenizer,
        seq2seq=loaded.seq2seq,
        max_input=config.max_input,
        max_target=config.max_target,
        max_tokens=config.max_tokens,
        template=config.template,
    )
    for task in tasks:
        encoder.check(task.train, task.name)
    return Context(
        config=config,
        stream=chosen,
        tasks=tasks,
        base=loaded.model.to(ranks.device),
        encoder=encoder,
        seq2seq=loaded.seq2seq,
        model_sha256=sha256,
        ranks=ranks,
        view=View(console if ranks.is_main else None),
        commit=commit(),
    )


def claim(out: Path, context: Context) -> None:
    """Write the run's settings into its folder, or compare with those there."""
    wanted = {"version": VERSION, "identity": context.identity()}
    path = out / SETTINGS
    if not path.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise ValueError(f"{out} is not empty and holds no run; give another folder")
        if context.ranks.is_main:
            checkpoint.write_json(path, {**wanted, "settings": context.config.to_json()})
        context.ranks.wait()
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


def _one_arm(context: Context, spec: ArmSpec, seed: int) -> None:
    with _locked(context.folder_of(spec, seed), context.ranks):
        settings = matched_settings(context, spec, seed)
        arm = Arm(context, spec, seed, settings)
        _claim_arm(arm)
        arm.run()
    if context.ranks.is_main:
        collect(context)


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
    ):
        if found.get(key) != json.loads(json.dumps(mine)):
            raise ValueError(
                f"{arm.folder} holds an arm with {key}={found.get(key)!r}, not {mine!r}; give this "
                "arm another name"
            )


@contextlib.contextmanager
def _locked(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Hold an arm's folder for this run; the lock ends with the process, however it ends."""
    if not ranks.is_main:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is training in {folder}; wait for it") from None
        yield


def collect(context: Context) -> dict[str, Any]:
    """All arms of the run folder as ``results.json``; those of other processes, too."""
    config = context.config
    arms = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(config.out.glob(f"*/{RESULT}"))
    ]
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
    if context.ranks.is_main:
        checkpoint.write_json(config.out / RESULTS, results)
    return results


def machine(device: torch.device) -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), name)
    on_gpu = device.type == "cuda"
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "transformers", "peft", "aimmerge_fast"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def commit() -> str | None:
    """The commit of the source tree this package was imported from, if it is one."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        nested = isinstance(value, dict)
        flat.update(_flat(value, f"{prefix}{key}.") if nested else {prefix + key: value})
    return flat
