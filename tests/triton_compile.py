"""Compiles Triton kernels ahead of time; a program of its own, because it must not be interpreted.

Reads from stdin, as JSON, a list of ``{"root", "out", "jobs"}``: the folder of a package (it may be
a changed copy), a folder for what the compiler gives, and triples of a kernel's name, a compute
capability and whether its machine code is wanted, which takes a third of a second. Writes
``out/<name>-<capability>.{ttir,ptx,sass,usage}`` and prints Triton's version and each kernel's key
in the compiler's cache, as JSON.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def launch_module(root: str) -> Any:
    """``launch`` of the package in ``root``, imported anew."""
    for name in [n for n in sys.modules if n.split(".")[0] == "aimmerge_fast"]:
        del sys.modules[name]
    sys.path.insert(0, root)
    try:
        return importlib.import_module("aimmerge_fast.kernels.triton_kernels.launch")
    finally:
        sys.path.remove(root)


def programs(launch: Any) -> dict[str, Any]:
    return {
        "observe": launch.OBSERVE,
        "advance": launch.ADVANCE,
        "repair": launch.REPAIR,
        "open": launch.OPEN[False],
        "open-narrow": launch.OPEN[True],
        "close": launch.CLOSE[False],
        "close-narrow": launch.CLOSE[True],
        "importance": launch.IMPORTANCE,
        "weighted": launch.WEIGHTED,
    }


def dump(option: str, binary: Path) -> str:
    command = [str(CUOBJDUMP), option, str(binary)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def compile_one(launch: Any, out: Path, name: str, capability: int, sass: bool) -> None:
    target = GPUTarget("cuda", capability, 32)
    kernel = launch.compiled(programs(launch)[name], target)
    stem = out / f"{name}-{capability}"
    for stage in ("ttir", "ptx"):
        stem.with_suffix(f".{stage}").write_text(kernel.asm[stage], encoding="utf-8")
    binary = stem.with_suffix(".cubin")
    binary.write_bytes(kernel.asm["cubin"])
    stem.with_suffix(".usage").write_text(dump("-res-usage", binary), encoding="utf-8")
    code = dump("-sass", binary) if sass else ""
    stem.with_suffix(".sass").write_text(code, encoding="utf-8")


def main() -> None:
    keys = []
    for request in json.load(sys.stdin):
        launch = launch_module(request["root"])
        for name, capability, sass in request["jobs"]:
            compile_one(launch, Path(request["out"]), name, capability, sass)
        keys.append({name: p.kernel.cache_key for name, p in programs(launch).items()})
    print(json.dumps({"version": triton.__version__, "keys": keys}))


if __name__ == "__main__":
    main()
