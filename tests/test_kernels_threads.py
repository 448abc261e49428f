"""The bits do not depend on threads, instruction set, repetition, or the floating-point mode."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from tests.backends import USABLE
from tests.tables import DTYPES, KINDS, SIZES, Play, Spec, Table, bits_of

ROOT = Path(__file__).parents[1]
CONFIG = AIMConfig(alpha_new=0.3)
#: Far more than the 16 tiles from which the kernels share the work.
LARGE = [Spec(dtype, 4096 * 23 + 5, 3) for dtype in DTYPES]
BUILD = ROOT / "aimmerge_fast/_build_info.json"
OPENMP = not BUILD.exists() or json.loads(BUILD.read_text()).get("openmp", True)
NATIVE = pytest.mark.skipif("native" not in USABLE, reason="there is no native module here")


def plays() -> list[Play]:
    mixed = [Spec(DTYPES[k % 3], n, k % 16) for k, n in enumerate(SIZES * 3)]
    return [*(Play(mixed, kind, 4, CONFIG) for kind in KINDS), Play(LARGE, "tiny", 1, CONFIG)]


def digest(backend: str) -> str:
    """Of every byte after every half of several merges."""
    found = hashlib.sha256()
    for play in plays():
        for half in play.on(backend):
            for each in half:
                found.update(each)
    return found.hexdigest()


def flushes() -> bool:
    return sys.float_info.min / 2.0 == 0.0


@pytest.fixture(scope="module")
def expected() -> str:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = digest("eager")
    torch.set_num_threads(threads)
    return found


@pytest.fixture
def thread_count() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("thread_count")
@pytest.mark.parametrize("backend", USABLE)
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_any_number_of_threads(backend: str, threads: int, expected: str) -> None:
    torch.set_num_threads(threads)
    if backend == "native":
        from aimmerge_fast import _native

        if OPENMP:  # one runtime, shared with torch
            assert _native.threads() == threads
    assert digest(backend) == expected


@NATIVE
@pytest.mark.usefixtures("one_thread")
def test_every_instruction_set(expected: str) -> None:
    from aimmerge_fast import _native

    chosen = _native.isa()
    try:
        for name in _native.isa_available():
            _native.set_isa(name)
            assert _native.isa() == name
            assert digest("native") == expected, name
    finally:
        _native.set_isa(chosen)
    assert chosen == _native.isa_available()[-1]
    with pytest.raises(ValueError, match=r"unknown instruction set 'mmx'; this machine runs base"):
        _native.set_isa("mmx")


@pytest.mark.usefixtures("thread_count")
@pytest.mark.parametrize(("backend", "times"), [("native", 200), ("eager", 10)])
def test_run_to_run(backend: str, times: int) -> None:
    if backend not in USABLE:
        pytest.skip("there is no native module here")
    torch.set_num_threads(3)
    table = Table.build(LARGE, CONFIG)
    play, engine = Play(LARGE, "normal", 3, CONFIG), table.engine(backend)
    play.fill(table, 0)
    starts = [tensor.clone() for tensor in table.live]
    play.fill(table, 1)
    moved = [tensor.clone() for tensor in table.live]
    results = set()
    for _ in range(times):
        kernels.begin_task(table.state, 0)
        kernels.copy_into(table.anchor, starts)
        torch._foreach_copy_(table.live, moved)
        engine.open_()
        torch._foreach_copy_(table.live, starts)
        engine.close_()
        results.add((float(table.fields["l1"]), *map(bits_of, (table.anchor, table.mid))))
    assert len(results) == 1


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backend", USABLE)
def test_denormals_are_kept_and_the_callers_mode_too(backend: str) -> None:
    play = Play([Spec(torch.float32, 1000)], "tiny", 2, CONFIG)
    played = []
    for flush in (False, True):
        table = Table.build(play.specs, CONFIG)
        engine = table.engine(backend)
        torch.set_flush_denormal(flush)
        try:
            play.fill(table, 0)
            kernels.copy_into(table.anchor, table.live)
            play.fill(table, 1)
            engine.observe_(torch.tensor(5e-324, dtype=torch.float64))
            assert flushes() is flush
            engine.open_()
            assert flushes() is flush
            l1 = bits_of(torch.from_numpy(table.fields["l1"].reshape(1)))
            play.fill(table, 2)
            engine.close_()
            assert flushes() is flush
            engine.advance_(torch.tensor([[5e-324, 0.0]], dtype=torch.float64))
            assert flushes() is flush
        finally:
            torch.set_flush_denormal(False)
        played.append((l1, table.snapshot()))
    assert played[0] == played[1]
    anchor, theta_j, _ = (bits.astype("u4").view("f4").astype("f8") for bits in play.bits[0])
    change = float(torch.frombuffer(bytearray(played[0][0]), dtype=torch.float64))
    assert change == abs(theta_j - anchor).sum()
    assert 1e-36 < change < 1e-34


# Workers keep the mode that the thread had which started them, so only a new process shows this.
FRESH = """
import torch
from tests.backends import USABLE
from tests.test_kernels_threads import digest, flushes

torch.set_flush_denormal({flush})
torch.ones(1_000_000).add_(1)  # torch starts its workers
found = {{digest(backend) for backend in USABLE}}
assert flushes() is {flush}
torch.set_flush_denormal(False)
print(*(found | {{digest(backend) for backend in USABLE}}))
"""


@pytest.mark.parametrize(("threads", "flush"), [(1, False), (2, True)])
def test_a_fresh_process(threads: int, flush: bool, expected: str) -> None:
    command = [sys.executable, "-c", FRESH.format(flush=flush)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == [expected], done.stderr
