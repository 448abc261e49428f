"""Runs in which one rank, the last, falls out: what the others raise and are left with."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from aimmerge_fast import FastAIMMerger
from tests.distributed import nets
from tests.distributed.runs import Run, local_bits

FIXED = {"schedule": "fixed", "s_init": 4, "probe": "after"}
FALLS = 8  # the update at which the rank falls out: that of the second merge


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse() -> None:
    raise ValueError("no such record")


ENDS: dict[str, Callable[[], None]] = {"die": die, "refuse": refuse}


def fall(
    rank: int, world: int, kind: str, moment: str, end: str, victim: int | None = None, linger=0.0
) -> dict[str, Any]:
    """Train until ``victim`` meets its ``end`` at ``moment``; it stays ``linger`` s afterwards."""
    victim = world - 1 if victim is None else victim
    run = Run(rank, world, kind=kind, config=FIXED, keywords={"timeout": 9.0})
    if rank == victim:
        plant(run, moment, ENDS[end])
    before: list[Any] = []
    began = time.monotonic()
    try:
        with run.merger.task("later", run.memory):
            for _ in range(FALLS + 4):
                run.train_once()
                if moment == "before" and rank == victim and run.update == FALLS:
                    ENDS[end]()
                before, began = local_bits(run.parameters), time.monotonic()
                run.merger.step()
    except Exception as error:
        told = report(run, error) | {"seconds": time.monotonic() - began, "before": before}
        time.sleep(linger if rank == victim else 0)
        return told
    raise AssertionError("the run came to its end")


def plant(run: Run, moment: str, end: Callable[[], None]) -> None:
    merger, controller = run.merger, run.merger.controller
    if moment == "open":
        fall_before(controller, "open", run, end)
    elif moment == "memory":
        fall_before(merger.rehearsal, "_backward", run, end)
    elif moment == "close":
        fall_before(controller, "close", run, end)
    elif moment == "after":
        fall_before(run, "train_once", run, end, at=FALLS)


def fall_before(owner: Any, name: str, run: Run, end: Callable[[], None], at: int = 0) -> None:
    original = getattr(owner, name)

    def call(*arguments: Any) -> Any:
        if run.update == FALLS:
            end()
        return original(*arguments)

    setattr(owner, name, call)


def report(run: Run, error: Exception) -> dict[str, Any]:
    return {
        "error": type(error).__name__,
        "message": str(error),
        "cause": type(error.__cause__).__name__,
        "after": local_bits(run.parameters),
        "update": run.update,
        "again": again(run),
        "broken": True,
    }


def again(run: Run) -> str:
    """What one more call says, which must not wait for anybody."""
    began = time.monotonic()
    try:
        run.merger.processes.at(0, 0, 0)
    except Exception as error:
        assert time.monotonic() - began < 1
        return f"{type(error).__name__}: {error}"
    return "nothing"


def raised(call: Callable[[], Any]) -> list[str]:
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return []


# ---- out of step -----------------------------------------------------------------------------


def skip(rank: int, world: int) -> dict[str, Any]:
    """The last rank leaves out one call of step()."""
    run = Run(rank, world, config=FIXED, keywords={"timeout": 4.0})
    began = time.monotonic()
    try:
        with run.merger.task("later", run.memory):
            for _ in range(FALLS):
                run.train_once()
                began = time.monotonic()
                if not (rank == world - 1 and run.update == FALLS - 1):
                    run.merger.step()
    except Exception as error:
        return report(run, error) | {"seconds": time.monotonic() - began}
    raise AssertionError("the run came to its end")


def leave_early(rank: int, world: int) -> dict[str, Any]:
    """The last rank leaves the loop before its last step() and enters the next task."""
    run = Run(rank, world, config=FIXED, keywords={"timeout": 30.0})
    try:
        with run.merger.task("later", run.memory):
            for _ in range(3):
                run.train_once()
                if rank == world - 1 and run.update == 3:
                    break
                run.merger.step()
        with run.merger.task("last", run.memory):
            pass
    except Exception as error:
        return report(run, error)
    raise AssertionError("the run came to its end")


def late(rank: int, world: int) -> dict[str, Any]:
    """The last rank builds no merger."""
    model = nets.wrap(nets.plain(), "ddp")
    if rank == world - 1:
        time.sleep(3)
        return {"broken": True}
    told = raised(lambda: FastAIMMerger(model, timeout=1.0))
    return {"error": told[0], "message": told[1], "broken": True}
