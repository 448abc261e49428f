"""Every change of a checkpoint is found, by the file's name, and the one before it is taken."""

from __future__ import annotations

import collections
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from aimmerge_fast.durable import (
    Broken,
    Checkpoints,
    newest_sealed,
    seal,
    sealed_text,
    verify,
    write_part,
)
from aimmerge_fast.durable import manifest as manifest_module
from tests.durable.disk import warnings_of_the_room
from tests.durable.false_checkpoints import FALSE, CheckpointMutant
from tests.durable.mutations import DAMAGE, Mutant, read, write


def tree_of(step: int, rank: int) -> dict[str, Any]:
    return {"weights": torch.arange(12.0) * step + rank, "losses": [step / 3, rank], "name": "a"}


def save_all(folder: Path, step: int, world: int) -> None:
    """A checkpoint of ``world`` ranks, each a thread with an object of its own."""
    barrier = threading.Barrier(world, timeout=20)

    def wait() -> None:
        barrier.wait()

    def save(rank: int) -> None:
        tree, part = tree_of(step, rank), f"rank{rank}"
        Checkpoints(folder, keep=2).save(step, tree, part=part, barrier=wait)

    threads = [threading.Thread(target=save, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def check_checkpoints(folder: Path, count: int) -> collections.Counter[str]:
    """``AssertionError`` unless each of ``count`` mutants of step 9 is named and step 7 loaded."""
    out, dice, kinds = folder / "out", random.Random(5), [*DAMAGE, *FALSE * 2]
    save_all(out, 7, world=2)
    save_all(out, 9, world=2)
    save_all(folder / "larger", 9, world=3)
    files = read(out / "step-9")
    others = [read(out / "step-7"), read(folder / "larger" / "step-9")]
    done = collections.Counter[str]()
    with warnings_of_the_room() as said:
        for index in range(count):
            write(out / "step-9", files)
            mutant = CheckpointMutant(out / "step-9", files, others, dice)
            mutant.part = dice.choice(["rank0", "rank1"])
            kind = kinds[index % len(kinds)]
            kind(mutant)
            said.clear()
            require_passed_over(out, mutant, said, f"mutant {index}: {kind.__name__}")
            done[kind.__name__] += 1
            if mutant.folder.name != "step-9":
                mutant.folder.rename(out / "step-9")
    return done


def require_passed_over(out: Path, mutant: Mutant, said: list[str], which: str) -> None:
    found = Checkpoints(out).load(part=mutant.part)
    assert found is not None, which
    step, tree = found
    expected = tree_of(7, int(mutant.part[-1]))
    assert step == 7, which
    assert torch.equal(tree.pop("weights"), expected.pop("weights")), which
    assert tree == expected, which
    assert len(said) == 1, which
    assert str(mutant.folder / mutant.named) in said[0], (which, said)


def check_sealed(folder: Path, count: int) -> collections.Counter[str]:
    """The same for a sealed folder with files of somebody else's."""
    contents = {"weights.bin": 300, "deep/er/optimizer.pt": 200, "state.json": 40, "empty": 0}
    for number in (1, 2):
        dice = random.Random(number)
        write(folder / f"{number}", {name: dice.randbytes(n) for name, n in contents.items()})
        write_part(folder / f"{number}", "rank0", tree_of(number, 0))
        seal(folder / f"{number}", {"step": number})
    files, others, done = read(folder / "2"), [read(folder / "1")], collections.Counter[str]()
    files_to_hit = {name: content for name, content in files.items() if content}
    dice = random.Random(6)
    for index in range(count):
        write(folder / "2", files)
        mutant = Mutant(folder / "2", files_to_hit, others, dice)
        kind = DAMAGE[index % len(DAMAGE)]
        kind(mutant)
        found, broken = newest_sealed([folder / "2", folder / "1"])
        which = f"mutant {index}: {kind.__name__}"
        assert found == folder / "1", which
        assert len(broken) == 1, which
        assert str(folder / "2" / mutant.named) in str(broken[0]), (which, broken)
        done[kind.__name__] += 1
    return done


CHECKS = {"checkpoints": (check_checkpoints, 3000), "sealed": (check_sealed, 2000)}


@pytest.mark.parametrize("name", CHECKS)
def test_5000_mutants(memory_folder: Path, name: str) -> None:
    check, count = CHECKS[name]
    done = check(memory_folder, count)
    assert sum(done.values()) == count
    assert min(done.values()) >= 50


SABOTAGE = {
    "no hash of files": (manifest_module, "_check_content"),
    "no size, no list": (manifest_module, "_check_size"),
    "no form of the manifest": (sealed_text, "_check_form"),
}


@pytest.mark.parametrize("missing", SABOTAGE)
@pytest.mark.parametrize("name", CHECKS)
def test_the_mutants_find_a_missing_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, missing: str
) -> None:
    module, function = SABOTAGE[missing]
    monkeypatch.setattr(module, function, lambda *_: None)
    with pytest.raises((AssertionError, KeyError)):
        CHECKS[name][0](tmp_path, 300)


def test_files_that_others_add_may_be_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Outside of our own folder; everything else is refused as strictly as without."""
    folder = tmp_path / "x"
    write(folder, {"weights.bin": b"abc"})
    seal(folder, {"step": 3})
    write(folder, {**read(folder), ".DS_Store": b"", "a/b": b"c"})
    with pytest.raises(Broken, match=r"\.DS_Store was not there when"):
        verify(folder)
    assert verify(folder, added="ignore") == {"step": 3}
    assert caplog.messages == []
    assert verify(folder, added="warn") == {"step": 3}
    assert caplog.messages == [
        f"{folder}: added since it was sealed, and not looked into: .DS_Store, a/b"
    ]
    with pytest.raises(ValueError, match="added='yes': choose 'refuse', 'warn' or 'ignore'"):
        verify(folder, added="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("added", ["refuse", "warn", "ignore"])
def test_what_is_refused_whatever_is_allowed(tmp_path: Path, added: Any) -> None:
    folder = tmp_path / "x"
    write(folder, {"weights.bin": b"abc"})
    seal(folder, {})
    files = read(folder)
    for name in ("weights.bin", "aimmerge/more", "aimmerge.part/more"):
        write(folder, {**files, name: b"abd"})
        with pytest.raises(Broken, match=name):
            verify(folder, added=added)
    write(folder, {name: files[name] for name in files if name != "weights.bin"})
    with pytest.raises(Broken, match=r"weights\.bin is missing"):
        verify(folder, added=added)
    write(folder, files)
    (folder / "link").symlink_to(folder / "weights.bin")
    with pytest.raises(Broken, match="link is a link"):
        verify(folder, added=added)


def test_a_folder_that_is_not_changed_verifies(tmp_path: Path) -> None:
    (tmp_path / "x" / "sub").mkdir(parents=True)
    (tmp_path / "x" / "sub" / "file").write_bytes(b"abc")
    seal(tmp_path / "x", {"step": 3, "of": ["a", None, 0.5]})
    assert verify(tmp_path / "x") == {"step": 3, "of": ["a", None, 0.5]}
