"""csrc/core and csrc/cpu run clean under the address and undefined-behaviour sanitizers.

The driver, tests/native/core_check.cpp, can plant faults, so that a build that sees nothing fails.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SANITIZE = [
    "-fsanitize=address,undefined,float-cast-overflow",
    "-fno-sanitize-recover=all",
    "-D_GLIBCXX_ASSERTIONS",
]
FAULTS = {
    "oob-read": "heap-buffer-overflow",
    "oob-write": "heap-buffer-overflow",
    "stale": "heap-use-after-free",
    "misaligned": "misaligned address",
    "int-overflow": "signed integer overflow",
    "float-cast": "outside the range of representable values",
    "shift": "shift exponent",
}


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ was not found: the C++ core was NOT checked with sanitizers")
    program = tmp_path_factory.mktemp("sanitized") / "core_check"
    flags = ["-std=c++20", "-O1", "-g1", "-ffp-contract=off", "-fopenmp", "-Wall", "-Wextra"]
    sources = [ROOT / "tests/native/core_check.cpp", *sorted(ROOT.glob("csrc/cpu/*.cpp"))]
    command = [compiler, *flags, "-Werror", *SANITIZE, f"-I{ROOT / 'csrc'}", *map(str, sources)]
    done = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Leaks are not looked for: that needs ptrace, which a container may forbid."""
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "", "OMP_NUM_THREADS": "2"}
    environment = {**os.environ, **options}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_every_op_is_clean(driver: Path) -> None:
    done = run(driver)
    assert done.returncode == 0, done.stdout + done.stderr
    steps, merges, rejects = map(int, re.findall(r"\d+", done.stdout))
    assert steps >= 30_000
    assert merges >= 1_000
    assert 100 <= rejects < merges


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(driver: Path, fault: str) -> None:
    done = run(driver, fault)
    assert done.returncode not in (0, 3), done.stdout
    assert FAULTS[fault] in done.stderr
