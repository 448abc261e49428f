"""The CUDA kernels on the CPU: ``csrc/cuda`` compiled by g++ for ``tests/native/emulation``.

``module()`` is what ``aimmerge_fast._native`` is on a machine with a GPU, so the engine that users
get runs on CPU tensors (``tests/cuda_plays.py``); ``Program`` builds an executable without Python.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NATIVE = ROOT / "tests/native"
EMULATION = NATIVE / "emulation"
OPS = ("observe", "open", "close", "advance", "repair")
FLAGS = ("-std=c++20", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror")
PIC = ("-fPIC", "-fvisibility=hidden")
CPU = ("observe", "open", "close", "advance", "repair", "tiles", "isa")


@functools.cache
def work_folder() -> Path:
    """It is removed when Python ends."""
    folder = Path(tempfile.mkdtemp(prefix="aimmerge_emulated_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def compiler() -> str:
    found = shutil.which("g++")
    if found is None or sys.platform != "linux":
        pytest.skip("g++ on Linux was not found: the CUDA kernels were NOT run")
    return found


def call(command: Sequence[str | Path]) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def compile_all(
    sources: Iterable[Path], folder: Path, flags: Sequence[str], csrc: Sequence[Path] = ()
) -> list[Path]:
    """Objects of the sources in ``folder``, as many at a time as there are processors.

    ``csrc``: folders that are searched before the project's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    searched = [f"-I{path}" for path in (*csrc, EMULATION, NATIVE, ROOT / "csrc")]

    def build(source: Path) -> Path:
        target = folder / f"{source.parent.name}_{source.stem}.o"
        call([compiler(), *FLAGS, *flags, *searched, "-x", "c++", "-c", source, "-o", target])
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(build, sources))


def link(target: Path, objects: Sequence[Path], flags: Sequence[str] = ()) -> Path:
    call([compiler(), *flags, *objects, "-o", target])
    return target


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A program that may be under the thread sanitizer."""
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if "unexpected memory mapping" in done.stderr and shutil.which("setarch"):
        # addresses of many random bits leave the sanitizer no place for its own memory
        command = ["setarch", "-R", *command]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return done


# ---- in Python ----------------------------------------------------------------------------------


@functools.cache
def module() -> Any:
    """The compiled module ``_emulated``: ``CudaEngine`` and its companions on fibres."""
    pybind11 = pytest.importorskip("pybind11")
    folder = work_folder() / "module"
    includes = [sysconfig.get_path("include"), pybind11.get_include()]
    flags = ["-O0", *PIC, *(f"-isystem{path}" for path in includes)]
    sources = sorted((ROOT / "csrc/cuda").glob("*.cu"))
    sources += [EMULATION / f"{name}.cpp" for name in ("fibres", "runtime")]
    objects = compile_all([EMULATION / "module.cpp"], folder, flags)
    objects += compile_all(sources, folder, ["-O2", *PIC])
    return _loaded(folder, objects)


def changed_module(folder: Path, op: str, old: str, new: str) -> Any:
    """``module()`` with ``old`` replaced by ``new`` in csrc/cuda/``op``.cu; made in ``folder``."""
    module()
    text = (ROOT / f"csrc/cuda/{op}.cu").read_text()
    assert old in text, f"{op}.cu has changed: {old!r} is gone"
    source = folder / "cuda" / f"{op}.cu"
    source.parent.mkdir(parents=True)
    source.write_text(text.replace(old, new))
    made = compile_all([source], folder / "objects", ["-O0", *PIC])
    others = (work_folder() / "module").glob("*.o")
    return _loaded(folder, [*made, *(each for each in others if each.name != made[0].name)])


def _loaded(folder: Path, objects: Sequence[Path]) -> Any:
    target = folder / f"_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    link(target, objects, ["-shared"])
    # pybind11 keeps modules by their whole name
    spec = importlib.util.spec_from_file_location(f"{folder.name}._emulated", target)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


# ---- without Python -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Program:
    """tests/native/cuda_check.cpp with a scheduler; ``flags`` are sanitizers."""

    name: str
    scheduler: str
    flags: tuple[str, ...] = ()

    def objects(self) -> dict[str, Path]:
        """The kernels by the name of their op."""
        return _kernels(self.name, self.flags)

    def build(self, changed: dict[str, Path] | None = None, name: str = "check") -> Path:
        """The executable; ``changed`` maps ops to objects that take the place of the project's."""
        kernel_objects = {**self.objects(), **(changed or {})}
        # sanitized objects first: of an inline function the linker keeps the first copy
        rest = [
            *_harness(self.name, self.flags),
            *scheduler_objects(self.scheduler),
            *_cpu_objects(),
        ]
        target = work_folder() / self.name / name
        return link(target, [*kernel_objects.values(), *rest], self.flags)


@functools.cache
def _kernels(name: str, flags: tuple[str, ...]) -> dict[str, Path]:
    sources = [ROOT / f"csrc/cuda/{op}.cu" for op in OPS]
    objects = compile_all(sources, work_folder() / name, ["-O1", "-g1", *flags])
    return dict(zip(OPS, objects, strict=True))


@functools.cache
def _harness(name: str, flags: tuple[str, ...]) -> list[Path]:
    return compile_all([NATIVE / "cuda_check.cpp"], work_folder() / name, ["-O1", "-g1", *flags])


# What follows is never sanitized: threads.cpp says why, and the CPU kernels are the measure.


@functools.cache
def scheduler_objects(scheduler: str) -> list[Path]:
    sources = [EMULATION / "runtime.cpp", EMULATION / f"{scheduler}.cpp"]
    return compile_all(sources, work_folder() / scheduler, ["-O1", "-g1"])


@functools.cache
def _cpu_objects() -> list[Path]:
    sources = [ROOT / f"csrc/cpu/{name}.cpp" for name in CPU]
    return compile_all(sources, work_folder() / "cpu", ["-O1", "-g1", "-Wno-unknown-pragmas"])
