"""Arms that end too early: the others go on, what there is can be reported, and it can be tried
again."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from aimmerge_fast import cli
from aimmerge_fast.cl import arm, plain, report, runner
from aimmerge_fast.controller import BadProbes, MergeRejected
from aimmerge_fast.durable.tree import load_tree
from tests.cl.test_runner_resume import content, same
from tests.cl.tiny import finished_run, make_config, poisoned


class Killed(BaseException):
    """As a signal would be: nothing catches it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory)


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def ending(original: Any, stage: str, step: int, end: Callable[[], None]) -> Any:
    """``updates``, after whose update ``step`` of one stage ``end`` is called."""

    def made(method: Any, records: Any, name: str, *rest: Any) -> Iterator[Any]:
        for update in original(method, records, name, *rest):
            yield update
            if (name, update.step) == (stage, step):
                end()

    return made


def raising(error: BaseException) -> Callable[[], None]:
    def end() -> None:
        raise error

    return end


# ---- what there is can be reported ---------------------------------------------------------


def test_results_are_there_after_every_stage(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(folder, "seqlora", out=tmp_path / "out")
    seen: list[list[Any]] = []

    def end() -> None:
        (entry,) = read(config.out / "results.json")["arms"]
        seen.append(entry["scores"])
        raise Killed

    monkeypatch.setattr(arm, "updates", ending(arm.updates, "second", 3, end))
    with pytest.raises(Killed):
        runner.run(config)
    assert len(seen[0]) == 1
    (found,) = report.read_run(config.out).arms
    assert (found.finished, found.done) == (False, 1)
    assert report.write_report(config.out)


def test_results_are_there_after_a_kill_in_the_first_stage(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(folder, "seqlora", out=tmp_path / "out")
    monkeypatch.setattr(plain, "updates", ending(plain.updates, "first", 3, raising(Killed())))
    with pytest.raises(Killed):
        runner.run(config)
    (found,) = report.read_run(config.out).arms
    assert (found.finished, found.done) == (False, 0)
    assert report.write_report(config.out)


# ---- the others go on ----------------------------------------------------------------------


@pytest.mark.parametrize("arm_text", ["seqlora", "aim:s_init=2"])
def test_a_loss_that_is_not_finite_ends_the_arm_before_the_next_save(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm_text: str
) -> None:
    """The state before it stays, and the arm goes on from there once the cause is gone."""
    config = make_config(folder, [arm_text, "mtl"], out=tmp_path / "out", log_every=1)
    name = f"{config.arms[0].name}-s42"
    monkeypatch.setattr(arm, "updates", poisoned(arm.updates, "second", 4))
    said = io.StringIO()
    results = runner.run(config, Console(file=said, width=120))
    bad, other = results["arms"]
    assert not bad["finished"]
    assert "stage 'second': the training loss of update 4 is nan; lower lr" in bad["failed"]
    assert (len(bad["scores"]), bad["metrics"], len(bad["losses"]["second"])) == (1, {}, 2)
    assert other["finished"]
    assert other["failed"] is None
    assert said.getvalue().count("failed: arm") == 1
    assert read(config.out / name / "arm.json")["failed"] == bad["failed"]
    assert report.write_report(config.out)
    assert runner.failures(results) == [f"arm {bad['name']!r} with seed 42 failed: {bad['failed']}"]
    state = load_tree(config.out / name / "state.safetensors")
    assert state["progress"]["step"] == 2
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state["adapter"].values())
    monkeypatch.undo()
    again = runner.run(config)
    assert [entry["failed"] for entry in again["arms"]] == [None, None]
    assert runner.failures(again) == []
    same(content(folder / "out", name), content(config.out, name))


@pytest.mark.parametrize("error", [MergeRejected("no merge"), BadProbes("no probe")])
def test_what_a_merger_raises_ends_its_arm_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    config = make_config(folder, ["aim:s_init=2", "mtl"], out=tmp_path / "out")
    monkeypatch.setattr(arm, "updates", ending(arm.updates, "second", 3, raising(error)))
    bad, other = runner.run(config)["arms"]
    assert (bad["failed"], bad["finished"]) == (str(error), False)
    assert other["finished"]
    monkeypatch.undo()
    assert runner.run(config)["arms"][0]["finished"]
    same(content(folder / "out", "aim-s_init=2-s42"), content(config.out, "aim-s_init=2-s42"))


def test_a_control_whose_match_failed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails, too; later it takes the settings that it then gets."""
    arms = ["aim:s_init=2", "fixed:match=aim-s_init=2", "seqlora"]
    config = make_config(folder, arms, out=tmp_path / "out")
    monkeypatch.setattr(arm, "updates", poisoned(arm.updates, "second", 1))
    results = runner.run(make_config(folder, arms, out=config.out), only=[config.arms[0].name])
    assert results["arms"][0]["failed"]
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        patch.setattr(arm, "updates", poisoned(arm.updates, "second", 1))
        _, control, last = runner.run(config)["arms"]
    assert "which is not finished with seed 42" in control["failed"]
    assert last["failed"]
    assert [entry["failed"] for entry in runner.run(config)["arms"]] == [None, None, None]
    # and what was trained keeps its settings when its match is lost
    home = config.out / f"{config.arms[1].name}-s42"
    settings = read(home / "arm.json")["settings"]
    (config.out / "aim-s_init=2-s42/arm.json").unlink()
    control = next(
        entry
        for entry in runner.run(config, only=[config.arms[1].name])["arms"]
        if entry["method"] == "fixed"
    )
    assert control["failed"]
    assert control["settings"] == settings
    assert all(entry["finished"] for entry in runner.run(config)["arms"])


def test_a_first_task_that_diverges(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(folder, ["seqlora", "mtl"], out=tmp_path / "out", single=True)
    monkeypatch.setattr(plain, "updates", poisoned(plain.updates, "first", 3))
    results = runner.run(config)
    bad, other = results["arms"]
    assert "task 'first': the training loss of update 3 is nan; lower lr" in bad["failed"]
    assert other["finished"]
    assert bad["single"][0] is None
    assert bad["single"][1] is not None
    assert runner.failures(results)[1:] == ["task 'first' alone with seed 42 has no score"]
    state = next(config.out.glob("plain/first-s42-*/state.safetensors"))
    assert len(load_tree(state)["losses"]) == 2
    monkeypatch.undo()
    assert runner.failures(runner.run(config)) == []


def test_the_command_says_what_failed_and_exits_with_1(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = make_config(folder, ["seqlora", "mtl"], out=tmp_path / "out").to_json()
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    command = ["aimmerge", "run", str(tmp_path / "run.yaml")]
    monkeypatch.setattr("sys.argv", command)
    with monkeypatch.context() as patch:
        patch.setattr(arm, "updates", poisoned(arm.updates, "second", 4))
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert "report: " in said.out
    assert "aimmerge: arm 'seqlora' with seed 42 failed: " in said.err
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
