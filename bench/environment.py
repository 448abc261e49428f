"""What a result was measured on: device, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import torch


def device_of(name: str) -> torch.device:
    """The device of this name; ``ValueError`` says what is known, or why it cannot be used.

    ``auto`` is the GPU where torch finds one, else the CPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ValueError(f"unknown device {name!r}; known are auto, cpu, cuda and cuda:INDEX")
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available() or int(index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"device {name!r}: torch finds {count} CUDA devices here; use cpu")
    return torch.device(name)


def describe(device: torch.device) -> str:
    """The device in words, "CPU" first where it is one."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"CPU: {cpu_model()}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str | None]:
    """Versions of what decides the figures; None where it is not installed."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "triton": _version("triton"),
        "aimmerge_fast": _version("aimmerge_fast"),
    }


def load() -> str:
    """How busy the machine was, in words: ours is one of the processes that want a core."""
    if not hasattr(os, "getloadavg"):
        return "load average: unknown here"
    minute, five, _ = os.getloadavg()
    return (
        f"load average {minute:.1f} over one minute, {five:.1f} over five, on {os.cpu_count()} "
        "cores; where it is higher than the cores, others took turns with us and times are too long"
    )


def driver() -> str | None:
    """Version of the NVIDIA driver; None where there is none."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
        return answer.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        pass
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", text)
    return found.group() if found else None


def commit() -> str | None:
    """The commit of the tree that this file lies in, "-dirty" where it differs.

    Results and the README do not count: benches write them. Outside git what AIMMERGE_COMMIT names,
    or None. Ask at the start of a run: what is committed meanwhile was not measured.
    """
    measured = (":/", ":(top,exclude)bench/results", ":(top,exclude)README.md")
    try:
        head = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", *measured)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("AIMMERGE_COMMIT") or None
    return f"{head}-dirty" if changed else head


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
