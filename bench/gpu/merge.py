"""Stage ``merge``: bench/merge_overhead.py on this device, and its figures beside the targets."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import merge_overhead
from gpu import stage
from gpu.stage import FAILED, INFO, NOT_RUN, Found, Stage, judged

#: Least times as long as ours, host and device together.
RELEASED, FOREACH, COMPILED = 100.0, 5.0, 1.3
HOOK_US = 10.0


def run(given: Stage) -> None:
    given.check("merge_overhead.py", lambda: measure(given))
    path = details(given)
    if not path.exists():
        given.add("targets", Found("merge_overhead.py gave no results", NOT_RUN))
        return
    record = json.loads(path.read_text(encoding="utf-8"))
    for case in record["cases"]:
        if case["cache"] == "cold":
            judge(given, case)


def details(given: Stage) -> Path:
    return given.path.with_name(given.path.name.replace("merge", "merge_overhead"))


def measure(given: Stage) -> Found:
    """The whole bench, its tables on this terminal."""
    path, chart = details(given), given.path.with_suffix(".png")
    path.unlink(missing_ok=True)
    arguments = ["--device", str(given.device), "--json", str(path), "--chart", str(chart)]
    arguments += ["--quick"] if given.quick else []
    if given.options.backbone:
        arguments += ["--backbone", given.options.backbone]
    with contextlib.redirect_stderr(sys.stdout):
        code = merge_overhead.main(arguments)
    if code:
        return Found(f"exit {code}: see above", FAILED)
    record = json.loads(path.read_text(encoding="utf-8"))
    return Found(
        f"{record['ceiling_gbs']:,.0f} GB/s ceiling; all results in {path}",
        INFO,
        {"ceiling_gbs": record["ceiling_gbs"], "ceiling": record["details"]["ceiling"]},
    )


def judge(given: Stage, case: dict[str, Any]) -> None:
    """One backbone on one backend; the targets are for our kernels on a GPU."""
    title = f"{case['backbone']} {case['backend']}"
    launches = case["launches"]
    text = (
        f"{case['us']:,.1f} µs, {case['ceiling_fraction']:.0%} of the ceiling, "
        f"{'-' if launches is None else launches} launches, hook {case['host_us']:.1f} µs"
    )
    if not given.on_gpu or case["backend"] == "eager":
        given.add(title, Found(text, INFO, case))
        return
    ratios = {name: ratio(case, name) for name in ("released", "foreach", "compiled")}
    passes = {
        "time": case["us"] <= case["target_us"],
        "launches": launches == 2,
        "hook": case["host_us"] <= HOOK_US,
        "released": at_least(ratios["released"], RELEASED),
        "foreach": at_least(ratios["foreach"], FOREACH),
        "compiled": at_least(ratios["compiled"], COMPILED),
        "compiled, device alone": at_least(on_device(case, "compiled"), 1.0),
    }
    missed = [name for name, passed in passes.items() if not passed]
    shown = ", ".join(f"{name} {'-' if r is None else f'{r:.1f} x'}" for name, r in ratios.items())
    text += f", target {case['target_us']:,.1f} µs; {shown}; missed: {', '.join(missed) or 'none'}"
    given.add(title, judged(not missed, text, **case, ratios=ratios, passes=passes))


def ratio(case: dict[str, Any], arm: str) -> float | None:
    """How many times as long as ours an arm takes, host and device together."""
    theirs = case[f"{arm}_wall_us"]
    return None if theirs is None else theirs / case["wall_us"]


def on_device(case: dict[str, Any], arm: str) -> float | None:
    theirs = case[f"{arm}_us"]
    return None if theirs is None else theirs / case["us"]


def at_least(value: float | None, least: float) -> bool:
    """An arm that did not run is not beaten."""
    return value is not None and value >= least


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", metavar="NAMES", help="as merge_overhead.py takes them")


def main(arguments: list[str] | None = None) -> int:
    return stage.main("merge", run, arguments, options)


if __name__ == "__main__":
    sys.exit(main())
