"""A run that never was: the same numbers every time, as a run folder writes them.

Three tasks of 120 updates, four arms, two seeds. Losses fall and rise as they do in training; the
events of the merging arm are the decisions of the reference controller on those losses.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aimmerge_fast.config import AIMConfig
from aimmerge_fast.events import Close, Event, Measure, Open, Probe, TaskBegin, TaskEnd, to_json
from aimmerge_fast.reference.controller import reference_controller
from aimmerge_fast.report import summarise

TASKS = ("dbpedia", "yahoo", "agnews")
STEPS = 120
SEEDS = (42, 43)
#: Arm -> score matrix of seed 42; seed 43 scores ``SEED_STEP`` more wherever it was tested.
SCORES: dict[str, list[list[float | None]]] = {
    "seqlora": [[83.0, None, None], [70.5, 58.0, None], [59.5, 48.0, 90.5]],
    "replay": [[83.0, None, None], [79.0, 59.5, None], [67.5, 56.5, 86.0]],
    "aim": [[83.0, None, None], [72.0, 58.0, None], [75.5, 59.5, 88.5]],
    "mtl": [[84.0, 63.0, 89.0]],
}
SEED_STEP = 1.0
LABELS = {"seqlora": "SeqLoRA", "replay": "LoRAReplay", "aim": "AIMMerging", "mtl": "MTL"}
METRICS: dict[str, dict[str, float | None]] = {
    "seqlora": {"OP": 66.0, "BWT": -16.75, "FWT": -2.5},
    "replay": {"OP": 70.0, "BWT": -9.25, "FWT": -3.5},
    "aim": {"OP": 74.5, "BWT": -3.0, "FWT": -3.0},
    "mtl": {"OP": 78.0 + 2.0 / 3.0, "BWT": None, "FWT": None},
}


def results(seeds: Sequence[int] = SEEDS, arms: Sequence[str] = tuple(SCORES)) -> dict[str, Any]:
    """What ``results.json`` holds; change it as a test needs."""
    return {
        "version": 1,
        "created": "2026-01-01T00:00:00+00:00",
        "commit": "0123456",
        "machine": {"cpu": "a CPU", "cores": 2, "threads": 1, "device": "cpu"},
        "versions": {"python": "3.11.7", "torch": "2.10.0", "aimmerge_fast": "0.1.0"},
        "settings": {
            **{"stream": "dbpedia,yahoo,agnews", "model": "models/tiny-135m", "dtype": "float32"},
            **{"steps": STEPS, "epochs": 10, "batch": 8, "lr": 3e-4, "max_tokens": 96},
            **{"rank": 8, "alpha": 32, "dropout": 0.05, "targets": None, "template": "plain"},
            **{"memory_ratio": 0.02, "memory_rule": "balanced", "memory_size": None},
            **{"test_items": 200, "dev_items": 0, "max_new_tokens": 128, "select": "last"},
        },
        "stream": {
            **{"name": "order1", "tasks": list(TASKS), "benchmark": "Standard CL"},
            **{"label": "3 of 4 tasks"},
        },
        "tasks": {
            "dbpedia": _task("no test file: half of dev selects, half tests"),
            "yahoo": _task("no test file: half of dev selects, half tests"),
            "agnews": _task(),
        },
        "arms": [_arm(name, seed) for seed in seeds for name in arms],
    }


def write_run(folder: Path, content: dict[str, Any] | None = None) -> Path:
    """``results.json`` and every arm's events, in ``folder``."""
    content = results() if content is None else content
    folder.mkdir(parents=True, exist_ok=True)
    for arm in content["arms"]:
        if arm["events"] is not None:
            path = folder / arm["events"]
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = (to_json(event) + "\n" for event in events(arm["method"], arm["seed"]))
            path.write_text("".join(lines), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def events(method: str, seed: int) -> list[Event]:
    """Of one arm: ``aim`` merges, ``seqlora`` is only watched, the others have none."""
    if method not in ("aim", "seqlora"):
        return []
    schedule = "adaptive" if method == "aim" else "monitor"
    config = AIMConfig(schedule=schedule, seed=seed, **({"s_init": 2} if method == "aim" else {}))
    found: list[Event] = []
    for place, task in enumerate(TASKS):
        found.append(TaskBegin(task, 0, 20 * place, config.to_dict()))
        if place:
            found += _stage(task, place, config, method, seed)
        found.append(TaskEnd(task, STEPS))
    return found


def training_losses(method: str, task: str, seed: int) -> list[float]:
    draw = random.Random(f"{method}/{task}/{seed}")
    return [0.3 + 1.5 * math.exp(-step / 15) + 0.15 * draw.random() for step in range(STEPS)]


def history_losses(method: str, task: str, seed: int) -> list[float]:
    """Rises in plain training, less with merges; sometimes far above its mean."""
    draw = random.Random(f"history/{method}/{task}/{seed}")
    slope = 0.0008 if method == "aim" else 0.004
    base = 0.25 if task == "yahoo" else 0.4
    return [
        (base + slope * step) * draw.uniform(0.6, 1.4) * (2.5 if draw.random() < 0.06 else 1.0)
        for step in range(1, STEPS + 1)
    ]


def _stage(task: str, place: int, config: AIMConfig, method: str, seed: int) -> Iterator[Event]:
    controller = reference_controller(config, task=place)
    draw = random.Random(f"change/{task}/{seed}")
    for step, loss in enumerate(history_losses(method, task, seed), start=1):
        before = (controller.t + 1, controller.S)
        code = controller.observe(loss)
        yield Probe(task, step, *before, controller.F, loss, controller.threshold, code)
        if not code.startswith(("merge", "measure")):
            continue
        t = controller.t
        change = t**0.75 * (60 * math.exp(-step / 20) + 18) * draw.uniform(0.9, 1.1) * (place + 1)
        made = controller.merge(change)
        if code == "measure":
            yield Measure(task, step, t, change, made["lambda"])
            continue
        yield Open(
            **{"task": task, "step": step, "merge": controller.merges, "kind": code, "t": t},
            **{"S": made["S"], "F": made["F"], "l1": change, "learning_signal": made["lambda"]},
            **{"alpha_new": made["alpha1"], "alpha_past": made["alpha2"]},
            **{"memory_steps": made["memory_steps"], "next_S": made["next_S"]},
            **{"next_memory_steps": 0, "cold": made["cold"], "L_up": made["L_up"]},
            **{"L_down": made["L_down"], "case": made["case"]},
        )
        yield Close(task, step, controller.merges)


def _task(*notes: str) -> dict[str, Any]:
    counts = {"train": 1000, "dev": 250, "test": 200}
    return {"metric": "accuracy", **counts, "notes": list(notes), "sha256": "0" * 64}


def _arm(name: str, seed: int) -> dict[str, Any]:
    step = SEED_STEP * (seed - SEEDS[0])
    stages = ["all tasks"] if name == "mtl" else list(TASKS)
    own = events(name, seed)
    metrics = METRICS[name]
    op = metrics["OP"]
    assert op is not None
    return {
        **{"name": name, "label": LABELS[name], "method": name, "settings": {}, "seed": seed},
        **{"finished": True, "stages": stages, "initial": None, "single": None},
        "scores": [[None if s is None else s + step for s in row] for row in SCORES[name]],
        "metrics": {**metrics, "OP": op + step},
        "losses": {stage: training_losses(name, stage, seed) for stage in stages},
        "seconds": {"training": {"replay": 200.0, "aim": 250.0}.get(name, 160.0), "evaluation": 40},
        "rows": {
            "training": 2880,
            "memory": 792 if name == "aim" else 0,
            "probe": 1920 if own else 0,
        },
        "merges": summarise(own).to_dict() if own else None,
        **{"folder": f"{name}-s{seed}", "events": f"{name}-s{seed}/events.jsonl" if own else None},
    }
