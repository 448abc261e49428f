"""What a training step costs with AIMMerging, beside plain LoRA, replay and the released code.

    python3 bench/training_overhead.py [--backbone NAME]... [--device NAME] [--json PATH] [--quick]

True architectures with random weights (``--layers`` 0: all of them), LoRA r = 8 on q and v. Six
arms train the same batches from the same start, in blocks that take turns; three ratios are printed
with the rows that they cost, and what the engine itself takes: µs, synchronising calls, waits.
Nothing is timed before its result agreed with the formula, or with another arm's, in the same run.

``--json`` keeps every finished block, so the same command continues a killed run. The last line of
the output is one JSON record.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import environment
from command import BAD_INPUT, WRONG_RESULT, stderr_progress
from overhead import backbones
from overhead.gate import GateError
from training import measure, results, tables
from training.settings import CPU_BACKBONES, CPU_LAYERS, DTYPES, PROBES, Settings, defaults
from training.store import Store

_OVERRIDES = (
    *("layers", "batch", "seq", "history_rows", "memory_rows", "past_tasks", "steps", "s_init"),
    *("repeats", "dtype", "probe"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run, print; returns the exit code."""
    options = _parser().parse_args(arguments)
    # No hub: models are made from their configs, and nothing may wait for a network.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.threads > 0:
        torch.set_num_threads(options.threads)
    try:
        device = environment.device_of(options.device)
        names = options.backbone or _default_backbones(device)
        chosen = [backbone.name for backbone in backbones.choose(names)]
        settings = {name: settings_of(name, options, device) for name in chosen}
        store = Store(options.json, device)
        for name in chosen:
            store.backbone(name, settings[name].to_dict())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    try:
        summary = run(settings, device, store, options.minutes)
    except GateError as error:
        print(f"error: wrong result, so it was not timed: {error}", file=sys.stderr)
        return WRONG_RESULT
    print(json.dumps(summary, ensure_ascii=False))
    return 0


def run(
    settings: dict[str, Settings], device: torch.device, store: Store, minutes: float | None
) -> dict[str, Any]:
    """Measure and print every backbone; returns the summary, which the store keeps too."""
    print(f"{environment.describe(device)}; torch {torch.__version__}", flush=True)
    cases = []
    for name, chosen in settings.items():
        found = measure.backbone(name, chosen, device, store, stderr_progress(), minutes)
        cases.append(results.summarise(name, found, device))
        found["summary"] = cases[-1]
        store.save()
        print(tables.text(cases[-1]), flush=True)
    print(environment.load())
    record = store.record
    head = {key: record[key] for key in ("device", "driver", "versions", "commits")}
    return {**head, "cases": cases}


def settings_of(name: str, options: argparse.Namespace, device: torch.device) -> Settings:
    """The settings of one backbone: defaults, overridden by the command line."""
    chosen = defaults(device, options.quick)
    given = {key: getattr(options, key) for key in _OVERRIDES}
    chosen |= {key: value for key, value in given.items() if value is not None}
    if chosen["layers"] is None:
        chosen["layers"] = CPU_LAYERS[name]
    for key in ("history_rows", "memory_rows"):
        if chosen[key] is None:
            chosen[key] = chosen["batch"]
    if options.graphs and device.type != "cuda":
        raise ValueError(f"--graphs: CUDA graphs need a GPU, not {device}; leave it out")
    return Settings(**chosen, graphs=options.graphs)


def _default_backbones(device: torch.device) -> Sequence[str]:
    return CPU_BACKBONES if device.type == "cpu" else list(backbones.BACKBONES)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="Exit code 1: a result was wrong, nothing was timed from there on. 2: bad input.",
    )
    known, small = ", ".join(backbones.BACKBONES), ", ".join(CPU_BACKBONES)
    add = parser.add_argument
    add(
        "--backbone",
        action="append",
        metavar="NAME",
        help=f"may be repeated; of {known}; default all, on a CPU {small}",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:INDEX")
    add("--layers", type=int, metavar="N", help="0: all; default all, on a CPU a few")
    add("--batch", type=int, metavar="N", help="task rows per step (8)")
    add("--seq", type=int, metavar="N", help="tokens per row (256, on a CPU 64)")
    add("--history-rows", type=int, metavar="N", help="rows of a probe (the batch)")
    add("--memory-rows", type=int, metavar="N", help="rows of a memory step (the batch)")
    add("--past-tasks", type=int, metavar="N", help="each leaves 20 rows in the memory (1)")
    add("--steps", type=int, metavar="N", help="of a block, a multiple of 2 S (16, on a CPU 4)")
    add("--s-init", type=int, metavar="S", help="the interval, held (8, on a CPU 2)")
    add("--repeats", type=int, metavar="N", help="blocks of each arm (5, on a CPU 3)")
    add("--dtype", choices=DTYPES, help="of the frozen base; default what is fast here")
    add("--probe", choices=PROBES, help="of the timed AIM arm (before)")
    add("--graphs", action="store_true", help="every arm's passes as CUDA graphs")
    add("--threads", type=int, default=0, metavar="N", help="of a CPU (0: torch decides)")
    add("--json", type=Path, metavar="PATH", help="results; a killed run is continued from here")
    add("--minutes", type=float, metavar="M", help="per backbone: begin no repeat that ends later")
    add("--quick", action="store_true", help="fewer repeats; on a CPU a small model too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
