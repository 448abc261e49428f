"""The CUDA kernels under the sanitizers, and faults that these checks must see.

Two builds of tests/native/cuda_check.cpp: ``races`` runs one system thread per CUDA thread and
three blocks at once under the thread sanitizer, ``bounds`` runs fibres under the address and
undefined-behaviour sanitizers. Both compare every byte with the CPU kernels.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import settings

from tests.cuda_faults import CUDA, FAULTS, Fault
from tests.emulated import Program, compile_all, run

SANITIZE = ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all")
PROGRAMS = {
    "races": Program("races", "threads", ("-fsanitize=thread",)),
    "bounds": Program("bounds", "fibres", (*SANITIZE, "-D_GLIBCXX_ASSERTIONS")),
}
#: All but the table of 300 tensors, which would take the thread sanitizer long.
SMALL = ("observe", "merges", "ordered", "unit", "reject_open", "reject_close", "deferred")
SMALL += ("monitor", "empty")
NIGHTLY = settings.default.max_examples > 100


@pytest.mark.parametrize("seed", [0, 1])
def test_no_race(seed: int) -> None:
    """Blocks in ascending and descending order, three at a time; six or more tiles."""
    done = run(PROGRAMS["races"].build(), seed, *SMALL)
    assert done.returncode == 0, done.stderr[:5000]
    assert done.stdout == f"{2 * len(SMALL)} cases are equal\n"
    assert "ThreadSanitizer" not in done.stderr


@pytest.mark.parametrize(("seed", "cases"), [(0, (*SMALL, "many")), (1, SMALL), (2, SMALL)])
def test_nothing_outside_of_the_tensors_is_touched(seed: int, cases: tuple[str, ...]) -> None:
    done = run(PROGRAMS["bounds"].build(), seed, *cases)
    assert done.returncode == 0, done.stderr[:5000]
    assert done.stdout == f"{2 * len(cases)} cases are equal\n"


@pytest.mark.parametrize(
    "fault", [each for each in FAULTS if each.in_ci or NIGHTLY], ids=lambda fault: fault.name
)
def test_a_planted_fault_is_seen(fault: Fault, tmp_path: Path) -> None:
    fault.plant(tmp_path)
    program = PROGRAMS[fault.program]
    planted = [tmp_path / f"cuda/{op}.cu" for op in fault.ops]
    sources = [each if each.exists() else CUDA / each.name for each in planted]
    flags = ["-O1", "-g1", "-w", *program.flags]
    objects = compile_all(sources, tmp_path, flags, csrc=[tmp_path])
    changed = program.build(dict(zip(fault.ops, objects, strict=True)), tmp_path.name)
    done = run(changed, 0, *fault.cases)
    printed = done.stdout + done.stderr
    assert done.returncode != 0, f"{fault.name} was not seen"
    assert re.search(fault.seen, printed), f"{done.returncode}: {printed[:3000]}"


def test_the_faults_are_those_that_the_kernels_can_have() -> None:
    """Every barrier of every kernel is among them, and CI keeps some of each kind."""
    assert sum(each.name.startswith("barrier") for each in FAULTS) >= 9
    assert {each.program for each in FAULTS if each.in_ci} == set(PROGRAMS)
    assert len({each.name for each in FAULTS}) == len(FAULTS)
