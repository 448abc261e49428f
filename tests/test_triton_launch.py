"""The Triton kernels are launched through Triton's own C launcher, here on a driver without a GPU.

What reaches the driver is compared: programs, threads, stream and each argument. Nothing runs.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import aimmerge_fast
from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig

triton = pytest.importorskip("triton", reason="there is no Triton here")
ROOT = Path(aimmerge_fast.__file__).parents[1]
SOURCE = Path(__file__).parent / "native" / "recording_libcuda.c"
#: A folder with another release of Triton, as ``pip install --target`` makes it.
OTHER_TRITON = os.environ.get("AIMMERGE_OTHER_TRITON")


def run(folder: Path, cache: Path, paths: list[str]) -> dict[str, Any]:
    """The program in a process with our libcuda.so.1."""
    includes = Path(triton.__file__).parent / "backends/nvidia/include"
    library = folder / "libcuda.so.1"
    build = ["gcc", "-shared", "-fPIC", "-Wall", "-Wno-unused-parameter", f"-I{includes}"]
    subprocess.run([*build, str(SOURCE), "-o", str(library)], check=True, capture_output=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, str(ROOT)]),
        "LD_LIBRARY_PATH": str(folder),
        "TRITON_LIBCUDA_PATH": str(folder),
        "TRITON_CACHE_DIR": str(cache),
    }
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "tests.triton_launching"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module", params=[None, OTHER_TRITON] if OTHER_TRITON else [None])
def recorded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    if shutil.which("gcc") is None:
        pytest.skip("Triton's launcher needs gcc, and there is none")
    paths = [request.param] if request.param else []
    cache = tmp_path_factory.getbasetemp() / "triton-cache"  # test_triton_compiled.py's too
    result = run(tmp_path_factory.mktemp("driver"), cache, paths)
    assert (result["version"] == triton.__version__) == (not paths)
    return result


TABLES = {"wide": (4, 256), "narrow": (2, 128), "none": (1, 256), "elsewhere": (4, 256)}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("op", ["open", "close", "repair"])
def test_ops_over_tiles(recorded: dict[str, Any], name: str, op: str) -> None:
    programs, threads = TABLES[name]
    assert recorded[name][op] == {
        "launches": 1,
        "programs": programs,
        "threads": 128 if op == "repair" else threads,
        "stream": 77,
        "arguments": recorded[name]["table"],
    }


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(("op", "number"), [("observe", 1), ("advance", 3)])
def test_ops_of_one_program(recorded: dict[str, Any], name: str, op: str, number: int) -> None:
    """``number``: of a bf16 loss, or of rows."""
    launched, address, state = recorded[name][op]
    first, second, third = launched.pop("arguments")
    assert launched == {"launches": 1, "programs": 1, "threads": 32, "stream": 77}
    assert (first, second & 0xFFFFFFFF, third) == (address, number, state)


def test_ops_on_entries(recorded: dict[str, Any]) -> None:
    """Addresses and counts, then the factors as fp32; the last address is the new count's."""
    made = recorded["entries"]
    for op, whole, factors in (
        ("importance", made["step"], [0.25, 0.75, 0.125, 0.875]),
        ("weighted", made["by"], [0.5, 1.5, 2.5, 3.5, 1.0, 2.0, 3.0, 4.0]),
    ):
        arguments = made[op].pop("arguments")
        assert made[op] == {"launches": 1, "programs": 6, "threads": 256, "stream": 77}
        assert arguments[: len(whole)] == whole
        words = [number & 0xFFFFFFFF for number in arguments[len(whole) :][: len(factors)]]
        assert struct.unpack(f"{len(words)}f", struct.pack(f"{len(words)}I", *words)) == (*factors,)


def test_launches_go_to_the_device_of_the_tensors(recorded: dict[str, Any]) -> None:
    """Five launches from another device: each enters the engine's device."""
    assert recorded["entered"] == [0] * 5


def test_code_stays_loaded(recorded: dict[str, Any]) -> None:
    assert recorded["unloaded"] == 0


@pytest.mark.skipif(triton.knobs.runtime.interpret, reason="interpreted here")
def test_without_a_gpu_the_reason_is_given() -> None:
    state, arena = kernels.new_state(AIMConfig()), kernels.new_arena([])
    with pytest.raises(RuntimeError, match="set TRITON_INTERPRET=1"):
        kernels.engine("triton", [], arena, arena, state)
    with pytest.raises(RuntimeError, match=r"'triton' cannot work on cpu: .*TRITON_INTERPRET"):
        kernels.observe_(torch.tensor(1.0), state, backend="triton")
