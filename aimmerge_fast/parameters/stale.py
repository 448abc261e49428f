"""Copies of trained weights that other libraries keep, and that a write of ours makes stale.

unsloth keeps a copy of ``lora_A`` and ``lora_B`` in the dtype it decodes in, as an attribute of the
Parameters; PEFT keeps DoRA's norms while ``DoraCaching`` is on. Both trust them until the model
goes back to training.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from aimmerge_fast.parameters.slots import Slot

_COPY, _NORMS = "_fast_lora", "_dora_cache"
#: Whether there is a copy is looked up on one of these for all of them, also where it is frozen.
_TOGETHER = ("lora_A", "lora_B", "lora_magnitude_vector")


class Copies:
    """Where copies of some slots may be kept; collected once, a merge then only looks there."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        modules = _owners(slots)
        self._bare = [slot for slot in slots if not slot.trail]
        self._kept = [vars(module) for module in modules]
        self._parameters = [module._parameters for module in modules]
        self._norms = [kept[_NORMS] for kept in self._kept if _NORMS in kept]

    def drop(self) -> None:
        """Their keepers make new ones of the present values when they need them."""
        for kept in self._kept:
            if _COPY in kept:
                del kept[_COPY]
        for norms in self._norms:
            norms.clear()
        for parameters in self._parameters:
            for tensor in parameters.values():
                if tensor is not None and _COPY in tensor.__dict__:
                    del tensor.__dict__[_COPY]
        for slot in self._bare:
            slot.read().__dict__.pop(_COPY, None)


def _owners(slots: Sequence[Slot]) -> list[nn.Module]:
    """The modules that own the slots, and their partners in the same layer."""
    found: dict[int, nn.Module] = {}
    for slot in slots:
        near = [child for _, _, child in slot.trail[:1]]
        for siblings, _, _ in slot.trail[:2]:  # the layer holds the owner, or the dict with it
            for key in _TOGETHER:
                holder = siblings.get(key)
                if holder is not None:
                    near += [module for module in holder._modules.values() if module is not None]
        found |= {id(module): module for module in near}
    return list(found.values())
