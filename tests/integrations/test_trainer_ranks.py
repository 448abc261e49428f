"""The Trainer under DDP on two processes, against one process on the same global batches."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aimmerge_fast.events import Event, Open, Probe, from_json

ROOT = Path(__file__).parents[2]
WORKER = str(ROOT / "tests/integrations/ranks_worker.py")
Said = dict[str, Any]


def start(folder: Path, launcher: list[str], rows: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, *launcher, WORKER, str(folder), str(rows)]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[Said, Said, Said]:
    """What both ranks and the single process say."""
    folder = tmp_path_factory.mktemp("trainer-ranks")
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    start(folder, two, 2)
    start(folder, [], 4)
    names = ("rank0-of-2", "rank1-of-2", "rank0-of-1")
    first, second, alone = (json.loads((folder / f"{name}.json").read_text()) for name in names)
    return first, second, alone


def events(one: Said) -> list[Event]:
    return [from_json(line) for line in one["events"]]


def test_the_ranks_hold_the_same_bits_and_decide_alike(said: tuple[Said, Said, Said]) -> None:
    first, second, _ = said
    assert first["wrapped"] == "DistributedDataParallel"
    assert first["weights"] == second["weights"]
    assert first["events"] == second["events"]
    assert sum(isinstance(event, Open) for event in events(first)) >= 5


def test_one_process_agrees_to_1e_5_and_decides_alike(said: tuple[Said, Said, Said]) -> None:
    first, _, alone = said
    assert alone["wrapped"] == "PeftModel"
    ours, theirs = events(first), events(alone)
    assert margin(theirs) >= 1e-4  # the decisions do not hang on the last bits
    assert list(map(decision, ours)) == list(map(decision, theirs))
    assert flat(first["weights"]) == pytest.approx(flat(alone["weights"]), abs=1e-5)
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    losses = [[e.loss for e in run if isinstance(e, Probe)] for run in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def decision(event: Event) -> tuple[Any, ...]:
    extra: tuple[Any, ...] = ()
    if isinstance(event, Probe):
        extra = (event.code, event.S, event.F)
    if isinstance(event, Open):
        extra = (event.kind, event.alpha_new, event.memory_steps, event.next_S, event.case)
    return (event.event, event.step, *extra)


def margin(found: list[Event]) -> float:
    """How far the nearest comparison was from turning out the other way."""
    near = [math.inf]
    for event in found:
        judged = isinstance(event, Probe) and event.code not in ("collect", "threshold")
        if judged and event.threshold is not None:
            near.append(abs(event.loss - event.threshold))
    signals = [event.learning_signal for event in found if isinstance(event, Open)]
    near += [abs(a - b) / max(a, b) for a, b in itertools.pairwise(signals)]
    return min(near)


def flat(nested: Any) -> list[float]:
    return [x for item in nested for x in flat(item)] if isinstance(nested, list) else [nested]
