"""Two tasks in a loop under FSDP2; started again, it goes on where it was saved::

torchrun --nproc-per-node 2 -m aimmerge_fast.integrations.examples.fsdp2_loop
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from aimmerge_fast import AIMConfig, FastAIMMerger, RehearsalMemory
from aimmerge_fast.durable import Checkpoints
from aimmerge_fast.integrations.examples import ranks, tiny


def sharded(device: torch.device, world: int) -> nn.Module:
    model = tiny.model().to(device)
    mesh = init_device_mesh(device.type, (world,))
    for layer in model.get_base_model().model.layers:
        fully_shard(layer, mesh=mesh)
    made: nn.Module = fully_shard(model, mesh=mesh)
    return made


def shard(tensor: Tensor) -> Tensor:
    """What this rank holds, as a checkpoint has it."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def like(saved: Tensor, weight: Tensor) -> Tensor:
    """A saved shard as the optimizer has it; its step count is no shard."""
    if saved.dim() == 0:
        return saved
    made = torch.zeros_like(weight)
    shard(made).copy_(saved)
    return made


def main(out: Path) -> None:
    device, rank, world = ranks.start()
    model = sharded(device, world)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    memory = RehearsalMemory(ratio=0.1)
    config = AIMConfig(s_init=3, history_batch=8, memory_batch=8)
    merger = FastAIMMerger(model, config, optimizer=optimizer, collate=tiny.collate)
    checkpoints, part = Checkpoints(out), f"rank{rank}"

    def save(task: int, done: int) -> None:
        moments = [{k: shard(v) for k, v in optimizer.state[p].items()} for p in trained]
        tree = {"task": task, "done": done, "weights": list(map(shard, trained))}
        tree |= {"optimizer": moments, "merger": merger.state_dict()}
        checkpoints.save(task * tiny.UPDATES + done, tree, part=part, barrier=dist.barrier)

    def load(tree: dict[str, Any]) -> None:
        for weight, saved, kept in zip(trained, tree["weights"], tree["optimizer"], strict=True):
            shard(weight).copy_(saved)
            optimizer.state[weight] = {k: like(v, weight) for k, v in kept.items()}
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
    ranks.finish(merger, [p.full_tensor() for p in trained if isinstance(p, DTensor)])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "fsdp2_loop_out"))
