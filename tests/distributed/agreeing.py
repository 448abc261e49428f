"""Runs that go well: what the ranks and one process must agree on."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch.distributed as dist

from tests.distributed.runs import Exchanges, Run
from tests.distributed.tables import two_tables

STEPS = 50
RELEASED = {"policy": "released", "probe": "after"}
#: Runs by name: arguments of ``Run``. What is left out there is paper, probe "before".
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain, released": {"config": RELEASED},
    "plain, after": {"config": {"probe": "after", "history_batch": 5, "memory_batch": 7}},
    "plain, in_batch": {"config": {"probe": "in_batch"}, "in_batch": 5},
    "plain, clipped": {"config": {"max_grad_norm": 0.1}},
    "plain, small": {"config": {"history_batch": 1, "memory_batch": 3}},
    "plain, short memory": {"config": {"history_batch": 8, "memory_batch": 8}, "records": 5},
    "plain, cut": {"keywords": {"micro_batch": 3}},
    "lora": {"net": "lora", "lr": 0.02},
    "lora, released": {"net": "lora", "lr": 0.02, "config": {**RELEASED, "memory_batch": 5}},
    "lora, cut": {"net": "lora", "lr": 0.02, "keywords": {"micro_batch": 2}},
    "causal": {"net": "causal", "lr": 0.02, "config": {"memory_batch": 6}},
    "causal, cut": {"net": "causal", "lr": 0.02, "keywords": {"micro_batch": 2}},
    "causal, whole": {"net": "causal", "lr": 0.02},
    "causal, in_batch": {
        "net": "causal",
        "lr": 0.02,
        "config": {"probe": "in_batch"},
        "in_batch": 6,
    },
    "views": {"wrapping": {"gradient_as_bucket_view": True}, "parts": 2, "leave": True},
    "parts": {"parts": 3, "leave": True},
    "unused": {"net": "branches", "wrapping": {"find_unused_parameters": True}},
    "scaled": {"scaler": True, "config": {"max_grad_norm": 1.0}},
    "quiet": {"config": {"s_init": 128, "gamma_forget": 100.0}},
    "dropout": {"dropout": 0.3},
    "halves": {"dtype": "bfloat16"},
}


def run(rank: int, world: int, names: list[list[str]]) -> dict[str, Any]:
    """Each of ``names`` [kind, run] in turn; in one process as it is."""
    results = {}
    for kind, name in names:
        with Exchanges() as exchanges, two_tables() if kind == "tables" else nullcontext():
            made = new(rank, world, kind, RUNS[name])
            with made.merger.task("later", made.memory):
                made.train(STEPS)
        config = made.merger.config
        size = max(config.history_batch, config.memory_batch)
        results[f"{kind} {name}"] = made.result() | {
            "exchanges": exchanges.seen,
            "draws": made.draws(size),
            "tables": len(made.merger.binding.anchors),
        }
    return results


def new(rank: int, world: int, kind: str, arguments: dict[str, Any]) -> Run:
    if kind == "pairs":
        return of_a_pair(rank, arguments)
    return Run(rank, world, kind="ddp" if kind == "tables" else kind, **arguments)


def of_a_pair(rank: int, arguments: dict[str, Any]) -> Run:
    """Ranks 0 and 1 train one model, ranks 2 and 3 another."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    group = pairs[rank // 2]
    wrapping = {"process_group": group}
    return Run(rank % 2, 2, wrapping=wrapping, keywords={"process_group": group}, **arguments)
