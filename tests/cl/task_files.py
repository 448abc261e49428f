"""Tiny benchmark folders in the public formats."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

COLOURS = ("red", "blue")


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def prompt(text: str, options: Iterable[str] = COLOURS) -> str:
    listed = ", ".join(options)
    return f"Which? Choose one from the option. Option: {listed}.\nText: {text}\nAnswer:"


def rows(count: int, tag: str, answers: tuple[str, ...] = COLOURS) -> list[dict[str, Any]]:
    """Records of the AimMerging files, all prompts distinct."""
    return [
        {
            "id": f"{tag}_{i}",
            "input": prompt(f"{tag} {i}", answers),
            "output": answers[i % len(answers)],
        }
        for i in range(count)
    ]


def task_files(folder: Path, task: str, **splits: list[dict[str, Any]]) -> Path:
    """``{split}/<task>_T5.json``; returns ``folder``."""
    for split, records in splits.items():
        write(folder / split / f"{task}_T5.json", records)
    return folder


def plain_task(folder: Path, task: str, train: int = 40, dev: int = 8, test: int = 6) -> Path:
    """A task with no defect."""
    parts = {"train": train, "dev": dev, "test": test}
    return task_files(folder, task, **{s: rows(n, f"{task} {s}") for s, n in parts.items() if n})


def definition_rows(definition: str, answers: Iterable[str], tag: str) -> list[dict[str, Any]]:
    """Records of the SuperNI files."""
    return [
        {
            "id": f"{tag}-{i}",
            "input": f"[INS] {definition}\n [IN] {tag} {i}\n [OUT] ",
            "output": answer,
            "data_id": 0,
        }
        for i, answer in enumerate(answers)
    ]
