"""How a merge grows: from 1e5 to 1e9 entries, and from 10 to 1e4 tensors.

    python bench/merge_sweep.py [--backend NAMES] [--device NAME] [--most-entries N]
                                [--json PATH] [--chart PATH] [--quick]

Made-up fp32 adapters, no model; every time is cold. Entries grow in 128 tensors, tensors at
4,194,304 entries, both as LLaMA2-7B's adapter has them. The targets are a GPU's: time is linear in
entries (``sweep/fit.py`` says over which sizes) and flat in tensors. What does grow with tensors is
the host's side of a merge, a look at every address, and it is reported. A case that does not fit
into memory is a row that says so. Nothing is timed before its result agreed with Eq. 7 in the same
run. The last line of the output is one JSON record.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import environment
from aimmerge_fast import kernels
from command import BAD_INPUT, WRONG_RESULT, check_writable, names, now, stderr_progress
from overhead import ceiling, ours, timing
from overhead.gate import GateError
from overhead.tables import ceiling_text
from overhead.timing import Effort
from sweep import chart, fit, measure, tables
from sweep.cases import Case, cases, most_entries


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run, print; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        device = environment.device_of(options.device)
        chosen = options.backend or [kernels.choose("auto", device).name]
        backends, _ = ours.choose(chosen, device)
        most = most_entries(options.most_entries, device, quick=options.quick)
        for path in (options.json, options.chart):
            check_writable(path)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    effort = timing.QUICK if options.quick else timing.FULL
    swept = cases(most, quick=options.quick)
    try:
        found = run(swept, backends, device, effort, stderr_progress())
    except GateError as error:
        print(f"error: wrong result, so it was not timed: {error}", file=sys.stderr)
        return WRONG_RESULT
    record = {**found, "date": now(), "quick": options.quick}
    if options.chart:
        _draw(record, options.chart)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record))
    return 0


def run(
    swept: Sequence[Case],
    backends: Sequence[str],
    device: torch.device,
    effort: Effort,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Measure and print; returns the record."""
    if device.index is not None:
        torch.cuda.set_device(device)  # events and delays go to the current device
    commit = environment.commit()
    print(f"{environment.describe(device)}; torch {torch.__version__}")
    progress("ceiling")
    top = ceiling.measure(device, effort)
    print(ceiling_text(top), flush=True)
    measured = []
    for backend in backends:
        grows = ""
        for case in swept:
            measured.append(measure.measure(case, backend, device, effort, progress))
            if case.grows != grows:
                print(tables.title(measured[-1]))
            grows = case.grows
            print(tables.row(measured[-1], top, device), flush=True)
    progress("ceiling again, for its drift")
    again = ceiling.measure(device, effort)
    # A ceiling taken while others had the cores would flatter every row.
    best = max(top, again, key=lambda measurement: measurement.best)
    print(
        f"ceiling at the end: {again.best:.1f} GB/s, at the start: {top.best:.1f}; the rows above "
        f"are held against the start's, the slopes and the JSON against {best.best:.1f}"
    )
    records = [tables.record(one, best, device) for one in measured]
    slopes = [fit.growth(backend, records) for backend in backends]
    _print_slopes(slopes, device)
    return {
        "device": environment.describe(device),
        "driver": environment.driver(),
        "versions": environment.versions(),
        "commit": commit,
        "load": environment.load(),
        "ceiling_gbs": best.best,
        "ceiling": dataclasses.asdict(best),
        "cases": records,
        "slopes": slopes,
    }


def _print_slopes(slopes: list[dict[str, Any]], device: torch.device) -> None:
    if device.type == "cpu":
        print("CPU: the targets below are a GPU's; the verdicts only inform")
    for growth in slopes:
        print(f"{growth['backend']}: {tables.entries_text(growth)}")
        print(f"{growth['backend']}: {tables.tensors_text(growth)}")
    print(environment.load())


def _draw(record: dict[str, Any], path: Path) -> None:
    try:
        chart.draw(record, path)
    except ImportError as error:
        print(f"chart: not drawn, {error}; install matplotlib")
    else:
        print(f"chart: {path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="Exit code 1: a result was wrong, nothing was timed from there on. 2: bad input.",
    )
    parser.add_argument(
        "--backend", type=names, metavar="NAMES", help="ours to run; default what auto takes"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:INDEX")
    parser.add_argument(
        "--most-entries", metavar="N", help="default 1e9, on a CPU 1e8, with --quick 1e7"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the record")
    parser.add_argument("--chart", type=Path, metavar="PATH", help="draw it as a PNG")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and samples")
    return parser


if __name__ == "__main__":
    sys.exit(main())
