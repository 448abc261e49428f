"""DTensors: what a rank holds of a parameter that is sharded over several (FSDP2)."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)  # most tensors, told apart without a look at their ancestors


def is_dtensor(tensor: Tensor) -> bool:
    if type(tensor) in _PLAIN:
        return False
    known = sys.modules.get("torch.distributed.tensor")  # none exists before it is imported
    return known is not None and isinstance(tensor, known.DTensor)


def as_local(tensor: Tensor) -> Tensor:
    """The shard that this rank holds of a DTensor, sharing its memory; another tensor itself."""
    if not is_dtensor(tensor):
        return tensor
    sharded: Any = tensor
    with torch.no_grad():
        local: Tensor = sharded.to_local()
    return local


def is_partial(tensor: Tensor) -> bool:
    """Whether ranks hold summands of a DTensor instead of entries."""
    placements: Any = getattr(tensor, "placements", ())
    return any(placement.is_partial() for placement in placements)


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds only some of the entries."""
    return shard_dimensions(tensor) > 0


def shard_dimensions(tensor: Tensor) -> int:
    """Dimensions of the mesh along which the entries of a DTensor are dealt out."""
    if not is_dtensor(tensor):
        return 0
    sharded: Any = tensor
    sizes = zip(sharded.placements, sharded.device_mesh.shape, strict=True)
    return sum(placement.is_shard() and size > 1 for placement, size in sizes)


def is_first_replica(tensor: Tensor) -> bool:
    """Whether this rank is the first of those that hold the same entries of a DTensor."""
    sharded: Any = tensor
    where = sharded.device_mesh.get_coordinate()
    pairs = zip(where, sharded.placements, strict=True)
    return all(at == 0 for at, placement in pairs if not placement.is_shard())


def mesh_names(tensor: Tensor) -> tuple[str, ...]:
    """Names of the dimensions of the device mesh that a DTensor is spread over."""
    if not is_dtensor(tensor):
        return ()
    sharded: Any = tensor
    return sharded.device_mesh.mesh_dim_names or ()
