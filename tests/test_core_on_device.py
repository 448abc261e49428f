"""csrc/core compiles as CUDA device code: no warning, no spill, no fused multiply-add.

It only compiles; what it computes there needs a GPU. ``.ci/run native`` takes every architecture.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "tests/native/core_on_device.cu"
KERNELS = ("observe", "begin", "advance", "plan", "open", "close")


def find_nvcc() -> str | None:
    places = [Path("/usr/local/cuda/bin"), *sorted(Path("/usr/local").glob("cuda-*/bin"))[::-1]]
    found = [shutil.which("nvcc"), *(shutil.which("nvcc", path=str(place)) for place in places)]
    return next((nvcc for nvcc in found if nvcc), None)


NVCC = find_nvcc()
pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc was not found: NOT compiled for a GPU")


def compiled(target: Path, *flags: str) -> str:
    """Compile to ``target``; what nvcc said."""
    common = ["-std=c++20", "-O3", f"-I{ROOT / 'csrc'}", "-Werror", "all-warnings"]
    command = [str(NVCC), *common, *flags, str(SOURCE), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_it_compiles_without_a_warning_or_a_spill(tmp_path: Path) -> None:
    said = compiled(tmp_path / "core.cubin", "--fmad=false", "-arch=sm_90", "-cubin", "-Xptxas=-v")
    assert said.count("0 bytes spill stores, 0 bytes spill loads") == said.count("spill stores")
    for name in KERNELS:
        assert f"{len(name)}{name}" in said, f"kernel {name} was not compiled"


def test_nothing_is_contracted(tmp_path: Path) -> None:
    """In PTX: machine code makes even a correctly rounded division out of FMAs."""
    for fmad, contracted in (("--fmad=false", False), ("--fmad=true", True)):
        target = tmp_path / "core.ptx"
        compiled(target, fmad, "-arch=compute_90", "-ptx")
        text = target.read_text()
        assert ("fma.rn" in text) is contracted
        assert ".ftz" not in text
