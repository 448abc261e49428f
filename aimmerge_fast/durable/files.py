"""Files that are whole or absent, also after a power loss.

A file is written aside (``.NAME.PID.part``), synced, renamed, and then its folder is synced. A
process that dies leaves the old file or the new one, never half of either.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class Broken(ValueError):
    """What is on disk is not what was written; the message names the file."""


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` as a whole, and make the folders above it; durable when this returns.

    Raises: OSError naming ``path`` (ENOSPC also says how much is free). The old file is still there
        then, unless only the last sync failed.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with naming(path):
        make_folder(path.parent)
        try:
            _write_new(aside, content)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        sync_folder(path.parent)


def write_json(path: Path, content: Any) -> None:
    """``content`` as JSON, written aside and renamed: a reader never sees half of it."""
    write_bytes(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file; ``Broken`` names a file that holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or too deep
        raise Broken(f"{path} is damaged: {error}; put a copy of it back") from None
    if not isinstance(found, dict):
        raise Broken(f"{path} is damaged: it holds no object; put a copy of it back")
    return found


def json_line(row: Mapping[str, Any]) -> str:
    """One line of a JSONL file."""
    return json.dumps(row, ensure_ascii=False) + "\n"


# ---- what the rest of the room is made of ----------------------------------------------------


def make_folder(path: Path) -> None:
    """Make ``path`` and what is missing above it, each entry durable."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def rename(source: Path, target: Path) -> None:
    """Rename inside one folder, durably; a folder at ``target`` must be empty."""
    with naming(target):
        source.replace(target)
        sync_folder(target.parent)


def sync_file(path: Path) -> None:
    """Wait until the content of ``path`` is on the disk."""
    with naming(path):
        _sync(os.open(path, os.O_RDONLY | os.O_CLOEXEC))


def sync_folder(path: Path) -> None:
    """Wait until the names in ``path`` are on the disk."""
    with naming(path):
        _sync(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY))


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError without a file name (a write or fsync has none) gets ``path`` as its."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        reason = error.strerror
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            with contextlib.suppress(OSError):
                reason = f"{reason} ({shutil.disk_usage(path.parent).free:,} bytes free)"
        raise OSError(error.errno, reason, str(path)) from error


def _write_new(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(handle, left) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync(handle: int) -> None:
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
