"""Ways to damage a sealed folder, each with the file that must be named for it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aimmerge_fast.durable import sealed_text

MANIFEST = "aimmerge/manifest.json"
Files = dict[str, bytes]


def read(folder: Path) -> Files:
    """Content by path below ``folder``."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def write(folder: Path, files: Files) -> None:
    """Make ``folder`` hold these files and nothing else."""
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def resealed(files: Files, info: Any = None) -> Files:
    """With a manifest that fits what lies there, as somebody who repairs it by hand would make."""
    document = json.loads(files[MANIFEST])
    rest = {name: content for name, content in files.items() if name != MANIFEST}
    listed = {name: entry(content) for name, content in rest.items()}
    return {**rest, MANIFEST: sealed_text.of(info or document["info"], listed)}


def entry(content: bytes) -> dict[str, Any]:
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


class Mutant:
    """One damaged copy of ``files`` in ``folder``.

    Args:
        others: sealed folders that files can be taken from.

    Attributes:
        folder: where it lies, which may be another name than it had.
        named: the path that the error must name, below ``folder``.
        part: whose load it damages.
    """

    def __init__(
        self, folder: Path, files: Files, others: list[Files], dice: random.Random
    ) -> None:
        self.folder, self.files, self.others, self.dice = folder, files, others, dice
        self.name = dice.choice(sorted(files))
        self.named, self.part = self.name, "rank0"
        self.content = bytearray(files[self.name])
        self.place = dice.randrange(len(self.content))

    # ---- damage that a disk or a copy does ---------------------------------------------------

    def flip(self) -> None:
        self.content[self.place] ^= 1 << self.dice.randrange(8)
        self.put(self.name, self.content)

    def cut(self) -> None:
        self.put(self.name, self.content[: self.place])

    def grow(self) -> None:
        self.put(self.name, self.content + self.dice.randbytes(1 + self.dice.randrange(9)))

    def zeros(self) -> None:
        size = 1 + self.dice.randrange(64)
        changed = bytearray(self.content)
        size = min(size, len(changed) - self.place)
        changed[self.place : self.place + size] = bytes(size)
        self.put(self.name, self.different(changed))

    def blocks_in_another_order(self) -> None:
        half = len(self.content) // 2
        self.put(self.name, self.different(self.content[half:] + self.content[:half]))

    def missing(self) -> None:
        (self.folder / self.name).unlink()

    def extra(self) -> None:
        self.named = self.dice.choice(["notes.txt", "aimmerge/rank9.safetensors", "a/b/c", ".x"])
        self.put(self.named, self.dice.randbytes(self.dice.randrange(20)))

    def swapped(self) -> None:
        one, other = sorted(self.dice.sample(sorted(set(self.files) - {MANIFEST}), 2))
        self.put(one, self.files[other])
        self.put(other, self.files[one])
        self.named = one

    def from_another(self) -> None:
        other = self.dice.choice(self.others)
        names = [name for name in sorted(other) if other[name] != self.files.get(name, b"")]
        self.named = self.dice.choice([name for name in names if name in self.files])
        self.put(self.named, other[self.named])
        if self.named == MANIFEST:
            self.named = ""  # any of the files that are not those it lists

    def link(self) -> None:
        outside = self.folder.parent / "outside"
        outside.write_bytes(self.files[self.name])
        (self.folder / self.name).unlink()
        (self.folder / self.name).symlink_to(outside)

    def linked_folder(self) -> None:
        elsewhere = self.folder.parent / "moved"
        shutil.rmtree(elsewhere, ignore_errors=True)
        (self.folder / "aimmerge").rename(elsewhere)
        (self.folder / "aimmerge").symlink_to(elsewhere)
        self.named = "aimmerge"

    def pipe(self) -> None:
        (self.folder / self.name).unlink()
        os.mkfifo(self.folder / self.name)

    def not_sealed(self) -> None:
        (self.folder / "aimmerge").rename(self.folder / "aimmerge.part")
        self.named = MANIFEST

    # ---- a manifest that was changed ---------------------------------------------------------

    def edited(self) -> None:
        """A field of the manifest, its sha256 as it was."""
        document = json.loads(self.files[MANIFEST])
        self.named = MANIFEST
        where = self.dice.choice(["version", "info", "files", "sha256", "name"])
        file = self.dice.choice(sorted(document["files"]))
        if where == "version":
            document["version"] = self.dice.choice([0, 2, 1.5, True, "1", None, -1, 10**30])
        elif where == "info":
            document["info"] = {**document["info"], "step": self.dice.randrange(50, 99)}
        elif where == "files":
            field = self.dice.choice(["size", "sha256"])
            document["files"][file][field] = self.dice.choice([1, -1, None, "0" * 64, "ff", 2.0])
        elif where == "sha256":
            document["sha256"] = self.dice.choice(["", None, "0" * 64])
        else:
            document["files"][self.unsafe()] = document["files"].pop(file)
        self.put(MANIFEST, json.dumps(document, indent=1, sort_keys=True).encode() + b"\n")

    def other_form(self) -> None:
        """The same fields in another text."""
        document, self.named = json.loads(self.files[MANIFEST]), MANIFEST
        text = json.dumps(document, indent=self.dice.choice([None, 0, 2, 3]), sort_keys=True)
        self.put(MANIFEST, text.encode() + b"\n")

    def no_json(self) -> None:
        texts = [
            b"",
            b"{",
            b"[]",
            b"null",
            b"\xff\xfe",
            b"[" * 9000,
            b'{"version": NaN}',
            b"1" * 5000,
        ]
        self.named = MANIFEST
        self.put(MANIFEST, self.dice.choice(texts))

    def sealed_by_hand(self) -> None:
        """A field of the manifest, its sha256 made anew."""
        document, self.named = json.loads(self.files[MANIFEST]), MANIFEST
        info, files = document["info"], document["files"]
        file = self.dice.choice(sorted(files))
        what = self.dice.choice(["path", "less", "more", "size", "sha256", "field"])
        if what == "path":
            files[self.unsafe()] = files.pop(file)
        elif what == "less":
            del files[file]
            self.named = file
        elif what == "more":
            files["z"] = entry(b"")
            self.named = "z"
        elif what == "field":
            files[file]["mode"] = 420
        else:
            other = {"size": files[file]["size"] + 1, "sha256": "0" * 64}[what]
            files[file] = {**files[file], what: other}
            self.named = file
        self.put(MANIFEST, sealed_text.of(info, files))

    def other_version(self) -> None:
        document, self.named = json.loads(self.files[MANIFEST]), MANIFEST
        del document["sha256"]
        document["version"] = self.dice.choice([0, 2, True, "1", None, 1.0])
        self.put(MANIFEST, sealed_text._sealed(document))

    # ---- helpers -----------------------------------------------------------------------------

    def unsafe(self) -> str:
        names = ["../x", "/etc/passwd", "a/../../x", "./x", "", ".", "..", "a//b", "/", "a/.."]
        return self.dice.choice(names)

    def different(self, content: bytearray) -> bytearray:
        if content == self.files[self.name]:
            content[self.place] ^= 1
        return content

    def put(self, name: str, content: bytes | bytearray) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(content)


Kind = Callable[[Any], None]
DAMAGE: list[Kind] = [
    *(Mutant.flip,) * 6, *(Mutant.cut, Mutant.grow, Mutant.zeros) * 2,
    Mutant.blocks_in_another_order, Mutant.missing, Mutant.extra, Mutant.swapped,
    Mutant.from_another, Mutant.link, Mutant.linked_folder, Mutant.pipe, Mutant.not_sealed,
    *(Mutant.edited,) * 2, Mutant.other_form, Mutant.no_json, *(Mutant.sealed_by_hand,) * 2,
    Mutant.other_version,
]  # fmt: skip
