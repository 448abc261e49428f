"""The example loop under ``accelerate launch`` on two CPU processes, as the README starts it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aimmerge_fast.durable import verify
from aimmerge_fast.integrations.examples import accelerate_loop

MODULE = "aimmerge_fast.integrations.examples.accelerate_loop"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
TWO = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]


def run(command: list[str], out: Path) -> tuple[dict[int, str], str]:
    """(sum of |weights| as printed by each rank, everything printed)."""
    env = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    made = subprocess.run(
        [*command, str(out)], env=env, capture_output=True, text=True, timeout=180, check=False
    )
    assert made.returncode == 0, made.stderr
    sums = re.findall(r"rank (\d+): sum of \|weights\| (\d+\.\d+)", made.stdout)
    return {int(rank): total for rank, total in sums}, made.stdout


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, str], str, Path]:
    out = tmp_path_factory.mktemp("launched") / "out"
    return *run([*LAUNCH, *TWO, "--dynamo_backend", "no", "-m", MODULE], out), out


def test_the_readme_and_the_module_say_how_it_was_started() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    command = f"ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 -m {MODULE}"
    assert command in readme
    assert command in " ".join((accelerate_loop.__doc__ or "").replace("\\", "").split())


def test_two_processes_hold_the_same_bits_and_merge(
    launched: tuple[dict[int, str], str, Path],
) -> None:
    sums, text, _ = launched
    assert sorted(sums) == [0, 1]
    assert sums[0] == sums[1]
    assert re.search(r"^after next +24 +[1-9]", text, re.MULTILINE)  # updates, merges


def test_one_process_on_the_same_batches_agrees(
    launched: tuple[dict[int, str], str, Path], tmp_path: Path
) -> None:
    alone, text = run([sys.executable, "-m", MODULE], tmp_path / "out")
    assert float(alone[0]) == pytest.approx(float(launched[0][0]), rel=1e-6)
    table = re.compile(r"^(?:task|next|after next) .*$", re.MULTILINE)
    assert table.findall(text) == table.findall(launched[1])  # the same merges, of the same kinds


def test_a_second_start_goes_on_to_the_same_bits(
    launched: tuple[dict[int, str], str, Path], tmp_path: Path
) -> None:
    sums, _, out = launched
    cut = tmp_path / "out"
    shutil.copytree(out, cut)
    newest = cut / "state-01-000020"
    (newest / "model.safetensors").write_bytes(b"half")  # it will be saved again
    again, text = run([*LAUNCH, *TWO, "--dynamo_backend", "no", "-m", MODULE], cut)
    assert again == sums
    assert "passed over: " in text
    assert "model.safetensors has 4 bytes" in text
    verify(newest)
    assert (cut / "_broken-state-01-000020").is_dir()
    assert "resumed, counted from step 11 on" in text
