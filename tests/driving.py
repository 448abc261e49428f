"""Short ways to lead a reference controller through steps and merges."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aimmerge_fast.config import AIMConfig
from aimmerge_fast.reference.controller import PaperController, ReleasedController
from aimmerge_fast.reference.schedules import Merge, ReferenceController

#: A history loss that never activates among its like, and one that always does.
QUIET, LOUD = 0.25, 100.0


def paper(**fields: Any) -> PaperController:
    return PaperController(AIMConfig(policy="paper", **fields))


def released(**fields: Any) -> ReleasedController:
    return ReleasedController(AIMConfig(policy="released", **fields))


def observe(controller: ReferenceController, losses: Iterable[float]) -> list[str]:
    return [controller.observe(loss) for loss in losses]


def elapse(controller: ReferenceController, signal: float, steps: int | None = None) -> Merge:
    """``steps`` (default S) quiet updates and a merge, due or not, with that L1 change per step."""
    steps = controller.S if steps is None else steps
    observe(controller, [QUIET] * steps)
    return controller.merge(signal * steps)


def until_merge(controller: ReferenceController, losses: Iterable[float]) -> str:
    for loss in losses:
        code = controller.observe(loss)
        if code.startswith("merge_"):
            return code
    raise AssertionError("no merge")
