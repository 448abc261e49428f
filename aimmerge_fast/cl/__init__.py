"""The stream harness: whole continual-learning runs, methods side by side.

``RunConfig`` says everything a run depends on, ``run`` trains and evaluates it (and continues it
after a crash), ``write_report`` draws what came out.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aimmerge_fast.cl.config import RunConfig as RunConfig
    from aimmerge_fast.cl.report import write_report as write_report
    from aimmerge_fast.cl.runner import run as run

_HOMES = {"RunConfig": "config", "run": "runner", "write_report": "report"}
__all__ = ["RunConfig", "run", "write_report"]


def __getattr__(name: str) -> Any:
    """Load a public name at first use: the command starts without importing torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
