"""The tensors that training changes: found by structure, and watched for re-allocation.

They are never moved. Each is read again through the module that owns it, so that a Parameter put in
the place of another is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aimmerge_fast.parameters.models import ModelSlots
from aimmerge_fast.parameters.shards import as_local
from aimmerge_fast.parameters.slots import (
    DTYPES,
    Slot,
    Table,
    require_same_kind,
    require_same_ties,
    short,
    tabulate,
)
from aimmerge_fast.parameters.stale import Copies

__all__ = ["DTYPES", "Parameters", "Slot", "discover"]


class Parameters:
    """The trainable tensors in a fixed order, each memory counted once; see :func:`discover`."""

    names: tuple[str, ...]

    def __init__(
        self, find: Callable[[], list[Slot]], guard: Callable[[], None] = lambda: None
    ) -> None:
        self._find, self._guard = find, guard
        self._adopt(tabulate(find()))

    def tensors(self) -> list[Tensor]:
        """The current tensors, in the order of ``names``."""
        return [slot.read() for slot in self._table.slots]

    def locals(self) -> list[Tensor]:
        """``tensors()``, of sharded ones (FSDP2) what this rank holds: plain memory."""
        return [as_local(tensor) for tensor in self.tensors()]

    def flat(self) -> list[Tensor]:
        """Detached views ``(numel,)`` of the dense memory of ``locals()``, in memory order."""
        return [
            tensor.detach().as_strided((tensor.numel(),), (1,), tensor.storage_offset())
            for tensor in self.locals()
        ]

    def addresses(self) -> tuple[int, ...]:
        """Address of each tensor's first element (0 where it has none)."""
        return tuple([tensor.data_ptr() for tensor in self.locals()])

    def devices(self) -> list[torch.device]:
        """Each device once, in the order in which the tensors name them."""
        return list(dict.fromkeys(bound.device for bound in self._table.bound))

    def signature(self) -> list[dict[str, Any]]:
        """``[{"name", "shape", "dtype"}, ...]``, JSON-able, to compare with a saved state."""
        return [
            {"name": name, "shape": list(bound.shape), "dtype": short(bound.dtype)}
            for name, bound in zip(self.names, self._table.bound, strict=True)
        ]

    def check(self) -> bool:
        """True when every tensor is where it was; False when some had moved and are bound anew.

        Host only: it reads addresses, never values. A moved tensor must have kept its shape,
        dtype, device, memory order and ties, and must still require a gradient.

        Raises:
            RuntimeError: naming the first parameter of which this is not so; nothing is changed.
        """
        self._guard()
        if self._in_place():
            return True
        self._rebind()
        return False

    def drop_stale_copies(self) -> None:
        """Make other libraries forget their copies of what was just written."""
        self._copies.drop()

    def _adopt(self, table: Table) -> None:
        self._table = table
        self.names = tuple(slot.name for slot in table.slots)
        every = [*table.slots, *(slot for slot, _ in table.ties)]
        self._copies = Copies(every)
        self._edges = list({(id(e[0]), e[1]): e for slot in every for e in slot.trail}.values())

    def _in_place(self) -> bool:
        for children, key, child in self._edges:
            if children.get(key) is not child:
                return False
        slots, bounds, ties = self._table
        for slot, bound in zip(slots, bounds, strict=True):
            parameter = slot.read()
            tensor = as_local(parameter)
            if (
                tensor.data_ptr() != bound.address
                or tensor.dtype is not bound.dtype
                or tensor.shape != bound.shape
                or not parameter.requires_grad
            ):
                return False
        return all(as_local(slot.read()).data_ptr() == bounds[twin].address for slot, twin in ties)

    def _rebind(self) -> None:
        old = self._table
        every = [*self.names, *(slot.name for slot, _ in old.ties)]
        try:
            found = {slot.name: slot for slot in self._find()}
            for name in every:
                if name not in found or not found[name].read().requires_grad:
                    raise RuntimeError(
                        f"parameter {name!r} is gone or no longer requires a gradient; put it "
                        "back, or make a new merger for what is trained now"
                    )
            slots = [found[name] for name in every]
            for slot, bound in zip(slots, old.bound, strict=False):  # the tied ones come last
                require_same_kind(slot, bound)
            table = tabulate(slots)
        except ValueError as error:
            raise RuntimeError(f"re-allocated since it was bound: {error}") from None
        require_same_ties(old, table)
        for name, before, now in zip(self.names, old.bound, table.bound, strict=True):
            if before.order != now.order:
                raise RuntimeError(
                    f"parameter {name!r} changed its memory order: strides {before.order} became "
                    f"{now.order}, which does not fit the anchor; keep the layout"
                )
        self._adopt(table)


def discover(
    model_or_parameters: nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]],
    adapters: str | Sequence[str] | None = None,
) -> Parameters:
    """Find what training changes: float32, bfloat16 or float16 tensors of dense memory.

    Args:
        model_or_parameters: a module, tensors, or ``(name, tensor)`` pairs; those that require no
            gradient are left out. A tensor given without its module is followed when its ``.data``
            is re-assigned, but not when another Parameter takes its place.
        adapters: PEFT adapters by name; default the active ones. What requires a gradient outside
            of all adapters (``bias="lora_only"``, a head) always belongs to it.

    Tied tensors (the same memory, transposed or not) are counted once, under their first name.

    Raises:
        ValueError: nothing to train; an adapter unknown, frozen, or merged into the base; a tensor
            on meta, sparse, quantised, a subclass without plain memory (a DTensor's shard has it),
            of another dtype, no leaf, expanded, gapped or overlapping: named, with what to do.
    """
    if isinstance(model_or_parameters, nn.Module):
        slots_of = ModelSlots(model_or_parameters, adapters)
        return Parameters(slots_of, slots_of.require_unmerged)
    if adapters is not None:
        raise ValueError(f"adapters={adapters!r} needs the model that has them; pass the model")
    slots = _listed(model_or_parameters)
    return Parameters(lambda: slots)


def _listed(items: object) -> list[Slot]:
    if isinstance(items, (Tensor, str)) or not isinstance(items, Iterable):
        raise ValueError(
            f"got a {type(items).__name__}; pass a torch.nn.Module, or a list of parameters or of "
            "(name, parameter) pairs"
        )
    slots, count = [], 0
    for count, item in enumerate(items, start=1):
        pair = item if isinstance(item, tuple) else (f"parameters[{count - 1}]", item)
        if len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], Tensor):
            raise ValueError(
                f"item {count - 1} is a {type(item).__name__}; each must be a tensor or a "
                "(name, tensor) pair (of an optimizer, pass group['params'])"
            )
        if pair[1].requires_grad:
            slots.append(Slot(pair[0], lambda tensor=pair[1]: tensor))  # type: ignore[misc]
    if not slots:
        raise ValueError(
            f"no trainable parameters: none of the {count} given requires a gradient; pass those "
            "that the optimizer trains"
        )
    return slots
