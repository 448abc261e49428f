"""bench/merge_sweep.py and the stage ``sweep``: what they print, write, judge and refuse."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import merge_sweep
from gpu import sweep as stage_sweep
from gpu.stage import FAILED, INFO, NOT_RUN, OK, Stage
from overhead import ceiling, timing
from overhead.ours import Ours
from sweep import cases, measure

CPU = torch.device("cpu")
BRIEF = timing.Effort(samples=3, fewest=1, seconds=0.01, hook_calls=200, rotation_bytes=300_000)
HEAD = (
    *("device", "driver", "versions", "commit", "load", "ceiling_gbs", "ceiling", "cases"),
    *("slopes", "date", "quick"),
)
CASE_KEYS = (
    *("backend", "grows", "entries", "tensors", "skipped", "us", "p20_us", "p50_us", "p80_us"),
    *("gbs", "ceiling_fraction", "floor_us", "bandwidth_bound", "host_us", "merge_host_us"),
    *("launches", "foreach_us"),
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Small sweeps and a brief --quick."""
    monkeypatch.setattr(cases, "ENTRIES", (1_000, 3_000, 10_000, 30_000, 100_000))
    monkeypatch.setattr(cases, "TENSORS", (3, 5, 8, 20))
    monkeypatch.setattr(cases, "HELD_ENTRIES", 9_000)
    monkeypatch.setattr(timing, "QUICK", BRIEF)
    monkeypatch.setattr(ceiling, "ENTRIES", 1 << 12)
    monkeypatch.setenv("AIMMERGE_RESULTS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMAND = ["--quick", "--device", "cpu", "--backend", "eager"]


def test_last_line_is_the_record(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert merge_sweep.main([*COMMAND, "--json", "out.json", "--chart", "out.png"]) == 0
    output = capsys.readouterr().out
    record = json.loads(output.splitlines()[-1])
    assert tuple(record) == HEAD
    assert record["device"].startswith("CPU")
    grown = [(case["grows"], case["entries"], case["tensors"]) for case in record["cases"]]
    by_entries = [("entries", n, 128) for n in (1_000, 10_000, 100_000)]
    assert grown == [*by_entries, ("tensors", 9_000, 3), ("tensors", 9_000, 20)]
    for case in record["cases"]:
        assert tuple(case) == CASE_KEYS
        check_case(case, record["ceiling_gbs"])
    (growth,) = record["slopes"]
    assert (growth["backend"], growth["sizes"], growth["tensor_counts"]) == ("eager", 3, 2)
    assert growth["slope_all"] is not None
    assert growth["flat"] is None
    assert json.loads((tiny / "out.json").read_text()) == record
    assert (tiny / "out.png").read_bytes().startswith(b"\x89PNG")
    assert "the verdicts only inform" in output


def check_case(case: dict[str, Any], ceiling_gbs: float) -> None:
    assert case["skipped"] is None
    assert 0 < case["p20_us"] <= case["p50_us"] <= case["p80_us"]
    assert case["us"] == case["p20_us"]
    assert case["gbs"] == pytest.approx(32 * case["entries"] / case["us"] / 1e3, rel=1e-4)
    assert case["ceiling_fraction"] == pytest.approx(case["gbs"] / ceiling_gbs, rel=1e-4)
    assert case["host_us"] > 0
    assert case["merge_host_us"] > 0
    assert case["launches"] > 2
    assert (case["foreach_us"] is not None) == (case["grows"] == "tensors")


def test_what_does_not_fit_is_a_row_that_says_so(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "available", lambda _: 1_499_999)
    real = measure._timed

    def timed(case: cases.Case, *rest: Any) -> measure.Measured:
        if case.tensors == 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried\nmore")
        return real(case, *rest)

    monkeypatch.setattr(measure, "_timed", timed)
    assert merge_sweep.main([*COMMAND, "--chart", "out.png"]) == 0
    output = capsys.readouterr().out
    assert "100,000 not run: needs 0.0 GB of memory, 0.0 GB are free\n" in output
    assert "20 not run: out of memory: CUDA out of memory. Tried\n" in output
    record = json.loads(output.splitlines()[-1])
    skipped = [case["skipped"] is not None for case in record["cases"]]
    assert skipped == [False, False, True, False, True]
    assert record["slopes"][0]["sizes"] == 2


def test_just_what_fits_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "available", lambda _: 15_000_000_000)
    assert measure.shortage(15_000_000_000, CPU) is None
    short = measure.shortage(16_000_000_000, CPU)
    assert short == "needs 16.0 GB of memory, 15.0 GB are free"


class Wrong(Ours):
    def __init__(self, backend: str, live: Sequence[torch.Tensor]) -> None:
        super().__init__(backend, live)
        self.close_ = lambda: None


def test_a_wrong_result_is_not_timed(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("timed after a failed check")

    monkeypatch.setattr(measure, "Ours", Wrong)
    for clock in ("cold", "wall", "per_call"):
        monkeypatch.setattr(measure.timing, clock, never)
    monkeypatch.setattr(ceiling, "cold", timing_of_the_ceiling)
    (tiny / "out.json").write_text("older")
    assert merge_sweep.main([*COMMAND, "--json", "out.json"]) == merge_sweep.WRONG_RESULT
    streams = capsys.readouterr()
    assert "error: wrong result, so it was not timed: eager: live: " in streams.err
    assert not streams.out.splitlines()[-1].startswith("{")
    assert (tiny / "out.json").read_text() == "older"


def timing_of_the_ceiling(arms: dict[str, Any], *_: object) -> dict[str, timing.Spread]:
    return dict.fromkeys(arms, timing.Spread(1.0, 2.0, 3.0))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--backend", "fortran"], "unknown backend 'fortran'"),
        (["--device", "tpu"], "unknown device 'tpu'; known are auto, cpu, cuda"),
        (["--device", "cuda:77"], "device 'cuda:77': torch finds"),
        (["--most-entries", "many"], "--most-entries many: a number from 100,000 to 1,000,000,000"),
        (["--most-entries", "99999"], "--most-entries 99999: a number from 100,000"),
        (["--most-entries", "2e9"], "--most-entries 2e9: a number from 100,000"),
        (["--most-entries", "nan"], "--most-entries nan: a number from 100,000"),
        (["--json", "no/such/folder/x.json"], "cannot write no/such/folder/x.json"),
        (["--chart", "no/such/folder/x.png"], "cannot write no/such/folder/x.png"),
    ],
)
def test_bad_input_is_one_line(
    arguments: Sequence[str],
    error: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out.json").write_text("older")
    assert merge_sweep.main(["--json", "out.json", *arguments]) == merge_sweep.BAD_INPUT
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith(f"error: {error}")
    assert streams.err.count("\n") == 1
    assert (tmp_path / "out.json").read_text() == "older"


# ---- the stage ----------------------------------------------------------------------------------


def made(monkeypatch: pytest.MonkeyPatch, folder: Path, *, on_gpu: bool) -> Stage:
    monkeypatch.setenv("AIMMERGE_RESULTS", str(folder))
    monkeypatch.setattr(Stage, "on_gpu", on_gpu)
    return Stage("sweep", argparse.Namespace(on=CPU, quick=True, most_entries=None))


CASE = {
    **{"backend": "native", "grows": "entries", "entries": 10**6, "tensors": 128, "us": 19.0},
    **{"skipped": None, "ceiling_fraction": 0.8, "launches": 2, "host_us": 9.0},
    **{"merge_host_us": 80.0, "target_us": 20.3, "within_target": True},
}
LATE = {"us": 21.0, "within_target": False}


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, "none"),
        (LATE, "time"),
        (LATE | {"grows": "tensors"}, "none"),
        ({"launches": 3}, "launches"),
        ({"launches": None}, "launches"),
    ],
)
def test_the_stage_names_what_is_missed(
    change: dict[str, Any], missed: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = made(monkeypatch, tmp_path, on_gpu=True)
    stage_sweep.judge(given, CASE | change)
    row = given._rows[-1]
    assert row["result"].endswith(f"; missed: {missed}")
    assert row["verdict"] == (OK if missed == "none" else FAILED)
    stage_sweep.judge(given, {**CASE, "skipped": "needs more"})
    stage_sweep.judge(given, CASE | LATE | {"backend": "eager"})
    assert [row["verdict"] for row in given._rows[1:]] == [NOT_RUN, INFO]


@pytest.mark.parametrize(
    ("on_gpu", "expected"), [(True, [OK, FAILED, NOT_RUN]), (False, [INFO, INFO, INFO])]
)
def test_the_stage_judges_growth_on_a_gpu(
    on_gpu: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = made(monkeypatch, tmp_path, on_gpu=on_gpu)
    growth = merge_sweep.fit.growth("native", [])
    for verdict in (True, False, None):
        stage_sweep.judge_growth(given, growth | {"linear": verdict, "flat": verdict})
    assert [row["verdict"] for row in given._rows[::2]] == expected  # linear
    assert [row["verdict"] for row in given._rows[1::2]] == expected  # flat


def test_the_stage_runs_here_and_keeps_an_older_record(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage_sweep, "backends", lambda _: ["eager"])
    arguments = ["--device", "cpu", "--quick", "--most-entries", "10000"]
    assert stage_sweep.main(arguments) == 0
    record = (tiny / "cpu_merge_sweep.json").read_text()
    assert len(json.loads(record)["cases"]) == 4
    rows = json.loads((tiny / "cpu_sweep.json").read_text())["rows"]
    assert [row["verdict"] for row in rows if row["check"].startswith("eager")] == [INFO] * 6
    assert stage_sweep.main(["--device", "cpu", "--quick", "--most-entries", "7"]) == 1
    rows = json.loads((tiny / "cpu_sweep.json").read_text())["rows"]
    assert (rows[-1]["check"], rows[-1]["verdict"]) == ("merge_sweep.py", FAILED)
    assert (tiny / "cpu_merge_sweep.json").read_text() == record
    assert "--most-entries 7: a number from" in capsys.readouterr().out
