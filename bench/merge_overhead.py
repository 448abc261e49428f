"""What a merge costs on the paper's backbones, beside the rivals and the bandwidth ceiling.

    python bench/merge_overhead.py [--backbone NAMES] [--backend NAMES] [--device NAME]
                                   [--json PATH] [--chart PATH] [--quick]

Adapter shapes are those of the true architectures; the values are random and no model is loaded.
Cold: the data of a sample was last touched at least 300 MB ago. Hot: it was touched just before.
Nothing is timed before its result agreed with Eq. 7 in the same run. The last line is one JSON record.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import backbones
import ceiling
import chart
import environment
import measure
import ours
import tables
import timing
import torch
from backbones import Backbone
from gate import GateError
from timing import Effort

BAD_INPUT, WRONG_RESULT = 2, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run, print; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        device = environment.device_of(options.device)
        chosen = backbones.choose(options.backbone or backbones.BACKBONES)
        backends, passed_over = ours.choose(options.backend, device)
        for path in (options.json, options.chart):
            _check_writable(path)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    for name, reason in passed_over.items():
        print(f"{name}: not run, {reason}")
    effort = timing.QUICK if options.quick else timing.FULL
    try:
        summary, details = run(chosen, backends, device, effort, _stderr_progress())
    except GateError as error:
        print(f"error: wrong result, so nothing was timed: {error}", file=sys.stderr)
        return WRONG_RESULT
    if options.chart:
        _draw(summary, options.chart)
    if options.json:
        record = {**summary, "date": _now(), "quick": options.quick, "details": details}
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(summary))
    return 0


def run(
    chosen: Sequence[Backbone],
    backends: list[str],
    device: torch.device,
    effort: Effort,
    progress: Callable[[str], None],
    ceiling_entries: int = ceiling.ENTRIES,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure and print; returns the summary (the last line) and the details (for ``--json``)."""
    print(_header(device))
    progress("ceiling")
    top = ceiling.measure(device, effort, ceiling_entries)
    print(tables.ceiling_text(top), flush=True)
    measured = []
    for backbone in chosen:
        measured.append(measure.backbone(backbone, backends, device, effort, progress))
        print(tables.backbone_text(measured[-1], top, device), flush=True)
    progress("ceiling again, for its drift")
    again = ceiling.measure(device, effort, ceiling_entries)
    print(f"ceiling at the end: {again.best:.1f} GB/s, at the start: {top.best:.1f}")
    summary = {
        "device": environment.describe(device),
        "versions": environment.versions(),
        "commit": environment.commit(),
        "ceiling_gbs": round(top.best, 3),
        "cases": tables.cases(measured, top, device),
    }
    return summary, {**tables.details(measured, top), "ceiling_at_end": again.best}


def _header(device: torch.device) -> str:
    statistic = "p20" if device.type == "cpu" else "p50"
    return (
        f"{environment.describe(device)}; torch {torch.__version__}\n"
        f"One merge without its memory steps, fp32. GB/s: the bytes that a merge must move (32 per\n"
        f"entry) over the {statistic}, for every arm; the JSON's times are the {statistic} too. Hot"
        " rows may pass the cold\n"
        f"ceiling. An epoch is {tables.STEPS_PER_EPOCH} steps (1,000 records at batch 8); S' >= 2, "
        f"so at most {tables.MERGES_PER_EPOCH} merges."
    )


def _draw(summary: dict[str, Any], path: Path) -> None:
    try:
        chart.draw(summary, path)
    except ImportError as error:
        print(f"chart: not drawn, {error}; install matplotlib")
    else:
        print(f"chart: {path}")


def _check_writable(path: Path | None) -> None:
    """``OSError`` now rather than after minutes of timing."""
    if path is not None and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
        raise OSError(f"cannot write {path}; name a file in a folder that exists and is writable")


def _stderr_progress() -> Callable[[str], None]:
    begin = time.monotonic()

    def progress(message: str) -> None:
        print(f"[{time.monotonic() - begin:5.1f} s] {message}", file=sys.stderr, flush=True)

    return progress


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="Times are shown as p20, p50 and p80; exit code 1: a result was wrong, 2: bad input.",
    )
    known = ", ".join(backbones.BACKBONES)
    parser.add_argument("--backbone", type=_names, metavar="NAMES", help=f"of {known}; default all")
    parser.add_argument(
        "--backend", type=_names, metavar="NAMES", help="ours to run; default all that work"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:INDEX")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results with details")
    parser.add_argument("--chart", type=Path, metavar="PATH", help="draw a PNG (needs matplotlib)")
    parser.add_argument("--quick", action="store_true", help="fewer samples: under a minute")
    return parser


if __name__ == "__main__":
    sys.exit(main())
