"""Where a trainable tensor is found, and whether its memory is fit for the kernels.

Errors name the parameter. ``ValueError``: it cannot be merged at all; ``RuntimeError``: it is no
longer what it was when it was bound.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aimmerge_fast.parameters.shards import as_local, is_dtensor, is_partial

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

#: (children of a module, the name of one, that child as it was found)
Edge = tuple[dict[str, nn.Module | None], str, nn.Module]


@dataclass(frozen=True)
class Slot:
    """The place where one trainable tensor is found.

    name: qualified name. The adapter's name is left out where one adapter is trained, so that a
        state can be resumed under another adapter name.
    read: gives the tensor that is there now; ``RuntimeError`` naming it when it is gone.
    trail: the modules from the model down to the owner, to notice when one was exchanged.
    """

    name: str
    read: Callable[[], Tensor]
    trail: tuple[Edge, ...] = ()


class Bound(NamedTuple):
    """What a tensor was when bound; ``order`` is its strides in dimensions longer than 1."""

    address: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    order: tuple[int, ...]


class Table(NamedTuple):
    """Slots of distinct memory, their bounds, and ``(slot, index of its twin)`` of tied ones."""

    slots: list[Slot]
    bound: list[Bound]
    ties: list[tuple[Slot, int]]


def tabulate(slots: list[Slot]) -> Table:
    """Bind slots to their present memory; ``ValueError`` names one that the kernels cannot use."""
    table = Table([], [], [])
    owners: dict[tuple[object, ...], int] = {}
    names: set[str] = set()
    for slot in slots:
        tensor = slot.read()
        fault = _fault(tensor)
        if fault:
            raise ValueError(f"parameter {slot.name!r} {fault}")
        if slot.name in names:
            raise ValueError(f"two parameters are named {slot.name!r}; give each its own name")
        names.add(slot.name)
        bound = _bind(tensor)
        # Every empty tensor has address 0: only the very same object is the same empty tensor.
        size = as_local(tensor).nbytes
        key = (bound.device, bound.address, size, bound.dtype) if size else (id(tensor),)
        if key in owners:
            table.ties.append((slot, owners[key]))
            continue
        owners[key] = len(table.slots)
        table.slots.append(slot)
        table.bound.append(bound)
    _require_disjoint(table)
    return table


def _bind(tensor: Tensor) -> Bound:
    tensor = as_local(tensor)
    order = tuple(
        step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1
    )
    return Bound(tensor.data_ptr(), tensor.shape, tensor.dtype, tensor.device, order)


def _fault(tensor: Tensor) -> str | None:
    """Why the kernels cannot work on this tensor's memory; None when they can."""
    if is_dtensor(tensor):
        if is_partial(tensor):
            return "is a DTensor of which each rank holds a summand; only shards and replicas merge"
        if not tensor.is_leaf:
            return "is the result of an operation, not a leaf; pass the parameter it was made from"
        tensor = as_local(tensor)
    kind = type(tensor)
    if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__ or nn.parameter.is_lazy(tensor):
        return (
            f"is a {kind.__module__}.{kind.__qualname__}, which has no plain memory of its own; "
            "pass plain tensors (local shards, dequantised weights, a lazy module after a forward)"
        )
    if tensor.device.type == "meta":
        return "is on the meta device and has no memory; load or materialise the model first"
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        return f"has layout {tensor.layout}; only dense, unquantised tensors can be merged"
    if tensor.dtype not in DTYPES:
        allowed = ", ".join(map(short, DTYPES))
        return f"has dtype {short(tensor.dtype)}; allowed are {allowed}; cast it or freeze it"
    if not tensor.is_leaf:
        return "is the result of an operation, not a leaf; pass the parameter it was made from"
    if tensor.data_ptr() % tensor.element_size():
        return f"starts at an address that is no multiple of {tensor.element_size()}; clone it"
    return _stride_fault(tensor)


def _stride_fault(tensor: Tensor) -> str | None:
    if tensor.numel() == 0:
        return None
    expected = 1
    sizes = zip(tensor.stride(), tensor.shape, strict=True)
    for step, size in sorted((step, size) for step, size in sizes if size > 1):
        if step != expected:
            kind = "expanded" if step == 0 else "gapped" if step > expected else "overlapping"
            return (
                f"is {kind} (shape {tuple(tensor.shape)}, strides {tensor.stride()}); its entries "
                "must fill one block of memory, each once, in any order of dimensions: clone it"
            )
        expected *= size
    return None


def _require_disjoint(table: Table) -> None:
    spans = sorted(
        (str(bound.device), bound.address, bound.address + as_local(slot.read()).nbytes, slot.name)
        for slot, bound in zip(table.slots, table.bound, strict=True)
    )
    for (device, _, end, name), (device2, start, _, name2) in itertools.pairwise(spans):
        if device == device2 and start < end:
            raise ValueError(
                f"parameters {name!r} and {name2!r} overlap in memory without being equal; make "
                "them views of the same entries, or of separate ones"
            )


def require_same_kind(slot: Slot, bound: Bound) -> None:
    tensor = as_local(slot.read())
    for what, was, now in (
        ("shape", tuple(bound.shape), tuple(tensor.shape)),
        ("dtype", short(bound.dtype), short(tensor.dtype)),
        ("device", str(bound.device), str(tensor.device)),
    ):
        if was != now:
            raise RuntimeError(
                f"parameter {slot.name!r} changed its {what} from {was} to {now}, which does not "
                "fit the anchor; change it before the task begins, and make a new merger"
            )


def require_same_ties(old: Table, new: Table) -> None:
    was = {slot.name: old.slots[twin].name for slot, twin in old.ties}
    now = {slot.name: new.slots[twin].name for slot, twin in new.ties}
    for name in [*was, *now]:
        if was.get(name) != now.get(name):
            verb, twin = ("no longer shares", was[name]) if name in was else ("shares", now[name])
            raise RuntimeError(
                f"parameter {name!r} {verb} the memory of {twin!r} since it was re-allocated; tie "
                "them as they were, or make a new merger"
            )


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
