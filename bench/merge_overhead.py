"""What a merge costs on the paper's backbones, beside the rivals and the bandwidth ceiling.

    python bench/merge_overhead.py [--backbone NAMES] [--backend NAMES] [--device NAME]
                                   [--json PATH] [--chart PATH] [--quick]

Adapter shapes are those of the true architectures; the values are random and no model is loaded.
Cold: the data of a sample was last touched at least 300 MB ago. Hot: it was touched just before.
On a GPU open and close are timed apart by events, each behind other data in the L2.
Nothing is timed before its result agreed with Eq. 7 in the same run. The last line of the output is
one JSON record. Beside the text a chart is drawn, unless told otherwise merge_overhead.png here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import environment
from command import BAD_INPUT, WRONG_RESULT, check_writable, names, now, stderr_progress
from overhead import backbones, ceiling, chart, measure, ours, tables, timing
from overhead.backbones import Backbone
from overhead.gate import GateError
from overhead.timing import Effort

_CHART = Path("merge_overhead.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run, print; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        device = environment.device_of(options.device)
        chosen = backbones.choose(options.backbone or backbones.BACKBONES)
        backends, passed_over = ours.choose(options.backend, device)
        for path in (options.json, options.chart):
            check_writable(path)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    for name, reason in passed_over.items():
        print(f"{name}: not run, {reason}")
    effort = timing.QUICK if options.quick else timing.FULL
    try:
        summary, details = run(chosen, backends, device, effort, stderr_progress())
    except GateError as error:
        print(f"error: wrong result, so it was not timed: {error}", file=sys.stderr)
        return WRONG_RESULT
    if options.chart:
        _draw(summary, options.chart)
    if options.json:
        record = {**summary, "date": now(), "quick": options.quick, "details": details}
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(summary))
    return 0


def run(
    chosen: Sequence[Backbone],
    backends: list[str],
    device: torch.device,
    effort: Effort,
    progress: Callable[[str], None],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure and print; returns the summary (the last line) and the details (for ``--json``)."""
    if device.index is not None:
        torch.cuda.set_device(device)  # events and delays go to the current device
    print(_header(device))
    progress("ceiling")
    commit = environment.commit()
    top = ceiling.measure(device, effort)
    print(tables.ceiling_text(top), flush=True)
    measured = []
    for backbone in chosen:
        measured.append(measure.backbone(backbone, backends, device, effort, progress))
        print(tables.backbone_text(measured[-1], top, device), flush=True)
    progress("ceiling again, for its drift")
    again = ceiling.measure(device, effort)
    # A ceiling taken while others had the cores would flatter every row.
    best = max(top, again, key=lambda measurement: measurement.best)
    print(
        f"ceiling at the end: {again.best:.1f} GB/s, at the start: {top.best:.1f}; the percentages "
        f"above are of the start's, the JSON's of {best.best:.1f}"
    )
    print(environment.load())
    summary = {
        "device": environment.describe(device),
        "versions": environment.versions(),
        "commit": commit,
        "ceiling_gbs": best.best,
        "cases": tables.cases(measured, best, device),
    }
    return summary, {
        **tables.details(measured, top),
        "ceiling_at_end": again.best,
        "load": environment.load(),
    }


def _header(device: torch.device) -> str:
    statistic = "p20" if device.type == "cpu" else "p50"
    lines = (
        f"{environment.describe(device)}; torch {torch.__version__}",
        "One merge without its memory steps, fp32; every arm is checked before it is timed.",
        f"GB/s is what a merge must move (32 bytes per entry) over the {statistic}, and so are the",
        f"times in the JSON the {statistic}. The ceiling is the cold one: hot rows may pass it.",
        f"An epoch is {tables.STEPS_PER_EPOCH} steps (1,000 records at batch 8) with at most "
        f"{tables.MERGES_PER_EPOCH} merges, for S' >= 2.",
    )
    return "\n".join(lines)


def _draw(summary: dict[str, Any], path: Path) -> None:
    try:
        chart.draw(summary, path)
    except ImportError as error:
        print(f"chart: not drawn, {error}; install matplotlib")
    else:
        print(f"chart: {path}")


def _chart(text: str) -> Path | None:
    return None if text == "none" else Path(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="Exit code 1: a result was wrong, nothing was timed from there on. 2: bad input.",
    )
    known = ", ".join(backbones.BACKBONES)
    parser.add_argument("--backbone", type=names, metavar="NAMES", help=f"of {known}; default all")
    parser.add_argument(
        "--backend", type=names, metavar="NAMES", help="ours to run; default all that work"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:INDEX")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results with details")
    parser.add_argument(
        "--chart",
        type=_chart,
        metavar="PATH",
        default=_CHART,
        help=f"PNG, default {_CHART}; or none",
    )
    parser.add_argument("--quick", action="store_true", help="fewer samples: under a minute")
    return parser


if __name__ == "__main__":
    sys.exit(main())
