"""A folder that one process at a time writes to."""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path

from aimmerge_fast.durable.files import naming


class Lock:
    """An exclusive lock on a file, which is made; it ends with the object or the process.

    A forked child (a data loader's worker) does not have it: it may outlive its parent, and the
    run's next process must not find the lock taken.

    Raises: ValueError when another process or object has it. OSError naming the file.
    """

    def __init__(self, path: Path) -> None:
        with naming(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._handle: int | None = handle
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise ValueError(
                f"another process saves in {path.parent}; wait for it, or give this run a folder "
                "of its own"
            ) from None
        _held.add(self)

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.release()


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_leave_to_the_parent)
