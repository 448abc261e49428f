"""The example loops under torchrun on two CPU processes, and a start after one that was cut."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

LOOPS = ("ddp_loop", "fsdp2_loop")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def start(folder: Path) -> dict[str, str]:
    """What each loop prints; all run at the same time."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with ExitStack() as stack:
        started = []
        for loop in LOOPS:
            module = f"aimmerge_fast.integrations.examples.{loop}"
            command = [*TORCHRUN, "-m", module, str(folder / loop)]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            process = stack.enter_context(subprocess.Popen(command, env=env, text=True, **pipes))
            stack.callback(process.terminate)  # of a loop beside one that failed
            started.append(process)
        ended = [process.communicate(timeout=300) for process in started]
        for process, (_, errors) in zip(started, ended, strict=True):
            assert process.returncode == 0, errors[-8000:]
    return {loop: printed for loop, (printed, _) in zip(LOOPS, ended, strict=True)}


def sums(printed: str) -> dict[str, str]:
    return dict(re.findall(r"rank (\d): sum of \|weights\| (\d+\.\d+)", printed))


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The second start finds what a process left that died after update 34 of 48."""
    folder = tmp_path_factory.mktemp("examples")
    first = start(folder)
    for loop in LOOPS:
        shutil.rmtree(folder / loop / "step-44")
    return [first, start(folder)]


@pytest.mark.parametrize("loop", LOOPS)
def test_both_ranks_merge_to_the_same_weights(starts: list[dict[str, str]], loop: str) -> None:
    printed = starts[0][loop]
    assert sums(printed).keys() == {"0", "1"}
    assert sums(printed)["0"] == sums(printed)["1"]
    assert float(sums(printed)["0"]) > 100
    assert re.search(r"^next +24 +0 ", printed, re.MULTILINE)  # updates, merges
    assert re.search(r"^after next +24 +[1-9]", printed, re.MULTILINE)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_second_start_goes_on_to_the_same_bits(starts: list[dict[str, str]], loop: str) -> None:
    first, second = (printed[loop] for printed in starts)
    assert sums(second) == sums(first)
    assert "after next: resumed, counted from step 11 on" in second
    assert not re.search(r"^next +24", second, re.MULTILINE)


def test_replicas_and_shards_train_the_same(starts: list[dict[str, str]]) -> None:
    replicas, shards = (float(sums(starts[0][loop])["0"]) for loop in LOOPS)
    assert shards == pytest.approx(replicas, rel=1e-6)
