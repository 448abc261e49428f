"""From a folder to the tasks of a stream, ready to train and test on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from aimmerge_fast.cl.data.defects import join_lines, repair
from aimmerge_fast.cl.data.formats import check_format, read_task
from aimmerge_fast.cl.data.layout import TaskFiles, find_tasks, missing_files
from aimmerge_fast.cl.data.records import TaskData, content_hash
from aimmerge_fast.cl.data.scoring import classes, metric_of
from aimmerge_fast.cl.data.splits import assemble, check_variant, sample
from aimmerge_fast.cl.streams import Stream, task_name


@dataclasses.dataclass(frozen=True)
class _Wanted:
    format: str
    variant: str
    test_items: int
    dev_items: int
    seed: int
    selects: bool


def load_stream(
    folder: Path,
    stream: Stream,
    *,
    format: str = "auto",
    available: bool = False,
    variant: str = "repaired",
    test_items: int = 0,
    dev_items: int = 0,
    seed: int = 42,
    selects: bool = True,
) -> tuple[Stream, list[TaskData]]:
    """The tasks of ``stream`` from ``folder``, in its order.

    ``test_items`` and ``dev_items`` draw a seeded sample of at most so many records (0: all).
    A task without a test file is tested on half of its dev records; its notes say so. With
    ``available`` the tasks that are there run, and the stream's label says ``9 of 15 tasks``.
    Without ``selects`` no selection records are held out of train where dev is the test set.

    ``ValueError``: missing tasks (names the files), malformed records (file, record and field), an
    answer outside its options, an empty split. ``FileNotFoundError``: no such folder.
    """
    folder = Path(folder)
    check_format(format)
    check_variant(variant)
    found = find_tasks(folder)
    missing = [task for task in stream.tasks if task not in found or not found[task].complete]
    if missing and not available:
        raise ValueError(_missing(folder, stream, missing, found))
    present = tuple(task for task in stream.tasks if task not in missing)
    if not present:
        there = ", ".join(found) or "no tasks"
        raise ValueError(
            f"none of the {len(missing)} tasks of {stream.name} is in {folder}: it has {there}"
        )
    if missing:
        label = f"{len(present)} of {len(stream.tasks)} tasks"
        stream = dataclasses.replace(stream, tasks=present, label=label)
    wanted = _Wanted(format, variant, test_items, dev_items, seed, selects)
    return stream, [_load(found[task], wanted) for task in present]


def load_task(
    folder: Path,
    name: str,
    *,
    format: str = "auto",
    variant: str = "repaired",
    test_items: int = 0,
    dev_items: int = 0,
    seed: int = 42,
) -> TaskData:
    """One task of ``folder``, as ``load_stream`` loads it."""
    task = name if name in find_tasks(Path(folder)) else task_name(name)
    _, tasks = load_stream(
        folder,
        Stream("custom", (task,), "custom"),
        format=format,
        variant=variant,
        test_items=test_items,
        dev_items=dev_items,
        seed=seed,
    )
    return tasks[0]


def _missing(
    folder: Path, stream: Stream, missing: list[str], found: Mapping[str, TaskFiles]
) -> str:
    files = "; ".join(missing_files(task, found.get(task)) for task in missing)
    there, whole = len(stream.tasks) - len(missing), len(stream.tasks)
    instead = f", or run the {there} of {whole} tasks that are there with --available"
    return (
        f"{stream.name} lacks {len(missing)} of its {whole} tasks in {folder}: missing files: "
        f"{files}. Add them{instead if there else ''}"
    )


def _load(files: TaskFiles, wanted: _Wanted) -> TaskData:
    raw = read_task(files, wanted.format)
    mended = repair(raw, wanted.variant)
    name = files.name
    splits, split_notes = assemble(name, mended.splits, wanted.variant, wanted.seed, wanted.selects)
    for split in ("train", "test"):
        if not splits[split]:
            paths = ", ".join(map(str, files.paths()))
            raise ValueError(f"task {name}: no {split} record is left of {paths}")
    metric, note = metric_of(name, splits["train"], mended.labels)
    notes = [*raw.notes, *mended.notes, *split_notes, *([note] if note else [])]
    if metric == "rougeL":
        notes += join_lines(splits, wanted.variant)
    labels = mended.labels or (classes(splits["train"]) if metric == "accuracy" else ())
    # "{seed}/{name}/dev" alone is the permutation that halves dev.
    for split, items, key in (
        ("dev", wanted.dev_items, "dev-sample"),
        ("test", wanted.test_items, "test"),
    ):
        whole = len(splits[split])
        splits[split] = sample(splits[split], items, f"{wanted.seed}/{name}/{key}")
        if len(splits[split]) < whole:
            notes.append(f"{len(splits[split])} of {whole} {split} records sampled")
    return TaskData(
        name=name,
        train=splits["train"],
        dev=splits["dev"],
        test=splits["test"],
        metric=metric,
        labels=labels or None,
        notes=tuple(notes),
        sha256=content_hash(splits, metric),
    )
