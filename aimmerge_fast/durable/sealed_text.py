"""The text of a manifest: JSON with exactly four fields, in one form only.

::

    {"files": {"adapter/weights.bin": {"sha256": "<64 hex digits>", "size": 1234}, …},
     "info": {…},             whatever the caller of seal() gave
     "sha256": "…",           of this text without this field
     "version": 1}

The form is that of ``json.dumps`` with sorted keys and indent 1, so no byte can change unseen.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

VERSION = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


def of(info: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The text that seals ``files`` ({path: {size, sha256}}); TypeError, ValueError by JSON."""
    return _sealed({"version": VERSION, "info": dict(info), "files": files})


def parse(content: bytes) -> dict[str, Any]:
    """The four fields; ``ValueError`` (or RecursionError) says what is wrong with the text."""
    document = json.loads(content)
    if not isinstance(document, dict):
        raise ValueError("it holds no object")
    version = document.get("version")
    if type(version) is not int or version != VERSION:
        raise ValueError(f"it is of version {version!r}, this package reads version {VERSION}")
    if set(document) != {"version", "info", "files", "sha256"}:
        raise ValueError(f"its fields are {', '.join(sorted(document))}")
    if not isinstance(document["info"], dict) or not isinstance(document["files"], dict):
        raise ValueError("info and files are not both objects")
    for name, entry in document["files"].items():
        _check_entry(name, entry)
    _check_form(content, document)
    return document


def _check_entry(name: str, entry: Any) -> None:
    if str(PurePosixPath(name)) != name or name[0] == "/" or {".", ".."} & {*name.split("/")}:
        raise ValueError(f"it names the path {name!r}, which may lead out of the folder")
    if not isinstance(entry, dict) or set(entry) != {"size", "sha256"}:
        raise ValueError(f"it does not give just size and sha256 of {name!r}")
    size, sha256 = entry["size"], entry["sha256"]
    if type(size) is not int or size < 0:
        raise ValueError(f"it gives {size!r} as the size of {name!r}")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise ValueError(f"it gives {sha256!r} as the sha256 of {name!r}")


def _check_form(content: bytes, document: Mapping[str, Any]) -> None:
    rest = {name: value for name, value in document.items() if name != "sha256"}
    if content != _sealed(rest):
        raise ValueError("its content does not match its sha256")


def _sealed(document: Mapping[str, Any]) -> bytes:
    return _text({**document, "sha256": hashlib.sha256(_text(document)).hexdigest()})


def _text(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
