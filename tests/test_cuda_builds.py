"""csrc/cuda compiles as it must: no warning, no spill, no stack, no FMA, vectors on every buffer.

One architecture and the lowest PTX; ``.ci/run native`` takes all architectures.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from ctypes.util import find_library
from pathlib import Path

import pytest

from tests import device_code

ROOT = Path(__file__).parents[1]
FILES = ("observe", "open", "close", "advance", "repair", "importance", "weighted", "kernels")
NVCC = device_code.find_tool("nvcc")
ARCH = "sm_90"

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc was not found: NOT compiled for a GPU")
needs_disassembler = pytest.mark.skipif(
    device_code.find_tool("cuobjdump") is None,
    reason="cuobjdump was not found: widths of loads and stores were NOT looked at",
)


def compiled(name: str, target: Path, *flags: str, root: Path = ROOT / "csrc") -> tuple[int, str]:
    """Compile csrc/cuda/``name``.cu to ``target``; the exit status and what nvcc said."""
    strict = ["-Werror=all-warnings", "-Xptxas=-v,-warn-spills,-warn-lmem-usage"]
    command = [str(NVCC), "-std=c++20", "-O3", f"-I{root}", *strict, *flags]
    command += [str(root / f"cuda/{name}.cu"), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def cubin(name: str, folder: Path, root: Path = ROOT / "csrc") -> tuple[int, str]:
    flags = ("--fmad=false", "-cubin", f"-arch={ARCH}")
    return compiled(name, folder / f"{name}.cubin", *flags, root=root)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the cubin of every file, and ``log``: all that nvcc said."""
    folder = tmp_path_factory.mktemp("cubins")
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda name: cubin(name, folder), FILES))
    said = "".join(text for _, text in results)
    assert [status for status, _ in results] == [0] * len(FILES), said
    (folder / "log").write_text(said)
    return folder


def changed(folder: Path, file: str, old: str, new: str) -> Path:
    """A copy of csrc in which ``old`` stands as ``new`` in csrc/cuda/``file``."""
    root = Path(shutil.copytree(ROOT / "csrc", folder / "csrc"))
    text = (root / "cuda" / file).read_text()
    assert old in text, f"{file} has changed; plant the fault anew"
    (root / "cuda" / file).write_text(text.replace(old, new))
    return root


@needs_nvcc
def test_no_kernel_has_a_stack_or_a_spill(built: Path) -> None:
    uses = device_code.uses((built / "log").read_text())
    assert device_code.use_problems(uses) == []
    assert {use.arch for use in uses} == {ARCH}


@needs_nvcc
def test_a_spill_is_an_error(tmp_path: Path) -> None:
    """More blocks on a multiprocessor leave too few registers."""
    crowded = changed(tmp_path, "open.cu", "kThreads == 256 ? 4 : 6", "kThreads == 256 ? 8 : 12")
    status, said = cubin("open", tmp_path, crowded)
    assert status != 0
    assert "Registers are spilled" in said
    assert any("spilled" in each for each in device_code.use_problems(device_code.uses(said)))


def test_a_log_with_a_stack_or_without_a_kernel_is_seen() -> None:
    line = (
        "ptxas info    : Compiling entry function '_ZN8aimmerge4cuda14observe_kernelEv' for 'sm_75'"
        "\n    {} bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
        "\nptxas info    : Used 40 registers, used 1 barriers, 832 bytes smem\n"
    )
    (use,) = device_code.uses(line.format(408))
    assert use == device_code.Use("observe", "sm_75", 40, 408, 0)
    problems = device_code.use_problems([use])
    assert problems[0] == "observe for sm_75: 408 bytes of stack, 0 spilled"
    assert "repair was not compiled for sm_75" in problems[1:]
    assert device_code.use_problems([]) != []


@needs_nvcc
@pytest.mark.parametrize("name", FILES[:-1])
def test_nothing_is_contracted(name: str, tmp_path: Path) -> None:
    """In the PTX of the lowest architecture: machine code makes a correct division out of FMAs.

    Every fp operation names its rounding, for only those without a name may be contracted later.
    """
    status, said = compiled(name, tmp_path / "x.ptx", "--fmad=false", "-ptx", "-arch=compute_75")
    assert status == 0, said
    text = (tmp_path / "x.ptx").read_text()
    assert not re.findall(r"fma\.|mad\.f|\.ftz|\b(?:mul|add|sub|div)\.f(?:32|64)", text)
    assert ".entry" in text


@needs_nvcc
def test_a_contraction_would_be_seen(tmp_path: Path) -> None:
    compiled("close", tmp_path / "x.ptx", "--fmad=true", "-ptx", "-arch=compute_75")
    assert "fma.rn" in (tmp_path / "x.ptx").read_text()


@needs_nvcc
@needs_disassembler
def test_every_buffer_is_read_and_written_in_vectors(built: Path) -> None:
    """16 bytes at a time, or 8 for a 16-bit tile among fp32 ones; all loads before any use."""
    names = ("open", "close", "importance", "weighted")
    code = [device_code.disassembled(built / f"{name}.cubin", ARCH) for name in names]
    assert device_code.width_problems("\n".join(code)) == []


FAULTS = {
    "narrow loads": (
        "device.cuh",
        'asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"',
        'asm volatile("ld.global.v2.u32 {%0, %1}, [%4]; ld.global.v2.u32 {%2, %3}, [%4+8];"',
    ),
    "narrow stores": (
        "device.cuh",
        'asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"',
        'asm volatile("st.global.v2.u32 [%0], {%1, %2}; st.global.v2.u32 [%0+8], {%3, %4};"',
    ),
    "one buffer guarded": (
        "open.cu",
        "anchor.load_wide(anchor_at)",
        "anchor.load_guarded(anchor_at, tile.count)",
    ),
    "a use before the last load": (
        "open.cu",
        "      live.load_wide(live_at);\n",
        "      live.load_wide(live_at);\n      live.count_bad(&table.scratch->bad);\n",
    ),
}


@needs_nvcc
@needs_disassembler
@pytest.mark.parametrize("fault", FAULTS)
def test_narrower_or_later_access_is_seen(fault: str, tmp_path: Path) -> None:
    assert cubin("open", tmp_path, changed(tmp_path, *FAULTS[fault]))[0] == 0
    problems = device_code.width_problems(device_code.disassembled(tmp_path / "open.cubin", ARCH))
    assert {each.split()[0] for each in problems} >= {"open<128>", "open<256>"}


@needs_nvcc
@needs_disassembler
def test_narrower_access_in_a_row_is_seen(tmp_path: Path) -> None:
    fault = ("weighted.cu", "anchor.load_wide(anchor_at)", "anchor.load_guarded(anchor_at, left)")
    assert cubin("weighted", tmp_path, changed(tmp_path, *fault))[0] == 0
    code = device_code.disassembled(tmp_path / "weighted.cubin", ARCH)
    assert any(each.startswith("weighted for") for each in device_code.width_problems(code))


def test_a_build_with_kernels_works_without_a_driver() -> None:
    native = pytest.importorskip("aimmerge_fast._native", exc_type=ImportError)
    if not hasattr(native, "CudaEngine"):
        pytest.skip("this build has no CUDA kernels")
    if find_library("cuda") is not None:
        pytest.skip("there is a driver")
    assert native.cuda_architectures() == sorted(native.cuda_architectures()) != []
    engine = native.CudaEngine(0, 0, 0, 0, 0)
    engine.bind(0, 0, False)
    ops = {
        "observe": lambda: engine.observe(0, 0, 0),
        "open": lambda: engine.open(0),
        "close": lambda: engine.close(0),
        "advance": lambda: engine.advance(0, 0, 0),
        "repair": lambda: engine.repair(0),
        "importance": lambda: engine.importance([0] * 4, [0.5] * 4, 0),
        "weighted": lambda: engine.weighted([0] * 6, [(0.5, 0.5)] * 4, 0, 0),
        "cuda_kernels": lambda: native.cuda_kernels(0),
    }
    for name, op in ops.items():
        with pytest.raises(RuntimeError, match=rf"^{name} on cuda:0: .*CUDA"):
            op()


@pytest.mark.parametrize("count", [-1, 2**31])
def test_a_table_that_no_grid_holds_is_refused(count: int) -> None:
    native = pytest.importorskip("aimmerge_fast._native", exc_type=ImportError)
    if not hasattr(native, "CudaEngine"):
        pytest.skip("this build has no CUDA kernels")
    with pytest.raises(ValueError, match=f"0 to 2147483647 tiles, got {count}"):
        native.CudaEngine(0, 0, 0, 0, 0).bind(0, count, False)
