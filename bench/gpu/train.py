"""Stage ``train``: bench/training_overhead.py, one case after the other within its limit.

A case is a backbone, or one with its passes as CUDA graphs. AIMMERGE_CASES names some of them, with
commas; what the results hold of others stays.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu import stage
from gpu.stage import FAILED, INFO, NOT_RUN, ROOT, Found, Stage, judged
from training.store import Store

BENCH = ROOT / "bench/training_overhead.py"
GRAPHS = "+graphs"
#: Seconds after which a case is stopped; three quarters of them are for its timed blocks.
LIMITS = {
    **{"t5-large": 100, "llama2-7b": 170, "t5-large+graphs": 90},
    **{"qwen3-1.7b": 90, "qwen3-1.7b+graphs": 90, "llama2-13b": 290},
}
CPU_LIMIT = 600
#: AIM by LoRAReplay with as many rehearsal rows; our engine's share of a step.
MATCHED = 1.05
SHARES = {"t5-large": 0.01, "qwen3-1.7b": 0.01, "llama2-7b": 0.001, "llama2-13b": 0.001}


def run(given: Stage) -> None:
    if not BENCH.exists():
        given.add("training_overhead.py", Found("not in this tree", NOT_RUN))
        return
    named = [name for name in os.environ.get("AIMMERGE_CASES", "").split(",") if name]
    for name in given.options.case or named or list(LIMITS):
        if name not in LIMITS:
            given.add(name, Found(f"unknown case; known are {', '.join(LIMITS)}", FAILED))
        elif name.endswith(GRAPHS) and not given.on_gpu:
            given.add(name, Found("needs CUDA itself", NOT_RUN))
        else:
            given.check(name, lambda n=name: measure(given, n))


def results_of(given: Stage, name: str) -> Path:
    """The file of a case: all backbones share one, and all with graphs another."""
    file = given.path.name.replace("train", "training_overhead")
    return given.path.with_name(file.replace(".", "_graphs.") if name.endswith(GRAPHS) else file)


def forget(given: Stage, path: Path, backbone: str) -> None:
    """Drop what a results file holds of a backbone: it would be continued, not measured.

    One of another machine or other versions, or no results file at all, goes as a whole.
    """
    if not path.exists():
        return
    try:
        Store(path, given.device).forget(backbone)
    except ValueError:
        path.unlink()


def measure(given: Stage, name: str) -> Found:
    limit = LIMITS[name] if given.on_gpu else CPU_LIMIT
    path, backbone = results_of(given, name), name.removesuffix(GRAPHS)
    forget(given, path, backbone)
    command = [sys.executable, str(BENCH), "--backbone", backbone, "--device", str(given.device)]
    command += ["--json", str(path), "--minutes", f"{0.75 * limit / 60:.2f}"]
    command += ["--quick"] if given.quick else ["--repeats", "3"]
    command += ["--graphs"] if name.endswith(GRAPHS) else []
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return judged(False, f"stopped after {limit} s; {path} has the blocks so far")
    print(done.stdout.rsplit("\n{", 1)[0], flush=True)
    if done.returncode:
        return judged(False, f"exit {done.returncode}: see above")
    case: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])["cases"][-1]
    return judge(given, backbone, case)


def judge(given: Stage, name: str, case: dict[str, Any]) -> Found:
    """The three ratios by their medians, and what the engine takes."""
    ratios = {arm: spread[1] for arm, spread in case["ratios"].items()}
    share = case["engine_share"]
    method = max(each["method"] for arm, each in case["syncs_per_step"].items() if "aim" in arm)
    text = ", ".join(f"AIM / {arm} {value:.3f}" for arm, value in ratios.items())
    text += f"; engine {share:.3%} of a step, {method:g} synchronising calls per step"
    figures = {"ratios": ratios, "engine_share": share, "labels": case["labels"]}
    if not given.on_gpu:
        return Found(text, INFO, figures)
    missed = []
    if ratios["matched"] > MATCHED:
        missed.append(f"matched at most {MATCHED}")
    if share >= SHARES[name]:
        missed.append(f"engine below {SHARES[name]:.1%}")
    if method:
        missed.append("no synchronising call")
    return judged(not missed, f"{text}; missed: {', '.join(missed) or 'none'}", **figures)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--case", action="append", metavar="NAME", help="may be repeated")


def main(arguments: list[str] | None = None) -> int:
    return stage.main("train", run, arguments, options)


if __name__ == "__main__":
    sys.exit(main())
