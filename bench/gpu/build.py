"""Stage ``build``: the compiled module from source, offline, and what the compiler made of it."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from typing import Any

import torch

from gpu import built, machine, stage
from gpu.stage import INFO, NOT_RUN, ROOT, Found, Stage, judged

PIP = ("-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "-v", "-e", ".")
BUILD_LIMIT = 300

#: Run in a new process: this one may have loaded an older module.
ASK = """
import json, sys
import torch
from aimmerge_fast import _native
found = {"file": _native.__file__, "isa": _native.isa(), "threads": _native.threads()}
if hasattr(_native, "CudaEngine"):
    found["architectures"] = _native.cuda_architectures()
    if sys.argv[1] == "cuda":
        torch.zeros(1, device="cuda")
        found["kernels"] = _native.cuda_kernels(0)
print(json.dumps(found))
"""


def run(given: Stage) -> None:
    given.add("tools", tools())
    if given.options.no_install:
        given.add("build from source", Found("--no-install", NOT_RUN))
    else:
        given.check("build from source", install)
    module: dict[str, Any] = {}
    given.check("the module loads", lambda: loads(given, module))
    for name, use in module.get("kernels", {}).items():
        given.add(f"native kernel {name}", kernel(use))
    given.check("spills, all architectures", lambda: spills(module["file"]))
    given.needs_gpu("Triton kernels", triton_kernels)


def tools() -> Found:
    here = machine.tools()
    missing = [name for name, found in here.items() if not found]
    return Found(f"missing: {', '.join(missing) or 'none'}", INFO, {"tools": here})


def install() -> Found:
    """pip builds in a folder of its own, so every source is compiled."""
    environment = {**os.environ, "AIMMERGE_NATIVE": "on", "AIMMERGE_CUDA": "on"}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, *PIP],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=BUILD_LIMIT,
        check=False,
    )
    seconds = time.monotonic() - began
    log = (done.stdout + done.stderr).splitlines()
    if done.returncode:
        print(*log[-30:], sep="\n")
    else:
        built.note()
    verdict = next((line.strip() for line in log if "kernels BUILT" in line), "")
    result = f"{seconds:.0f} s, exit {done.returncode}" + (f"; {verdict}" if verdict else "")
    return judged(done.returncode == 0, result, seconds=seconds, log_end=log[-15:])


def loads(given: Stage, module: dict[str, Any]) -> Found:
    """Ask a new process about the module; fills ``module``."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", ASK, given.device.type],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        return judged(False, done.stderr.strip().splitlines()[-1], log_end=done.stderr)
    module |= json.loads(done.stdout.splitlines()[-1])
    codes = module.get("architectures")
    text = f"CPU {module['isa']}, {module['threads']} threads; machine code for {codes or 'no GPU'}"
    if not given.on_gpu:
        return Found(text, INFO, dict(module))
    major, minor = torch.cuda.get_device_capability(given.device)
    return judged(codes is not None and 10 * major + minor in codes, text, **module)


def kernel(use: dict[str, int]) -> Found:
    """As the driver loaded it: bytes of local memory are spills or an indexed local array."""
    text = f"{use['registers']} registers, {use['local_bytes']} B local, {use['shared_bytes']} B"
    return judged(use["local_bytes"] == 0, f"{text} shared", **use)


def spills(file: str) -> Found:
    """The largest stack and the most registers of a kernel, by architecture."""
    cuobjdump = machine.program("cuobjdump")
    if cuobjdump is None:
        return Found("cuobjdump not found", NOT_RUN)
    done = subprocess.run(
        [cuobjdump, "-res-usage", file], capture_output=True, text=True, timeout=120, check=False
    )
    uses = resource_usage(done.stdout)
    if not uses:
        return Found(f"no machine code in the module (exit {done.returncode})", NOT_RUN)
    stack = max(use["stack"] for use in uses.values())
    each = ", ".join(f"{arch} {use['registers']}" for arch, use in uses.items())
    return judged(stack == 0, f"largest stack {stack} B; most registers: {each}", by_arch=uses)


def resource_usage(text: str) -> dict[str, dict[str, int]]:
    """Per architecture the largest REG and STACK of ``cuobjdump -res-usage``."""
    uses: dict[str, dict[str, int]] = {}
    arch = ""
    for line in text.splitlines():
        if found := re.search(r"^arch = (\w+)", line):
            arch = found[1]
        if found := re.search(r"REG:(\d+) STACK:(\d+)", line):
            use = uses.setdefault(arch, {"registers": 0, "stack": 0, "kernels": 0})
            use["registers"] = max(use["registers"], int(found[1]))
            use["stack"] = max(use["stack"], int(found[2]))
            use["kernels"] += 1
    return uses


def triton_kernels() -> Found:
    """Registers and spills of the Triton kernels as the driver loaded them."""
    from triton.runtime import driver

    from aimmerge_fast.kernels.triton_kernels import launch

    programs = {"observe": launch.OBSERVE, "advance": launch.ADVANCE, "repair": launch.REPAIR}
    programs |= {"importance": launch.IMPORTANCE, "weighted": launch.WEIGHTED}
    for narrow, suffix in ((False, ""), (True, "_narrow")):
        programs |= {f"open{suffix}": launch.OPEN[narrow], f"close{suffix}": launch.CLOSE[narrow]}
    began = time.monotonic()
    uses = {}
    for name, program in programs.items():
        made = launch.compiled(program, driver.active.get_current_target())
        made.run  # noqa: B018  loads the machine code
        uses[name] = {"registers": made.n_regs, "spills": made.n_spills}
    seconds = time.monotonic() - began
    text = ", ".join(f"{name} {use['registers']}" for name, use in uses.items())
    spilled = sum(use["spills"] for use in uses.values())
    result = f"{seconds:.1f} s; {spilled} spills; registers: {text}"
    return judged(spilled == 0, result, kernels=uses, seconds=seconds)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-install", action="store_true", help="look at the module that is here")


def main(arguments: list[str] | None = None) -> int:
    return stage.main("build", run, arguments, options)


if __name__ == "__main__":
    sys.exit(main())
