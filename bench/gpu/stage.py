"""What the stages share: options, a table that grows row by row, the results file.

A row is printed and stored as soon as it is known: a stage that is stopped keeps what it found. An
exception is a failed row and not the end, unless the device itself is lost.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import environment
from gpu import machine

ROOT = Path(__file__).parents[2]
#: ``INFO``: a figure that nothing is asked of.
OK, FAILED, NOT_RUN, INFO = "ok", "FAILED", "not run", "-"


@dataclasses.dataclass(frozen=True)
class Found:
    """What a check found: in words, a verdict, and figures for programs."""

    result: str
    verdict: str = INFO
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)


def judged(passed: bool, result: str, /, **figures: Any) -> Found:
    return Found(result, OK if passed else FAILED, figures)


class Stage:
    """One stage's table.

    Attributes: name, device, quick (small counts: to try the stage, not to prove anything), options
    (what else the command line gave).
    """

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name = name
        self.options = options
        self.device: torch.device = options.on
        self.quick: bool = options.quick
        self._head = machine.describe(self.device)
        self._rows: list[dict[str, Any]] = []
        self._began = time.monotonic()
        kind = "gpu" if self.device.type == "cuda" else "cpu"
        self.path = results_folder() / f"{kind}_{name}.json"

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def add(self, check: str, found: Found) -> None:
        """Print a row and store it."""
        row = {"check": check, "verdict": found.verdict, "result": found.result, **found.figures}
        self._rows.append(row)
        print(f"  {found.verdict:8} {check:44} {found.result}", flush=True)
        self._store(complete=False)

    def check(self, check: str, act: Callable[[], Found]) -> None:
        """Add the row that ``act`` gives; what it raises is a failed row."""
        try:
            found = act()
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            text = f"{type(error).__name__}: {lines[0] if lines else ''}"
            found = Found(text, FAILED, {"traceback": traceback.format_exc()})
        self.add(check, found)

    def needs_gpu(self, check: str, act: Callable[[], Found]) -> None:
        """``check`` on a GPU; on a CPU a row that says it was not run."""
        if self.on_gpu:
            self.check(check, act)
        else:
            self.add(check, Found("needs CUDA itself", NOT_RUN))

    def finish(self) -> int:
        """The last line; returns the exit code: 1 when a row failed."""
        self._store(complete=True)
        counts = {v: sum(row["verdict"] == v for row in self._rows) for v in (OK, FAILED, NOT_RUN)}
        text = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        print(f"{self.name}: {text}; {self.seconds:.0f} s; {self.path}", flush=True)
        return 1 if counts[FAILED] or not self._rows else 0

    def _store(self, *, complete: bool) -> None:
        record = {
            "stage": self.name,
            **self._head,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 1),
            "quick": self.quick,
            "complete": complete,
            "rows": self._rows,
        }
        self.path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def results_folder() -> Path:
    """Where results go: ``AIMMERGE_RESULTS``, else bench/results."""
    folder = Path(os.environ.get("AIMMERGE_RESULTS") or ROOT / "bench/results")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main(
    name: str,
    run: Callable[[Stage], None],
    arguments: list[str] | None = None,
    extend: Callable[[argparse.ArgumentParser], None] = lambda _: None,
) -> int:
    """Run a stage from the command line; ``extend`` adds its own options."""
    parser = argparse.ArgumentParser(prog=f"gpu.{name}")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the stage")
    parser.add_argument("--quick", action="store_true", help="small counts: they prove nothing")
    extend(parser)
    options = parser.parse_args(arguments)
    error = machine.require_gpu() if options.device.startswith("cuda") else None
    if error:
        print(error, file=sys.stderr)
        return machine.BAD_MACHINE
    try:
        options.on = environment.device_of(options.device)
        if options.on.type == "cuda":
            options.on = torch.device("cuda", options.on.index or 0)
            torch.cuda.set_device(options.on)
        stage = Stage(name, options)
    except (ValueError, OSError) as failure:
        print(f"error: {failure}", file=sys.stderr)
        return machine.BAD_MACHINE
    run(stage)
    return stage.finish()
