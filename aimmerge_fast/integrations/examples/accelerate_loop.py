"""Two tasks in a loop that Accelerate drives.

Started again, it goes on where it was saved. On two processes, without GPUs::

    ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 \
        -m aimmerge_fast.integrations.examples.accelerate_loop
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from aimmerge_fast import AIMConfig, RehearsalMemory
from aimmerge_fast.durable import newest_sealed
from aimmerge_fast.integrations.accelerate import AccelerateMerger
from aimmerge_fast.integrations.examples import tiny

SAVE_EVERY = 10


def state_folder(out: Path, task: int, update: int) -> Path:
    """Named so that the order of names is that of the training."""
    return out / f"state-{task:02}-{update:06}"


def main(out: Path) -> None:
    accelerator = Accelerator()
    model = tiny.model()
    trained = [p for p in model.parameters() if p.requires_grad]
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(trained, lr=1e-2))
    memory = RehearsalMemory(ratio=0.1)
    config = AIMConfig(s_init=3, history_batch=8, memory_batch=8)
    merger = AccelerateMerger(accelerator, model, config, optimizer=optimizer, collate=tiny.collate)
    saved, broken = newest_sealed(sorted(out.glob("state-*"), reverse=True))
    for reason in broken:
        accelerator.print(f"passed over: {reason}")
    position = merger.load(saved) if saved else {"task": 0, "done": 0}
    for number, name in enumerate(tiny.TASKS):
        rows = tiny.records(name)
        if number < position["task"]:
            memory.add(name, rows)
            continue
        with merger.task(name, memory=memory):
            shares = (accelerator.process_index, accelerator.num_processes)
            for update, batch in tiny.batches(rows, position["done"], *shares):
                loss = model(**{k: v.to(accelerator.device) for k, v in batch.items()}).loss
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                merger.step()
                if update % SAVE_EVERY == 0:
                    merger.save(state_folder(out, number, update), {"task": number, "done": update})
        memory.add(name, rows)
        position = {"task": number + 1, "done": 0}
    total = sum(p.detach().double().abs().sum().item() for p in trained)
    print(f"rank {merger.processes.rank}: sum of |weights| {total!r}", flush=True)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        print(merger.report())
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "accelerate_loop_out"))
