"""Stage build of bench/gpu_check.sh: what counts as built, what the compiler's report says."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from gpu import build, built


def test_other_sources_are_not_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(built, "RECORD", tmp_path / "build/record")
    assert not built.is_built()
    built.note()
    assert built.is_built() == hasattr(
        importlib.import_module("aimmerge_fast._native"), "CudaEngine"
    )
    monkeypatch.setattr(built, "sources", lambda: "of another tree")
    assert not built.is_built()


def test_a_changed_source_changes_the_digest(tmp_path: Path) -> None:
    (tmp_path / "csrc/cuda").mkdir(parents=True)
    (tmp_path / "setup.py").write_text("x")
    digests = {built.sources(tmp_path)}
    for name, text in (("open.cu", "a"), ("open.cu", "b"), ("close.cu", "b")):
        (tmp_path / "csrc/cuda" / name).write_text(text)
        digests.add(built.sources(tmp_path))
    assert len(digests) == 4


def test_the_largest_stack_of_each_architecture_is_read() -> None:
    usage = (
        "arch = sm_75\n Function a:\n  REG:40 STACK:0 SHARED:8 LOCAL:0\n"
        "arch = sm_90\n Function a:\n  REG:32 STACK:0 SHARED:8\n Function b:\n  REG:64 STACK:16\n"
    )
    assert build.resource_usage(usage) == {
        "sm_75": {"registers": 40, "stack": 0, "kernels": 1},
        "sm_90": {"registers": 64, "stack": 16, "kernels": 2},
    }
