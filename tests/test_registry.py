"""Why a backend does not work: each reason by itself, on a machine that need not have a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aimmerge_fast.kernels import registry

GPU = torch.device("cuda", 1)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch saw two GPUs of compute capability 9.0."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))


def compiled(monkeypatch: pytest.MonkeyPatch, probe: Any) -> None:
    native = SimpleNamespace(
        CudaEngine=object, cuda_architectures=lambda: [75, 90], cuda_kernels=probe
    )
    monkeypatch.setitem(sys.modules, "aimmerge_fast._native", native)


@pytest.mark.usefixtures("gpu")
def test_kernels_that_the_driver_cannot_load(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def probe(device: int) -> None:
        asked.append(device)
        raise RuntimeError("CUDA driver version is insufficient")

    compiled(monkeypatch, probe)
    reason = registry.available(GPU)["native"]
    assert reason == "the compiled kernels do not load (CUDA driver version is insufficient)"
    assert asked == [1]  # the device that was asked about
    with pytest.raises(RuntimeError, match="driver version is insufficient"):
        registry.choose("native", GPU)


@pytest.mark.usefixtures("gpu")
def test_kernels_that_load(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled(monkeypatch, lambda device: None)
    assert registry.choose("auto", GPU).name == "native"


@pytest.mark.usefixtures("gpu")
def test_a_module_without_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aimmerge_fast._native", SimpleNamespace())
    reason = registry.available(GPU)["native"]
    assert reason is not None
    assert "without CUDA kernels" in reason


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("tools", "chosen", "reason"),
    [
        ((), None, "there is neither gcc nor clang"),
        (("cc",), None, "there is neither gcc nor clang"),  # Triton does not look for cc
        (("gcc",), None, None),
        (("clang",), None, None),
        (("gcc",), "icx", "CC=icx is not found"),  # CC is taken as it is
        (("icx",), "icx", None),
    ],
)
def test_triton_needs_a_c_compiler(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tools: tuple[str, ...],
    chosen: str | None,
    reason: str | None,
) -> None:
    for tool in tools:
        (tmp_path / tool).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CC", chosen)
    found = registry.available(GPU)["triton"]
    assert found == reason if reason is None else found is not None and found.endswith(reason)
