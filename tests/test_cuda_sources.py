"""What can be read off the text of csrc/cuda: how kernels are launched and what they may call."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CUDA = Path(__file__).parents[1] / "csrc/cuda"
SOURCES = {path.name: path.read_text() for path in sorted(CUDA.iterdir())}
#: Of the runtime: no allocation, copy, wait or event; and all that the emulation on a CPU has.
RUNTIME = {
    *("cudaError_t", "cudaSuccess", "cudaGetErrorString", "cudaGetLastError"),
    *("cudaGetDevice", "cudaSetDevice", "cudaStream_t"),
    *("cudaLaunchConfig_t", "cudaLaunchKernelEx", "cudaFuncGetAttributes", "cudaFuncAttributes"),
}
#: Of the language: among others no __threadfence, and no __shared__ beside SHARED.
LANGUAGE = {
    *("__global__", "__device__", "__forceinline__", "__launch_bounds__", "__syncthreads"),
    *("__shfl_xor_sync", "__ldcg", "__CUDACC__", "__CUDA_ARCH_LIST__"),
}


def code(name: str) -> str:
    """The text of a file without its comments and strings."""
    return re.sub(r'//.*|"(?:[^"\\]|\\.)*"', "", SOURCES[name])


def arguments(text: str, start: int) -> str:
    """What stands between the parenthesis before ``start`` and the one that closes it."""
    depth, end = 1, start
    while depth:
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        end += 1
    return text[start : end - 1]


@pytest.mark.parametrize("name", SOURCES)
def test_only_what_needs_no_wait_and_what_the_emulation_has(name: str) -> None:
    text = code(name)
    assert set(re.findall(r"\bcuda[A-Z]\w*", text)) - {"CudaEngine"} <= RUNTIME
    allowed = LANGUAGE | ({"__shared__"} if name == "device.cuh" else set())
    assert set(re.findall(r"\b__[A-Za-z]\w*", text)) <= allowed
    assert text.count("__shared__") <= 1
    assert "<<<" not in text


def test_one_helper_launches_on_device_and_stream_and_checks() -> None:
    users = [name for name in SOURCES if "cudaLaunchKernelEx" in code(name)]
    assert users == ["launch.h"]
    (found,) = re.finditer(r"^void launch\(", code("launch.h"), re.MULTILINE)
    body = code("launch.h")[found.end() :].partition("\n}\n")[0]
    assert "const DeviceGuard guard(op, place.device);" in body
    assert "config.stream = reinterpret_cast<cudaStream_t>(place.stream);" in body
    assert "check(op, place.device, cudaLaunchKernelEx(&config, kernel, arguments...));" in body


def test_every_kernel_is_launched_at_its_place_and_can_be_loaded_ahead() -> None:
    launched = 0
    for name, text in SOURCES.items():
        kernels = set(re.findall(r"__global__ void __launch_bounds__\([^)]*\)\s*(\w+)\(", text))
        assert len(kernels) == text.count("__global__")
        calls = [arguments(text, found.end()) for found in re.finditer(r"\blaunch\(\"", text)]
        for call in calls:
            op, kernel, *rest = re.split(r",\s*", call)
            assert op == f'{Path(name).stem}"', f"{name}: an error would name another op"
            assert "place" in rest, f"{name}: {kernel} is not launched on the caller's stream"
            assert f"address_of({kernel})" in text, f"cuda_kernels does not load {kernel}"
        assert {re.split(r",\s*", call)[1].partition("<")[0] for call in calls} == kernels
        launched += len(calls)
    assert launched == 9  # seven ops, two of them in two geometries


def test_assembly_stands_where_the_emulation_leaves_it_out() -> None:
    assert [name for name in SOURCES if "asm " in code(name)] == ["device.cuh"]
    inside = False
    for line in code("device.cuh").splitlines():
        inside = (inside or line == "#if defined(__CUDACC__)") and line not in ("#else", "#endif")
        assert inside or "asm " not in line
