"""What nvcc made of the kernels: registers, stack, and how wide their loads and stores are.

Reads the output of ``ptxas -v`` and of ``cuobjdump -sass``. As a program it prints the table of a
whole build and fails on what the tests of one architecture would fail on::

    python3 tests/device_code.py BUILD_LOG MODULE
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Vector accesses of each kernel: (load or store, bits, bytes between a thread's rows) and, for
#: each path through the code, the buffers that it touches so. fp32 takes one path, bf16 and fp16
#: one each; a 16-bit tile among fp32 ones is read in halves of a vector.
WIDE = {
    "open<256>": {
        ("LDG", 128, 4096): [2],
        ("STG", 128, 4096): [1],
        ("LDG", 64, 2048): [2, 2],
        ("STG", 64, 2048): [1, 1],
    },
    "open<128>": {("LDG", 128, 2048): [2, 2], ("STG", 128, 2048): [1, 1]},
    "close<256>": {
        ("LDG", 128, 4096): [3],
        ("STG", 128, 4096): [2],
        ("LDG", 64, 2048): [3, 3],
        ("STG", 64, 2048): [2, 2],
    },
    "close<128>": {("LDG", 128, 2048): [3, 3], ("STG", 128, 2048): [2, 2]},
}
#: The same for kernels that go row by row beside fp32 buffers: 16-byte accesses of the paths of
#: fp32, bf16 and fp16 together, in a row.
ROW_WIDE = {
    "importance": {"LDG": 4 + 2 + 2, "STG": 2 + 2 + 2},
    "weighted": {"LDG": 7 + 4 + 4, "STG": 1},
}
KERNELS = {*WIDE, *ROW_WIDE, "observe", "advance", "repair"}
ROWS = 4
GAP = 8  # instructions between two accesses of a run: addresses, but no arithmetic on what came

_USE = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<arch>sm_\d+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<spill>\d+) bytes spill stores.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)
_NAME = re.compile(r"\d+([a-z]+)_kernel(?:ILi(\d+)E)?")
_ACCESS = re.compile(
    r"^(?P<kind>LDG|STG)\.E\.(?P<bits>64|128)\S* .*"
    r"(?<!desc)\[(?P<base>[^\]]*?)(?:\+(?P<offset>-?0x[0-9a-f]+))?\]"
)
_WIDE_ACCESS = re.compile(r"(?:@\S+ )?(LDG|STG)\.E\.128\b")


@dataclass(frozen=True)
class Use:
    """One kernel on one architecture."""

    kernel: str
    arch: str
    registers: int
    stack: int
    spill: int


def kernel_name(mangled: str) -> str:
    """``open<256>`` for the mangled name of ``open_kernel<256>``."""
    found = _NAME.search(mangled)
    assert found is not None, f"no kernel is named so: {mangled}"
    return found[1] + (f"<{found[2]}>" if found[2] else "")


def uses(log: str) -> list[Use]:
    """Every kernel that ``ptxas -v`` reports in ``log``."""
    figures = ("registers", "stack", "spill")
    return [
        Use(kernel_name(found["name"]), found["arch"], *(int(found[name]) for name in figures))
        for found in _USE.finditer(log)
    ]


def use_problems(found: list[Use]) -> list[str]:
    """Kernels with a stack or a spill, and kernels that an architecture lacks."""
    problems = [
        f"{use.kernel} for {use.arch}: {use.stack} bytes of stack, {use.spill} spilled"
        for use in found
        if use.stack or use.spill
    ]
    for arch in sorted({use.arch for use in found}) or ["any architecture"]:
        missing = KERNELS - {use.kernel for use in found if use.arch == arch}
        problems += [f"{kernel} was not compiled for {arch}" for kernel in sorted(missing)]
    return problems


def table(found: list[Use]) -> str:
    """Kernel by architecture: registers/stack bytes."""
    archs = sorted({use.arch for use in found}, key=lambda arch: int(arch[3:]))
    cells = {(use.kernel, use.arch): f"{use.registers}/{use.stack}" for use in found}
    lines = [f"{'regs/stack':<12}" + "".join(f"{arch:>8}" for arch in archs)]
    for kernel in sorted({use.kernel for use in found}):
        row = "".join(f"{cells.get((kernel, arch), '-'):>8}" for arch in archs)
        lines.append(f"{kernel:<12}{row}")
    return "\n".join(lines)


def functions(sass: str) -> Iterator[tuple[str, str, list[str]]]:
    """(architecture, kernel, instructions) of each function that ``cuobjdump -sass`` shows."""
    arch, kernel, body = "", "", list[str]()
    for line in [*sass.splitlines(), "arch = sm_0"]:
        if found := re.search(r"arch = (sm_\d+)|Function : (\S+)", line):
            if kernel:
                yield arch, kernel, body
            arch = found[1] or arch
            kernel, body = kernel_name(found[2]) if found[2] else "", []
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            body.append(found[1])


def vector_runs(body: list[str]) -> dict[tuple[str, int, int], list[int]]:
    """Runs of vector accesses: what ``WIDE`` holds, as found in the instructions of a kernel.

    A run has no more than GAP other instructions between two accesses, so loads in one run are all
    issued before any of them is used. In it, a buffer is a base register with ROWS offsets.
    """
    runs: list[list[re.Match[str]]] = []
    last, last_kind = -GAP, ""
    for place, instruction in enumerate(body):
        if (access := _ACCESS.match(instruction)) is None:
            continue
        kind = f"{access['kind']}{access['bits']}"
        if kind != last_kind or place - last > GAP + 1:
            runs.append([])
        runs[-1].append(access)
        last, last_kind = place, kind
    found: dict[tuple[str, int, int], list[int]] = defaultdict(list)
    for run in runs:
        for step, buffers in _buffers(run).items():
            found[run[0]["kind"], int(run[0]["bits"]), step].append(buffers)
    return dict(found)


def _buffers(run: list[re.Match[str]]) -> Counter[int]:
    """Bytes between the rows of each buffer that a run accesses in all rows."""
    offsets: dict[str, list[int]] = defaultdict(list)
    for access in run:
        offsets[access["base"]].append(int(access["offset"] or "0", 16))
    steps: Counter[int] = Counter()
    for places in map(sorted, offsets.values()):
        apart = {after - before for before, after in zip(places, places[1:], strict=False)}
        if len(places) == ROWS and len(apart) == 1:
            steps[apart.pop()] += 1
    return steps


def width_problems(sass: str) -> list[str]:
    """Kernels whose wide paths do not access every buffer in vectors, all loads before any use."""
    problems, seen = [], set()
    for arch, kernel, body in functions(sass):
        seen.add(kernel)
        if kernel in WIDE and (found := vector_runs(body)) != WIDE[kernel]:
            problems.append(f"{kernel} for {arch}: {found} instead of {WIDE[kernel]}")
        if kernel in ROW_WIDE:
            kinds = [wide[1] for line in body if (wide := _WIDE_ACCESS.match(line))]
            problems += _row_problems(kernel, arch, kinds)
    missing = sorted({*WIDE, *ROW_WIDE} - seen)
    return problems + [f"{kernel} has no machine code" for kernel in missing]


def _row_problems(kernel: str, arch: str, kinds: list[str]) -> list[str]:
    """``kinds``: LDG or STG of each 16-byte access; a compiler may write out several rows."""
    expected = ROW_WIDE[kernel]
    rows = len(kinds) // sum(expected.values())
    if rows and Counter(kinds) == {kind: rows * number for kind, number in expected.items()}:
        return []
    return [f"{kernel} for {arch}: {dict(Counter(kinds))} instead of {expected} of each row"]


def find_tool(name: str) -> str | None:
    """A tool of CUDA: on PATH, where CUDA is usually installed, or the one that Triton brings."""
    places = [Path("/usr/local/cuda/bin"), *sorted(Path("/usr/local").glob("cuda-*/bin"))[::-1]]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        places.append(Path(triton.origin).parent / "backends/nvidia/bin")
    found = [shutil.which(name), *(shutil.which(name, path=str(place)) for place in places)]
    return next((tool for tool in found if tool), None)


def disassembled(binary: Path, arch: str) -> str:
    """The machine code for one architecture in a cubin, an object file or a module."""
    tool = find_tool("cuobjdump")
    assert tool is not None, "cuobjdump was not found; Triton brings one"
    command = [tool, "-sass", "-arch", arch, str(binary)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main(log: str, module: str) -> int:
    found = uses(Path(log).read_text())
    print(table(found))
    problems = use_problems(found)
    archs = sorted({use.arch for use in found}, key=lambda arch: int(arch[3:]))
    for arch in {archs[0], archs[-1]} if archs else ():
        problems += width_problems(disassembled(Path(module), arch))
    print(*problems, f"{len(problems)} problems on {len(archs)} architectures", sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
