"""The results file: written after every block, so that a killed run goes on where it was."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import torch

import environment


class Store:
    """Results of a run, in ``path`` if there is one.

    Raises:
        ValueError: the file is of another machine or is no results file. OSError: not writable.
    """

    def __init__(self, path: Path | None, device: torch.device) -> None:
        self._path = path
        if path is not None and not path.absolute().parent.is_dir():
            raise OSError(f"cannot write {path}; name a file in a folder that is there")
        head = {
            "device": environment.describe(device),
            "driver": environment.driver(),
            "versions": versions(),
        }
        self.record: dict[str, Any] = {**head, "commits": [], "date": "", "backbones": {}}
        if path is not None and path.exists():
            self.record = _read(path)
            _require_same(path, self.record, head)
        self._commit = environment.commit()
        self.save()

    def backbone(self, name: str, settings: dict[str, Any]) -> dict[str, Any]:
        """What is known of a backbone; ``ValueError`` when it was measured in other settings."""
        found: dict[str, Any] = self.record["backbones"].setdefault(
            name, {"settings": settings, "commits": [], "counts": [], "waits": [], "blocks": []}
        )
        # A file may be older than these lists, and than the option below.
        found.setdefault("commits", list(self.record["commits"]))
        if self._path is not None:
            held = {"graphs": False, **found["settings"]}
            _require_same(self._path, held, settings, f"{name}: ")
        return found

    def measuring(self, name: str) -> None:
        """From here on this tree adds to what is known of a backbone."""
        commits = self.record["backbones"][name]["commits"]
        if self._commit not in commits:
            commits.append(self._commit)

    def forget(self, name: str) -> None:
        """Drop what is known of a backbone, to measure it anew."""
        self.record["backbones"].pop(name, None)
        self.save()

    def save(self) -> None:
        """Write aside, then rename over: a kill leaves the old file or the new one."""
        if known := self.record["backbones"].values():
            each = [commit for found in known for commit in found.get("commits", [])]
            self.record["commits"] = list(dict.fromkeys(each)) or self.record["commits"]
        if self._path is None:
            return
        now = datetime.datetime.now(datetime.UTC)
        self.record["date"] = now.isoformat(timespec="seconds")
        aside = self._path.with_name(self._path.name + ".tmp")
        aside.write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")
        aside.replace(self._path)


def versions() -> dict[str, str | None]:
    """Versions of what decides the figures."""
    libraries = {name: importlib.metadata.version(name) for name in ("transformers", "peft")}
    return {**environment.versions(), **libraries}


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        record = None
    if not isinstance(record, dict) or "backbones" not in record:
        raise ValueError(f"{path} is no results file of this bench; give another --json")
    return record


def _require_same(
    path: Path, found: dict[str, Any], wanted: dict[str, Any], whose: str = ""
) -> None:
    for key, value in wanted.items():
        if found.get(key) != value:
            raise ValueError(
                f"{path} holds a run with {whose}{key}={found.get(key)!r}, not {value!r}; repeat "
                "that run's command, or give another --json"
            )
