"""Tasks trained alone: made once, found again by what they depend on."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from aimmerge_fast.cl import plain, runner
from aimmerge_fast.cl.context import Context
from aimmerge_fast.cl.plain import PlainTask
from tests.cl.tiny import finished_run, make_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory)


def context_of(folder: Path, **fields: Any) -> Context:
    return runner.prepare(make_config(folder, **fields))


def name_of(folder: Path, seed: int = 1, place: int = 0, **fields: Any) -> str:
    context = context_of(folder, **fields)
    task = next(task for task in context.tasks if task.name == ("first", "second")[place])
    return PlainTask(context, task, seed).folder.name


def test_what_a_plain_task_depends_on(folder: Path) -> None:
    name = name_of(folder)
    assert name.startswith("first-s1-")
    for same in (
        {"stream": ["second", "first"]},
        {"stream": ["first"]},
        {"monitor": True},
        {"evaluate": "all"},
        {"arms": ["kif"]},
        {"eval_batch": 3},
    ):
        assert name_of(folder, **same) == name, same
    for other in ({"lr": 0.02}, {"rank": 4}, {"steps": 5}, {"test_items": 3}, {"max_tokens": 9}):
        assert name_of(folder, **other) != name, other
    assert name_of(folder, seed=2) != name
    assert name_of(folder, place=1) != name


def test_single_scores_are_made_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(folder, "seqlora", out=tmp_path / "out", single=True)
    (entry,) = runner.run(config)["arms"]
    assert None not in entry["single"]
    assert entry["single"][0] == entry["scores"][0][0]  # the first task was trained alone anyway
    expected = sum(entry["scores"][i][i] - entry["single"][i] for i in range(2)) / 2
    assert entry["metrics"]["FWT"] == pytest.approx(expected)
    assert len(list((config.out / "plain").iterdir())) == 2

    def never(*args: Any) -> None:
        pytest.fail("made again")

    monkeypatch.setattr(plain, "updates", never)
    (again,) = runner.run(config)["arms"]
    assert again["single"] == entry["single"]
    more = make_config(folder, ["seqlora", "mtl"], out=config.out, single=True)
    assert runner.run(more)["arms"][1]["single"] == entry["single"]


def test_a_run_that_asks_for_none_has_none(folder: Path) -> None:
    assert plain.single_scores(context_of(folder), 42) is None


def test_processes_wait_for_the_one_that_trains(folder: Path, tmp_path: Path) -> None:
    config = make_config(folder, "seqlora", out=tmp_path / "out")
    context = runner.prepare(config)
    lock = PlainTask(context, context.tasks[0], 42).folder / "lock"
    runner.claim(config.out, context)
    lock.parent.mkdir(parents=True)
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True); sys.stdin.read()"
    )

    class Said(io.StringIO):
        def write(self, text: str) -> int:
            if "waits for" in text:
                threading.Thread(target=release).start()
            return super().write(text)

    said = Said()
    command = [sys.executable, "-c", code, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"held\n"
        release = holder.stdin.close
        runner.run(config, Console(file=said, width=120))
    waited, trained = (
        said.getvalue().find(text) for text in ("waits for another process that trains", "6/6")
    )
    assert 0 <= waited < trained


def test_a_task_alone_starts_from_the_first_adapter(folder: Path, tmp_path: Path) -> None:
    """The second task alone: the same as a stream of it alone."""
    whole = make_config(folder, "seqlora", out=tmp_path / "whole", single=True)
    runner.run(whole)
    only = make_config(folder, "seqlora", out=tmp_path / "only", stream=["second"], single=True)
    (entry,) = runner.run(only)["arms"]
    score = runner.collect(runner.prepare(whole))["arms"][0]["single"][1]
    assert entry["scores"] == [[score]]
    kept = [{path.name for path in (run.out / "plain").iterdir()} for run in (only, whole)]
    assert len(kept[0]) == 1
    assert kept[0] < kept[1]  # known by the same name


def test_losses_are_read_when_a_save_is_due(folder: Path, tmp_path: Path) -> None:
    """However rarely they are shown."""
    config = make_config(folder, out=tmp_path / "out", save_every=2, log_every=5)
    context = runner.prepare(config)
    saves: list[int] = []
    task = PlainTask(context, context.tasks[0], 42)
    original = task._save

    def save(trainee: Any, best: Any, losses: list[float], seconds: float) -> None:
        saves.append(len(losses))
        original(trainee, best, losses, seconds)

    task._save = save  # type: ignore[method-assign]
    task.train(context.attach_adapter(42))
    assert saves == [2, 4, 6]
