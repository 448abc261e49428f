"""Where a checkpoint may be that is resumed from, and what happens to those that are in the way."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers.trainer_utils import HPSearchBackend

from aimmerge_fast.durable import seal, verify
from tests.integrations.resumable import (
    NOISE,
    Crash,
    CrashAfter,
    Run,
    alone,
    checkpoint,
    checkpoints,
    require_same_end,
    whole_folder,
)

pytestmark = pytest.mark.filterwarnings(NOISE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was never interrupted."""
    return Run(tmp_path_factory.mktemp("whole")).train()


def test_resumed_from_another_folder(whole: Run, tmp_path: Path) -> None:
    """By an explicit path, in an output_dir that has a checkpoint of that step of another run."""
    Run(tmp_path, seed=7, max_steps=5).train()
    run = Run(tmp_path).train(resume=checkpoint(whole.folder, 5))
    require_same_end(run, whole.events[: whole.told[5]] + run.events, whole)
    assert all((tmp_path / f"_earlier-checkpoint-{step}").is_dir() for step in range(1, 6))


def test_a_moved_checkpoint_has_to_be_named(whole: Run, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    before = Run(old, CrashAfter(5))
    with pytest.raises(Crash):
        before.train()
    moved = checkpoint(old, 5).rename(tmp_path / "kept")
    with pytest.raises(RuntimeError, match=r"step 5 .* is not at .* attach\(\.\.\., resume_from="):
        Run(new).train(resume=moved)
    run = Run(new, resume_from=moved).train(resume=moved)
    require_same_end(run, before.events[: before.told[5]] + run.events, whole)


def test_a_fresh_start_destroys_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Run(tmp_path, seed=7, max_steps=3).train()
    old = {step: whole_folder(checkpoint(tmp_path, step)) for step in (1, 2, 3)}
    for again in ("", ".2"):
        caplog.clear()
        Run(tmp_path, max_steps=2).train()
        assert "checkpoint-1 is of an earlier run; it is now _earlier-checkpoint-1" in caplog.text
        kept = {n: tmp_path / f"_earlier-checkpoint-{n}{again}" for n in (1, 2)}
        assert all(folder.is_dir() for folder in kept.values())
    assert {n: whole_folder(tmp_path / f"_earlier-checkpoint-{n}") for n in (1, 2, 3)} == old


def test_a_training_that_saves_nothing_renames_nothing(tmp_path: Path) -> None:
    Run(tmp_path, max_steps=2).train()
    before = whole_folder(tmp_path)
    Run(tmp_path, save_strategy="no").train()
    assert whole_folder(tmp_path) == before


class Trial(dict[str, Any]):
    """As the trials of a search: settings with a number."""

    number, params = 0, {}  # type: ignore[var-annotated]


@pytest.mark.parametrize("name", ["mine", None])
def test_a_search_over_settings(
    name: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Only a name that the user gives tells in which folder a trial saves."""
    monkeypatch.setattr("transformers.integrations.hp_params", dict)
    run = Run(tmp_path, max_steps=2, save_total_limit=1)
    run.trainer.hp_search_backend = HPSearchBackend.OPTUNA
    run.trainer.hp_space = lambda trial: {}
    run.trainer.hp_name = None if name is None else lambda trial: name
    run.trainer.train(trial=Trial())
    if name is None:
        assert "search without hp_name" in caplog.text
        assert checkpoints(tmp_path / "run-0") == ["checkpoint-2"]  # the Trainer deletes by itself
        assert not (checkpoint(tmp_path / "run-0", 2) / "aimmerge").exists()
    else:
        assert checkpoints(tmp_path / name) == ["checkpoint-2"]
        assert verify(checkpoint(tmp_path / name, 2))["global_step"] == 2


def test_a_checkpoint_of_a_plain_trainer_is_left_alone(
    whole: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Merging begins where it is resumed; a broken one would be the Trainer's to find."""
    for step in (2, 3):
        shutil.copytree(checkpoint(whole.folder, step), checkpoint(tmp_path, step))
        shutil.rmtree(checkpoint(tmp_path, step) / "aimmerge")
        state = checkpoint(tmp_path, step) / "trainer_state.json"
        state.write_text(state.read_text().replace("AIMMergeMark", "Other"))
    before = {step: whole_folder(checkpoint(tmp_path, step)) for step in (2, 3)}
    run = Run(tmp_path, max_steps=4).train(resume=True)
    assert "the checkpoint of step 3 was saved without us" in caplog.text
    assert {step: whole_folder(checkpoint(tmp_path, step)) for step in (2, 3)} == before
    assert run.aim.merger is not None
    assert run.aim.merger.controller.host.steps == 1
    verify(checkpoint(tmp_path, 4))
    shutil.rmtree(checkpoint(tmp_path, 4))
    Run(tmp_path)
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-3"]


def test_checkpoints_without_optimizer_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Run(tmp_path, save_only_model=True, max_steps=2).train()
    assert "save_only_model=True: no training can go on" in caplog.text
    with pytest.raises(ValueError, match="checkpoint-2 was saved with save_only_model=True"):
        Run(tmp_path, save_only_model=True).train(resume=True)


def test_another_number_of_processes_is_refused(whole: Run, tmp_path: Path) -> None:
    folder = alone(whole, 5, tmp_path)
    seal(folder, {**verify(folder), "world": 2})
    with pytest.raises(ValueError, match="was saved by 2 processes, and 1 resume from it"):
        Run(tmp_path).train(resume=True)
