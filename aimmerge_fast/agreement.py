"""What several ranks must have in common, compared where it is cheap and named where it differs."""

from __future__ import annotations

from typing import Any

import torch

from aimmerge_fast.binding import Binding
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.distributed import Processes
from aimmerge_fast.fusion import EntryFusion
from aimmerge_fast.memory import RehearsalMemory
from aimmerge_fast.state import Position


def require_same_settings(
    processes: Processes, config: AIMConfig, fusion: EntryFusion | None, **others: Any
) -> None:
    """``PeerError`` naming ranks whose merger is built otherwise than rank 0's."""
    if processes.alone:
        return
    processes.require_equal("another config", config.to_dict())
    fused = None if fusion is None else fusion.to_dict()
    *first, last = (f"{name}=" for name in ("fusion", *others))
    what = f"another {', '.join(first)} or {last}"
    processes.require_equal(what, {"fusion": fused, **others})


def require_same_model(
    processes: Processes, binding: Binding, scaler: torch.amp.GradScaler | None
) -> None:
    """``PeerError`` where ranks train other tensors; ``ValueError`` for what shards rule out."""
    if processes.alone:
        return
    processes.require_equal("other names of trained parameters", list(binding.parameters.names))
    processes.require_equal("another backend", binding.backends)
    if binding.sharded and scaler is not None and scaler.is_enabled():
        raise ValueError(
            "scaler= with sharded parameters (FSDP2): a rank whose shard overflows would skip a "
            "memory step alone; train in bfloat16 without a GradScaler, or use DDP"
        )


def require_same_task(
    processes: Processes,
    name: str,
    memory: RehearsalMemory | None,
    position: Position,
    resumed: dict[str, Any] | None,
) -> None:
    """``PeerError`` naming ranks that enter another task than rank 0, or go on from elsewhere."""
    if processes.alone:
        return
    at = None if resumed is None else [resumed["host"], resumed["steps_made"]]
    place = [name, position.tasks_begun, at]
    processes.require_equal("another task, or a state of another step,", place)
    records = None if memory is None else [memory.seed, memory.fingerprint()]
    processes.require_equal(f"another memory in task {name!r}", records)
