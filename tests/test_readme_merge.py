"""The README's merge table of hand-made records: figures, absent arms, a GPU, its targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from readme import merge, words
from readme.records import ReadmeError
from tests.pages import rows
from tests.result_files import CPU, GPU, made

CASE = {
    **{"backbone": "t5-large", "backend": "native", "entries": 2359296, "tensors": 288},
    **{"us": 2000.0, "ceiling_fraction": 0.9, "launches": 2, "host_us": 9.996, "cache": "cold"},
    **{"released_us": 14000.0, "foreach_us": 8000.0, "compiled_us": 2500.0},
    **{"engine_minutes_per_epoch": 0.0000312, "table6_overhead_minutes": 0.0},
}
GPU_CASE = {
    **CASE,
    **{"us": 30.04, "target_us": 37.0, "floor_us": 25.0, "wall_us": 40.0, "compiled_us": 33.0},
    **{"released_wall_us": 4400.0, "foreach_wall_us": 400.0, "compiled_wall_us": 60.0},
}


def merge_record(head: dict[str, Any], *cases: dict[str, Any]) -> dict[str, Any]:
    details = {"load": "load average 0.5 over one minute; words"}
    return {**head, "ceiling_gbs": 38.47, "quick": False, "cases": [*cases], "details": details}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "not run"),
        (0.0, "0"),
        (0.00001234, "0.0000123"),
        (9.996, "10.0"),
        (1.753, "1.75"),
        (31.92, "31.9"),
        (999.7, "1,000"),
        (1234567.8, "1,234,568"),
    ],
)
def test_figures(value: float | None, text: str) -> None:
    assert words.figure(value) == text


def test_ratios_and_shares() -> None:
    ratios = (1.555, 2.994, 9.83, 99.94, 1234.5)
    assert [words.times(r) for r in ratios] == ["1.55 ×", "2.99 ×", "9.8 ×", "99.9 ×", "1,234 ×"]
    shares = (1.1192, 0.1, 0.0005199, 0.0000001)
    assert [words.percent(s) for s in shares] == ["112 %", "10 %", "0.052 %", "0.00001 %"]


def test_merge_on_a_cpu_alone(tmp_path: Path) -> None:
    eager = {**CASE, "backend": "eager", "us": 31918.6}
    hot = {**CASE, "cache": "hot", "us": 1.0}
    no_compiler = {**CASE, "backbone": "llama2-13b", "compiled_us": None, "released_us": 11000.0}
    record = merge_record(CPU, CASE, eager, no_compiler, hot)
    lines = merge.block(made(tmp_path, merge_overhead_cpu=record))
    assert lines[0] == (
        "**CPU: Made, 2 threads**; Python 3.12.1, torch 2.13.0; commit 0123456 with changes; "
        "2026-12-01. Times in ms, p20; ceiling 38.5 GB/s; load average 0.5 over one minute."
    )
    t5, qwen, llama7, llama13 = rows("\n".join(lines))
    middle = ["2,359,296 in 288", "2.00", "90 %", "7.00 (3.5 ×)", "4.00 (2.0 ×)"]
    middle[3:] = ["14.0 (7.0 ×)", "8.00 (4.0 ×)", "2.50 (1.25 ×)"]
    assert t5 == ["T5-large", *middle, "31.9", "10.0", "0.000031 / 0.0"]
    assert qwen == ["Qwen3-1.7B", *["not run"] * 9]
    assert llama7[0] == "LLaMA2-7B"
    assert llama13[4:8] == ["11.0 (5.5 ×)", "8.00 (4.0 ×)", "not run", "not run"]
    assert lines[-3].endswith(
        "**Missed: LLaMA2-13B `native` released sequence 5.5 ×; LLaMA2-13B `native` flat + "
        "`torch.compile` not run.**"
    )
    assert lines[-1] == "GPU: not run on a GPU."


def gpu_lines(folder: Path, *cases: dict[str, Any]) -> list[str]:
    gpu = merge_record(GPU, *cases)
    files = {"merge_overhead_cpu": merge_record(CPU, CASE), "gpu_merge_overhead": gpu}
    lines = merge.block(made(folder, **files))
    return lines[next(at for at, line in enumerate(lines) if "**GPU" in line) :]


def test_merge_on_a_gpu_has_rows_of_its_own(tmp_path: Path) -> None:
    triton = {**GPU_CASE, "backend": "triton", "us": 36.0, "wall_us": 55.0, "launches": None}
    lines = gpu_lines(tmp_path, triton, GPU_CASE)
    assert lines[0].startswith(
        "**GPU: Made H100**; driver 570.1; Python 3.12.1, torch 2.13.0; commit fedcba9; 2026-12-01."
    )
    assert rows("\n".join(lines))[0] == [
        *("T5-large", "2,359,296 in 288", "30.0 / 40.0", "37.0", "90 %"),
        *("14,000 / 4,400 (110 ×)", "8,000 / 400 (10.0 ×)", "33.0 / 60.0 (1.50 ×)"),
        *("36.0 / 55.0", "2", "10.0", "0.000031 / 0.0"),
    ]
    assert "T5-large `triton` not seen launches" in lines[-1]
    assert "`native`" not in lines[-1]
    assert not any("not run on a GPU" in line for line in lines)


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, "All met"),
        ({"us": 37.04, "compiled_us": 38.0}, "Missed: T5-large `native` 37.0 of 37.0 µs"),
        ({"launches": 3}, "Missed: T5-large `native` 3 launches"),
        ({"host_us": 10.1}, "Missed: T5-large `native` 10.1 µs of host time"),
        ({"released_wall_us": 3990.0}, "Missed: T5-large `native` released sequence 99.8 ×"),
        ({"foreach_wall_us": 190.0}, "Missed: T5-large `native` `torch._foreach_*` 4.8 ×"),
        (
            {"compiled_us": 29.0},
            "Missed: T5-large `native` flat + `torch.compile` on the device alone 0.97 ×",
        ),
    ],
)
def test_targets_of_a_gpu(tmp_path: Path, change: dict[str, Any], missed: str) -> None:
    assert gpu_lines(tmp_path, {**GPU_CASE, **change})[-1].endswith(f"**{missed}.**")


def test_a_quick_run_says_so_and_eager_alone_has_no_targets(tmp_path: Path) -> None:
    record = merge_record(CPU, {**CASE, "backend": "eager", "host_us": 37.0})
    lines = merge.block(made(tmp_path, merge_overhead_cpu={**record, "quick": True}))
    assert "a quick run, which proves nothing" in lines[0]
    assert lines[-3].endswith("**Not run.**")


@pytest.mark.parametrize("name", ["merge_overhead_cpu", "gpu_merge_overhead"])
def test_a_record_of_the_other_device_is_refused(tmp_path: Path, name: str) -> None:
    files = {"merge_overhead_cpu": merge_record(CPU, CASE)}
    files["gpu_merge_overhead"] = merge_record(GPU, GPU_CASE)
    files[name] = files["gpu_merge_overhead" if name.endswith("cpu") else "merge_overhead_cpu"]
    with pytest.raises(ReadmeError, match=rf"{name}\.json is not .*which is no"):
        merge.block(made(tmp_path, **files))
