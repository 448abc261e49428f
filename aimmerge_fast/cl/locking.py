"""A folder held by one process (or one group of ranks) at a time."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

from aimmerge_fast.cl.parallel import Ranks


@contextlib.contextmanager
def held(folder: Path, ranks: Ranks, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold ``folder``, which is made; the lock ends with the process, however it ends.

    ``waiting`` is called once if another process has it, and then it is waited for; without it that
    is a ``ValueError``.
    """
    with contextlib.ExitStack() as stack:
        ranks.from_main(lambda: _lock(folder, stack, waiting))
        yield


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a run's folder for a moment, waiting for who has it; only rank 0 may ask."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:  # hidden: it makes no empty folder another's
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lock(folder: Path, stack: contextlib.ExitStack, waiting: Callable[[], None] | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = stack.enter_context((folder / "lock").open("w"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is None:
            raise ValueError(f"another process is training in {folder}; wait for it") from None
        waiting()
        fcntl.flock(file, fcntl.LOCK_EX)
