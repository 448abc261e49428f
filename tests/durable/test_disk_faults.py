"""A disk that is full or fails at any operation of a save: a named error, and nothing is lost."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from aimmerge_fast.durable import Broken, Checkpoints, seal, verify, write_bytes
from tests.durable.disk import Disk, warnings_of_the_room

NAMELESS = {"write", "fsync"}  # whose errors the system gives no path


def tree_of(step: int) -> dict[str, Any]:
    return {"weights": torch.arange(4.0) + step}


class FailsAt:
    """Lets ``count`` operations pass and fails at the next, once."""

    def __init__(self, count: int, code: int) -> None:
        self.left, self.code = count, code
        self.failed = ""

    def __call__(self, what: str, path: str) -> None:
        self.left -= 1
        if self.left == -1:
            self.failed = f"{what} {path}"
            names = () if what in NAMELESS else (path,)
            raise OSError(self.code, os.strerror(self.code), *names)


def fault_in_a_save(folder: Path, count: int, code: int) -> str:
    """The third save meets a fault at operation ``count``; which, or "" when it made fewer."""
    fails = FailsAt(count, code)
    checkpoints, error = Checkpoints(folder, keep=2), None
    with pytest.MonkeyPatch.context() as patch, warnings_of_the_room() as said:
        Disk(patch, folder, before=fails)
        try:
            checkpoints.save(3, tree_of(3))
        except OSError as caught:
            error = caught
    found = checkpoints.load()
    assert found is not None
    assert torch.equal(found[1]["weights"], tree_of(found[0])["weights"])
    if f"{folder}/step-1" in fails.failed or ".step-1" in fails.failed:
        assert error is None  # the new one is safe already
    if error is not None:
        assert error.errno == code
        assert str(folder) in str(error), fails.failed
        assert found[0] in (2, 3)
    else:
        assert found[0] == 3
        assert all(str(folder) in message for message in said)
        assert bool(said) == bool(fails.failed)  # what is too old could not be removed
    require_going_on(folder, checkpoints)
    return fails.failed


def require_going_on(folder: Path, checkpoints: Checkpoints) -> None:
    """The same object saves again, the same step or the next."""
    for step in (3, 4):
        path = checkpoints.save(step, tree_of(step))
        with warnings_of_the_room() as said:
            found = Checkpoints(folder).load()
        assert said == []
        assert found is not None
        assert found[0] == step
    checkpoints.close()
    assert len([name for name in folder.iterdir() if name.name != "lock"]) == 2
    assert path.name == "step-4"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS], ids=errno.errorcode.get)
def test_a_fault_at_every_operation(memory_folder: Path, code: int) -> None:
    base = memory_folder / "base"
    checkpoints = Checkpoints(base, keep=2)
    for step in (1, 2):
        checkpoints.save(step, tree_of(step))
    checkpoints.close()
    met = set()
    for count in itertools.count():
        shutil.copytree(base, memory_folder / "run")
        failed = fault_in_a_save(memory_folder / "run", count, code)
        shutil.rmtree(memory_folder / "run")
        if not failed:
            break
        met.add(failed.split()[0])
    assert met == {"mkdir", "create", "write", "fsync", "rename", "unlink", "rmdir"}
    assert count >= 20


def test_a_full_disk_says_how_much_is_free(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, tmp_path, before=FailsAt(1, errno.ENOSPC))
        with pytest.raises(OSError, match=r"No space left .* \([\d,]+ bytes free\): .*/file"):
            write_bytes(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_the_disk_does_not_give_back_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    seal(tmp_path, {})
    failing = {"code": errno.EIO}

    def unreadable(file: Any, digest: str) -> None:
        raise OSError(failing["code"], os.strerror(failing["code"]))

    monkeypatch.setattr("hashlib.file_digest", unreadable)
    with pytest.raises(Broken, match=r"/file cannot be read: Input/output error"):
        verify(tmp_path)
    failing["code"] = errno.ENOMEM  # no fault of the checkpoint's: an older one would not help
    with pytest.raises(OSError, match=r"Cannot allocate memory: .*/file"):
        verify(tmp_path)


def test_a_real_full_disk(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (tmp_path / f".file.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device .*/file"):
        write_bytes(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []
