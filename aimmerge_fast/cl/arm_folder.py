"""The files of one arm, in a folder of their own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aimmerge_fast.cl.evaluate import TaskScore
from aimmerge_fast.durable.files import json_line, write_bytes, write_json
from aimmerge_fast.durable.tree import load_tree, save_tree
from aimmerge_fast.events import EventLog, read_events
from aimmerge_fast.report import summarise

STATE, EVENTS, RESULT = "state.safetensors", "events.jsonl", "arm.json"


class ArmFolder:
    """Where an arm writes: ``is_main`` False (another rank's process) writes nothing."""

    def __init__(self, path: Path, is_main: bool) -> None:
        self.path, self._is_main = path, is_main

    def saved(self) -> dict[str, Any] | None:
        """The state of the last save; None where nothing was saved."""
        path = self.path / STATE
        return load_tree(path) if path.is_file() else None

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the saved state; it remembers how far the events had come."""
        if self._is_main:
            events = self.path / EVENTS
            size = events.stat().st_size if events.is_file() else 0
            save_tree(self.path / STATE, {**state, "events_bytes": size})

    def open_events(self, saved: Mapping[str, Any] | None) -> EventLog:
        """The event file, cut back to the save: the updates after it are made again."""
        if not self._is_main:
            return EventLog(os.devnull)
        path = self.path / EVENTS
        if path.is_file():
            os.truncate(path, saved["events_bytes"] if saved is not None else 0)
        return EventLog(path)

    def events(self) -> dict[str, Any]:
        """The entries on events of the arm's result."""
        path = self.path / EVENTS
        if not path.is_file() or path.stat().st_size == 0:
            return {"merges": None, "events": None}
        merges = summarise(read_events(path)).to_dict()
        return {"merges": merges, "events": f"{self.path.name}/{EVENTS}"}

    def save_adapters(self, model: Any, name: str) -> None:
        """The adapter after a stage as plain PEFT; written aside, then renamed."""
        if not self._is_main:
            return
        folder = self.path / "adapters" / name
        aside = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(aside, ignore_errors=True)
        model.save_pretrained(aside)
        shutil.rmtree(folder, ignore_errors=True)
        aside.replace(folder)

    def save_predictions(self, found: TaskScore, stage: str, task: str) -> None:
        if self._is_main:
            lines = "".join(json_line(row) for row in found.predictions)
            path = self.path / "predictions" / stage / f"{task}.jsonl"
            write_bytes(path, lines.encode())

    def write_result(self, result: Mapping[str, Any]) -> None:
        write_json(self.path / RESULT, result)
