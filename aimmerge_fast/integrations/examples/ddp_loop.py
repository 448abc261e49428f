"""Two tasks in a loop under DDP; started again, it goes on where it was saved::

torchrun --nproc-per-node 2 -m aimmerge_fast.integrations.examples.ddp_loop
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from aimmerge_fast import AIMConfig, FastAIMMerger, RehearsalMemory
from aimmerge_fast.durable import Checkpoints, load_optimizer, packed_optimizer
from aimmerge_fast.integrations.examples import ranks, tiny


def main(out: Path) -> None:
    device, rank, world = ranks.start()
    model = DistributedDataParallel(tiny.model().to(device))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    memory = RehearsalMemory(ratio=0.1)
    config = AIMConfig(s_init=3, history_batch=8, memory_batch=8)
    merger = FastAIMMerger(model, config, optimizer=optimizer, collate=tiny.collate)
    checkpoints, part = Checkpoints(out), f"rank{rank}"

    def save(task: int, done: int) -> None:
        tree = {
            "task": task,
            "done": done,
            "weights": trained,
            "optimizer": packed_optimizer(optimizer),
            "merger": merger.state_dict(),
        }
        checkpoints.save(task * tiny.UPDATES + done, tree, part=part, barrier=dist.barrier)

    def load(tree: dict[str, Any]) -> None:
        with torch.no_grad():
            for weight, saved in zip(trained, tree["weights"], strict=True):
                weight.copy_(saved)
        load_optimizer(optimizer, tree["optimizer"])
        merger.load_state_dict(tree["merger"])

    found = checkpoints.load(part=part)
    _, position = found or (0, {"task": 0, "done": 0})
    if found:
        load(position)
    for number, name in enumerate(tiny.TASKS):
        rows = tiny.records(name)
        if number >= position["task"]:
            with merger.task(name, memory=memory):
                for update, batch in tiny.batches(rows, position["done"], rank, world):
                    model(**{k: v.to(device) for k, v in batch.items()}).loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    merger.step()
                    if update % ranks.SAVE_EVERY == 0:
                        save(number, update)
            position = {"task": number + 1, "done": 0}
        memory.add(name, rows)
    ranks.finish(merger, trained)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "ddp_loop_out"))
