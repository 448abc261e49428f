"""What this machine is and which tools it has; the first line of every run."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

import environment

PROGRAMS = ("nvcc", "c++", "compute-sanitizer", "cuobjdump", "nvidia-smi", "git")
MODULES = (
    *("pybind11", "ninja", "setuptools", "pip", "pytest", "hypothesis", "numpy", "triton"),
    *("transformers", "peft", "datasets", "gguf", "matplotlib", "typer", "rich"),
)
BAD_MACHINE = 2


def require_gpu() -> str | None:
    """None when torch can use a GPU, else the one error that every stage gives."""
    if torch.cuda.is_available():
        return None
    built = torch.version.cuda
    why = "it was built without CUDA" if built is None else f"built for CUDA {built}, it sees none"
    return (
        f"error: no CUDA device: torch {torch.__version__} cannot use a GPU here ({why}); run this "
        "on a machine with an NVIDIA GPU"
    )


def describe(device: torch.device) -> dict[str, Any]:
    """Device, driver, versions and commit: the head of every result."""
    return {
        "device": environment.describe(device),
        "driver": environment.driver(),
        "versions": {**environment.versions(), "cuda": torch.version.cuda},
        "commit": environment.commit(),
    }


def line(head: dict[str, Any]) -> str:
    """``describe`` in one line."""
    versions = ", ".join(f"{name} {found or '-'}" for name, found in head["versions"].items())
    commit = head["commit"] or "unknown (no git here; AIMMERGE_COMMIT can name it)"
    return f"{head['device']}; driver {head['driver'] or '-'}; {versions}; commit {commit}"


def program(name: str) -> str | None:
    """Path of a program: on the PATH, in ``CUDA_HOME``, beside nvcc, or in the triton package."""
    folders = [os.environ.get("PATH", "")]
    if home := os.environ.get("CUDA_HOME"):
        folders.append(str(Path(home, "bin")))
    if nvcc := shutil.which("nvcc"):
        folders.append(str(Path(nvcc).resolve().parent))
    if spec := importlib.util.find_spec("triton"):
        folders.append(str(Path(spec.origin or "").parent / "backends/nvidia/bin"))
    return shutil.which(name, path=os.pathsep.join(folders))


def tools() -> dict[str, bool]:
    """Programs and Python packages that the stages use, and whether they are here."""
    found = {name: program(name) is not None for name in PROGRAMS}
    return found | {name: installed(name) for name in MODULES}


def installed(package: str) -> bool:
    """By its record: looking for pip's module would switch off setuptools' own distutils."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main() -> int:
    """Print the first line, or the error of a machine without a GPU."""
    error = require_gpu()
    if error:
        print(error, file=sys.stderr)
        return BAD_MACHINE
    print(line(describe(torch.device("cuda", 0))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
