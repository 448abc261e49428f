"""AIMMerging (arXiv 2509.17348) at kernel speed: merge a LoRA model with its own recent past.

``FastAIMMerger`` goes into any training loop; ``RehearsalMemory`` keeps a few records of every
finished task; ``AIMConfig`` holds the settings; ``ReferenceAIMMerger`` is the slow class that reads
like the paper. ``MergeRejected`` and ``BadProbes`` are what a merger raises on non-finite numbers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aimmerge_fast.config import AIMConfig as AIMConfig
    from aimmerge_fast.controller import BadProbes as BadProbes
    from aimmerge_fast.controller import MergeRejected as MergeRejected
    from aimmerge_fast.memory import RehearsalMemory as RehearsalMemory
    from aimmerge_fast.merger import FastAIMMerger as FastAIMMerger
    from aimmerge_fast.reference import ReferenceAIMMerger as ReferenceAIMMerger

__version__ = "0.1.0"

_HOMES = {
    "AIMConfig": "config",
    "BadProbes": "controller",
    "FastAIMMerger": "merger",
    "MergeRejected": "controller",
    "ReferenceAIMMerger": "reference",
    "RehearsalMemory": "memory",
}
__all__ = [
    "AIMConfig",
    "BadProbes",
    "FastAIMMerger",
    "MergeRejected",
    "ReferenceAIMMerger",
    "RehearsalMemory",
]


def __getattr__(name: str) -> Any:
    """Load a public name at first use, so that the command starts without importing torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
