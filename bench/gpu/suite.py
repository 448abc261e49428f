"""Stage ``test``: tests/test_gpu_*.py, and beside them the CPU's kernels on this machine."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml
from collections.abc import Sequence
from pathlib import Path

from gpu import stage
from gpu.stage import FAILED, NOT_RUN, OK, ROOT, Found, Stage

GPU_TESTS = "tests/test_gpu_*.py"
CPU_TESTS = ("tests/test_layout.py", "tests/test_vectors.py", "tests/test_kernels_*.py")
GPU_LIMIT, CPU_LIMIT = 330, 120
MOST_WORKERS = 8


@dataclasses.dataclass
class Outcome:
    """Counts of one test file, and why tests were skipped or failed."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    reasons: dict[str, int] = dataclasses.field(default_factory=dict)
    failures: list[str] = dataclasses.field(default_factory=list)


def run(given: Stage) -> None:
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        given.add("tests", Found(f"not installed: {', '.join(missing)}", FAILED))
        return
    began = time.monotonic()
    for name in files_of(given, [GPU_TESTS]):
        # a process each: an illegal access takes the CUDA context of its process with it
        left = max(1, round(GPU_LIMIT - (time.monotonic() - began)))
        pytest_run(given, f"GPU, {Path(name).stem}", [name], left)
    pytest_run(given, "CPU kernels here", files_of(given, CPU_TESTS), CPU_LIMIT, workers())


def files_of(given: Stage, patterns: Sequence[str]) -> list[str]:
    found = sorted(str(path.relative_to(ROOT)) for p in patterns for path in ROOT.glob(p))
    files = [name for name in found if "test_gpu_check" not in name]  # those test this stage
    return files[:1] if given.quick else files


def workers() -> int:
    """Processes for the tests of the CPU; those of the GPU have only one."""
    if importlib.util.find_spec("xdist") is None:
        return 1
    return max(1, min(MOST_WORKERS, (os.cpu_count() or 1) // 2))


def pytest_run(
    given: Stage, title: str, files: Sequence[str], limit: int, processes: int = 1
) -> None:
    """Run test files, a row for each; one more row says how pytest ended.

    ``processes``: among which pytest deals the tests.
    """
    parallel = ["-n", str(processes), "--dist", "loadfile"] if processes > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        code, output = _pytest(given, [*files, *parallel], report, limit)
        outcomes = parse(report.read_text(encoding="utf-8")) if report.exists() else {}
    for name, outcome in outcomes.items():
        given.add(name, row(outcome, strict=given.on_gpu))
    ended = {0: "all passed", 1: "failures", 124: f"stopped after {limit} s"}.get(code)
    passed = sum(outcome.passed for outcome in outcomes.values())
    if code:
        print(*output[-40:], sep="\n")
    found = Found(
        f"pytest: {ended or f'exit {code}'}, {passed} passed",
        OK if code == 0 and (passed or not given.on_gpu) else FAILED,
        {"files": files, "output_end": output[-15:]},
    )
    given.add(title, found)


def _pytest(given: Stage, arguments: list[str], report: Path, limit: int) -> tuple[int, list[str]]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    # Other versions than the project's own warn of other things: shown, not an error, here.
    command += [f"--junitxml={report}", "-W", "default", "-o", "faulthandler_timeout=100"]
    variables = {**os.environ, "AIMMERGE_TEST_DEVICE": str(given.device)}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired as stopped:
        output = stopped.stdout or b""
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        return 124, text.splitlines()
    return done.returncode, done.stdout.splitlines()


def parse(text: str) -> dict[str, Outcome]:
    """Outcomes by test file of a JUnit report."""
    outcomes: dict[str, Outcome] = {}
    for case in xml.fromstring(text).iter("testcase"):
        name = case.get("classname", "").removeprefix("tests.") or "collection"
        outcome = outcomes.setdefault(name, Outcome())
        outcome.seconds += float(case.get("time", 0))
        skip = case.find("skipped")
        found = [case.find(kind) for kind in ("failure", "error")]
        bad = next((each for each in found if each is not None), None)
        if bad is not None:
            outcome.failed += 1
            outcome.failures.append(f"{case.get('name')}: {bad.get('message', '')[:300]}")
        elif skip is not None:
            outcome.skipped += 1
            reason = skip.get("message", "")
            outcome.reasons[reason] = outcome.reasons.get(reason, 0) + 1
        else:
            outcome.passed += 1
    return outcomes


def row(outcome: Outcome, *, strict: bool) -> Found:
    """``strict``: a backend that does not work is a failure, not a skip."""
    text = f"{outcome.passed} passed, {outcome.failed} failed, {outcome.skipped} skipped"
    text += f", {outcome.seconds:.0f} s"
    if outcome.reasons:
        text += "; skipped: " + "; ".join(f"{n} x {why[:70]}" for why, n in outcome.reasons.items())
    if outcome.failures:
        text += f"; first failure: {outcome.failures[0][:120]}"
    absent = strict and any("does NOT work" in reason for reason in outcome.reasons)
    verdict = FAILED if outcome.failed or absent else OK if outcome.passed else NOT_RUN
    return Found(text, verdict, dataclasses.asdict(outcome))


def main(arguments: list[str] | None = None) -> int:
    return stage.main("test", run, arguments)


if __name__ == "__main__":
    sys.exit(main())
