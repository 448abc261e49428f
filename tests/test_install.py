"""setup.py builds what it can, says what it built and why, and pyproject.toml and pins agree.

Every build runs on a small stand-in tree with the real ``setup.py`` and ``pyproject.toml``.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "aimmerge_fast"
MODULE = """
#include <Python.h>
static PyModuleDef def = {PyModuleDef_HEAD_INIT, "_native", nullptr, -1, nullptr};
int answer();
PyMODINIT_FUNC PyInit__native() {
  PyObject *module = PyModule_Create(&def);
  PyModule_AddIntConstant(module, "answer", answer());
  return module;
}
"""
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler"
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The project with a stand-in for ``csrc`` and the package; a space in its path on purpose."""
    root = tmp_path / "a tree"
    for folder in ("csrc/cpu", "bench", "tests", PACKAGE):
        (root / folder).mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, root / name)
    (root / "README.md").write_text("stand-in\n")
    (root / PACKAGE / "__init__.py").touch()
    (root / PACKAGE / "py.typed").touch()
    (root / "csrc/bindings.cpp").write_text(MODULE)
    (root / "csrc/cpu/answer.cpp").write_text('#include "answer.h"\nint answer() { return 42; }\n')
    (root / "csrc/answer.h").write_text("int answer();\n")
    return root


def run(tree: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python in ``tree`` with only the given build variables set."""
    ours = ("AIMMERGE_NATIVE", "AIMMERGE_CUDA", "CXX", "CXXFLAGS", "CUDA_HOME")
    env = {key: value for key, value in os.environ.items() if key not in ours}
    full = [sys.executable, *command]
    return subprocess.run(
        full, cwd=tree, env=env | variables, capture_output=True, text=True, check=False
    )


def build(tree: Path, **variables: str) -> dict[str, Any]:
    """``setup.py build``, and what it recorded."""
    done = run(tree, "setup.py", "-q", "build", "--build-lib", "built", **variables)
    assert done.returncode == 0, done.stderr
    info: dict[str, Any] = json.loads((tree / "built" / PACKAGE / "_build_info.json").read_text())
    assert info["native"] == any((tree / "built" / PACKAGE).glob("_native*"))
    verdicts = [line for line in done.stderr.splitlines() if line.startswith(f"{PACKAGE}: ")]
    word = "BUILT" if info["native"] else "NOT BUILT"
    assert verdicts == [
        f"{PACKAGE}: native kernels {word} ({info['native_reason']}), "
        f"cuda kernels {'BUILT' if info['cuda'] else 'NOT BUILT'} ({info['cuda_reason']})"
    ]
    return info


def hook(tree: Path, name: str, **variables: str) -> Path:
    """One hook of the build back end, as pip calls it; returns the archive that it wrote."""
    code = f"import setuptools.build_meta as b; print(b.{name}('out'))"
    (tree / "out").mkdir(exist_ok=True)
    done = run(tree, "-W", "ignore", "-c", code, **variables)
    assert done.returncode == 0, done.stderr
    return tree / "out" / done.stdout.splitlines()[-1]


def compiler_that_refuses(tree: Path, word: str) -> str:
    """A compiler that fails where the command line or a probe's source contains ``word``."""
    script = tree / "cxx.sh"
    script.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *{word}*) echo "error: {word} refused" >&2; exit 1;; esac\n'
        'for each; do case "$each" in *probe.cpp)\n'
        f'  grep -q {word} "$each" && {{ echo "error: {word} refused" >&2; exit 1; }};;\n'
        'esac; done\nexec c++ "$@"\n'
    )
    script.chmod(0o755)
    return f"sh '{script}'"


@needs_compiler
def test_a_compiler_gives_a_platform_wheel_with_the_module(tree: Path) -> None:
    wheel = hook(tree, "build_wheel")
    assert not wheel.name.endswith("-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tree / "site")
    assert f"{PACKAGE}/py.typed" in names
    assert not [name for name in names if name.startswith(("csrc", "tests", "bench"))]
    code = f"import {PACKAGE}._native as native; print(native.answer)"
    assert run(tree / "site", "-c", code).stdout == "42\n"


def test_no_compiler_gives_a_pure_wheel(tree: Path) -> None:
    (tree / "empty").mkdir()
    wheel = hook(tree, "build_wheel", PATH=str(tree / "empty"))
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if "_native." in name]
        info = json.loads(archive.read(f"{PACKAGE}/_build_info.json"))
    assert info["native"] is False
    assert "no C++20 compiler works" in info["native_reason"]
    for name in ("c++", "g++", "clang++"):
        assert f"{name}: No such file" in info["native_reason"]


@needs_compiler
@pytest.mark.parametrize(
    ("word", "reason"),
    [("std=c++20", "no C++20 compiler works"), ("Python.h", "the headers of Python")],
)
def test_what_fails_its_probe_is_named(tree: Path, word: str, reason: str) -> None:
    info = build(tree, CXX=compiler_that_refuses(tree, word))
    assert info["native"] is False
    assert reason in info["native_reason"]
    assert f"{word} refused" in info["native_reason"]


def test_a_compiler_that_was_named_is_not_replaced(tree: Path) -> None:
    info = build(tree, CXX="no-such-compiler")
    assert info["native"] is False
    assert "no-such-compiler: No such file" in info["native_reason"]


@needs_compiler
def test_without_openmp_the_module_is_built_for_one_thread(tree: Path) -> None:
    info = build(tree, CXX=compiler_that_refuses(tree, "fopenmp"))
    assert info["native"] is True
    assert info["openmp"] is False
    assert "-fopenmp" not in info["flags"]


@needs_compiler
def test_flags_of_the_environment_cannot_change_results(tree: Path) -> None:
    flags = build(tree, CXXFLAGS="-ffast-math -ffp-contract=fast")["flags"]
    assert flags.index("-fno-fast-math") > flags.index("-ffast-math")
    assert flags.index("-ffp-contract=off") > flags.index("-ffp-contract=fast")


@needs_compiler
def test_sources_that_do_not_compile_fall_back_or_fail_when_asked_for(tree: Path) -> None:
    assert build(tree)["native"] is True  # an older module that must not survive
    (tree / "csrc/answer.h").write_text("int answer() { return wrong; }\n")
    info = build(tree)
    assert info["native"] is False
    assert "compiling csrc failed" in info["native_reason"]
    assert "wrong" in info["native_reason"]
    done = run(tree, "setup.py", "-q", "build", AIMMERGE_NATIVE="on")
    assert done.returncode != 0
    assert "compiling csrc failed" in done.stderr


def test_native_can_be_switched_off(tree: Path) -> None:
    info = build(tree, AIMMERGE_NATIVE="off")
    assert info["native_reason"] == "switched off by AIMMERGE_NATIVE=off"
    assert info["cuda_reason"] == "this version has no CUDA kernels"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"AIMMERGE_NATIVE": "yes"}, "AIMMERGE_NATIVE='yes' is not known; allowed are auto, on, "),
        ({"AIMMERGE_CUDA": "1"}, "AIMMERGE_CUDA='1' is not known; allowed are auto, on, off"),
        ({"AIMMERGE_NATIVE": "on", "CXX": "nothing"}, "AIMMERGE_NATIVE=on, but no C++20 compiler"),
        (
            {"AIMMERGE_CUDA": "on"},
            "AIMMERGE_CUDA=on, but this version has no CUDA kernels",
        ),
        (
            {"AIMMERGE_CUDA": "on", "AIMMERGE_NATIVE": "off"},
            "AIMMERGE_CUDA=on, but this version has no CUDA kernels",
        ),
    ],
)
def test_what_cannot_be_had_is_one_clear_error(
    tree: Path, variables: dict[str, str], message: str
) -> None:
    done = run(tree, "setup.py", "-q", "build", **variables)
    assert done.returncode != 0
    assert f"error: {message}" in done.stderr
    assert "Traceback" not in done.stderr


FAKE_NVCC = """#!{python}
import pathlib, subprocess, sys
arguments = sys.argv[1:]
with open(__file__ + ".log", "a") as log:
    log.write(" ".join(arguments) + "\\n")
if arguments == ["--list-gpu-arch"]:
    print("compute_75 compute_90 compute_121")
elif arguments[-3].endswith("probe.cu"):
    if "{refuses}":
        sys.exit("probe.cu(1): error: {refuses}")
elif "-shared" in arguments:
    assert arguments[:2] == ["-ccbin", "c++"]
    arguments = [each.replace("-Xcompiler=", "") for each in arguments[2:]]
    sys.exit(subprocess.call(["c++", *(each for each in arguments if "-cudart" not in each)]))
else:
    pathlib.Path(arguments[-1] + ".d").touch()
    subprocess.run(["c++", "-x", "c++", "-c", "-", "-o", arguments[-1]], input=b"", check=True)
"""


@needs_compiler
def test_cuda_sources_are_compiled_where_nvcc_is_found(tree: Path) -> None:
    (tree / "csrc/cuda").mkdir()
    (tree / "csrc/cuda/answer.cu").write_text("device code\n")
    info = build(tree, CUDA_HOME=str(tree))
    assert info["cuda_reason"] == "nvcc was not found in CUDA_HOME"
    nvcc = tree / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(FAKE_NVCC.format(python=sys.executable, refuses=""))
    nvcc.chmod(0o755)
    info = build(tree, CUDA_HOME=str(tree), AIMMERGE_CUDA="on")
    assert info["cuda"] is True
    assert info["cuda_reason"] == "nvcc, sm_75 sm_90"
    said = nvcc.with_suffix(".log").read_text()
    assert re.findall(r"-gencode=arch=compute_\d+,code=(\w+)", said) == [
        *("sm_75", "sm_90", "compute_75", "compute_90")
    ]
    assert "--fmad=false" in said
    assert build(tree, CUDA_HOME=str(tree), AIMMERGE_CUDA="off")["cuda"] is False
    nvcc.write_text(FAKE_NVCC.format(python=sys.executable, refuses="gcc is too new"))
    info = build(tree, CUDA_HOME=str(tree))
    assert (info["native"], info["cuda"]) == (True, False)
    assert "nvcc does not compile here" in info["cuda_reason"]
    assert "gcc is too new" in info["cuda_reason"]


@needs_compiler
def test_an_editable_install_builds_in_place_and_cleans_up(tree: Path) -> None:
    hook(tree, "build_editable")
    package = tree / PACKAGE
    assert list(package.glob("_native*"))
    assert json.loads((package / "_build_info.json").read_text())["native"] is True
    hook(tree, "build_editable", AIMMERGE_NATIVE="off")
    assert not list(package.glob("_native*"))
    assert json.loads((package / "_build_info.json").read_text())["native"] is False


def test_the_source_archive_is_whole_without_a_compiler(tree: Path) -> None:
    (tree / "empty").mkdir()
    archive = hook(tree, "build_sdist", PATH=str(tree / "empty"))
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    wanted = "csrc/bindings.cpp csrc/answer.h csrc/cpu/answer.cpp constraints.txt setup.py LICENSE"
    assert set(wanted.split()) <= names


def test_the_pins_satisfy_the_requirements() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    text = (ROOT / "constraints.txt").read_text()
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    pins = dict(line.split("==") for line in lines if line)
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    wanted += itertools.chain.from_iterable(extras.values())
    for requirement in map(Requirement, wanted):
        assert requirement.name in pins, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(pins[requirement.name]), requirement


def test_the_stub_lists_what_the_native_module_has() -> None:
    native = pytest.importorskip(f"{PACKAGE}._native", exc_type=ImportError)
    stub = ast.parse((ROOT / PACKAGE / "_native.pyi").read_text())

    def names(body: list[ast.stmt]) -> set[str]:
        found = (node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef))
        return {name for name in found if not name.startswith("_")}

    def public(owner: object) -> set[str]:
        return {name for name in dir(owner) if not name.startswith("_")}

    classes = [node for node in stub.body if isinstance(node, ast.ClassDef)]
    built = names(stub.body)
    if not hasattr(native, "CudaEngine"):
        built = {name for name in built if "cuda" not in name.lower()}
    assert built == public(native)
    for engine in classes:
        if engine.name in built:
            assert names(engine.body) == public(getattr(native, engine.name))
