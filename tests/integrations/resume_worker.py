"""One of two processes that train, stop and resume together; started by torchrun.

Each scenario leaves a folder; what a rank has to say goes to ``rank{r}.json``.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from aimmerge_fast.integrations.transformers import checkpoints as ours
from tests.integrations.resumable import STEPS, Crash, CrashAfter, Run, checkpoint
from tests.integrations.test_just_in_time import stopped

FIELDS: dict[str, Any] = {"per_device_train_batch_size": 1, "ddp_find_unused_parameters": False}


def crashed(folder: Path, *others: TrainerCallback, step: int = 5) -> None:
    try:
        Run(folder, *others, CrashAfter(step), **FIELDS).train()
    except Crash:
        return
    raise AssertionError("it did not crash")


def refused(folder: Path, resume: Any, **fields: Any) -> str:
    try:
        Run(folder, **{**FIELDS, **fields}).train(resume)
    except (RuntimeError, ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def failing_part(folder: Path, name: str, tree: Any) -> None:
    if name == "rank1":
        raise OSError(28, "No space left on device", str(folder / name))
    write_part(folder, name, tree)


write_part = ours.write_part


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # every Trainer collects garbage
    said: dict[str, Any] = {}
    whole = Run(folder / "whole", **FIELDS).train()
    said["merges"] = sum(event.event == "open" for event in whole.events)

    crashed(folder / "resumed")
    Run(folder / "resumed", **FIELDS).train(resume=True)

    told = {**FIELDS, "save_steps": STEPS}
    stopped(folder / "told", "step_begin", 3, **told)
    said["told"] = checkpoint(folder / "told", 3).is_dir()
    Run(folder / "told", **told).train(resume=True)

    # the last checkpoint of a run in which rank 1 cannot write
    ours.write_part = failing_part
    said["full"] = refused(folder / "full", None, save_steps=2)
    ours.write_part = write_part
    Run(folder / "full", **FIELDS)  # attached, not trained
    said["set aside"] = (folder / "full" / "_broken-checkpoint-2").is_dir()

    crashed(folder / "damaged")
    if dist.get_rank() == 0:
        path = checkpoint(folder / "damaged", 5) / "aimmerge" / "rank1.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    dist.barrier()
    Run(folder / "damaged", **FIELDS).train(resume=True)
    said["damaged"] = (folder / "damaged" / "_broken-checkpoint-5").is_dir()

    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(said))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
