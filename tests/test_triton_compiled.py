"""The Triton kernels compiled for GPUs that are not here: wide accesses, registers, rounding.

Each check is also put to a copy of the kernels with the fault that it is for.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import aimmerge_fast
from tests.triton_asm import Code, after_release, narrow_offsets, real_constants, wide_accesses

triton = pytest.importorskip("triton", reason="there is no Triton here")
ROOT = Path(aimmerge_fast.__file__).parents[1]
KERNELS = ("observe", "advance", "repair", "open", "open-narrow", "close", "close-narrow")
OVER_TILES = KERNELS[3:]
ENTRIES = ("importance", "weighted")  # without a controller
#: Kernel and compute capability; each other capability has the two of one geometry.
JOBS = [
    *((name, 90) for name in (*KERNELS, *ENTRIES)),
    *((name, capability) for capability in (75, 120) for name in ("open", "close")),
    *((name, capability) for capability in (80, 100) for name in ("open-narrow", "close-narrow")),
]
#: A folder with another release of Triton, as ``pip install --target`` makes it.
OTHER_TRITON = os.environ.get("AIMMERGE_OTHER_TRITON")
#: 16-byte accesses of one thread in a tile: four rows.
OPEN = {("ld", "live"): 4, ("ld", "anchor"): 4, ("st", "mid"): 4}
CLOSE = {
    **{("ld", buffer): 4 for buffer in ("live", "anchor", "mid")},
    **{("st", buffer): 4 for buffer in ("live", "anchor")},
}
#: Vectors of a row: kind and bits of one entry -> how many. fp32 takes one path, each 16-bit format
#: another, in halves of a vector beside the fp32 averages.
ROW_VECTORS = {
    "importance": {("ld", "v4.b32"): 4 + 2 + 2, ("st", "v4.b32"): 6, ("ld", "v2.b32"): 2 + 2},
    "weighted": {
        **{("ld", "v4.b32"): 7 + 4 + 4, ("st", "v4.b32"): 1},
        **{("ld", "v2.b32"): 3 + 3, ("st", "v2.b32"): 1 + 1},
    },
}
Requests = list[dict[str, Any]]


@dataclasses.dataclass
class Compiled:
    """The kernels, those of each faulty copy, and keys in the compiler's cache by folder."""

    codes: dict[tuple[str, int], Code]
    faulty: dict[str, Code]
    keys: list[dict[str, str]]


def compile_all(requests: Requests, cache: Path, extra_path: str | None = None) -> dict[str, Any]:
    """Run the compiler in a process of its own, with a cache of this run's."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    if extra_path:
        environment["PYTHONPATH"] = extra_path
    script = Path(__file__).parent / "triton_compile.py"
    done = subprocess.run(
        [sys.executable, str(script)],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout))


def request(root: Path, out: Path, jobs: Sequence[tuple[str, int]]) -> dict[str, Any]:
    wanted = [(name, capability, capability == 90) for name, capability in jobs]
    return {"root": str(root), "out": str(out), "jobs": wanted}


def changed_copy(target: Path, file: str, old: str, new: str) -> Path:
    """The package in ``target`` with one change to a file of the kernels."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "aimmerge_fast", target / "aimmerge_fast", ignore=ignored)
    path = target / "aimmerge_fast" / "kernels" / f"{file}.py"
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{file}.py has changed: {old!r} is gone"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return target


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    out, layout = (tmp_path_factory.mktemp(name) for name in ("compiled", "layout"))
    requests = [request(ROOT, out, JOBS), request(changed_copy(layout, *SWAPPED), layout, [])]
    folders = {}
    for fault, (file, old, new, name, _) in FAULTS.items():
        folders[fault] = tmp_path_factory.mktemp("faulty")
        root = changed_copy(folders[fault], f"triton_kernels/{file}", old, new)
        requests.append(request(root, root, [(name, 90)]))
    cache = tmp_path_factory.getbasetemp() / "triton-cache"  # test_triton_launch.py's too
    made = compile_all(requests, cache)
    return Compiled(
        {(name, c): Code.read(out, f"{name}-{c}") for name, c in JOBS},
        {fault: Code.read(where, f"{FAULTS[fault][3]}-90") for fault, where in folders.items()},
        made["keys"],
    )


# ---- the checks: each lists what is wrong ------------------------------------------------------


def narrow_accesses(code: Code, name: str) -> list[str]:
    """Every buffer is read and written 16 bytes at a time; the assembler keeps what PTX says.

    Of a kernel with two formats the compiler may do once what both begin with.
    """
    expected = OPEN if name.startswith("open") else CLOSE
    found = wide_accesses(code.ptx)
    formats = 2 if name.endswith("-narrow") else 1
    wrong = []
    for key in {*expected, *found}:
        most = formats * expected.get(key, 0)
        if not most - formats < found[key] <= most:
            wrong.append(f"{found[key]} of {most} {key}")
    for kind, instruction in (("ld", "LDG.E.128"), ("st", "STG.E.128")):
        kept = len(re.findall(rf"\b{re.escape(instruction)}\b", code.sass))
        if code.sass and kept != sum(n for (each, _), n in found.items() if each == kind):
            wrong.append(f"{kept} {instruction}")
    return wrong


def narrow_rows(code: Code, name: str) -> list[str]:
    """Every buffer of a row is read and written in vectors."""
    accesses = re.findall(r"\b(ld|st)\.global\S*\.(v[24]\.b32)\b", code.ptx)
    found = {key: accesses.count(key) for key in accesses}
    return [] if found == ROW_VECTORS[name] else [f"{found} instead of {ROW_VECTORS[name]}"]


def spills(code: Code, name: str) -> list[str]:
    return [f"{code.memory} bytes or accesses"] if code.memory else []


def unfaithful_arithmetic(code: Code, name: str) -> list[str]:
    """Nothing fused, flushed or approximated. The assembler's own fp64 division fuses, in SASS."""
    found = re.findall(r"\bfma\b\S*|\S+\.ftz\b\S*|\S+\.approx\b\S*|\S+\.full\b\S*", code.ptx)
    if name.startswith("close") or name in ENTRIES:
        found += re.findall(r"\bFFMA\b", code.sass)
    return found


def short_offsets(code: Code, name: str) -> list[str]:
    return narrow_offsets(code.ttir)


def imprecise_controller(code: Code, name: str) -> list[str]:
    """All of it in fp64: a constant that was fp32 for a moment is another number."""
    allowed = {0.0, 0.4, 0.5, 0.6, 1.0, 2147483647.0}
    found = [str(x) for x in real_constants(code.ttir) if x == x and x not in allowed]
    if name == "advance":
        found += re.findall(r"\bb?f(?:16|32)\b", code.ttir)
    return found


def early_sequence_number(code: Code, name: str) -> list[str]:
    """One store follows the release of a record: its sequence number."""
    followers = after_release(code.ptx)
    return [] if followers == [["st.global.b64"]] else [str(followers)]


Check = Callable[[Code, str], list[str]]


@pytest.mark.parametrize("check", [narrow_accesses, spills, unfaithful_arithmetic])
@pytest.mark.parametrize(
    "job", [job for job in JOBS if job[0] in OVER_TILES], ids=lambda job: f"{job[0]}-{job[1]}"
)
def test_tiles(compiled: Compiled, check: Check, job: tuple[str, int]) -> None:
    assert check(compiled.codes[job], job[0]) == []


@pytest.mark.parametrize("name", [*KERNELS, *ENTRIES])
@pytest.mark.parametrize(
    "check", [spills, unfaithful_arithmetic, short_offsets, imprecise_controller]
)
def test_every_kernel(compiled: Compiled, check: Check, name: str) -> None:
    assert check(compiled.codes[name, 90], name) == []


@pytest.mark.parametrize("name", ENTRIES)
def test_rows_of_entries(compiled: Compiled, name: str) -> None:
    assert narrow_rows(compiled.codes[name, 90], name) == []
    # three blocks on a multiprocessor; two with older releases, which would spill within 80
    release = tuple(map(int, triton.__version__.split(".")[:2]))
    assert compiled.codes[name, 90].registers <= (80 if release >= (3, 9) else 128)


@pytest.mark.parametrize("name", [name for name in KERNELS if name != "repair"])
def test_the_sequence_number_comes_last(compiled: Compiled, name: str) -> None:
    assert early_sequence_number(compiled.codes[name, 90], name) == []


@pytest.mark.parametrize(
    "job", [job for job in JOBS if job[0] in OVER_TILES], ids=lambda job: f"{job[0]}-{job[1]}"
)
def test_registers_leave_room(compiled: Compiled, job: tuple[str, int]) -> None:
    """Of a multiprocessor's 65,536 registers: for three wide blocks, for four narrow ones."""
    per_thread = -(-compiled.codes[job].registers // 8) * 8
    threads, blocks = (128, 4) if job[0].endswith("-narrow") else (256, 3)
    assert blocks * threads * per_thread <= 65_536


# ---- faults ------------------------------------------------------------------------------------

HINT = "tl.multiple_of(entries, 16)"
RELEASE = 'tl.atomic_add(b.i32 + at.S_RING_SIZE, 0, sem="acq_rel", scope="sys")\n        '
NUMBER = "tl.store(slot.i64 + at.R_SEQUENCE, posted + 1)"
#: By name: file, what stands there, what takes its place, the kernel that shows it, the check.
FAULTS: dict[str, tuple[str, str, str, str, Check]] = {
    "a hint on the integer": (
        *("formats", HINT, "tl.multiple_of(entries.to(tl.int64), 16).to(entries.dtype)"),
        *("close", narrow_accesses),
    ),
    "a hint on the integer, in rows": (
        *("formats", HINT, "tl.multiple_of(entries.to(tl.int64), 16).to(entries.dtype)"),
        *("weighted", narrow_rows),
    ),
    "fused rows": (
        *("launch", '_fusion": False', '_fusion": True', "weighted", unfaithful_arithmetic),
    ),
    "fused": ("launch", '_fusion": False', '_fusion": True', "close", unfaithful_arithmetic),
    "too few registers": ("launch", "else (8, 80)", "else (8, 40)", "close", spills),
    "32-bit tiles": ("repair", "(0).to(tl.int64)", "(0)", "repair", short_offsets),
    "32-bit rows": (
        *("advance", "range(0, count)", "range(0, count.to(tl.int32))"),
        *("advance", short_offsets),
    ),
    "constants in fp32": (
        *("controller_merge", "real(1.0), real(0.5))", "1.0, 0.7)"),
        *("advance", imprecise_controller),
    ),
    "a number before its record": (
        *("block", RELEASE + NUMBER, NUMBER + "\n        " + RELEASE.rstrip()),
        *("observe", early_sequence_number),
    ),
}
#: Two fields of a record change places.
SWAPPED = (
    *("layout", '("threshold", "f8"),\n        ("l1", "f8"),'),
    '("l1", "f8"),\n        ("threshold", "f8"),',
)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(compiled: Compiled, fault: str) -> None:
    *_, name, check = FAULTS[fault]
    assert check(compiled.faulty[fault], name)


def test_another_layout_is_another_kernel(compiled: Compiled) -> None:
    """The compiler keeps kernels from one run to the next; offsets must be part of their key."""
    ours, swapped = compiled.keys[:2]
    assert all(ours[name] != swapped[name] for name in KERNELS)


@pytest.mark.skipif(OTHER_TRITON is None, reason="AIMMERGE_OTHER_TRITON names no folder")
def test_another_release_of_triton(tmp_path: Path) -> None:
    jobs = [(name, 90) for name in (*KERNELS, *ENTRIES)]
    made = compile_all([request(ROOT, tmp_path, jobs)], tmp_path / "cache", OTHER_TRITON)
    assert made["version"] != triton.__version__
    for name, _ in jobs:
        code = Code.read(tmp_path, f"{name}-90")
        for check in (spills, unfaithful_arithmetic, short_offsets, imprecise_controller):
            assert check(code, name) == [], check.__name__
        if name in OVER_TILES:
            assert narrow_accesses(code, name) == []
        if name in KERNELS and name != "repair":
            assert early_sequence_number(code, name) == []
