"""Runs: results, and what arms share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from aimmerge_fast.cl import arm, context, plain, runner
from aimmerge_fast.cl.methods.seqlora import SeqLoRA
from aimmerge_fast.durable.tree import load_tree
from tests.cl.tiny import ARMS, finished_run, make_config, make_data

FOLDERS = ("seqlora-s42", "replay-s42", "aim-s_init=2-s42")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to change."""
    shutil.copytree(folder / "out", tmp_path / "out")
    return tmp_path / "out"


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def adapter(out: Path, name: str, stage: str = "2-second") -> dict[str, torch.Tensor]:
    return load_file(out / name / "adapters" / stage / "adapter_model.safetensors")


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# ---- results -------------------------------------------------------------------------------


def test_results(folder: Path) -> None:
    results = read(folder / "out" / "results.json")
    assert results["version"] == 1
    assert results["stream"] == {
        "name": "custom",
        "tasks": ["first", "second"],
        "benchmark": "custom",
        "label": None,
    }
    assert results["tasks"]["second"].items() >= {"train": 40, "dev": 8, "test": 6}.items()
    assert [entry["name"] for entry in results["arms"]] == ["seqlora", "replay", "aim-s_init=2"]
    assert results["settings"]["lr"] == 0.01
    assert len(results["settings"]["model_sha256"]) == 64
    for entry in results["arms"]:
        assert entry["finished"]
        assert [[score is None for score in row] for row in entry["scores"]] == [
            [False, True],
            [False, False],
        ]
        assert {name: len(losses) for name, losses in entry["losses"].items()} == {
            "first": 6,
            "second": 6,
        }
        assert entry["metrics"]["OP"] == pytest.approx(sum(entry["scores"][1]) / 2)
        assert entry["rows"]["training"] == 2 * 6 * 4
    rows = {entry["name"]: entry["rows"] for entry in results["arms"]}
    assert rows["replay"]["memory"] == 0  # they are training rows
    assert rows["aim-s_init=2"]["probe"] == 6 * 4
    assert rows["aim-s_init=2"]["memory"] > 0


def test_scores_are_those_of_the_predictions(folder: Path) -> None:
    for entry in read(folder / "out" / "results.json")["arms"]:
        home = folder / "out" / entry["folder"]
        for stage, task, place in (
            ("1-first", "first", (0, 0)),
            ("2-second", "first", (1, 0)),
            ("2-second", "second", (1, 1)),
        ):
            lines = (home / f"predictions/{stage}/{task}.jsonl").read_text().splitlines()
            rows = [json.loads(line) for line in lines]
            right = [row["prediction"].lower() == row["reference"].lower() for row in rows]
            assert [row["id"] for row in rows] == [f"{task}-test-{i}" for i in range(6)]
            assert entry["scores"][place[0]][place[1]] == pytest.approx(100 * sum(right) / 6)


def test_saved_adapters_are_the_last_state(folder: Path) -> None:
    out = folder / "out"
    for name in FOLDERS:
        saved = adapter(out, name)
        state = load_tree(out / name / "state.safetensors")["adapter"]
        renamed = {key.replace(".default.weight", ".weight"): t for key, t in state.items()}
        assert equal(saved, renamed)
    assert not equal(adapter(out, FOLDERS[0]), adapter(out, FOLDERS[1]))
    assert not equal(adapter(out, FOLDERS[0]), adapter(out, FOLDERS[2]))


def test_every_method_runs(folder: Path, tmp_path: Path) -> None:
    arms = ["inclora", "mtl", "kif", "tasl", "aim-released", "aim-ifm", "fixed:s_init=3"]
    arms += ["seqlora+memory"]
    results = runner.run(make_config(folder, arms, out=tmp_path / "out"))
    assert all(entry["finished"] for entry in results["arms"])
    joint = results["arms"][1]
    assert joint["stages"] == ["all"]
    assert len(joint["scores"]) == 1
    assert None not in joint["scores"][0]


def test_options_of_evaluation(folder: Path, tmp_path: Path) -> None:
    config = make_config(
        folder, "seqlora", out=tmp_path / "out", initial=True, evaluate="all", test_items=3
    )
    (entry,) = runner.run(config)["arms"]
    assert None not in entry["initial"]
    assert all(None not in row for row in entry["scores"])
    assert (config.out / "seqlora-s42/predictions/0-before/second.jsonl").is_file()
    lines = (config.out / "seqlora-s42/predictions/1-first/second.jsonl").read_text().splitlines()
    assert len(lines) == 3


# ---- what arms share -----------------------------------------------------------------------


def test_the_shared_first_stage_is_the_arms_own(folder: Path, tmp_path: Path) -> None:
    """``select='best'`` with no moment to select at trains the first stage itself."""
    config = make_config(folder, ARMS, out=tmp_path / "own", select="best", select_every=100)
    runner.run(config)
    assert not (config.out / "plain").exists()
    assert len(list((folder / "out" / "plain").iterdir())) == 1
    for name in FOLDERS:
        for stage in ("1-first", "2-second"):
            assert equal(adapter(config.out, name, stage), adapter(folder / "out", name, stage))
        own, shared = (read(out / name / "arm.json") for out in (config.out, folder / "out"))
        for key in ("losses", "scores", "rows"):
            assert own[key] == shared[key], key


def test_monitoring_trains_to_the_same_bits(folder: Path, tmp_path: Path) -> None:
    config = make_config(folder, ["seqlora", "replay"], out=tmp_path / "out", monitor=True)
    results = runner.run(config)
    for name, entry in zip(FOLDERS, results["arms"], strict=False):
        assert equal(adapter(config.out, name), adapter(folder / "out", name))
        assert entry["rows"]["probe"] == 6 * 4
        events = (config.out / name / "events.jsonl").read_text().splitlines()
        assert sum(json.loads(line)["event"] == "probe" for line in events) == 6


def test_arms_and_seeds_are_added(
    folder: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("state.safetensors")}
    config = make_config(folder, [*ARMS, "single"], out=copied, seeds=[42, 43])
    results = runner.run(config, only=["single"])
    assert [(entry["name"], entry["seed"]) for entry in results["arms"]][-2:] == [
        ("single", 42),
        ("single", 43),
    ]
    assert {path: path.read_bytes() for path in before} == before
    assert len(list((copied / "plain").iterdir())) == 2  # one a seed
    assert not equal(adapter(copied, "single-s42"), adapter(copied, "single-s43"))


def test_a_finished_run_trains_nothing(
    folder: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for home in (arm, plain):
        monkeypatch.setattr(home, "updates", lambda *args: pytest.fail("trained again"))
    again = runner.run(make_config(folder, ARMS, out=copied, eval_batch=2, save_every=3))
    before = read(folder / "out" / "results.json")
    for entry, other in zip(again["arms"], before["arms"], strict=True):
        assert {**entry, "commits": 0} == {**other, "commits": 0}


def test_single_scores_are_added_to_a_run(folder: Path, copied: Path) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("state.safetensors")}
    results = runner.run(make_config(folder, ARMS, out=copied, single=True))
    assert all(None not in entry["single"] for entry in results["arms"])
    assert all(entry["metrics"]["FWT"] is not None for entry in results["arms"])
    assert {path: path.read_bytes() for path in before} == before
    without = runner.run(make_config(folder, ARMS, out=copied))
    assert [e["metrics"] for e in without["arms"]] == [e["metrics"] for e in results["arms"]]


def test_scores_before_training_are_made_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first arm, whatever its seed, and kept when it is killed right after."""
    config = make_config(
        folder, ["seqlora", "mtl"], out=tmp_path / "out", initial=True, seeds=[42, 43]
    )
    made: list[str] = []
    original = context.Context.evaluate

    def evaluate(self: context.Context, model: Any, task: Any) -> Any:
        made.append(task.name)
        return original(self, model, task)

    monkeypatch.setattr(context.Context, "evaluate", evaluate)
    monkeypatch.setattr(plain.PlainTask, "train", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runner.run(config)
    assert made == ["first", "second"]
    monkeypatch.undo()
    monkeypatch.setattr(context.Context, "evaluate", evaluate)
    arms = runner.run(config)["arms"]
    stages = 2 * (3 + 2)  # of seqlora 1 + 2, of mtl 2; two seeds
    assert len(made) == 2 + stages
    assert all(entry["initial"] == arms[0]["initial"] for entry in arms)
    assert None not in arms[0]["initial"]


def test_rows_of_a_shared_stage_with_few_records(folder: Path, tmp_path: Path) -> None:
    make_data(tmp_path / "data", n=3)
    fields = {"data": tmp_path / "data"}
    shared = runner.run(make_config(folder, out=tmp_path / "shared", **fields))["arms"][0]
    own = {**fields, "select": "best", "select_every": 100}
    alone = runner.run(make_config(folder, out=tmp_path / "own", **own))["arms"][0]
    assert shared["rows"] == alone["rows"]
    assert shared["rows"]["training"] == 2 * 6 * 3


def test_seconds_of_training_hold_the_end_of_a_stage(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the seconds of the shared stage as it was trained, not as long as it was waited for."""
    now = [0.0]
    original = plain.PlainTask.train

    def end_stage(*args: Any) -> None:
        now[0] += 7.0

    def train(self: plain.PlainTask, model: Any) -> plain.Plain:
        now[0] += 1000.0
        return plain.Plain(original(self, model).losses, 100.0)

    monkeypatch.setattr(SeqLoRA, "end_stage", end_stage)
    monkeypatch.setattr(plain.PlainTask, "train", train)
    monkeypatch.setattr(arm, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    (entry,) = runner.run(make_config(folder, "seqlora", out=tmp_path / "out"))["arms"]
    assert entry["seconds"]["training"] == 100.0 + 2 * 7.0
