"""Builds aimmerge_fast, with the C++ module ``aimmerge_fast._native`` wherever that is possible.

Everything static is in ``pyproject.toml``. Two environment variables steer what is decided here:

* ``AIMMERGE_NATIVE`` = ``auto`` (build when a C++20 compiler works), ``on`` (or fail), ``off``.
* ``AIMMERGE_CUDA`` = ``auto`` (CUDA kernels when nvcc is found), ``on`` (or fail), ``off``.

``CXX``, ``CXXFLAGS`` and ``CUDA_HOME`` are honoured. torch is never needed, and nothing is compiled
at import. What was built, and why, is printed in one line (``pip install -v`` shows it) and kept in
``aimmerge_fast/_build_info.json`` for ``aimmerge doctor``.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from setuptools import Command, Distribution, Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
PACKAGE = "aimmerge_fast"
ABI = str(sysconfig.get_config_var("EXT_SUFFIX"))

# EXACT stands last, after CXXFLAGS: results must not depend on the environment, and contraction
# would give the AVX-512 clones other bits than the AVX2 and SSE2 ones.
OPTIMISE = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
EXACT = ["-fno-fast-math", "-ffp-contract=off"]
LINK = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
# The static runtime hides its names, or torch's own one would take their place.
CUDA_LINK = ["-shared", "-cudart=static", "-Xlinker", "--exclude-libs=ALL"]
# Code for each of these, and PTX of the lowest and highest: no listed cubin covers e.g. sm_110.
CUDA_ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "103", "120")

CXX20_PROBE = "#include <bit>\nint probe(float x) { return std::bit_cast<int>(x); }\n"
HEADER_PROBE = "#include <Python.h>\nint probe() { return PY_MAJOR_VERSION; }\n"
OPENMP_PROBE = "#include <omp.h>\nint probe() { return omp_get_max_threads(); }\n"
CUDA_PROBE = """static_assert(__cplusplus >= 202002L);
__global__ void probe(int* x) { *x = __builtin_bit_cast(int, 1.0f); }
"""


def fail(message: str) -> SystemExit:
    """A user's error as one line, without the trace of the build back end."""
    return SystemExit(f"error: {message}")


def switch(name: str) -> str:
    """Value of the environment variable ``name``: auto (also when unset or empty), on or off."""
    value = os.environ.get(name) or "auto"
    if value not in ("auto", "on", "off"):
        raise fail(f"{name}={value!r} is not known; allowed are auto, on, off")
    return value


@dataclasses.dataclass(frozen=True)
class Cuda:
    """How the CUDA kernels are compiled; ``nvcc`` is None where they are not, for ``reason``."""

    reason: str
    nvcc: str | None = None
    architectures: tuple[str, ...] = ()

    def compiler(self, cxx: str) -> list[str]:
        """nvcc with everything that decides about the code, for compiling."""
        low, high = self.architectures[0], self.architectures[-1]
        codes = [f"arch=compute_{each},code=sm_{each}" for each in self.architectures]
        codes += [f"arch=compute_{each},code=compute_{each}" for each in sorted({low, high})]
        host = ",".join(["-fPIC", "-fvisibility=hidden", *EXACT])
        command = [str(self.nvcc), "-ccbin", cxx, "-std=c++20", "-O3", "--fmad=false"]
        # architectures side by side: on many cores the largest file is waited for alone
        command += ["--threads=4"]
        return [*command, f"-Xcompiler={host}", *(f"-gencode={code}" for code in codes)]


@dataclasses.dataclass(frozen=True)
class Toolchain:
    """Tools that passed their probes."""

    cxx: list[str]
    version: str
    ninja: list[str]
    includes: list[str]
    flags: list[str]
    openmp: bool
    cuda: Cuda


def attempt(command: list[str], source: str, suffix: str = ".cpp") -> str | None:
    """Compile and link ``source`` with ``command``; None when that works, else why not."""
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, f"probe{suffix}")
        probe.write_text(source)
        full = [*command, str(probe), "-o", str(Path(folder, "probe.so"))]
        try:
            done = subprocess.run(full, capture_output=True, text=True, timeout=120, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{command[0]}: {getattr(error, 'strerror', None) or error}"
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if "error:" in line]
    detail = lines[0].replace(folder + os.sep, "") if lines else f"exit {done.returncode}"
    return f"{command[0]}: {detail}"


def find_ninja() -> list[str] | None:
    """The ninja of the Python package (``build-system.requires``), else the one on PATH."""
    if importlib.util.find_spec("ninja") is not None:
        return [sys.executable, "-m", "ninja"]
    found = shutil.which("ninja")
    return [found] if found else None


def host_compiler(cxx: Sequence[str]) -> str:
    """The program that nvcc calls; it takes no launcher in front of it."""
    return next(word for word in cxx if Path(word).name not in ("ccache", "sccache", "distcc"))


@functools.cache
def find_cuda(cxx: tuple[str, ...] | None) -> Cuda:
    """What CUDA kernels can be built with, on ``cxx`` if there is one; needs no GPU."""
    if switch("AIMMERGE_CUDA") == "off":
        return Cuda("switched off by AIMMERGE_CUDA=off")
    if not any(ROOT.glob("csrc/cuda/*.cu")):
        return Cuda("this version has no CUDA kernels")
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=str(Path(home, "bin")) if home else None)
    if nvcc is None:
        return Cuda(f"nvcc was not found {'in CUDA_HOME' if home else 'on PATH'}")
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False)
    known = {f"compute_{each}": each for each in CUDA_ARCHITECTURES}
    found = tuple(known[each] for each in listed.stdout.split() if each in known)
    if not found:
        return Cuda(f"nvcc knows none of the architectures {', '.join(CUDA_ARCHITECTURES)}")
    if cxx is not None:  # an nvcc without C++20, or one that refuses this compiler
        probe = [
            nvcc,
            "-ccbin",
            host_compiler(cxx),
            "-std=c++20",
            f"-arch=sm_{found[0]}",
            *CUDA_LINK,
        ]
        error = attempt([*probe, "-Xcompiler=-fPIC"], CUDA_PROBE, ".cu")
        if error is not None:
            return Cuda(f"nvcc does not compile here ({error})")
    return Cuda(f"nvcc, sm_{' sm_'.join(found)}", nvcc, found)


def find_compiler() -> list[str] | str:
    """The command of a compiler that does C++20, or why there is none."""
    named = os.environ.get("CXX")
    errors = []
    for command in [shlex.split(named)] if named else [["c++"], ["g++"], ["clang++"]]:
        error = attempt([*command, "-std=c++20", *LINK, "-fPIC"], CXX20_PROBE)
        if error is None:
            return command
        errors.append(error)
    return f"no C++20 compiler works ({'; '.join(errors)})"


@functools.cache
def toolchain() -> Toolchain | str:
    """What the native module can be built with, or the reason why it cannot be built."""
    if switch("AIMMERGE_NATIVE") == "off":
        return "switched off by AIMMERGE_NATIVE=off"
    cxx, ninja = find_compiler(), find_ninja()
    if isinstance(cxx, str):
        return cxx
    if ninja is None:
        return "ninja was not found"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 cannot be imported"
    import pybind11

    paths = sorted({sysconfig.get_path("include"), sysconfig.get_path("platinclude")})
    python = [word for path in paths for word in ("-isystem", path)]  # its warnings are not ours
    missing = attempt([*cxx, "-std=c++20", *LINK, "-fPIC", *python], HEADER_PROBE)
    if missing is not None:
        return f"the headers of Python (python3-dev) do not compile ({missing})"
    openmp = attempt([*cxx, "-std=c++20", *LINK, "-fPIC", "-fopenmp"], OPENMP_PROBE) is None
    extra = shlex.split(os.environ.get("CXXFLAGS", ""))
    flags = [*OPTIMISE, *extra, *EXACT, *(["-fopenmp"] if openmp else [])]
    includes = [f"-I{ROOT / 'csrc'}", "-isystem", pybind11.get_include(), *python]
    version = subprocess.run([*cxx, "--version"], capture_output=True, text=True, check=True)
    words = version.stdout.splitlines()[0]
    return Toolchain(cxx, words, ninja, includes, flags, openmp, find_cuda(tuple(cxx)))


def ninja_file(tools: Toolchain, target: Path) -> str:
    """The build: one object per source, then ``target``; depfiles keep headers tracked."""

    def command(words: list[str]) -> str:
        return shlex.join(words).replace("$", "$$")

    def escape(path: Path) -> str:
        return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    compilers = {".cpp": [*tools.cxx, *tools.flags]}
    link = [*tools.cxx, *LINK, *(["-fopenmp"] if tools.openmp else [])]
    if tools.cuda.nvcc:  # nvcc links too: it knows where its static runtime lies
        compilers[".cpp"].append("-DAIMMERGE_CUDA=1")
        compilers[".cu"] = tools.cuda.compiler(host_compiler(tools.cxx))
        link = [tools.cuda.nvcc, "-ccbin", host_compiler(tools.cxx), *CUDA_LINK]
        link += ["-Xcompiler=-fopenmp"] if tools.openmp else []
    text = ["ninja_required_version = 1.8"]
    for suffix, words in compilers.items():
        line = command([*words, *tools.includes])
        text += [f"rule {suffix[1:]}", f"  command = {line} -MMD -MF $out.d -c $in -o $out"]
        text += ["  depfile = $out.d", "  deps = gcc"]
    text += ["rule link", f"  command = {command(link)} $in -o $out"]
    sources = [ROOT / "csrc/bindings.cpp", *sorted(ROOT.glob("csrc/cpu/*.cpp"))]
    if tools.cuda.nvcc:  # first, because they take longest
        cuda = [each for each in sorted(ROOT.glob("csrc/cuda/*")) if each.suffix in compilers]
        sources = [*cuda, *sources]
    objects = [f"{source.parent.name}_{source.name}.o" for source in sources]
    for source, built in zip(sources, objects, strict=True):
        text.append(f"build {built}: {source.suffix[1:]} {escape(source)}")
    text.append(f"build {escape(target)}: link {' '.join(objects)}")
    return "\n".join(text) + "\n"


class Project(Distribution):
    """A distribution that is pure Python where the native module cannot be built."""

    native_failure: str | None = None

    def has_ext_modules(self) -> bool:
        return switch("AIMMERGE_NATIVE") == "on" or isinstance(toolchain(), Toolchain)


class BuildNative(build_ext):
    """Compiles ``csrc`` with ninja; distutils' own compiler is not used."""

    def build_extension(self, ext: Extension) -> None:
        tools = toolchain()
        if isinstance(tools, str):
            raise fail(f"AIMMERGE_NATIVE=on, but {tools}")
        if switch("AIMMERGE_CUDA") == "on" and not tools.cuda.nvcc:
            raise fail(f"AIMMERGE_CUDA=on, but {tools.cuda.reason}")
        temporary = Path(self.build_temp).resolve()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        for folder in (temporary, target.parent):
            folder.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a failing build must not leave an older module behind
        (temporary / "build.ninja").write_text(ninja_file(tools, target))
        command = [*tools.ninja, "-C", str(temporary)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(done.stdout, done.stderr, sep="", file=sys.stderr)
        if done.returncode != 0:
            errors = [line.strip() for line in done.stdout.splitlines() if "error:" in line]
            reason = f"compiling csrc failed ({errors[0] if errors else 'see the build log'})"
            self.distribution.native_failure = reason
            raise CompileError(reason)


class BuildInfo(Command):
    """Says in one line what was built and why, and writes it to ``_build_info.json``."""

    description = "record what was built and why"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = []
    editable_mode = False  # set by setuptools in an editable install

    def initialize_options(self) -> None:
        self.build_lib: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        info = self.describe()
        if switch("AIMMERGE_CUDA") == "on" and not info["cuda"]:
            raise fail(f"AIMMERGE_CUDA=on, but {info['cuda_reason']}")
        folder = (ROOT if self.editable_mode else Path(str(self.build_lib))) / PACKAGE
        folder.mkdir(parents=True, exist_ok=True)
        if self.editable_mode and not info["native"]:
            (folder / f"_native{ABI}").unlink(missing_ok=True)  # of an earlier editable install
        (folder / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")
        verdicts = [
            f"{kind} kernels {'BUILT' if info[kind] else 'NOT BUILT'} ({info[f'{kind}_reason']})"
            for kind in ("native", "cuda")
        ]
        print(f"{PACKAGE}: {', '.join(verdicts)}", file=sys.stderr)

    def describe(self) -> dict[str, Any]:
        """The record that ``aimmerge doctor`` shows."""
        tools, failure = toolchain(), self.distribution.native_failure
        cuda = find_cuda(None) if isinstance(tools, str) else tools.cuda
        info = {"version": self.distribution.get_version(), "abi": ABI, "native": False}
        info |= {"cuda": False, "cuda_reason": cuda.reason}
        if isinstance(tools, str) or failure is not None:
            reason = "there is no native module to hold them" if cuda.nvcc else cuda.reason
            return {**info, "native_reason": failure or tools, "cuda_reason": reason}
        reason = f"{tools.version}, {'with' if tools.openmp else 'without'} OpenMP"
        info |= {"native": True, "native_reason": reason, "cuda": cuda.nvcc is not None}
        return {**info, "openmp": tools.openmp, "flags": tools.flags}


class SourceArchive(sdist):
    """An archive with every source, whether or not this machine could compile them."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        found = [each for name in ("csrc", "bench", "tests") for each in ROOT.glob(f"{name}/**/*")]
        kept = [each for each in found if each.is_file() and "__pycache__" not in each.parts]
        names = {str(each.relative_to(ROOT)) for each in [*kept, ROOT / "constraints.txt"]}
        super().make_release_tree(base_dir, sorted({*files, *names}))


build.sub_commands = [*build.sub_commands, ("build_info", None)]
required = "on" in (switch("AIMMERGE_NATIVE"), switch("AIMMERGE_CUDA"))
setup(
    distclass=Project,
    ext_modules=[Extension(f"{PACKAGE}._native", ["csrc/bindings.cpp"], optional=not required)],
    cmdclass={"build_ext": BuildNative, "build_info": BuildInfo, "sdist": SourceArchive},
)
