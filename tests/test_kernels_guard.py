"""No kernel reads or writes a byte outside of its tensors: forbidden pages lie around each buffer.

The kernels run in a process of their own, where a stray access is a signal.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends import USABLE

pytestmark = [
    pytest.mark.skipif("native" not in USABLE, reason="there is no native module here"),
    pytest.mark.skipif(sys.platform != "linux", reason="protects pages with Linux' mprotect"),
]


@pytest.fixture(scope="module")
def guarded() -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.guarded"]
    root = Path(__file__).parents[1]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_merges_stay_inside_their_buffers(guarded: subprocess.CompletedProcess[str]) -> None:
    """Every dtype, tail and instruction set; accepted, and rejected by either half."""
    assert guarded.returncode == 0, guarded.stderr
    name, merges = guarded.stdout.splitlines()[0].split()
    assert name == "merges"
    assert int(merges) % (3 * 26 * 2 * 3) == 0
    assert int(merges) >= 468


def test_the_fences_end_a_kernel_that_strays(guarded: subprocess.CompletedProcess[str]) -> None:
    """One entry more than there is, or an arena that lies beside its memory."""
    faults = [line.split() for line in guarded.stdout.splitlines()[1:]]
    assert len(faults) == 12
    for *fault, ended in faults:
        assert int(ended) == signal.SIGSEGV, fault
