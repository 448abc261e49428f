"""A tree of dicts, lists, numbers and tensors in one safetensors file, replaced as a whole.

Tensors lie in the file as tensors; everything else is JSON in its metadata, beside a sha256 of
both. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aimmerge_fast.durable.files import Broken, write_bytes

VERSION = 1
_TENSOR = "__tensor__"
_SCALARS = {int, float, str, bool, type(None)}


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

    Raises: FileNotFoundError when there is no file; Broken, naming the file, when it is damaged or
        of another version.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"no saved state {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise Broken(f"saved state {path} is damaged: {error}") from None
    text = metadata.get("tree", "")
    if not text or metadata.get("sha256") != _digest(text, tensors):
        raise Broken(f"saved state {path} is damaged: its content does not match its sha256")
    try:
        document = json.loads(text)
        version = document["version"]
        tree = _join(document["tree"], tensors) if version == VERSION else None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Broken(f"saved state {path} is damaged: {error!r}") from None
    if version != VERSION:
        raise Broken(f"saved state {path} is of version {version}, not {VERSION}")
    if not isinstance(tree, dict):
        raise Broken(f"saved state {path} is damaged: it holds no tree")
    return tree


def packed_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state without integer keys, which JSON does not have."""
    state = optimizer.state_dict()
    return {**state, "state": [[index, moments] for index, moments in state["state"].items()]}


def load_optimizer(optimizer: torch.optim.Optimizer, packed: Mapping[str, Any]) -> None:
    optimizer.load_state_dict({**packed, "state": {i: m for i, m in packed["state"]}})  # noqa: C416


def _split(value: Any, tensors: dict[str, Tensor]) -> Any:
    if type(value) in _SCALARS:  # a generator's state is a list of many
        return value
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
    if not isinstance(value, (str, int, float)):
        kind = type(value).__name__
        raise TypeError(
            f"a saved state holds dicts, lists, JSON scalars and tensors, not a {kind}; convert it "
            "first (array.tolist(), torch.from_numpy)"
        )
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
