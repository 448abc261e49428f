"""Whose folder it is, and which arms can run: refused before anything is lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aimmerge_fast.cl import plain, runner
from aimmerge_fast.cl.methods import METHODS
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
