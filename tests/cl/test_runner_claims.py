"""Whose folder it is, and which arms can run: refused before anything is lost."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from aimmerge_fast.cl import plain, prepare, runner
from aimmerge_fast.cl.locking import alone
from aimmerge_fast.cl.methods import METHODS
from aimmerge_fast.cl.plan import plan
from aimmerge_fast.cl.reevaluate import Chosen, reevaluate
from tests.cl.tiny import ARMS, finished_run, make_config


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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0.02}, r"holds a run with lr=0.01, not 0.02; repeat that run's command, or give"),
        ({"stream": ["second", "first"]}, r"holds a run with stream=\['first', 'second'\]"),
        ({"stream": ["first"]}, r"holds a run with stream="),
        ({"test_items": 3}, r"holds a run with test_items=0, not 3"),
    ],
)
def test_a_folder_of_another_run(folder: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        runner.run(make_config(folder, ARMS, **fields))


def test_a_folder_of_other_records(folder: Path, copied: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(folder / "data", data)
    records = json.loads((data / "train/second_T5.json").read_text())
    records[0]["output"] = "green" if records[0]["output"] != "green" else "red"
    (data / "train/second_T5.json").write_text(json.dumps(records))
    with pytest.raises(ValueError, match=r"tasks_sha256.second='[0-9a-f]{64}', not '[0-9a-f]{64}'"):
        runner.run(make_config(folder, ARMS, out=copied, data=data))


def test_a_folder_of_another_model(folder: Path, copied: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder / "model", model)
    runner.run(make_config(folder, ARMS, out=copied, model=model))  # moved, but the same
    (model / "note.txt").write_text("another")
    with pytest.raises(ValueError, match="holds a run with model_sha256="):
        runner.run(make_config(folder, ARMS, out=copied, model=model))


def test_a_folder_that_is_no_run(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is not empty and holds no run; give another folder"):
        runner.run(make_config(folder, out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_of_another_version(folder: Path, copied: Path) -> None:
    settings = read(copied / "run.json")
    (copied / "run.json").write_text(json.dumps({**settings, "version": 2}))
    with pytest.raises(ValueError, match=r"holds a run of version 2, this is version 1"):
        runner.run(make_config(folder, ARMS, out=copied))


@pytest.mark.parametrize(
    "changed", [{"settings": {"s_init": 4}}, {"memory_ratio": 0.5}, {"memory_epochs": 1}]
)
def test_the_name_of_an_arm_with_other_settings(
    folder: Path, copied: Path, changed: dict[str, Any]
) -> None:
    spec = {"method": "aim", "name": "aim-s_init=2", "settings": {"s_init": 2}, **changed}
    field = next(iter(changed))
    with pytest.raises(ValueError, match=rf"holds an arm with {field}=.*another name"):
        runner.run(make_config(folder, [spec], out=copied))


def test_the_name_is_taken_from_the_start(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An arm that died in its first update does not go on as another."""
    monkeypatch.setattr(plain.PlainTask, "train", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runner.run(make_config(folder, {"method": "aim", "name": "mine"}, out=tmp_path / "out"))
    monkeypatch.undo()
    assert read(tmp_path / "out/mine-s42/arm.json").items() >= {"finished": False}.items()
    other = {"method": "kif", "name": "mine"}
    with pytest.raises(ValueError, match=r"holds an arm with method='aim', not 'kif'"):
        runner.run(make_config(folder, other, out=tmp_path / "out"))


def test_an_arm_that_another_process_trains(folder: Path, copied: Path) -> None:
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    lock = str(copied / "replay-s42" / "lock")
    command = [sys.executable, "-c", code, lock]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        config = make_config(folder, ARMS, out=copied)
        with pytest.raises(ValueError, match=r"another process is training in .*replay-s42; wait"):
            runner.run(config)
        runner.run(config, only=["seqlora"])  # another arm is free
        holder.communicate()
    runner.run(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("aimm", r"arm 'aimm': unknown method 'aimm'; did you mean 'aim'\?"),
        ("seqlora:s_init=2", r"arm .*unknown setting 's_init'; this method's settings are none"),
        ("aim:s_int=2", r"arm .*unknown setting 's_int'; this method's settings are accumulation,"),
        ("aim:s_init=1", r"arm 'aim-s_init=1': s_init=1 lies outside"),
        ("aim:match=seqlora", r"arm .*'match' belongs to the controls fixed and random"),
        ("fixed:match=none", r"match='none' is no arm of this run; they are fixed-match=none"),
    ],
)
def test_arms_are_checked_before_anything_is_loaded(
    tmp_path: Path, text: str, message: str
) -> None:
    """``tmp_path`` holds neither records nor a model."""
    with pytest.raises(ValueError, match=message) as caught:
        runner.run(make_config(tmp_path, text))
    if "unknown method" in message:
        assert all(name in str(caught.value) for name in METHODS)


def test_only_names_known_arms(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no arm 'kif' in this run; they are seqlora, replay"):
        runner.run(make_config(folder, ARMS), only=["kif"])


@pytest.mark.parametrize(
    "name", ["run.json", "results.json", "seqlora-s42/arm.json", "plain/*/score.json"]
)
def test_a_damaged_file_is_named(folder: Path, copied: Path, name: str) -> None:
    (path,) = copied.glob(name)
    path.write_text(path.read_text()[:-20])
    config = make_config(folder, ARMS, out=copied)
    if name == "results.json":  # made of the others
        runner.run(config)
        return
    with pytest.raises(ValueError, match=re.escape(str(path)) + " is damaged: "):
        runner.run(config)
    if "score" not in name:
        with pytest.raises(ValueError, match=re.escape(str(path)) + " is damaged: "):
            plan(config, seconds=0.01)
        with pytest.raises(ValueError, match=re.escape(str(path)) + " is damaged: "):
            reevaluate(copied, Chosen(stage=1))


def test_two_processes_begin_in_one_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found it empty; the second compares with what the first wrote."""
    one, two = (
        runner.prepare(make_config(folder, out=tmp_path / "out", lr=lr)) for lr in (0.01, 0.02)
    )
    original = runner.alone

    def after_the_other(out: Path) -> Any:
        monkeypatch.setattr(runner, "alone", original)
        runner.claim(out, one)
        return original(out)

    monkeypatch.setattr(runner, "alone", after_the_other)
    with pytest.raises(ValueError, match=r"holds a run with lr=0.01, not 0.02"):
        runner.claim(tmp_path / "out", two)
    assert read(tmp_path / "out/run.json")["identity"]["lr"] == 0.01


def test_results_are_collected_by_one_process_at_a_time(
    folder: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that waited reads what arms wrote meanwhile."""
    context = runner.prepare(make_config(folder, ARMS, out=copied))
    inside, results = threading.Event(), list[Any]()
    other = threading.Thread(target=lambda: results.append(runner.collect(context)))
    original = runner._collected

    def noted(*args: Any) -> Any:
        inside.set()
        return original(*args)

    monkeypatch.setattr(runner, "_collected", noted)
    with alone(copied):
        other.start()
        assert not inside.wait(0.3)
        path = copied / "replay-s42/arm.json"
        path.write_text(json.dumps({**read(path), "commits": ["later"]}))
    other.join()
    assert results[0]["arms"][1]["commits"] == ["later"]


def test_a_missing_package_is_said_before_training(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rouge_l(*args: Any) -> float:
        raise RuntimeError("metric rougeL needs the package rouge-score")

    config = make_config(folder, out=tmp_path / "out")
    monkeypatch.setattr(prepare, "rouge_l", rouge_l)
    runner.prepare(config)  # no task needs it
    original = prepare.load_tasks

    def load_tasks(config: Any) -> Any:
        chosen, (first, second) = original(config)
        return chosen, [first, dataclasses.replace(second, metric="rougeL")]

    monkeypatch.setattr(prepare, "load_tasks", load_tasks)
    with pytest.raises(RuntimeError, match="rouge-score"):
        runner.run(config)
    assert not config.out.exists()
