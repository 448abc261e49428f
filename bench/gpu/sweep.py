"""Stage ``sweep``: bench/merge_sweep.py on this device, and its figures beside the targets."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import merge_sweep
from aimmerge_fast import kernels
from gpu import stage
from gpu.stage import FAILED, INFO, NOT_RUN, Found, Stage, judged
from overhead.ours import KERNELS, LAUNCHES
from sweep import tables
from sweep.cases import BY_ENTRIES


def run(given: Stage) -> None:
    path = given.path.with_name(given.path.name.replace("sweep", "merge_sweep"))
    for name in KERNELS:
        reason = kernels.available(given.device)[name]
        if reason is not None:
            given.add(name, Found(reason, NOT_RUN))
    arguments = ["--device", str(given.device), "--backend", ",".join(backends(given))]
    arguments += ["--json", str(path), "--chart", str(given.path.with_suffix(".png"))]
    arguments += ["--quick"] if given.quick else []
    if given.options.most_entries:
        arguments += ["--most-entries", given.options.most_entries]
    record: dict[str, Any] = {"cases": [], "slopes": []}  # what lies at ``path`` may be older
    given.check("merge_sweep.py", lambda: swept(arguments, path, record))
    for case in record["cases"]:
        judge(given, case)
    for growth in record["slopes"]:
        judge_growth(given, growth)


def swept(arguments: list[str], path: Path, record: dict[str, Any]) -> Found:
    """The whole bench, its tables on this terminal; fills ``record``."""
    with contextlib.redirect_stderr(sys.stdout):
        code = merge_sweep.main(arguments)
    if code:
        return Found(f"exit {code}: see above", FAILED)
    record |= json.loads(path.read_text(encoding="utf-8"))
    text = f"{record['ceiling_gbs']:,.0f} GB/s ceiling; all results in {path}"
    return Found(text, INFO, {"ceiling": record["ceiling"]})


def backends(given: Stage) -> list[str]:
    """Our kernels that work here; on a CPU without a compiler what ``auto`` takes."""
    found = kernels.available(given.device)
    usable = [name for name in KERNELS if found[name] is None]
    return usable or [kernels.choose("auto", given.device).name]


def judge(given: Stage, case: dict[str, Any]) -> None:
    """One case: launches, and where entries grow the target of a merge's time."""
    title = f"{case['backend']}: {case['entries']:,} in {case['tensors']:,} tensors"
    if case["skipped"]:
        given.add(title, Found(case["skipped"], NOT_RUN, case))
        return
    launches = "-" if case["launches"] is None else case["launches"]
    text = (
        f"{case['us']:,.1f} µs, {case['ceiling_fraction']:.0%} of the ceiling, {launches} "
        f"launches, host {case['host_us']:.1f} µs a step, {case['merge_host_us']:,.1f} a merge"
    )
    if not given.on_gpu or case["backend"] not in KERNELS:
        given.add(title, Found(text, INFO, case))
        return
    passes = {"launches": case["launches"] == LAUNCHES}
    if case["grows"] == BY_ENTRIES:  # at a fixed N the ratio is judged
        passes["time"] = case["within_target"]
    missed = [name for name, passed in passes.items() if not passed]
    text += f", target {case['target_us']:,.1f} µs; missed: {', '.join(missed) or 'none'}"
    given.add(title, judged(not missed, text, **case, passes=passes))


def judge_growth(given: Stage, growth: dict[str, Any]) -> None:
    """Both growths of one backend; too few sizes are not run rather than passed."""
    texts = {"linear": tables.entries_text(growth), "flat": tables.tensors_text(growth)}
    for key, text in texts.items():
        title, verdict = f"{growth['backend']}: {key}", growth[key]
        if not given.on_gpu or growth["backend"] not in KERNELS:
            given.add(title, Found(text, INFO, growth))
        elif verdict is None:
            given.add(title, Found(text, NOT_RUN, growth))
        else:
            given.add(title, judged(verdict, text, **growth))


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--most-entries", metavar="N", help="as merge_sweep.py takes it")


def main(arguments: list[str] | None = None) -> int:
    return stage.main("sweep", run, arguments, options)


if __name__ == "__main__":
    sys.exit(main())
