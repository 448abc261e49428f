"""What the command lines of the benches share."""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

BAD_INPUT, WRONG_RESULT = 2, 1


def check_writable(path: Path | None) -> None:
    """``OSError`` now rather than after minutes of timing."""
    if path is None:
        return
    target = path if path.exists() else path.absolute().parent
    if path.is_dir() or not os.access(target, os.W_OK):
        raise OSError(f"cannot write {path}; name a file in a folder that is there and writable")


def stderr_progress() -> Callable[[str], None]:
    """A function that prints a message with the seconds since now."""
    begin = time.monotonic()

    def progress(message: str) -> None:
        print(f"[{time.monotonic() - begin:5.1f} s] {message}", file=sys.stderr, flush=True)

    return progress


def now() -> str:
    """The date and time, ISO 8601 in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def names(text: str) -> list[str]:
    """Names that commas separate."""
    return [name.strip() for name in text.split(",")]
