"""Two processes that save one checkpoint: all of their parts are in it, or it is not one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aimmerge_fast.durable import verify
from tests.integrations.resumable import NOISE, Run, checkpoint, content, differences

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [*command, str(ROOT / "tests/integrations/resume_worker.py"), str(folder)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.fixture(scope="module")
def said(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", ["resumed", "told", "damaged"])
def test_resumed_to_the_same_bits(name: str, folder: Path, said: list[dict[str, Any]]) -> None:
    assert said[0]["merges"] >= 3
    assert all(rank["told"] and rank["damaged"] for rank in said)
    mine, theirs = (content(checkpoint(folder / run), ranks=2) for run in (name, "whole"))
    assert differences(mine, theirs) == []
    assert verify(checkpoint(folder / name))["world"] == 2


def test_a_rank_that_cannot_write_leaves_no_checkpoint(said: list[dict[str, Any]]) -> None:
    assert said[1]["full"].startswith("OSError: [Errno 28] No space left on device")
    assert said[0]["full"] == "RuntimeError: another process raised here; its message says why"
    assert [rank["set aside"] for rank in said] == [True, True]


@pytest.mark.filterwarnings(NOISE)
def test_one_process_does_not_resume_what_two_saved(folder: Path) -> None:
    run = Run(folder / "whole")
    with pytest.raises(ValueError, match="checkpoint-5 was saved by 2 processes, and 1 resume"):
        run.train(resume=checkpoint(folder / "whole", 5))
