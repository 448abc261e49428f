"""The migration page: its code runs, and the settings that it names exist."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from aimmerge_fast import AIMConfig, RehearsalMemory
from aimmerge_fast.integrations import transformers as room
from tests.integrations import trainers

pytestmark = [pytest.mark.filterwarnings(noise) for noise in trainers.NOISE]
PAGE = Path(room.__file__).with_name("MIGRATION.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def stand_ins(folder: Path) -> dict[str, Any]:
    """What a user of the released code has already."""
    return {
        "model": trainers.lora(),
        "tasks": [(name, trainers.tokenised(100, at, at)) for at, name in enumerate(["a", "b"])],
        "collator": trainers.collate,
        "arguments": lambda name: trainers.arguments(folder / name, max_steps=20),
    }


def test_the_snippet_runs(tmp_path: Path) -> None:
    names = stand_ins(tmp_path)
    exec(BLOCKS[0], names)
    aim = names["aim"]
    merged = [sum(task.merges.values()) for task in aim.report().tasks]
    assert merged[0] == 0
    assert merged[1] >= 1
    assert aim.tasks_done == 2
    assert len(aim.memory) == 4


def test_five_lines_are_new() -> None:
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    new = [line for line in lines if line.endswith("# new")]
    assert len(new) == 5
    theirs = "\n".join(line for line in lines if line not in new).replace(", callbacks=[aim]", "")
    assert "aim" not in theirs


def run(folder: Path, code: str, cut: bool = False) -> dict[str, Any]:
    """The loop with checkpoints; cut off in the second task when its first one is complete."""
    names = stand_ins(folder)
    saving = {"max_steps": 25, "save_strategy": "steps", "save_steps": 5}
    names["arguments"] = lambda name: trainers.arguments(folder / name, **saving)

    def collate(rows: list[Any]) -> Any:
        if cut and (folder / "b" / "checkpoint-5" / "aimmerge").is_dir():
            raise KeyboardInterrupt
        return trainers.collate(rows)

    names["collator"] = collate
    exec(code, names)
    return names


def test_running_it_again(tmp_path: Path) -> None:
    """The whole loop once more: after it was cut off, and after it was done."""
    lines = BLOCKS[0].splitlines()
    place = lines.index("    trainer.train()")
    lines[place : place + 1] = textwrap.indent(BLOCKS[1], "    ").splitlines()
    whole = run(tmp_path / "whole", BLOCKS[0])
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again", BLOCKS[0], cut=True)
    for _ in range(2):
        again = run(tmp_path / "again", "\n".join(lines))
        assert trainers.weights(again["model"]) == trainers.weights(whole["model"])
        assert again["aim"].tasks_done == 2
        assert again["aim"].memory.fingerprint() == whole["aim"].memory.fingerprint()


def test_the_released_settings(tmp_path: Path) -> None:
    """The last block in the place of the first one's line."""
    first = BLOCKS[0].splitlines()
    place = next(at for at, line in enumerate(first) if line.startswith("aim = "))
    code = "\n".join([*first[:place], BLOCKS[2], *first[place + 1 :]])
    names = stand_ins(tmp_path)
    exec(code, names)
    assert names["config"] == AIMConfig(
        policy="released", accumulation=4, outer_init=8, cold_start=3, s_weight=70
    )
    assert sum(names["aim"].report().merges.values()) >= 1


def test_every_setting_that_is_named_exists() -> None:
    made = {
        "AIMConfig": AIMConfig,
        "RehearsalMemory": RehearsalMemory,
        "TrainingArguments": TrainingArguments,
    }
    calls = re.findall(rf"`({'|'.join(made)})\(([^`]*)\)`", PAGE)
    assert {name for name, _ in calls} == set(made)
    count = 0
    for name, written in calls:
        known = inspect.signature(made[name]).parameters
        for key in re.findall(r"(\w+)=", written):
            assert key in known, f"{name}({key}=...)"
            count += 1
    assert count >= 25


def test_the_defaults_that_the_page_gives() -> None:
    released, paper = AIMConfig(policy="released"), AIMConfig()
    table = {
        "s_init": (8, 8), "s_min": (2, 2), "s_max": (128, 128), "gamma_forget": (2.0, 2.0),
        "f_max": (3, 3), "s_switch": (64, 64), "history_batch": (32, 8), "memory_batch": (32, 8),
        "outer_init": (8, None), "cold_start": (3, None), "s_weight": (70, None),
        "window": (None, 3),
    }  # fmt: skip
    found = {name: (getattr(released, name), getattr(paper, name)) for name in table}
    assert found == table
