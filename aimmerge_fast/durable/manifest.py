"""A sealed folder: every file in it is covered by ``aimmerge/manifest.json``.

The manifest gives the size and the sha256 of each (format: sealed_text.py). Our own state lies
beside it in *parts*, ``aimmerge/<name>.safetensors``, one per rank (format: tree.py). Until
everything is on the disk that folder is called ``aimmerge.part``; the rename is the moment at which
the checkpoint exists.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from aimmerge_fast.durable import sealed_text
from aimmerge_fast.durable.files import (
    Broken,
    make_folder,
    naming,
    rename,
    sync_file,
    sync_folder,
    write_bytes,
)

log = logging.getLogger(__name__)
SIDE = "aimmerge"
PART = "aimmerge.part"
MANIFEST = "manifest.json"
_MANIFEST_LIMIT = 64 << 20
_LOST = {errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.ESTALE}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def write_part(folder: Path, name: str, tree: Mapping[str, Any]) -> None:
    """Write ``<folder>/aimmerge.part/<name>.safetensors``, durably; each rank may write its own.

    Raises: ValueError for a name that is no plain file name; TypeError for keys that are no
        strings; OSError naming the file.
    """
    from aimmerge_fast.durable.tree import save_tree

    save_tree(folder / PART / _file(name), {"part": name, "tree": tree})


def read_part(folder: Path, name: str) -> dict[str, Any]:
    """The tree that ``write_part`` was given; ``verify`` the folder first.

    Raises: ValueError when the folder has no part of that name, listing those it has; Broken,
        naming the file, when it is damaged or another part's.
    """
    from aimmerge_fast.durable.tree import load_tree

    path = folder / SIDE / _file(name)
    if not path.is_file():
        raise ValueError(
            f"{folder} has no part {name!r}, it has {', '.join(parts(folder)) or 'none'}; go on "
            "with as many processes as saved it"
        )
    found = load_tree(path)
    tree = found.get("tree")
    if found.get("part") != name or not isinstance(tree, dict):
        raise Broken(f"{path} is not the part {name!r}: it was saved as {found.get('part')!r}")
    return tree


def parts(folder: Path) -> list[str]:
    """Names of the parts in a folder, sealed or about to be."""
    side = folder / SIDE if (folder / SIDE).is_dir() else folder / PART
    return sorted(path.stem for path in side.glob("*.safetensors") if path.name[0] != ".")


def seal(folder: Path, info: Mapping[str, Any]) -> None:
    """Put every file below ``folder`` and ``info`` (JSON) under a manifest; durable on return.

    A crash leaves the folder sealed or not sealed. An earlier seal, of files that were written anew
    since, is replaced.

    Raises: TypeError, ValueError when JSON cannot keep ``info``, or for a link or device in the
        folder; nothing has changed then. OSError naming the file.
    """
    sealed_text.of(info, {})
    list(_entries(folder))  # like the line above it refuses before anything changes
    make_folder(folder / PART)
    for leftover in (folder / PART).glob(".*.part"):  # of a process that died while it wrote
        leftover.unlink()
    files = {}
    folders = [folder]
    for name, path in _entries(folder):
        if path.is_dir():
            folders.append(path)
        elif name.split("/")[0] != SIDE and name != f"{PART}/{MANIFEST}":
            sync_file(path)
            final = SIDE + name.removeprefix(PART) if name.startswith(f"{PART}/") else name
            files[final] = _fingerprint(path)
    for path in folders:
        sync_folder(path)
    write_bytes(folder / PART / MANIFEST, sealed_text.of(info, files))
    if (folder / SIDE).exists():
        shutil.rmtree(folder / SIDE)
    rename(folder / PART, folder / SIDE)
    sync_folder(folder.parent)


def verify(folder: Path, added: Literal["refuse", "warn", "ignore"] = "refuse") -> dict[str, Any]:
    """The ``info`` of a sealed folder whose files are all there, and what they were.

    Args:
        added: what to do about files of others that came after the seal. Files in our own folder,
            links and what is no file are refused in any case.

    Raises: Broken, naming the first file that is missing, extra, of another size or another hash,
        unreadable, or no plain file; or the manifest: missing (not sealed), damaged, of another
        version, with a path that leads out of the folder. Other OSErrors as they come.
    """
    if added not in ("refuse", "warn", "ignore"):
        raise ValueError(f"added={added!r}: choose 'refuse', 'warn' or 'ignore'")
    with _readable():
        found = {name for name, path in _entries(folder) if not path.is_dir()}
        document = _manifest(folder / SIDE / MANIFEST)
        listed = document["files"]
        found.remove(f"{SIDE}/{MANIFEST}")
        allowed = set() if added == "refuse" else _of_others(found - {*listed})
        for name in sorted({*listed, *found} - allowed):
            _check_size(folder / name, listed.get(name), name in found)
        for name in sorted(listed):
            _check_content(folder / name, listed[name])
    if allowed and added == "warn":
        log.warning(
            "%s: added since it was sealed, and not looked into: %s",
            *(folder, ", ".join(sorted(allowed))),
        )
    info: dict[str, Any] = document["info"]
    return info


def newest_sealed(folders: Iterable[Path]) -> tuple[Path | None, list[Broken]]:
    """The first of ``folders`` (newest first) that verifies, and why those before it did not."""
    broken: list[Broken] = []
    for folder in folders:
        try:
            verify(folder)
        except Broken as error:
            broken.append(error)
        else:
            return folder, broken
    return None, broken


# ---- internals -------------------------------------------------------------------------------


def _file(name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"a part's name is letters, digits and _.-, like 'rank0', not {name!r}")
    return f"{name}.safetensors"


def _entries(folder: Path) -> Iterator[tuple[str, Path]]:
    """(path below ``folder`` with slashes, path) of all files and folders, sorted."""
    waiting = [folder]
    while waiting:
        for path in sorted(waiting.pop().iterdir()):
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                waiting.append(path)
            elif not stat.S_ISREG(mode):
                kind = "a link" if stat.S_ISLNK(mode) else "no plain file"
                raise Broken(f"{path} is {kind}; a sealed folder holds plain files only")
            yield path.relative_to(folder).as_posix(), path


def _of_others(names: set[str]) -> set[str]:
    return {name for name in names if name.split("/")[0] not in (SIDE, PART)}


def _fingerprint(path: Path) -> dict[str, Any]:
    with naming(path), path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": file.tell(), "sha256": sha256}


def _check_size(path: Path, sealed: Mapping[str, Any] | None, is_there: bool) -> None:
    if not is_there:
        raise Broken(f"{path} is missing")
    if sealed is None:
        raise Broken(f"{path} was not there when the folder was sealed")
    size = path.lstat().st_size
    if size != sealed["size"]:
        raise Broken(f"{path} has {size:,} bytes, it was sealed with {sealed['size']:,}")


def _check_content(path: Path, sealed: Mapping[str, Any]) -> None:
    if _fingerprint(path) != sealed:
        raise Broken(f"{path} is damaged: its sha256 is not the sealed one")


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """What the disk cannot give back is broken; a lack of rights or of memory is not."""
    try:
        yield
    except OSError as error:
        if error.errno not in _LOST:
            raise
        raise Broken(f"{error.filename} cannot be read: {error.strerror}") from None


def _manifest(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise Broken(f"{path} is missing: the checkpoint was not finished, or is not one of ours")
    try:
        if path.stat().st_size > _MANIFEST_LIMIT:
            raise ValueError("it is too long")
        with naming(path):
            return sealed_text.parse(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Broken(f"{path} is damaged: {error}") from None
