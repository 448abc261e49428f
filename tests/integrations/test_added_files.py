"""Files that others put into a sealed checkpoint: it stays what it was, and they are named."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from tests.integrations.resumable import (
    NOISE,
    STEPS,
    Crash,
    CrashAfter,
    Run,
    checkpoint,
    checkpoints,
    content,
    differences,
)

pytestmark = pytest.mark.filterwarnings(NOISE)


class Noting(TrainerCallback):
    """Comes after ours, and writes into a checkpoint that is sealed already."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = checkpoint(Path(args.output_dir), state.global_step)
        (folder / "notes").mkdir()
        (folder / "notes" / "run.txt").write_text("a good one")
        (folder / ".DS_Store").write_bytes(b"")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_later_callback_writes_into_every_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Run(tmp_path / "whole").train()
    folder = tmp_path / "noted"
    with pytest.raises(Crash):
        Run(folder, Noting(), CrashAfter(4)).train()
    caplog.clear()
    run = Run(folder, Noting())
    assert checkpoints(folder) == [f"checkpoint-{step}" for step in range(1, 5)]
    run.train(resume=True)
    (said,) = [line for line in warnings(caplog) if "added since it was sealed" in line]
    assert said.endswith(
        "checkpoint-4: added since it was sealed, and not looked into: .DS_Store, notes/run.txt"
    )
    assert run.events == whole.events[whole.told[4] :]
    mine, theirs = content(checkpoint(folder)), content(checkpoint(whole.folder))
    assert differences(mine, theirs) == []


@pytest.mark.parametrize("name", ["aimmerge/rank1.safetensors", "aimmerge.part/rank0.safetensors"])
def test_nothing_is_added_to_what_is_ours(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Run(tmp_path, max_steps=2).train()
    added = checkpoint(tmp_path, 2) / name
    added.parent.mkdir(exist_ok=True)
    added.write_bytes(b"")
    Run(tmp_path, max_steps=STEPS)
    assert checkpoints(tmp_path) == ["checkpoint-1"]
    assert f"{name} was not there when the folder was sealed" in caplog.text
