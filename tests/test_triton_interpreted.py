"""The Triton kernels, interpreted on the CPU, give the bits of the native ones and of eager.

Triton decides when it is imported whether kernels are compiled or interpreted. So a second process
interprets: there ``triton`` is one more backend that works on the CPU, and the tests of all
backends run with it, beside those of triton_interpreted.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="there is no Triton here")
pytest.importorskip("aimmerge_fast._native", reason="there is no native module to compare with")
ROOT = Path(__file__).parents[1]
FILES = (
    *("triton_interpreted", "test_vectors", "test_controller_fuzz", "test_kernels_parity"),
    *("test_kernels_values", "test_kernels_group", "test_kernels_formats", "test_kernels_huge"),
    *("test_kernels_twins", "test_library", "test_kernels_entries"),
    "test_kernels_entries_given",
)
#: Left out: tens of thousands of launches, pairs with eager, what the first file does faster.
SELECTED = (
    "triton and not (pattern or eager or lanes or sizes3 or turns)"
    " and not (size_at_once and (normal or specials or tiny))"
)


@pytest.mark.skipif(
    tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9),
    reason="the interpreter of older releases cannot count a loop to a loaded number",
)
def test_interpreted_kernels() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "tests.triton_plugin", "-k", SELECTED]
    done = subprocess.run(
        [*command, *(f"tests/{name}.py" for name in FILES)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "HYPOTHESIS_PROFILE": "interpreted"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    summary = done.stdout.strip().splitlines()[-1]
    passed = re.search(r"(\d+) passed", summary)
    assert passed is not None, summary
    assert int(passed[1]) > 140, summary
    assert "skipped" not in summary, summary
