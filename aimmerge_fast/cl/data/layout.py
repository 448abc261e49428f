"""Where a data folder keeps its tasks: split folders, task folders or single files, found by name.

Known layouts, mixed and nested (four levels deep) as the public benchmarks do it:

- ``{train,dev,test}/<task>[_T5].{json,jsonl,parquet}`` (AimMerging);
- ``[<category>/]<task>/{train,dev,test}.json`` (O-LoRA, SAPT, TRACE), with ``labels.json`` beside;
- ``<task>/<task>_{train,dev,test}.json`` (EasyCL);
- ``<task>/train-00000-of-00001.parquet`` (hub downloads);
- ``task<number>[_<name>].json``, a natural-instructions file with no splits.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from aimmerge_fast.cl.streams import task_name

EXTENSIONS = (".json", ".jsonl", ".parquet")
SPLIT_NAMES = {
    **{"train": "train", "training": "train", "test": "test"},
    **{"dev": "dev", "eval": "dev", "validation": "dev", "valid": "dev", "val": "dev"},
}
_DEPTH = 4
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


@dataclasses.dataclass
class TaskFiles:
    """The files of one task; ``whole`` is a file with no splits, ``labels`` a list of options."""

    name: str
    splits: dict[str, list[Path]] = dataclasses.field(default_factory=dict)
    whole: Path | None = None
    labels: Path | None = None

    @property
    def complete(self) -> bool:
        """Something trains, and something else tests."""
        trains = "train" in self.splits and ("dev" in self.splits or "test" in self.splits)
        return trains or self.whole is not None

    def paths(self) -> list[Path]:
        whole = [self.whole] if self.whole else []
        return [path for paths in self.splits.values() for path in paths] + whole


def find_tasks(folder: Path) -> dict[str, TaskFiles]:
    """Every task under ``folder`` by its name here, in alphabetical order.

    ``FileNotFoundError``: no such folder. ``ValueError``: a task whose files are in two places.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"the data folder {folder} does not exist or is no folder")
    tasks: dict[str, TaskFiles] = {}
    for path, name, split in sorted(_files(folder, _DEPTH)):
        task = tasks.setdefault(task_name(name), TaskFiles(task_name(name)))
        _add(task, path, split)
    for task in tasks.values():
        beside = next(iter(task.paths())).parent / "labels.json"
        if beside.is_file() and beside.parent.name not in SPLIT_NAMES:
            task.labels = beside
    return dict(sorted(tasks.items()))


def missing_files(task: str, found: TaskFiles | None) -> str:
    """What an error says of an absent or incomplete task: the files that were looked for."""
    if found is None or not found.splits:
        return f"{task} (train/{task}_T5.json or {task}/train.json)"
    there = ", ".join(sorted(found.splits))
    path = next(iter(found.splits.values()))[0]
    lacks = "train" if "train" not in found.splits else "test"
    return f"{task} (has only {there}; {_sibling(path, lacks)})"


def _add(task: TaskFiles, path: Path, split: str) -> None:
    if split == "whole":
        there = task.whole
        task.whole = path
    else:
        paths = task.splits.setdefault(split, [])
        # Shards of one split lie side by side; anything else under the same name is a second copy.
        there = next((p for p in paths if _root(p) != _root(path)), None)
        paths.append(path)
    if there is not None:
        raise ValueError(
            f"task {task.name!r} has its {split} records twice: {there} and {path}; give a folder "
            "that holds one of them, or remove the other"
        )


def _root(path: Path) -> tuple[Path, str]:
    shard = _SHARD.search(path.stem)
    return path.parent, path.stem[: shard.start()] if shard else f"{path.name}"


def _files(folder: Path, depth: int) -> Iterator[tuple[Path, str, str]]:
    """``(file, raw task name, split)`` of everything that looks like records."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if depth > 1:
                yield from _files(path, depth - 1)
            continue
        if path.suffix not in EXTENSIONS or path.stem == "labels":
            continue
        stem = _SHARD.sub("", path.stem)
        head, _, tail = stem.rpartition("_")
        if folder.name in SPLIT_NAMES:
            yield path, re.sub(r"_T5$", "", stem), SPLIT_NAMES[folder.name]
        elif stem in SPLIT_NAMES:
            yield path, _task_folder(folder.resolve()), SPLIT_NAMES[stem]
        elif head and tail in SPLIT_NAMES:
            yield path, head, SPLIT_NAMES[tail]
        elif re.match(r"task_?\d+", stem):
            yield path, stem, "whole"


def _task_folder(folder: Path) -> str:
    """The folder's name; hub downloads keep their files in ``<task>/data``."""
    return folder.parent.name if folder.name == "data" else folder.name


def _sibling(path: Path, split: str) -> Path:
    if path.parent.name in SPLIT_NAMES:
        return path.parent.parent / split / path.name
    named = [name for name in SPLIT_NAMES if path.stem.endswith(name)]
    stem = path.stem.removesuffix(named[0]) + split if named else split
    return path.with_name(stem + path.suffix)
