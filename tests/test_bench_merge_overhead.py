"""bench/merge_overhead.py from its command line: what it prints, writes and refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import merge_overhead
from overhead import backbones, ceiling, measure, ours, rivals, tables, timing
from overhead.backbones import Backbone

CPU = torch.device("cpu")
TINY = Backbone("tiny", "Tiny", 2, 24, 3, 1, 8, 0.5)
BRIEF = timing.Effort(samples=3, fewest=1, seconds=0.01, hook_calls=200, rotation_bytes=1)
CASE_KEYS = (
    *("backbone", "backend", "entries", "tensors", "us", "gbs", "ceiling_fraction", "released_us"),
    *("foreach_us", "compiled_us", "host_us", "launches", "cache", "engine_minutes_per_epoch"),
    "table6_overhead_minutes",
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """One tiny backbone, a brief --quick, and the compiled arm's formulas without the compiler."""
    monkeypatch.setattr(backbones, "BACKBONES", {"tiny": TINY})
    monkeypatch.setattr(timing, "QUICK", BRIEF)
    monkeypatch.setattr(ceiling, "ENTRIES", 1 << 12)
    monkeypatch.setattr(rivals, "_compiled_halves", lambda: (rivals._flat_open, rivals._flat_close))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return record


def test_last_line_is_the_record(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert merge_overhead.main(["--quick", "--device", "cpu", "--json", "out.json"]) == 0
    record = last_line(capsys)
    assert list(record) == ["device", "versions", "commit", "ceiling_gbs", "cases"]
    assert list(record["versions"]) == ["python", "torch", "triton", "aimmerge_fast"]
    assert record["device"].startswith("CPU")
    usable, _ = ours.choose(None, CPU)
    expected = [("cold", name) for name in usable] + [("hot", name) for name in usable]
    assert [(case["cache"], case["backend"]) for case in record["cases"]] == expected
    for case in record["cases"]:
        assert tuple(case) == CASE_KEYS
        check_case(case, record["ceiling_gbs"])
    stored = json.loads((tiny / "out.json").read_text())
    assert {key: stored[key] for key in record} == record
    assert set(stored) - set(record) == {"date", "quick", "details"}
    assert (tiny / "merge_overhead.png").read_bytes().startswith(b"\x89PNG")


def check_case(case: dict[str, Any], ceiling_gbs: float) -> None:
    assert (case["backbone"], case["entries"], case["tensors"]) == ("tiny", TINY.entries(), 8)
    assert case["gbs"] == pytest.approx(32 * TINY.entries() / case["us"] / 1e3, rel=1e-4)
    assert case["ceiling_fraction"] == pytest.approx(case["gbs"] / ceiling_gbs, rel=1e-4)
    assert case["launches"] == 2 or case["backend"] != "native"
    assert case["table6_overhead_minutes"] == 0.5
    kernels_alone = tables.engine_minutes(case["host_us"], case["us"])
    assert case["engine_minutes_per_epoch"] > kernels_alone
    for arm in rivals.RIVALS:
        assert case[f"{arm}_us"] > 0


def test_without_a_compiler_the_arm_is_null(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("InvalidCxxCompiler: no compiler\nmore")

    monkeypatch.setattr(rivals, "_compiled_halves", lambda: (refuse, refuse))
    assert merge_overhead.main(["--quick", "--backend", "eager", "--chart", "none"]) == 0
    output = capsys.readouterr().out
    assert "compiled: not run, torch.compile failed: InvalidCxxCompiler: no compiler\n" in output
    record = json.loads(output.splitlines()[-1])
    assert [case["compiled_us"] for case in record["cases"]] == [None, None]
    assert not (tiny / "merge_overhead.png").exists()


def test_a_wrong_result_is_not_timed(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("timed after a failed gate")

    def wrong(live: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return live

    monkeypatch.setattr(rivals, "_compiled_halves", lambda: (rivals._flat_open, wrong))
    monkeypatch.setattr(measure, "_times", never)
    assert merge_overhead.main(["--quick", "--backend", "eager"]) == merge_overhead.WRONG_RESULT
    streams = capsys.readouterr()
    assert "error: wrong result" in streams.err
    assert not streams.out.splitlines()[-1].startswith("{")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--backbone", "bert"], "unknown backbone 'bert'; known are t5-large, qwen3-1.7b, "),
        (["--backend", "fortran"], "unknown backend 'fortran'"),
        (["--device", "tpu"], "unknown device 'tpu'; known are auto, cpu, cuda"),
        (["--device", "cuda:77"], "device 'cuda:77': torch finds"),
        (["--json", "no/such/folder/x.json"], "cannot write no/such/folder/x.json"),
    ],
)
def test_bad_input_is_one_line(
    arguments: Sequence[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert merge_overhead.main(arguments) == merge_overhead.BAD_INPUT
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith(f"error: {error}")
    assert streams.err.count("\n") == 1


def test_an_explicit_backend_that_cannot_work_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from aimmerge_fast.kernels import registry

    monkeypatch.setattr(registry, "available", lambda _: {"native": "no compiler", "eager": None})
    assert merge_overhead.main(["--backend", "native"]) == merge_overhead.BAD_INPUT
    assert "'native' cannot work on cpu: no compiler" in capsys.readouterr().err
