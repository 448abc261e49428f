"""A training run that is killed at any moment loses nothing and goes on to the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def killed(folder: Path, **wanted: Any) -> dict[str, Any]:
    """What a process saw that trains, kills and resumes; see ``killed_training.py``."""
    command = [sys.executable, "-m", "tests.durable.killed_training"]
    command.append(json.dumps({"folder": str(folder), **wanted}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    print(found, done.stderr)
    return found


def require_nothing_lost(found: dict[str, Any]) -> None:
    """Each run loaded what it should, without a warning, and each chain ended as it should."""
    wrong = ("lost", "unknown", "other bits", "other ends", "warnings", "failed runs")
    assert {name: found[name] for name in wrong if found.get(name)} == {}
    assert found["ends"] == found["chains"]


def test_500_kills(memory_folder: Path) -> None:
    """250 each of a loop with ``step()`` and of one in pieces that also saves inside merges.

    A run may load a save that it had no time to acknowledge; never an older one than acknowledged.
    Whatever it loads and how each chain of runs ends has the bits of a run that nobody interrupted
    and that saved nothing: parameters, optimiser, merger, memory, generators, events.
    """

    def of(loop: str) -> dict[str, Any]:
        return killed(memory_folder, kills=250, seed=11, loop=loop)

    with ThreadPoolExecutor(2) as both:
        results = list(both.map(of, ("steps", "pieces")))
    for found in results:
        require_nothing_lost(found)
        assert found["kills"] >= 250
        assert min(found["in a save"], found["in a merge"]) >= 10
        assert found["resumed"] >= 100
        assert found["chains"] >= 2


@pytest.mark.parametrize("sabotage", ["acknowledges early", "removes first"])
def test_the_kills_find_a_loss(memory_folder: Path, sabotage: str) -> None:
    found = killed(memory_folder, kills=60, seed=12, loop="steps", sabotage=sabotage)
    with pytest.raises(AssertionError, match=r"lost|failed runs"):  # the newest, or all of them
        require_nothing_lost(found)
