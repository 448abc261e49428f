"""What a plan says, against numbers by hand and against what the run then did."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from aimmerge_fast.cl import cost, estimate, models, plan, runner
from aimmerge_fast.cl.ahead import Ahead
from aimmerge_fast.cl.cost import Speed, Tokens
from aimmerge_fast.cl.data import TaskData
from aimmerge_fast.cl.expected import expected_merging
from aimmerge_fast.config import AIMConfig
from tests.cl.tiny import ARMS, finished_run, make_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory)


def planned(folder: Path, arms: Any, **fields: Any) -> plan.Plan:
    return plan.plan(make_config(folder, arms, **fields), seconds=0.0)


# ---- merges of the controller ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "steps", "merges", "memory"),
    [
        # S = 8: forced at 16, 32, 48, 64, then S = 16: at 96; six at 8, 16, 24, 32 and so on
        (AIMConfig(schedule="fixed"), 120, (15, 15), (60, 60)),
        (AIMConfig(schedule="fixed", s_init=7), 20, (2, 2), (6, 6)),
        (AIMConfig(schedule="fixed", s_init=7, merge_at_task_end=True), 20, (3, 3), (9, 9)),
        (AIMConfig(schedule="single"), 120, (1, 1), (60, 60)),
        (AIMConfig(schedule="at", merge_at=(3, 10, 200)), 120, (2, 2), (4, 4)),
        (AIMConfig(schedule="monitor"), 120, (0, 0), (0, 0)),
        # forced after 2 S: 4, 8, 12, 16 | 24 | 40 | 72; due: every 2 updates
        (AIMConfig(s_init=2), 120, (7, 60), (4 * 2 + 4 + 8 + 16, 60)),
        # at t = S while S stays 8, then falls to 2 (4, 2): 8, 16, 24, 32 | 36 | 38, ..., 120
        (AIMConfig(use_forgetting_signal=False, gamma_minus_small=2.0), 120, None, None),
        # the first activation, at n + 1 = 6, or never
        (AIMConfig(use_learning_signal=False), 120, (0, 20), (0, 60)),
        # S // 2 from the second interval on, or never
        (AIMConfig(schedule="rapid+"), 120, (15, 28), (60, 60)),
    ],
)
def test_merges_by_hand(config: AIMConfig, steps: int, merges: Any, memory: Any) -> None:
    found = expected_merging(config, 1, steps)
    if merges is None:  # 4 intervals of 8, one of 4, then of 2
        assert found.merges[1] == 4 + 1 + (120 - 36) // 2
        return
    assert (found.merges, found.memory_steps) == (merges, memory)
    assert found.probes == steps


def test_random_intervals_are_known() -> None:
    """They are a function of the seed; their mean is (s_min + s_hi) / 2."""
    counts = []
    for seed in range(20):
        config = AIMConfig(schedule="random", s_hi=14, seed=seed)
        low, high = expected_merging(config, 1, 400).merges
        assert low == high
        counts.append(low)
    assert len(set(counts)) > 3
    assert sum(counts) / len(counts) == pytest.approx(400 / 8, rel=0.05)


# ---- a plan ---------------------------------------------------------------------------------


def test_what_was_planned_is_what_was_done(folder: Path, tmp_path: Path) -> None:
    arms = ["seqlora+memory", "aim:s_init=2", "fixed:s_init=3", "random:s_min=2,s_hi=3", "single"]
    arms += ["mtl", "replay"]
    found = planned(folder, arms, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    results = runner.run(make_config(folder, arms, out=tmp_path / "out"))
    assert len(results["arms"]) == len(found.arms) == len(arms)
    for ahead, done in zip(found.arms, results["arms"], strict=True):
        assert ahead.name == done["name"]
        assert ahead.updates == sum(map(len, done["losses"].values())), ahead.name
        assert ahead.probe_rows == done["rows"]["probe"], ahead.name
        low, high = ahead.memory_rows
        assert low <= done["rows"]["memory"] <= high, ahead.name
        tasks = (done["merges"] or {"tasks": []})["tasks"]
        merges = sum(sum(task["merges"].values()) for task in tasks)
        assert ahead.merges[0] <= merges <= ahead.merges[1], ahead.name
        if ahead.method in ("fixed", "random", "single", "seqlora"):
            assert ahead.merges[0] == ahead.merges[1]
            assert low == high


def test_the_numbers_of_a_plan(folder: Path) -> None:
    found = planned(folder, ["seqlora", "aim:s_init=2", "single"], steps=20, out=folder / "none")
    assert [(t.name, t.train, t.dev, t.test, t.updates) for t in found.tasks] == [
        ("first", 40, 8, 6, 20),
        ("second", 40, 8, 6, 20),
    ]
    plain, aim, single = found.arms
    assert plain.kept == aim.kept == (8, 16)  # 0.2 of 40
    assert (plain.updates, plain.merges, plain.memory_rows, plain.probe_rows) == (
        40,
        (0, 0),
        (0, 0),
        0,
    )
    assert aim.merges == (4, 10)  # in the second task: forced at 4, 8, 12, 16; due every 2
    assert aim.memory_rows == (4 * 2 * 4, 10 * 1 * 4)
    assert aim.probe_rows == single.probe_rows == 20 * 4
    assert single.memory_rows == (10 * 4, 10 * 4)
    assert found.fits
    assert found.problems == ()
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    # a folder that is on disk: rank 2 on q (32 + 32) and v (32 + 16) of two layers
    assert found.memory.adapter_entries == 2 * 2 * (64 + 48)


def test_seconds_by_hand(folder: Path) -> None:
    """50 tokens a row, 10 of them a prompt and 2 an answer when tested."""
    records = [{"id": f"{i}", "input": f"{i % 4}", "output": f"{i % 2}"} for i in range(100)]
    tasks = [
        TaskData(name, records, records[:10], records[:30], "accuracy", None, (), name)
        for name in ("a", "b", "c")
    ]
    config = make_config(folder, "aim", steps=12, batch=4, memory_ratio=0.1, out=folder / "none")
    tokens = {task.name: Tokens(row=50.0, prompt=10.0, answer=2.0) for task in tasks}
    speed = Speed(flops=1e6, parameters=1000)
    ahead = Ahead(config, tasks, tokens, speed)
    config = config.model_copy(update={"arms": make_config(folder, ["seqlora", "single"]).arms})
    plain, single = (ahead.arm(spec, 42) for spec in config.arms)
    update = 4 * 1000 * 12 * 4 * 50 / (cost.PASS * 1e6)
    scored = 2 * 1000 * 30 * 12 / (cost.GENERATION * 1e6)
    assert ahead.plain(tasks[0]) == pytest.approx(update + scored)
    expected = 2 * update + (2 + 3) * scored  # the first stage is shared
    assert plain.seconds == (round(expected), round(expected))
    probes = 2 * 2 * 1000 * 12 * 4 * 50 / (cost.PASS * 1e6)  # of 12 updates in two tasks
    memory = 2 * 4 * 1000 * 6 * 4 * 50 / (cost.PASS * 1e6)  # 6 memory steps in each
    assert single.seconds == (round(expected + probes + memory),) * 2
    assert plain.seconds[0] > 10  # so the rounding hides nothing


def test_seeds_and_tasks_alone_take_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "matmul_speed", lambda *args, **kwargs: 1e6)
    one = planned(folder, "seqlora", out=folder / "none")
    two = planned(folder, "seqlora", out=folder / "none", seeds=[1, 2])
    alone = planned(folder, "seqlora", out=folder / "none", single=True)
    assert one.shared_seconds > 10
    assert two.shared_seconds == pytest.approx(2 * one.shared_seconds, abs=2)
    assert two.seconds[0] == pytest.approx(2 * one.seconds[0], abs=4)
    assert alone.shared_seconds == pytest.approx(2 * one.shared_seconds, rel=0.1)
    assert one.seconds[0] == one.arms[0].seconds[0] + one.shared_seconds
    best = planned(folder, "seqlora", out=folder / "none", select="best", select_every=2)
    assert best.shared_seconds == 0  # every arm trains its own first stage
    assert best.seconds[0] > one.seconds[0]


def test_what_is_there_is_seen(folder: Path) -> None:
    found = planned(folder, [*ARMS, "kif"])
    assert [arm.done for arm in found.arms] == ["finished", "finished", "finished", ""]
    assert found.seconds[0] == found.arms[3].seconds[0] + found.shared_seconds
    matched = planned(folder, [*ARMS, "fixed:match=aim-s_init=2"]).arms[3]
    done = json.loads((folder / "out/aim-s_init=2-s42/arm.json").read_text())["merges"]["tasks"]
    merges = sum(sum(task["merges"].values()) for task in done)
    assert matched.merges == (merges, merges)


def test_an_arm_that_matches_one_to_come(folder: Path) -> None:
    arms = ["aim:s_init=2", "fixed:match=aim-s_init=2"]
    aim, fixed = planned(folder, arms, steps=20, out=folder / "none").arms
    assert aim.merges == (4, 10)
    assert fixed.merges == (4, 10)
    assert fixed.memory_rows == (4 * 2 * 4, 10 * 1 * 4)  # at 5, 10, 15, 20, and every 2 updates
    with pytest.raises(ValueError, match=r"match='aim-s_init=2' comes after this arm"):
        planned(folder, arms[::-1], out=folder / "none")


def test_a_folder_that_will_be_refused(folder: Path, tmp_path: Path) -> None:
    (problem,) = planned(folder, "aim", lr=0.5).problems
    assert "holds another run: lr=0.01, not 0.5" in problem
    (tmp_path / "file").write_text("x")
    (problem,) = planned(folder, "aim", out=tmp_path).problems
    assert "is not empty and holds no run" in problem
    (tmp_path / "run.json").write_text('{"version": 99}')
    (problem,) = planned(folder, "aim", out=tmp_path).problems
    assert "version 99, not 1" in problem


def test_a_plan_that_does_not_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "available", lambda device: 1000)
    found = planned(folder, "aim")
    assert not found.fits
    assert "DOES NOT FIT" in shown(found)


def test_no_weights_are_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "load_model", lambda *args, **kwargs: pytest.fail("loaded"))
    assert planned(folder, "aim").arms
    assert estimate.estimate(folder / "model").weights > 0


def shown(found: plan.Plan, **settings: Any) -> str:
    console = Console(file=io.StringIO(), width=200, **settings)
    plan.show(found, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_a_plan_is_shown(folder: Path) -> None:
    text = shown(planned(folder, [*ARMS, "aim"], seeds=[42, 43], out=folder / "out"))
    for part in ("Stream custom", "second  accuracy", "aim-s_init=2, seed 43", "rough", "GFLOP/s"):
        assert part in text
    row = next(line for line in text.splitlines() if line.startswith("seqlora, seed 42"))
    assert row.split()[-2:] == ["done", "finished"]
    assert "aim-s_init=2" in shown(planned(folder, ARMS), force_terminal=True)


# ---- speed ----------------------------------------------------------------------------------


def test_the_speed_is_measured() -> None:
    speed = cost.matmul_speed(torch.device("cpu"), "float32", (64, 64, 64), 0.01)
    assert 1e7 < speed < 1e14


def test_tokens_of_a_task(folder: Path) -> None:
    config = make_config(folder)
    encoder, tables = cost.load_encoder(config)
    assert tables == 24 * 32 * 2  # words in and words out
    task = runner.prepare(config).tasks[0]
    counted = cost.count_tokens(encoder, task, 1)
    lengths = [encoder.length(record) for record in task.train]
    assert min(lengths) < counted.row < max(lengths)
    assert cost.count_tokens(encoder, task, 1000).row == max(lengths)  # padded to the longest
    assert counted.answer == pytest.approx(
        sum(len(record["output"].split()) + 1 for record in task.test) / 6
    )
