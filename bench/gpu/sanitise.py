"""Stage ``sanitise``: the four tools of compute-sanitizer over every op, each tool tried first."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from gpu import machine, stage
from gpu.stage import NOT_RUN, ROOT, Found, Stage, judged

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
CASE = (sys.executable, "-P", "-m", "gpu.small_case")
SEEN = 9  # exit code when a tool found something
LIMIT = 95  # seconds of one tool


def run(given: Stage) -> None:
    sanitizer = machine.program("compute-sanitizer") if given.on_gpu else None
    given.check("small case without a tool", lambda: plain(given))
    if sanitizer is None:
        why = "compute-sanitizer not found" if given.on_gpu else "needs CUDA itself"
        for tool in TOOLS:
            given.add(tool, Found(why, NOT_RUN))
        return
    with tempfile.TemporaryDirectory() as folder:
        program = planted_program(Path(folder))
        for tool in TOOLS:
            command = [sanitizer, "--tool", tool, "--error-exitcode", str(SEEN)]
            # torch asks CUDA what it may refuse; our own calls check their answers themselves
            command += ["--report-api-errors", "no"] if tool == "memcheck" else []
            given.check(f"{tool} sees a planted fault", lambda c=command: control(c, program))
            given.check(tool, lambda c=command: watched(c))


def plain(given: Stage) -> Found:
    """Also compiles what is compiled at first use, so that no tool watches a compiler."""
    code, output, seconds = _call([*CASE, "--device", given.device.type], 120)
    last = output.splitlines()[-1] if output else ""
    return judged(code == 0 and "small case:" in last, f"{last}; {seconds:.0f} s", output=output)


def planted_program(folder: Path) -> Path | None:
    """The program with faults; None without nvcc or when it does not compile."""
    nvcc, source = machine.program("nvcc"), Path(__file__).with_name("planted.cu")
    if nvcc is None:
        return None
    target = folder / "planted"
    major, minor = torch.cuda.get_device_capability()
    command = [nvcc, f"-arch=sm_{major}{minor}", "-o", str(target), str(source)]
    return target if _call(command, 60)[0] == 0 else None


def control(command: Sequence[str], program: Path | None) -> Found:
    """A tool that cannot see faults here would say "0 errors" of anything."""
    if program is None:
        return Found("nvcc not found or planted.cu does not compile", NOT_RUN)
    code, output, _ = _call([*command, str(program), command[2]], 30)
    text = f"exit {code} (it must be {SEEN}), {errors(output)} errors"
    return judged(code == SEEN, text, output_end=output.splitlines()[-12:])


def watched(command: Sequence[str]) -> Found:
    # Only this program: the compilers that it may start are none of ours.
    code, output, seconds = _call(
        [*command, "--target-processes", "application-only", *CASE], LIMIT
    )
    count = errors(output)
    found = [line for line in output.splitlines() if line.startswith("=========")]
    text = f"{count} errors, exit {code}; {seconds:.0f} s"
    passes = code == 0 and count == 0 and "small case:" in output
    return judged(passes, text, errors=count, excerpt=found[:20] + found[-6:])


def errors(output: str) -> int | None:
    """Errors and warnings that a tool's last line counts; None when it ended without one."""
    if found := re.search(r"RACECHECK SUMMARY: (\d+) hazards?", output):
        return int(found[1])
    found = re.search(r"ERROR SUMMARY: (\d+) errors?", output)
    return int(found[1]) if found else None


def _call(command: Sequence[str], limit: float) -> tuple[int, str, float]:
    """Exit code (124: stopped after ``limit`` seconds), output, seconds."""
    began = time.monotonic()
    # Each tensor its own allocation: the caching allocator would hide a step too far.
    rooms = os.pathsep.join([str(ROOT / "bench"), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": rooms}
    try:
        done = subprocess.run(
            command,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired as stopped:
        held = stopped.stdout or b""
        text = held.decode(errors="replace") if isinstance(held, bytes) else held
        return 124, f"{text}\nstopped after {limit:.0f} s", time.monotonic() - began
    return done.returncode, done.stdout.strip(), time.monotonic() - began


def main(arguments: list[str] | None = None) -> int:
    return stage.main("sanitise", run, arguments)


if __name__ == "__main__":
    sys.exit(main())
