"""One rank of `test_parallel.py`, started by torchrun: whole runs on a tiny model.

``rank_worker.py FOLDER``: the run in FOLDER/ranks without a break, and one in FOLDER/resumed that
is stopped within the second task and goes on. Writes FOLDER/rank<n>.json: what this rank held and
wrote.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from aimmerge_fast.cl import arm, context, runner
from aimmerge_fast.cl.parallel import Ranks
from aimmerge_fast.durable.tree import save_tree
from tests.cl.tiny import make_config

ARMS = ("replay", "aim:s_init=2", {"method": "random", "settings": {"match": "aim-s_init=2"}})
SETTINGS: dict[str, Any] = {
    "dropout": 0.0,
    "batch": 3,  # 2 + 1 rows on two ranks
    "test_items": 5,
    "steps": 8,
    "select": "best",
    "select_every": 3,
    "single": True,
}


class Stopped(Exception):
    pass


def stop_at(save: int) -> None:
    """Let the arm's n-th save be its last, on every rank."""
    original, saves = arm.Arm._save, 0

    def stopping(self: arm.Arm) -> None:
        nonlocal saves
        original(self)
        saves += 1
        if saves == save:
            arm.Arm._save = original  # type: ignore[method-assign]
            raise Stopped

    arm.Arm._save = stopping  # type: ignore[method-assign]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    written: list[str] = []
    adapters: dict[str, dict[str, torch.Tensor]] = {}
    sys.addaudithook(lambda event, args: _note(event, args, str(folder), written))
    detach = context.Context.detach_adapter

    def keep(self: context.Context, model: Any) -> None:
        held = {name: tensor.detach().clone() for name, tensor in self.adapter_of(model).items()}
        adapters[f"{self.config.out.name}/{len(adapters)}"] = held
        detach(self, model)

    context.Context.detach_adapter = keep  # type: ignore[method-assign]
    results = runner.run(make_config(folder, ARMS, out=folder / "ranks", **SETTINGS))
    stop_at(10)
    config = make_config(folder, ARMS[1:2], out=folder / "resumed", **SETTINGS)
    try:
        runner.run(config)
    except Stopped:
        runner.run(config)
    ranks = Ranks()
    report = {"world": ranks.world, "results": results, "written": list(written)}
    save_tree(folder / f"rank{ranks.rank}.safetensors", {"report": report, "adapters": adapters})


def _note(event: str, args: tuple[Any, ...], folder: str, written: list[str]) -> None:
    paths = [a for a in args[:2] if isinstance(a, (str, Path)) and str(a).startswith(folder)]
    if event == "open":
        mode = args[1] or ""
        paths = paths[:1] if any(letter in mode for letter in "wax+") else []
    elif event not in ("os.rename", "os.mkdir", "os.remove", "os.truncate", "shutil.rmtree"):
        return
    written += [f"{event} {path}" for path in paths]


if __name__ == "__main__":
    print(json.dumps({"argv": sys.argv[1:]}))
    main(Path(sys.argv[1]))
