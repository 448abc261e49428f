"""The rooms of bench/gpu_check.sh can fail: planted errors, missed targets, what tools print."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpu import calls, large, merge, repeats, sanitise, suite, train
from gpu.stage import FAILED, INFO, OK, Stage
from overhead import ceiling, cuda_clock, measure, tables, timing
from overhead.backbones import BACKBONES
from training.store import Store

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AIMMERGE_RESULTS", str(tmp_path))


def made(name: str = "made", **options: Any) -> Stage:
    return Stage(name, argparse.Namespace(on=CPU, quick=True, **options))


def test_large_sees_a_tile_that_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    entries, chunk = 5 * 4096 + 4099, 2 * 4096
    assert large.merge("native", CPU, entries, chunk).verdict == OK
    real = large.kernels.engine

    def shortened(name: str, live: list[torch.Tensor], *buffers: torch.Tensor) -> Any:
        return real(name, [live[0][:-3]], *buffers)

    monkeypatch.setattr(large.kernels, "engine", shortened)
    found = large.merge("native", CPU, entries, chunk)
    assert found.verdict == FAILED
    assert (found.figures["mid"], found.figures["live"], found.figures["anchor"]) == (3, 3, 3)
    assert "L1 DIFFERS" in found.result


def test_repeats_see_one_bit_of_one_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    played = [0]
    real = repeats.Merge.play

    def sometimes_wrong(self: repeats.Merge) -> None:
        real(self)
        played[0] += 1
        if played[0] == 5:
            self.live[2].view(torch.int16)[7] ^= 1

    monkeypatch.setattr(repeats.Merge, "play", sometimes_wrong)
    found = repeats.repeats(made(), "native", 9, narrow=False)
    assert (found.verdict, found.figures["differing"]) == (FAILED, 1)


CASE = {
    **{"backbone": "t5-large", "backend": "native", "us": 30.0, "ceiling_fraction": 0.8},
    **{"launches": 2, "host_us": 9.0, "cache": "cold", "target_us": 37.0, "wall_us": 40.0},
    **{"released_us": 9e3, "foreach_us": 900.0, "compiled_us": 31.0, "released_wall_us": 9e3},
    **{"foreach_wall_us": 900.0, "compiled_wall_us": 90.0},
}


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, "none"),
        ({"us": 37.1, "compiled_us": 38.0}, "time"),
        ({"launches": None}, "launches"),
        ({"host_us": 10.1}, "hook"),
        ({"released_wall_us": 3_900.0}, "released"),
        ({"foreach_wall_us": 190.0}, "foreach"),
        ({"compiled_wall_us": 50.0}, "compiled"),
        ({"compiled_us": 29.0}, "compiled, device alone"),
        ({"compiled_us": None, "compiled_wall_us": None}, "compiled, compiled, device alone"),
    ],
)
def test_merge_names_each_target_that_is_missed(
    change: dict[str, Any], missed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = made("merge", backbone=None)
    monkeypatch.setattr(Stage, "on_gpu", True)
    merge.judge(given, CASE | change)
    row = given._rows[-1]
    assert row["result"].endswith(f"; missed: {missed}")
    assert row["verdict"] == (OK if missed == "none" else FAILED)


def test_train_names_each_target_that_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    given = made("train", case=None)
    monkeypatch.setattr(Stage, "on_gpu", True)
    case: dict[str, Any] = {
        "ratios": {"plain": (1, 1.9, 2), "replay": (1, 1.2, 2), "matched": (1, 1.04, 2)},
        **{"engine_share": 0.0005, "labels": []},
        "syncs_per_step": {"aim-before": {"method": 0.0}, "plain": {"method": 0.0}},
    }
    assert train.judge(given, "llama2-7b", case).verdict == OK
    case["ratios"]["matched"] = (1, 1.06, 2)
    case["syncs_per_step"]["aim-before"]["method"] = 0.5
    found = train.judge(given, "llama2-7b", case | {"engine_share": 0.002})
    assert found.result.endswith("matched at most 1.05, engine below 0.1%, no synchronising call")


def test_train_measures_the_cases_that_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIMMERGE_RESULTS", str(tmp_path))
    commands: list[list[str]] = []

    def refused(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 2, "no model")

    given = made("train", case=None)
    real = {name: getattr(subprocess, name) for name in ("PIPE", "TimeoutExpired")}
    monkeypatch.setattr(train, "subprocess", SimpleNamespace(run=refused, **real))
    monkeypatch.setattr(Stage, "on_gpu", True)
    given.path = tmp_path / "gpu_train.json"
    eager, graphs = (tmp_path / f"gpu_training_overhead{end}.json" for end in ("", "_graphs"))
    backbones = {"t5-large": {"commits": ["a"]}, "llama2-7b": {"commits": ["b"]}}
    old = Store(None, CPU).record | {"backbones": backbones, "commits": ["a", "b"]}
    for path in (eager, graphs):
        path.write_text(json.dumps(old))
    monkeypatch.setenv("AIMMERGE_CASES", "t5-large+graphs,bert")
    train.run(given)
    assert [row["check"] for row in given._rows] == ["t5-large+graphs", "bert"]
    assert given._rows[0]["result"] == "exit 2: see above"
    assert given._rows[1]["result"].startswith("unknown case; known are t5-large, llama2-7b")
    (command,) = commands
    assert command[command.index("--backbone") + 1] == "t5-large"
    assert command[command.index("--json") + 1] == str(graphs)
    assert command[-1] == "--graphs"
    assert json.loads(eager.read_text()) == old
    kept = json.loads(graphs.read_text())
    assert (kept["backbones"], kept["commits"]) == ({"llama2-7b": {"commits": ["b"]}}, ["b"])
    for text in (json.dumps(old | {"device": "another"}), "{"):  # these go as a whole
        graphs.write_text(text)
        train.forget(given, graphs, "t5-large")
        assert not graphs.exists()
    train.forget(given, graphs, "t5-large")
    monkeypatch.delenv("AIMMERGE_CASES")
    train.run(given)
    assert [row["check"] for row in given._rows[2:]] == list(train.LIMITS)
    assert ["--graphs" in command for command in commands[1:]] == [
        name.endswith("+graphs") for name in train.LIMITS
    ]


def test_what_tools_print_is_read() -> None:
    assert sanitise.errors("========= ERROR SUMMARY: 3 errors") == 3
    assert sanitise.errors("========= ERROR SUMMARY: 1 error\n") == 1
    race = "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)"
    assert sanitise.errors(race) == 2
    assert sanitise.errors("Killed") is None
    report = (
        '<testsuites><testsuite><testcase classname="tests.test_a" name="x" time="1.5"/>'
        '<testcase classname="tests.test_a" name="y"><skipped message="triton does NOT work"/>'
        '</testcase><testcase classname="tests.test_b" name="z"><failure message="no"/></testcase>'
        "</testsuite></testsuites>"
    )
    outcomes = suite.parse(report)
    assert (outcomes["test_a"].passed, outcomes["test_a"].skipped) == (1, 1)
    assert suite.row(outcomes["test_a"], strict=False).verdict == OK
    assert suite.row(outcomes["test_a"], strict=True).verdict == FAILED
    assert suite.row(outcomes["test_b"], strict=False).verdict == FAILED


@pytest.mark.parametrize(("cores", "processes"), [(None, 1), (2, 1), (6, 3), (16, 8), (64, 8)])
def test_tests_of_the_cpu_are_dealt_among_cores(
    cores: int | None, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[str]] = []

    def note(_: Stage, arguments: list[str], *_rest: Any) -> tuple[int, list[str]]:
        given.append(arguments)
        return 0, []

    monkeypatch.setattr(suite, "_pytest", note)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    suite.run(made("test"))
    of_gpu, of_cpu = given
    assert "-n" not in of_gpu  # they share one GPU
    assert of_cpu[1:3] == (["-n", str(processes)] if processes > 1 else [])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert suite.workers() == 1


def test_memcheck_s_control_is_one_fault_each() -> None:
    """planted.cu answers to the names of the tools, and compiles without a warning."""
    source = (ROOT / "bench/gpu/planted.cu").read_text()
    assert all(f'"{tool}"' in source for tool in sanitise.TOOLS)


def test_only_waiting_calls_are_counted() -> None:
    names = calls.Counter({"cudaStreamSynchronize": 2, "cudaLaunchKernel": 9, "cudaMemcpy": 1})
    names["cudaMemcpyAsync"] = names["cudaStreamQuery"] = 5
    assert calls.synchronising(names) == 3


class FakeCuda:
    """What the clocks of a GPU call, as a log; a kernel takes as many µs as its name says."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.now = 0.0

    def synchronize(self, _: torch.device) -> None:
        self.log.append("wait")

    def _sleep(self, cycles: int) -> None:
        self.log.append(f"sleep {cycles}")
        self.now += cycles / 2_000  # a clock of 2 GHz

    def Event(self, *, enable_timing: bool) -> Any:
        return FakeEvent(self)

    def run(self, microseconds: float) -> None:
        self.log.append(f"run {microseconds:g}")
        self.now += microseconds


class FakeEvent:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.at = cuda, 0.0

    def record(self) -> None:
        self.cuda.log.append("event")
        self.at = self.cuda.now

    def synchronize(self) -> None:
        self.cuda.log.append("end")

    def elapsed_time(self, end: FakeEvent) -> float:
        return (end.at - self.at) / 1e3


def test_a_gpu_is_timed_behind_a_delay_each_half_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, device = FakeCuda(), torch.device("cuda", 0)
    monkeypatch.setattr(cuda_clock.torch, "cuda", cuda)
    monkeypatch.setattr(cuda_clock, "_flush", lambda _: cuda.log.append("flush"))
    cuda_clock._delay_cycles.cache_clear()
    call = timing.Halves(lambda: cuda.run(25.0), lambda: cuda.run(30.0), None)
    clock = timing.stopwatch(device, cold=True)
    cuda.log.clear()
    assert clock(call) == pytest.approx(55.0)
    half = ["wait", "flush", "sleep 2000000", "event", "run {}", "event", "end"]  # a millisecond
    assert cuda.log == [line.format(us) for us in (25, 30) for line in half]
    cuda.log.clear()
    assert timing.stopwatch(device, cold=False)(lambda: cuda.run(7.0)) == pytest.approx(7.0)
    assert "flush" not in cuda.log
    cuda_clock._delay_cycles.cache_clear()


def test_a_cpu_runs_both_halves_in_one_sample() -> None:
    ran: list[int] = []
    timing.stopwatch(CPU, cold=True)(timing.Halves(lambda: ran.append(1), lambda: ran.append(2), 0))
    assert ran == [1, 2]


def test_on_a_cpu_targets_are_not_judged() -> None:
    given = made("merge", backbone=None)
    merge.judge(given, CASE)
    assert given._rows[-1]["verdict"] == INFO


def test_a_gpu_s_table_and_record_hold_the_target_and_the_wall_times() -> None:
    gpu, spread = torch.device("cuda", 0), timing.Spread(20.0, 30.0, 40.0)
    arms = ("native", "released", "foreach", measure.IMPORTANCE)
    one = measure.Measured(
        backbone=BACKBONES["t5-large"],
        tensors=288,
        bytes_per_merge=75_497_472,
        launches={"native": 2, "released": None, "foreach": 900},
        host_us={"native": 8.0},
        merge_host_us={"native": 20.0},
        spreads={cache: dict.fromkeys(arms, spread) for cache in tables.CACHES},
        skipped={"compiled": "torch.compile failed: no compiler"},
        wall={"native": spread, "released": timing.Spread(1e3, 3e3, 5e3)},
    )
    top = ceiling.Ceiling(2_900.0, None, 3_000.0, "note", 3_000.0)
    case = tables.cases([one], top, gpu)[0]
    assert case["us"] == 30.0  # the median
    assert case["floor_us"] == pytest.approx(25.1658)
    assert case["target_us"] == pytest.approx(1.15 * 25.1658 + 8, rel=1e-5)
    assert (case["wall_us"], case["released_wall_us"], case["compiled_wall_us"]) == (30, 3e3, None)
    text = tables.backbone_text(one, top, gpu)
    assert "native: floor 25.2 µs, target 36.9; host and device together, cold, µs: " in text
    assert "native 30.0, released 3,000.0" in text
    assert " not seen " in text
    assert tables.details([one], top)["measured"][0]["wall_us"]["released"]["p50"] == 3e3
