"""What is installed here, which backend would run where, and why: behind ``aimmerge doctor``."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import platform
import sysconfig
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aimmerge_fast import kernels

PACKAGES = (
    *("aimmerge_fast", "torch", "triton", "numpy", "safetensors"),
    *("transformers", "trl", "accelerate", "peft"),
)
BUILD_INFO = Path(__file__).with_name("_build_info.json")


def diagnose() -> dict[str, Any]:
    """Everything that ``aimmerge doctor`` shows, JSON-able; never raises for what is missing.

    Keys: ``versions`` (None: not installed), ``package`` (its folder), ``build`` (what setup.py
    recorded, None when it did not run), ``native``, ``cuda``, and ``backends`` per device kind:
    ``{"unusable": {name: reason or None}, "auto": name, "why": reason}``.
    """
    cuda = _cuda()
    kinds = ["cpu", *(["cuda"] if cuda["available"] else [])]
    return {
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        "package": str(BUILD_INFO.parent),
        "build": _build(),
        "native": _native(),
        "cuda": cuda,
        "backends": {kind: _backends(kind) for kind in kinds},
    }


def show(report: dict[str, Any], console: Console) -> None:
    """Print ``diagnose()``: tables on a terminal, one ``name: value`` a line elsewhere."""
    for title, rows in _sections(report).items():
        if not console.is_terminal:
            print(f"{title}:", *(f"  {name}: {value}" for name, value in rows), sep="\n")
            continue
        table = Table(title=title, title_justify="left", show_header=False, min_width=60)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(name, Text(value))  # as it is, brackets included
        console.print(table)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _build() -> dict[str, Any] | None:
    if not BUILD_INFO.exists():
        return None
    build: dict[str, Any] = json.loads(BUILD_INFO.read_text())
    return build


def _native() -> dict[str, Any]:
    """The compiled module: is it there, which clone of the kernels runs, on how many threads."""
    reason = kernels.available("cpu")["native"]
    if reason is not None:
        return {"loaded": False, "reason": reason}
    native = importlib.import_module("aimmerge_fast._native")
    return {"loaded": True, "isa": native.isa(), "threads": native.threads()}


def _cuda() -> dict[str, Any]:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return {"available": True, "reason": f"CUDA {torch.version.cuda}", "devices": names}
    without = "torch was built without CUDA" if torch.version.cuda is None else "torch sees no GPU"
    return {"available": False, "reason": without, "devices": []}


def _backends(kind: str) -> dict[str, Any]:
    choice = kernels.choose("auto", kind)
    return {"unusable": kernels.available(kind), "auto": choice.name, "why": choice.reason}


def _sections(report: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """The report as titled rows of text."""
    versions = [(name, found or "not installed") for name, found in report["versions"].items()]
    native, cuda = report["native"], report["cuda"]
    loaded = f"{native['isa']} clones, {native['threads']} threads" if native["loaded"] else ""
    devices = ", ".join(cuda["devices"])
    machine = [
        ("native module", loaded or f"missing: {native['reason']}"),
        ("CUDA", f"{'yes' if cuda['available'] else 'no'}: {devices or cuda['reason']}"),
    ]
    sections = {"versions": versions, "build": _build_rows(report), "this machine": machine}
    for kind, backends in report["backends"].items():
        rows = [(name, why or "works") for name, why in backends["unusable"].items()]
        rows.append(("auto", f"{backends['auto']} ({backends['why']})"))
        sections[f"backends on {kind}"] = rows
    return sections


def _build_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    build = report["build"]
    rows = [("package", report["package"])]
    if build is None:
        return [*rows, ("record", "none: setup.py did not run here; install with pip")]
    for kind in ("native", "cuda"):
        word = "built" if build[kind] else "not built"
        rows.append((f"{kind} kernels", f"{word}: {build[f'{kind}_reason']}"))
    if build["native"]:
        rows.append(("flags", " ".join(build["flags"])))
    here = sysconfig.get_config_var("EXT_SUFFIX")
    if build["abi"] != here:
        rows.append(("record", f"of another Python ({build['abi']}, here {here}); install again"))
    return rows
