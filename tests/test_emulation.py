"""The emulation of CUDA itself: right kernels give right results, wrong ones are reported.

``tests/native/emulation`` has two schedulers, fibres and threads; both are held to the same text.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.emulated import EMULATION, compile_all, link, run, scheduler_objects, work_folder

REFUSED = {  # how each scheduler names it
    "early_end": ("thread 5 has ended", "thread 5 ended|while others have ended"),
    "two_barriers": ("thread 32 waits at a barrier.*thread 0 waits", None),  # threads only count
    "lone_shuffle": ("at a shuffle.*thread 40 waits at a barrier", "thread 40.*its warp shuffles"),
    "outside_mask": ("a lane outside of its mask", "a lane outside of the mask"),
    "greedy": ("more shared memory than it has", "more shared memory than a block has"),
}
EXIT = {"fibres": 5, "threads": 71}


@pytest.fixture(scope="module", params=EXIT)
def program(request: pytest.FixtureRequest) -> Path:
    folder = work_folder() / "self_check"
    objects = compile_all([EMULATION / "self_check.cpp"], folder, ["-O1", "-g1"])
    return link(folder / request.param, [*objects, *scheduler_objects(request.param)])


@pytest.mark.parametrize("seed", ["0", "1", "2", "3"])
def test_a_right_kernel_runs(program: Path, seed: str) -> None:
    """All threads' numbers are added, the last block has the last ticket, and no block finds what
    another left in shared memory."""
    assert run(program, "fine", seed).stdout == f"cudaSuccess 100 {479 * 480 // 2} 0\n"
    assert run(program, "garbage", seed).stdout == "cudaSuccess 0 0 0\n"


@pytest.mark.parametrize("kernel", REFUSED)
def test_a_wrong_kernel_is_reported(program: Path, kernel: str) -> None:
    expected = REFUSED[kernel][0 if program.name == "fibres" else 1]
    done = run(program, kernel)
    if expected is None:
        assert done.returncode == 0
        return
    assert done.returncode == EXIT[program.name], done.stdout
    assert re.search(expected, done.stderr), done.stderr


def test_only_what_orders_memory_on_a_device_hides_a_race() -> None:
    """Barriers and tickets do, shuffles and the hand-over to the next block do not."""
    folder, sanitize = work_folder() / "raced", ["-fsanitize=thread"]
    objects = compile_all([EMULATION / "self_check.cpp"], folder, ["-O1", "-g1", *sanitize])
    program = link(folder / "check", [*objects, *scheduler_objects("threads")], sanitize)
    for kernel in ("fine", "garbage"):
        done = run(program, kernel)
        assert (done.returncode, done.stderr) == (0, "")
    done = run(program, "shuffle_for_barrier")
    assert "ThreadSanitizer: data race" in done.stderr
    assert done.returncode != 0


@pytest.mark.parametrize(
    ("kernel", "error"),
    [
        ("no_block", "cudaErrorInvalidConfiguration"),
        ("large_block", "cudaErrorInvalidConfiguration"),
        ("dynamic", "cudaErrorInvalidValue"),
    ],
)
def test_a_launch_is_checked_as_a_driver_does(program: Path, kernel: str, error: str) -> None:
    assert run(program, kernel).stdout == f"{error} 0 0 0\n"
