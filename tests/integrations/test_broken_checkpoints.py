"""A checkpoint that is not what was written is never resumed: the newest complete one is."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aimmerge_fast.durable import Broken
from aimmerge_fast.integrations.transformers import run_folder
from aimmerge_fast.integrations.transformers.checkpoints import TrainerCheckpoints
from tests.integrations.resumable import (
    NOISE,
    Run,
    checkpoint,
    checkpoints,
    content,
    differences,
    whole_folder,
)

pytestmark = pytest.mark.filterwarnings(NOISE)
KEPT = 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("whole")).train()


@pytest.fixture
def folder(whole: Run, tmp_path: Path) -> Path:
    """The run's folder as it was when its third checkpoint was complete."""
    for step in range(1, KEPT + 1):
        shutil.copytree(checkpoint(whole.folder, step), checkpoint(tmp_path, step))
    shutil.copy(whole.folder / run_folder.MARKER, tmp_path)
    return tmp_path


# ---- damages: each takes a checkpoint and returns the file to name -------------------------------


def flip(path: Path, byte: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


def one_bit(path: Path) -> None:
    draw = random.Random(path.name)
    flip(path, draw.randrange(path.stat().st_size), draw.randrange(8))


def one_byte_less(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def one_byte_more(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def nothing_left(path: Path) -> None:
    path.write_bytes(b"")


def a_link(path: Path) -> None:
    run = next(place.parent for place in path.parents if place.name.startswith("checkpoint-"))
    path.rename(run / "elsewhere")
    path.symlink_to(run / "elsewhere")


DAMAGES: list[Callable[[Path], None]] = [one_bit, one_byte_less, one_byte_more, nothing_left]
DAMAGES += [Path.unlink, a_link]


def unsealed(folder: Path) -> None:
    (folder / "aimmerge").rename(folder / "aimmerge.part")


def without_us(folder: Path) -> None:
    shutil.rmtree(folder / "aimmerge")


def being_written(folder: Path) -> None:
    """Once more, just in time."""
    (folder / "checkpoint-is-incomplete.txt").write_text("in progress")
    one_byte_less(folder / "adapter_model.safetensors")


def only_weights(folder: Path) -> None:
    for path in [*folder.iterdir()]:
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith("adapter"):
            path.unlink()


def just_made(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def one_before(folder: Path) -> None:
    """The parts of another checkpoint in place of its own."""
    shutil.rmtree(folder / "aimmerge")
    shutil.copytree(folder.parent / "checkpoint-2" / "aimmerge", folder / "aimmerge")


UNFINISHED = [unsealed, without_us, being_written, only_weights, just_made, one_before]


def require_set_aside(whole: Run, folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    """Attaching renames the newest checkpoint, and nothing else; returns what it says."""
    others = {step: whole_folder(checkpoint(folder, step)) for step in (1, 2)}
    newest = whole_folder(checkpoint(folder, KEPT))
    caplog.clear()
    attach_to(whole, folder)
    assert checkpoints(folder) == ["checkpoint-1", "checkpoint-2"]
    assert {step: whole_folder(checkpoint(folder, step)) for step in (1, 2)} == others
    assert whole_folder(folder / f"_broken-checkpoint-{KEPT}") == newest
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    message = record.getMessage()
    assert f"checkpoint-{KEPT} cannot be resumed" in message
    assert f"it is now _broken-checkpoint-{KEPT}" in message.lower()
    return message


def attach_to(whole: Run, folder: Path) -> None:
    """What ``attach`` does with an output_dir; a Trainer of its own costs a model."""
    arguments = whole.trainer.args
    before, arguments.output_dir = arguments.output_dir, str(folder)
    try:
        TrainerCheckpoints(whole.trainer, "now").look_over()
    finally:
        arguments.output_dir = before


# ---- found, and said -----------------------------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file(
    damage: Callable[[Path], None], whole: Run, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = checkpoint(folder, KEPT)
    intact = folder / "intact"
    shutil.copytree(newest, intact)
    names = sorted(whole_folder(newest))
    assert len(names) >= 10
    for name in names:
        damage(newest / name)
        assert name in require_set_aside(whole, folder, caplog)
        shutil.rmtree(folder / f"_broken-checkpoint-{KEPT}")
        (folder / "elsewhere").unlink(missing_ok=True)
        shutil.copytree(intact, newest)
    damage(checkpoint(folder, 1) / names[0])  # which nothing would resume
    caplog.clear()
    attach_to(whole, folder)
    assert checkpoints(folder) == [f"checkpoint-{step}" for step in range(1, KEPT + 1)]
    assert caplog.records == []


@pytest.mark.parametrize("damage", UNFINISHED)
def test_an_unfinished_checkpoint(
    damage: Callable[[Path], None], whole: Run, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(checkpoint(folder, KEPT))
    require_set_aside(whole, folder, caplog)


def test_without_the_check_of_the_seal_these_tests_fail(
    whole: Run, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trusting(folder: Path, added: str) -> Any:
        return json.loads((folder / "aimmerge" / "manifest.json").read_text())["info"]

    one_bit(checkpoint(folder, KEPT) / "adapter_model.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "verify", trusting)
        with pytest.raises(AssertionError):
            require_set_aside(whole, folder, caplog)
    require_set_aside(whole, folder, caplog)


@pytest.mark.parametrize("damage", [without_us, unsealed, only_weights])
def test_the_newest_complete_one_is_resumed(
    damage: Callable[[Path], None], whole: Run, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flip(checkpoint(folder, KEPT) / "adapter_model.safetensors", -1)
    damage(checkpoint(folder, KEPT - 1))
    run = Run(folder)
    warned = [r.getMessage() for r in caplog.records if "cannot be resumed" in r.getMessage()]
    assert [f"checkpoint-{step} cannot" in text for step, text in zip((3, 2), warned, strict=True)]
    run.train(resume=True)
    assert whole.events[: whole.told[1]] + run.events == whole.events
    mine, theirs = content(checkpoint(folder)), content(checkpoint(whole.folder))
    assert differences(mine, theirs) == []


def test_a_broken_one_that_is_named_is_refused(folder: Path) -> None:
    newest = checkpoint(folder, KEPT)
    run = Run(folder)
    flip(newest / "adapter_model.safetensors", -1)  # the Trainer loads it without a word
    with pytest.raises(Broken, match=r"checkpoint-3/adapter_model\.safetensors is damaged"):
        run.train(resume=newest)


def test_a_broken_copy_is_refused_though_the_original_is_whole(
    folder: Path, tmp_path: Path
) -> None:
    newest = checkpoint(folder, KEPT)
    flip(newest / "adapter_model.safetensors", -1)
    with pytest.raises(
        ValueError, match=r"lora_B\.default\.weight is not what it was when .*-3 was"
    ):
        Run(tmp_path / "other").train(resume=newest)


def test_a_folder_that_is_not_ours_is_left_alone(
    whole: Run, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / run_folder.MARKER).unlink()
    without_us(checkpoint(folder, KEPT))
    before = whole_folder(folder)
    attach_to(whole, folder)
    assert whole_folder(folder) == before
    assert caplog.records == []
