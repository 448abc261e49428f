"""Forks the ranks of process tests from one process that has everything imported.

Reads a list of jobs as one line of JSON, runs them at the same time, answers with their exit codes;
until its input ends. A job is ``{"function": "tests.distributed.…:…", "world", "folder", "store",
"limit", "arguments"}``: every rank calls ``function(rank, world, **arguments)`` and what it returns
is saved as ``folder``/rank<n>.safetensors. A rank still there after ``limit`` seconds is killed.
"""

from __future__ import annotations

import datetime
import gc
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", CUDA_VISIBLE_DEVICES="")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist

from aimmerge_fast.durable.tree import save_tree

torch.set_num_threads(1)


def preload() -> None:
    """What the ranks would import one by one."""
    importlib.import_module("torch.distributed.fsdp")
    for name in ("agreeing", "failing", "naming", "resuming", "refusing"):
        importlib.import_module(f"tests.distributed.{name}")


def meet(job: dict[str, Any], rank: int) -> None:
    """The default group, in a file or (``"store": "tcp"``) at a port that rank 0 opens."""
    patience = datetime.timedelta(seconds=job.get("patience", 60))
    store: Any = dist.FileStore(f"{job['folder']}/store", job["world"])
    if job.get("store") == "tcp":
        met = store
        if rank == 0:
            store = dist.TCPStore("127.0.0.1", 0, job["world"], True, wait_for_workers=False)
            met.set("port", str(store.port))
        else:
            port = int(met.get("port"))
            store = dist.TCPStore("127.0.0.1", port, job["world"], False, wait_for_workers=False)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=job["world"], timeout=patience
    )


def run_rank(job: dict[str, Any], rank: int) -> None:
    folder = Path(job["folder"])
    log = os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    module, function = job["function"].split(":")
    if job["world"] > 1:
        meet(job, rank)
    call = getattr(importlib.import_module(module), function)
    result = call(rank, job["world"], **job["arguments"])
    save_tree(folder / f"rank{rank}.safetensors", result)
    if job["world"] > 1 and not result.get("broken"):
        dist.destroy_process_group()


def start(job: dict[str, Any]) -> list[int]:
    started = []
    for rank in range(job["world"]):
        child = os.fork()
        if child == 0:
            run_rank(job, rank)
            sys.exit(0)  # the ordinary end of an interpreter, not os._exit
        started.append(child)
    return started


def wait(children: dict[int, float]) -> dict[int, int]:
    """Exit codes by process, negative for a signal; ``children``: when each is late."""
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            codes[child] = os.waitstatus_to_exitcode(status)
            continue
        for late in [c for c, limit in children.items() if limit < time.monotonic()]:
            if late not in codes:
                os.kill(late, signal.SIGKILL)
        time.sleep(0.005)
    return codes


def main() -> None:
    preload()
    gc.freeze()  # what the ranks share is not copied when they collect their own
    for line in sys.stdin:
        jobs = json.loads(line)
        began = time.monotonic()
        ranks = [start(job) for job in jobs]
        limits = [began + job.get("limit", 60) for job in jobs]
        codes = wait({c: limit for cs, limit in zip(ranks, limits, strict=True) for c in cs})
        print(json.dumps([[codes[child] for child in children] for children in ranks]), flush=True)


if __name__ == "__main__":
    main()
    os._exit(0)  # its ranks end in the ordinary way; here nothing is left to say
