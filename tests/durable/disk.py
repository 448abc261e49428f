"""A disk between the code and the files: it writes down what is done to it, or fails at it."""

from __future__ import annotations

import itertools
import logging
import math
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

Operation = tuple[str, str, Any]  # what, path below the root, and to what (a path, bytes or None)
Tree = dict[str, bytes | None]  # content by path; None is a folder


@contextmanager
def warnings_of_the_room() -> Iterator[list[str]]:
    """What ``aimmerge_fast.durable`` warns of meanwhile."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("aimmerge_fast.durable")
    log.addHandler(handler)
    try:
        yield said
    finally:
        log.removeHandler(handler)


class Disk:
    """Every call that changes files below ``root`` passes here.

    Args:
        before: called before each with what it is and its path; what it raises, the call raises.

    Attributes:
        done: the operations that succeeded, in order; ``mark()`` puts notes between them.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        root: Path,
        before: Callable[[str, str], None] = lambda what, path: None,
    ) -> None:
        self.root, self.before = str(root) + "/", before
        self.done: list[Operation] = []
        self.paths: dict[int, str] = {}  # of open handles
        self.real = {name: getattr(os, name) for name in ("open", "close", "write", "fsync")}
        for name in self.real:
            patch.setattr(os, name, getattr(self, name))
        for name in ("mkdir", "unlink", "remove", "rmdir", "replace", "rename"):
            patch.setattr(os, name, self.passed(name, getattr(os, name)))

    def mark(self, note: Any) -> None:
        self.done.append(("mark", "", note))

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        full = self.full(path, dir_fd)
        makes = bool(flags & os.O_CREAT) and not Path(full).exists()
        if makes:
            self.about_to("create", full)
        handle: int = self.real["open"](path, flags, mode, dir_fd=dir_fd)
        self.paths[handle] = full
        if makes:
            self.did("create", full)
        return handle

    def close(self, handle: int) -> None:
        self.paths.pop(handle, None)
        self.real["close"](handle)

    def write(self, handle: int, content: Any) -> int:
        path = self.paths.get(handle, "")
        self.about_to("write", path)
        written: int = self.real["write"](handle, content)
        self.did("write", path, bytes(content[:written]))
        return written

    def fsync(self, handle: int) -> None:
        path = self.paths.get(handle, "")
        self.about_to("fsync", path)
        self.real["fsync"](handle)
        self.did("fsync", path)

    def passed(self, name: str, real: Callable[..., None]) -> Callable[..., None]:
        what = {"remove": "unlink", "replace": "rename"}.get(name, name)

        def call(path: Any, *more: Any, dir_fd: int | None = None, **rest: Any) -> None:
            full = self.full(path, dir_fd)
            self.about_to(what, full)
            given = {} if dir_fd is None else {"dir_fd": dir_fd}
            real(path, *more, **given, **rest)
            self.did(what, full, os.fspath(more[0]) if what == "rename" else None)

        return call

    def full(self, path: Any, dir_fd: int | None) -> str:
        return os.fspath(path if dir_fd is None else Path(self.paths[dir_fd]) / path)

    def about_to(self, what: str, path: str) -> None:
        if path.startswith(self.root):
            self.before(what, path)

    def did(self, what: str, path: str, to: Any = None) -> None:
        if (path + "/").startswith(self.root):
            to = to[len(self.root) :] if what == "rename" else to
            self.done.append((what, path[len(self.root) :], to))


# ---- what a power loss leaves ----------------------------------------------------------------


NONE, HALF, ZEROS, ALL = range(4)


class Effect:
    """One change of a folder's names or a file's content.

    Attributes:
        at: the operation that makes it; it is on the disk for certain after the operation ``safe``.
        where: the number of the folder or file it changes.
        names: number by name, None for one that goes; content: what is appended.
    """

    def __init__(self, at: int, where: int, names: dict[str, int | None], content: bytes) -> None:
        self.at, self.where, self.names, self.content = at, where, names, content
        self.safe = math.inf

    def choices(self) -> list[int]:
        """How much of it may be found: nothing or all; of a content also half, or zeros."""
        return [NONE, ALL] if self.names else [NONE, HALF, ZEROS, ALL]


def effects_of(operations: list[Operation]) -> tuple[list[Effect], set[int]]:
    """The effects, and the numbers that are folders; the root is folder 0.

    Nothing is promised but by fsync: of a file for its content, of a folder for its names. A rename
    is one change of its folder.
    """
    numbers, effects, folders = {"": 0}, [], {0}
    for at, (what, path, to) in enumerate(operations):
        parent, name = os.path.split(path)
        if what == "fsync":
            for effect in effects:
                if effect.where == numbers[path]:
                    effect.safe = min(effect.safe, at)
        elif what == "write":
            effects.append(Effect(at, numbers[path], {}, to))
        elif what in ("create", "mkdir"):
            numbers[path] = at + 1
            folders |= {at + 1} if what == "mkdir" else set()
            effects.append(Effect(at, numbers[parent], {name: at + 1}, b""))
        elif what in ("unlink", "rmdir"):
            effects.append(Effect(at, numbers[parent], {name: None}, b""))
            del numbers[path]
        elif what == "rename":
            folder, new = os.path.split(to)
            assert folder == parent
            changes: dict[str, int | None] = {name: None, new: numbers[path]}
            effects.append(Effect(at, numbers[parent], changes, b""))
            moved = {k: n for k, n in numbers.items() if k == path or k.startswith(f"{path}/")}
            for key in moved:
                del numbers[key]
            numbers |= {to + key[len(path) :]: number for key, number in moved.items()}
    return effects, folders


def crash_states(operations: list[Operation], limit: int = 1000) -> Iterator[tuple[int, Tree]]:
    """(operations done, what is found) of every moment and every choice of unsynced effects.

    Of a moment with more than ``limit`` choices: all, none, each alone, each missing, and some
    taken at random.
    """
    effects, folders = effects_of(operations)
    dice = random.Random(len(operations))
    for moment in range(len(operations) + 1):
        made = [effect for effect in effects if effect.at < moment]
        choices = [[ALL] if effect.safe < moment else effect.choices() for effect in made]
        for taken in _some(choices, limit, dice):
            yield moment, _tree(made, taken, folders)


def final_state(operations: list[Operation]) -> Tree:
    """What there is as long as the power stays."""
    effects, folders = effects_of(operations)
    return _tree(effects, (ALL,) * len(effects), folders)


def _some(choices: list[list[int]], limit: int, dice: random.Random) -> Iterator[tuple[int, ...]]:
    if math.prod(map(len, choices)) <= limit:
        yield from itertools.product(*choices)
        return
    for rest in (min, max):
        base = tuple(map(rest, choices))
        yield base
        for index, choice in enumerate(choices):
            yield from ((*base[:index], other, *base[index + 1 :]) for other in choice)
    for _ in range(limit // 2):
        yield tuple(map(dice.choice, choices))


def _tree(effects: list[Effect], taken: tuple[int, ...], folders: set[int]) -> Tree:
    names: dict[int, dict[str, int]] = {}
    contents: dict[int, bytes] = {}
    for effect, much in zip(effects, taken, strict=True):
        if effect.names and much:
            entries = names.setdefault(effect.where, {})
            for name, number in effect.names.items():
                entries.pop(name, None)
                if number is not None:
                    entries[name] = number
        elif not effect.names:
            whole = effect.content
            part = {NONE: b"", HALF: whole[: len(whole) // 2], ZEROS: bytes(len(whole)), ALL: whole}
            contents[effect.where] = contents.get(effect.where, b"") + part[much]
    tree: Tree = {}

    def walk(folder: int, prefix: str) -> None:
        for name, number in names.get(folder, {}).items():
            tree[prefix + name] = None if number in folders else contents.get(number, b"")
            if number in folders:
                walk(number, f"{prefix}{name}/")

    walk(0, "")
    return tree


def tree_on(folder: Path) -> Tree:
    """What really lies there."""
    paths = sorted(folder.rglob("*"))
    return {p.relative_to(folder).as_posix(): None if p.is_dir() else p.read_bytes() for p in paths}


def put(tree: Tree, folder: Path) -> None:
    for name, content in sorted(tree.items()):
        if content is None:
            (folder / name).mkdir(parents=True, exist_ok=True)
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
