"""A tree of dicts, lists, numbers and tensors in one safetensors file, replaced as a whole.

Tensors lie in the file as tensors; everything else is JSON in its metadata, beside a sha256 of
both. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VERSION = 1
_TENSOR = "__tensor__"


def save_tree(path: Path, tree: Mapping[str, Any]) -> None:
    """Write ``tree`` (string keys; JSON values and tensors): aside, synced, then renamed.

    A process that dies leaves the old file or the new one, never half of either.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    text = json.dumps({"version": VERSION, "tree": _split(tree, tensors)})
    metadata = {"tree": text, "sha256": _digest(text, tensors)}
    write_bytes(path, save(tensors, metadata=metadata))


def load_tree(path: Path) -> dict[str, Any]:
    """What ``save_tree`` wrote, tensors on the CPU.

    Raises: OSError when there is no file; ValueError when it is damaged or of another version.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"no saved state {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"saved state {path} is damaged: {error}") from None
    text = metadata.get("tree", "")
    if not text or metadata.get("sha256") != _digest(text, tensors):
        raise ValueError(f"saved state {path} is damaged: its content does not match its sha256")
    document = json.loads(text)
    if document["version"] != VERSION:
        raise ValueError(f"saved state {path} is of version {document['version']}, not {VERSION}")
    tree: dict[str, Any] = _join(document["tree"], tensors)
    return tree


def write_json(path: Path, content: Any) -> None:
    """``content`` as JSON, written aside and renamed: a reader never sees half of it."""
    write_bytes(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file; ``ValueError`` names a file that holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"{path} is damaged: {error}; put a copy of it back") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds no object; put a copy of it back")
    return found


def json_line(row: Mapping[str, Any]) -> str:
    """One line of a JSONL file."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)  # makes the rename itself durable
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def packed_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state without integer keys, which JSON does not have."""
    state = optimizer.state_dict()
    return {**state, "state": [[index, moments] for index, moments in state["state"].items()]}


def load_optimizer(optimizer: torch.optim.Optimizer, packed: Mapping[str, Any]) -> None:
    optimizer.load_state_dict({**packed, "state": {i: m for i, m in packed["state"]}})  # noqa: C416


def _split(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()  # no storage is shared
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key == _TENSOR:
                raise TypeError(f"a saved state's keys are strings, not {key!r}")
        return {key: _split(item, tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_split(item, tensors) for item in value]
    return value


def _join(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {_TENSOR}:
            return tensors[value[_TENSOR]]
        return {key: _join(item, tensors) for key, item in value.items()}
    return [_join(item, tensors) for item in value] if isinstance(value, list) else value


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
