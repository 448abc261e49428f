"""After a power loss at any moment of a save there is the checkpoint before it, or the new one."""

from __future__ import annotations

import collections
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from aimmerge_fast.durable import (
    Broken,
    Checkpoints,
    newest_sealed,
    read_part,
    seal,
    write_bytes,
    write_part,
)
from tests.durable.disk import Disk, crash_states, final_state, put, tree_on, warnings_of_the_room

STEPS = (1, 2, 2, 3, 4)  # the second time another checkpoint of the same step


def tree_of(index: int) -> dict[str, Any]:
    return {"index": index, "weights": torch.arange(4.0) + index}


class RemovesFirst(Checkpoints):
    def _begin(self, step: int) -> None:
        super()._begin(step)
        for old in self.folder.glob("step-*"):
            shutil.rmtree(old)


@contextmanager
def recorded(folder: Path, sabotage: str) -> Iterator[Disk]:
    """What is done to ``folder`` meanwhile."""
    skipped = {"no fsync of files": Path.is_file, "no fsync of folders": Path.is_dir}
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, folder)
        if sabotage in skipped:
            synced, skips = os.fsync, skipped[sabotage]
            patch.setattr(os, "fsync", lambda h: None if skips(Path(disk.paths[h])) else synced(h))
        yield disk


def saved(folder: Path, keep: int, sabotage: str) -> Disk:
    """What some saves did to the disk; a mark after each is its acknowledgement."""
    with recorded(folder, sabotage) as disk:
        kind = RemovesFirst if sabotage == "removes first" else Checkpoints
        checkpoints = kind(folder, keep=keep)
        for index, step in enumerate(STEPS):
            checkpoints.save(step, tree_of(index))
            disk.mark(index)
        checkpoints.close()
    return disk


def crash_everywhere(
    folder: Path, keep: int, sabotage: str = "", limit: int = 1000
) -> collections.Counter[str]:
    """How many states there are, and in how many of them what is wrong."""
    (folder / "out").mkdir()
    disk = saved(folder / "out", keep, sabotage)
    last = final_state(disk.done)
    assert {name: last[name] for name in sorted(last)} == tree_on(folder / "out")  # none escaped
    counts: collections.Counter[str] = collections.Counter()
    seen = set()
    for moment, tree in crash_states(disk.done, limit):
        marks = [note for what, _, note in disk.done[:moment] if what == "mark"]
        key = (max(marks, default=-1), *sorted(tree.items()))
        if key not in seen:
            seen.add(key)
            put(tree, folder / "state")
            counts.update(["states", *faults(folder / "state", key[0])])
            shutil.rmtree(folder / "state")
    return counts


def faults(place: Path, acknowledged: int) -> list[str]:
    """What is wrong with what a power loss left, and with the save after it."""
    wrong = []
    with warnings_of_the_room() as said:
        try:
            found = Checkpoints(place).load()
        except Broken:
            return ["nothing to load"]
    index = found[1]["index"] if found else -1
    if index < acknowledged:
        wrong.append("lost")
    if found and not torch.equal(found[1]["weights"], tree_of(index)["weights"]):
        wrong.append("other bits")
    if said:
        wrong.append("looks finished and is not")
    with warnings_of_the_room() as said:
        Checkpoints(place).save(9, tree_of(9))
        again = Checkpoints(place).load()
    if again is None or again[0] != 9 or said or any(place.glob(".*")):
        wrong.append("no new save")
    return wrong


@pytest.mark.parametrize("keep", [1, 2])
def test_every_crash_state(memory_folder: Path, keep: int) -> None:
    found = crash_everywhere(memory_folder, keep)
    assert found == {"states": found["states"]}
    assert found["states"] >= 100


@pytest.mark.parametrize("sabotage", ["no fsync of files", "no fsync of folders", "removes first"])
def test_the_states_find_a_loss(memory_folder: Path, sabotage: str) -> None:
    found = crash_everywhere(memory_folder, 1, sabotage, limit=8)
    assert found["lost"] + found["nothing to load"] > 0


def filled_by_another(folder: Path, number: int) -> None:
    """Files that nobody synced, as a Trainer leaves them, and the seal."""
    folder.mkdir()
    (folder / "deep").mkdir()
    for name in ("state.json", "deep/weights.bin"):
        handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT)
        os.write(handle, f"{name} {number}".encode() * 9)
        os.close(handle)
    write_part(folder, "rank0", tree_of(number))
    seal(folder, {"number": number})


@pytest.mark.parametrize("sabotage", ["", "no fsync of files", "no fsync of folders"])
def test_a_folder_that_another_filled(memory_folder: Path, sabotage: str) -> None:
    """Sealed it has what was sealed; one that was sealed before the power went is sealed."""
    root, states, wrong = memory_folder / "out", 0, 0
    root.mkdir()
    with recorded(root, sabotage) as disk:
        for number in (1, 2):
            filled_by_another(root / f"checkpoint-{number}", number)
            disk.mark(number)
    last = {name: content for name, content in final_state(disk.done).items() if content}
    for moment, tree in crash_states(disk.done, limit=60):
        marks = [note for what, _, note in disk.done[:moment] if what == "mark"]
        put(tree, memory_folder / "state")
        found, _ = newest_sealed(memory_folder / "state" / f"checkpoint-{n}" for n in (2, 1))
        number = int(found.name[-1]) if found is not None else 0
        wrong += number < max(marks, default=0)
        if found is not None:
            here = {f"{found.name}/{name}": content for name, content in tree_on(found).items()}
            assert here.items() >= {k: v for k, v in last.items() if k in here}.items()
            assert read_part(found, "rank0")["index"] == number
        shutil.rmtree(memory_folder / "state", ignore_errors=True)
        states += 1
    assert states >= 100
    assert bool(wrong) == bool(sabotage)


@pytest.mark.parametrize("sabotage", ["", "no fsync of files", "no fsync of folders"])
def test_a_file_in_new_folders(memory_folder: Path, sabotage: str) -> None:
    root, found = memory_folder / "out", set()
    root.mkdir()
    with recorded(root, sabotage) as disk:
        for content in (b"one", b"two"):
            write_bytes(root / "a" / "b" / "file", content)
            disk.mark(content)
    for moment, tree in crash_states(disk.done):
        marks = [note for what, _, note in disk.done[:moment] if what == "mark"]
        found.add((marks[-1] if marks else None, tree.get("a/b/file")))
    allowed = {(None, None), (None, b"one"), (b"one", b"one"), (b"one", b"two"), (b"two", b"two")}
    assert (found == allowed) == (not sabotage)
