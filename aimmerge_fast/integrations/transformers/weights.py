"""Whether the Trainer trains the very weights that a checkpoint was sealed with."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Trainer

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksums(trainer: Trainer) -> dict[str, int]:
    """A number per trained parameter, which any one changed bit changes; none of sharded ones."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return {}
    assert trainer.model is not None
    named = trainer.model.named_parameters()
    return {name: _checksum(p.detach()) for name, p in named if p.requires_grad}


def require_loaded(trainer: Trainer, place: object, sealed: dict[str, int]) -> None:
    """``ValueError`` names a parameter that the Trainer did not load from ``place``."""
    mine = checksums(trainer)
    for name in sorted({*mine, *sealed}):
        if mine.get(name) != sealed.get(name):
            raise ValueError(
                f"{name} is not what it was when {place} was saved: the Trainer resumed from a "
                "damaged copy of it, or loaded only some of it (of several active adapters one); "
                "resume from the checkpoint itself, with the model that was saved"
            )


def _checksum(parameter: Tensor) -> int:
    entries = parameter.contiguous().view(-1).view(_INTEGERS[parameter.element_size()])
    return int(entries.sum(dtype=torch.int64))
