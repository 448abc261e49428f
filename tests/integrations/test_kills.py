"""A training that is killed at random moments and within saves, and started again, until done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

KILLS = 50  # every other one within a save
REPOSITORY = Path(__file__).parents[2]


def killed(folder: Path, *words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.integrations.kill_worker", str(folder), str(KILLS)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, *words], cwd=REPOSITORY, env=one_thread, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    counts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(counts)
    return counts


def test_killed_at_any_moment_it_trains_to_the_same_bits(memory_folder: Path) -> None:
    counts = killed(memory_folder)
    assert counts["messages"] == []
    assert (counts["stuck"], counts["lost"], counts["unequal"]) == (0, 0, 0)
    assert counts["kills"] == KILLS
    assert counts["runs"] > 0
    assert counts["newest unsealed"] >= KILLS // 2  # those that fell into a save
    assert counts["newest lacks files"] >= KILLS // 4


def test_without_the_check_of_the_seal_it_gets_stuck(memory_folder: Path) -> None:
    counts = killed(memory_folder, "trusting")
    assert counts["stuck"] + counts["lost"] + counts["unequal"] > 0
