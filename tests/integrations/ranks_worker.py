"""One rank, or the only process, of a Trainer that trains with the callback."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from aimmerge_fast.events import to_json
from tests.integrations.trainers import callback, lora, trained

STEPS = 50


def main(folder: Path, rows: int) -> None:
    torch.set_num_threads(1)
    aim = callback(history_batch=7)  # shares of 4 and 3 records, of unequal numbers of labels
    fields = {"per_device_train_batch_size": rows, "max_steps": STEPS, "learning_rate": 2e-3}
    trainer = trained(aim, folder / "out", lora(), ddp_find_unused_parameters=False, **fields)
    assert aim.merger is not None
    said = {
        "wrapped": type(trainer.model_wrapped).__name__,
        "weights": [p.tolist() for p in trainer.model.parameters() if p.requires_grad],
        "events": [to_json(event) for event in aim.events],
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }
    name = f"rank{aim.merger.processes.rank}-of-{aim.merger.processes.world}.json"
    (folder / name).write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
