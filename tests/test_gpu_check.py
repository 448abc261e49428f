"""bench/gpu_check.sh and its rooms, as far as a machine without a GPU can tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from gpu import build, machine, sanitise, stage, suite, sync, train, waits
from gpu.stage import FAILED, INFO, NOT_RUN, OK, Found, Stage

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "bench/gpu_check.sh"
CPU = torch.device("cpu")
HEAD = ["stage", "device", "driver", "versions", "commit", "date", "seconds", "quick", "complete"]


def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    # no GPU, even where there is one
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable, **variables}
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


# ---- the script ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [[], ["build", "train"]])
def test_without_a_gpu_there_is_one_error(stages: list[str]) -> None:
    done = call(*stages)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: no CUDA device: torch ")
    assert done.stderr.count("\n") == 1


def test_an_unknown_stage_is_an_error_before_anything_else() -> None:
    done = call("build", "sanitize")
    assert done.returncode == 2
    assert done.stderr == (
        "error: unknown stage 'sanitize'; known are build test sanitise sync merge train sweep\n"
    )


def test_help_names_every_stage() -> None:
    done = call("--help")
    assert done.returncode == 0
    for name in ("build", "test", "sanitise", "sync", "merge", "train", "sweep"):
        assert f"\n{name} " in done.stdout


def test_an_interpreter_without_torch_is_an_error() -> None:
    done = call("merge", PYTHON="false")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "false has no torch" in done.stderr


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    """An interpreter that says what it was asked to run; FAIL and UNBUILT steer its exit codes."""
    path = tmp_path / "python"
    path.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        '*gpu.built) [ -z "$UNBUILT" ] ;;\n'
        '*gpu.machine) echo "a GPU; driver 1; commit 2" ;;\n'
        '*"-P -m gpu."*) echo "runs $*"; [ "$*" != "-P -m gpu.$FAIL" ] ;;\n'
        "esac\n"
    )
    path.chmod(0o755)
    return str(path)


def ran(done: subprocess.CompletedProcess[str]) -> list[str]:
    lines = done.stdout.splitlines()
    assert lines[0] == "a GPU; driver 1; commit 2"
    return [line.removeprefix("runs -P -m gpu.") for line in lines if line.startswith("runs")]


def test_all_stages_run_in_order(stand_in: str) -> None:
    done = call(PYTHON=stand_in)
    assert done.returncode == 0
    assert ran(done) == ["build", "suite", "sanitise", "sync", "merge", "train", "sweep"]
    assert "nothing failed in build test sanitise sync merge train sweep" in done.stdout


def test_chosen_stages_run_in_the_given_order(stand_in: str) -> None:
    assert ran(call("train", "test", PYTHON=stand_in)) == ["train", "suite"]


def test_a_stage_alone_builds_first_where_nothing_is_built(stand_in: str) -> None:
    assert ran(call("sync", PYTHON=stand_in, UNBUILT="1")) == ["build", "sync"]
    assert ran(call("build", "sync", PYTHON=stand_in, UNBUILT="1")) == ["build", "sync"]


def test_a_failed_stage_does_not_end_the_run(stand_in: str) -> None:
    done = call("sync", "merge", PYTHON=stand_in, FAIL="sync")
    assert done.returncode == 1
    assert ran(done) == ["sync", "merge"]
    assert "gpu check: FAILED: sync;" in done.stdout


def test_a_stage_that_hangs_is_stopped(tmp_path: Path) -> None:
    path = tmp_path / "python"
    path.write_text('#!/bin/sh\ncase "$*" in *gpu.sync) exec sleep 60 ;; esac\n')
    path.chmod(0o755)
    done = call("sync", PYTHON=str(path), AIMMERGE_STAGE_SECONDS="1")
    assert done.returncode == 1
    assert "sync: stopped after 1 s" in done.stdout


# ---- what the rooms share -----------------------------------------------------------------------


@pytest.fixture(autouse=True)
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    monkeypatch.setenv("AIMMERGE_RESULTS", str(folder))
    return folder


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    record = json.loads((folder / f"cpu_{name}.json").read_text())
    assert list(record) == [*HEAD, "rows"]
    assert (record["stage"], record["complete"]) == (name, True)
    assert record["device"].startswith("CPU")
    assert list(record["versions"]) == [
        *("python", "torch", "triton", "aimmerge_fast", "cuda")
    ]  # fmt: skip
    for row in record["rows"]:
        assert list(row)[:3] == ["check", "verdict", "result"]
        assert row["verdict"] in (OK, FAILED, NOT_RUN, INFO)
    rows: list[dict[str, Any]] = record["rows"]
    return rows


def test_an_exception_is_a_failed_row_and_not_the_end(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(given: Stage) -> None:
        given.check("breaks", lambda: 1 // 0)  # type: ignore[arg-type, return-value]
        given.check("works", lambda: stage.judged(True, "fine", figure=3))
        given.needs_gpu("only there", lambda: Found("never"))

    assert stage.main("made", run, ["--device", "cpu"]) == 1
    rows = rows_of(results, "made")
    assert [row["verdict"] for row in rows] == [FAILED, OK, NOT_RUN]
    assert rows[0]["result"] == "ZeroDivisionError: integer division or modulo by zero"
    assert rows[1]["figure"] == 3
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("made: 1 ok, 1 FAILED, 1 not run; ")


def test_a_stage_that_is_stopped_keeps_its_rows(results: Path) -> None:
    def run(given: Stage) -> None:
        given.add("first", Found("done"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.main("made", run, ["--device", "cpu"])
    record = json.loads((results / "cpu_made.json").read_text())
    assert (record["complete"], len(record["rows"])) == (False, 1)


def test_a_stage_without_a_row_has_not_passed() -> None:
    assert stage.main("made", lambda _: None, ["--device", "cpu"]) == 1


def test_a_room_asks_for_a_gpu_too(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert stage.main("made", lambda _: None, []) == machine.BAD_MACHINE
    assert capsys.readouterr().err.startswith("error: no CUDA device")
    assert stage.main("made", lambda _: None, ["--device", "tpu"]) == machine.BAD_MACHINE


def test_the_first_line_says_what_ran() -> None:
    line = machine.line(machine.describe(CPU))
    for part in ("CPU: ", "; driver ", f"torch {torch.__version__}", "triton ", "; commit "):
        assert part in line


# ---- the stages on a CPU ------------------------------------------------------------------------


def test_build_looks_at_the_module(results: Path) -> None:
    assert build.main(["--device", "cpu", "--no-install"]) in (0, 1)
    rows = {row["check"]: row for row in rows_of(results, "build")}
    assert rows["build from source"]["verdict"] == NOT_RUN
    assert set(rows["tools"]["tools"]) == {*machine.PROGRAMS, *machine.MODULES}
    assert "threads" in rows["the module loads"] or rows["the module loads"]["verdict"] == FAILED


def test_sanitise_runs_the_small_case(results: Path) -> None:
    assert sanitise.main(["--device", "cpu"]) == 0
    rows = rows_of(results, "sanitise")
    assert [row["verdict"] for row in rows] == [OK] + [NOT_RUN] * 4
    assert rows[0]["result"].startswith("small case: 45 merges as on the CPU")


def test_sync_runs_what_a_cpu_can(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "waits", lambda *_: Found("left out here"))
    assert sync.main(["--device", "cpu", "--quick"]) == 0
    verdicts = {row["check"]: row["verdict"] for row in rows_of(results, "sync")}
    assert verdicts["native: 20 repeats, mixed table"] == OK
    assert verdicts["native: a bf16 tensor of 135,171 entries"] == OK
    assert verdicts["native: 40 steps, hooks alone"] == INFO
    assert verdicts["control: debug mode sees .item()"] == NOT_RUN


def test_waits_are_counted() -> None:
    found = waits.waits("native", "before", CPU, 6)
    assert (found.verdict, found.figures["waits"], found.figures["steps"]) == (INFO, 0, 6)


def test_the_suite_reports_every_file(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "GPU_TESTS", "tests/test_gpu_[gv][re]*[hs].py")
    monkeypatch.setattr(suite, "CPU_TESTS", ("tests/test_layout.py",))
    assert suite.main(["--device", "cpu"]) == 0
    rows = {row["check"]: row for row in rows_of(results, "test")}
    assert (rows["test_gpu_vectors"]["passed"], rows["test_gpu_vectors"]["skipped"]) == (41, 41)
    assert rows["GPU, test_gpu_vectors"]["result"] == "pytest: all passed, 41 passed"
    assert rows["GPU, test_gpu_graph"]["result"] == "pytest: all passed, 0 passed"
    assert rows["CPU kernels here"]["verdict"] == OK


def test_a_process_that_dies_takes_no_other_file_with_it(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(_: Any, files: Sequence[str], report: Path, __: int) -> tuple[int, list[str]]:
        if "faults" in files[0]:
            return -6, ["Fatal Python error: Aborted"]
        case = f'<testcase classname="tests.{Path(files[0]).stem}" name="x" time="1"/>'
        report.write_text(f"<testsuites><testsuite>{case}</testsuite></testsuites>")
        return 0, []

    monkeypatch.setattr(suite, "_pytest", died)
    assert suite.main(["--device", "cpu"]) == 1
    rows = {row["check"]: row for row in rows_of(results, "test")}
    wrong = {name for name, row in rows.items() if row["verdict"] == FAILED}
    assert wrong == {"GPU, test_gpu_faults"}
    assert rows["GPU, test_gpu_faults"]["result"] == "pytest: exit -6, 0 passed"
    assert rows["test_gpu_values"]["passed"] == rows["test_gpu_vectors"]["passed"] == 1


def test_training_that_is_not_there_is_not_run(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "BENCH", ROOT / "bench/nothing.py")
    assert train.main(["--device", "cpu"]) == 0
    assert [row["verdict"] for row in rows_of(results, "train")] == [NOT_RUN]
