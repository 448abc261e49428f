"""The stream of ``aimmerge demo``: made on the spot, small, and with a conflict that is real.

Four tasks ask different things about the same hotel reviews. Two of them want opposite answers to
the same words, a third gives those answers for another word, so plain LoRA forgets; but every
prompt names its task, and all four can be learned side by side (`reviews`). The model is a tiny
LLaMA with random weights whose word vectors know which words belong together (`model`).
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from aimmerge_fast.cl.config import RunConfig, build
from aimmerge_fast.cl.demo.model import write_model
from aimmerge_fast.cl.demo.reviews import TASKS, write_records

__all__ = ["DEMO_SETTINGS", "DemoFiles", "demo_config", "write_demo"]

#: Fields of ``RunConfig`` for the demo; ``data``, ``model``, ``out`` and ``seeds`` are to be added.
#: s_init: 120 updates are too few for a first interval of 8 to adapt. monitor: the report draws
#: the history loss of the arms that do not merge, too.
DEMO_SETTINGS: dict[str, Any] = {
    "stream": tuple(TASKS),
    "arms": ("seqlora", "replay", "aim:s_init=2"),
    "steps": 120,
    "batch": 16,
    "lr": 2e-3,
    "schedule": "constant",
    "warmup": 0,
    "rank": 8,
    "alpha": 32,
    "dropout": 0.05,
    "targets": ("q_proj", "v_proj"),
    "max_tokens": 64,
    "max_new_tokens": 4,
    "memory_ratio": 0.1,  # 120 records a task; with 2 % replay keeps nothing of the first two
    "monitor": True,
    "eval_batch": 120,
    "threads": 1,
    "save_every": 60,
    "log_every": 20,
}


@dataclasses.dataclass(frozen=True)
class DemoFiles:
    """What ``write_demo`` wrote: the records' folder, the model's folder, the tasks in order."""

    data: Path
    model: Path
    tasks: tuple[str, ...]


def write_demo(folder: Path, seed: int = 42) -> DemoFiles:
    """Write ``folder/data`` and ``folder/model``; the same bytes for the same seed.

    The seed draws the records; the model, standing for one that was trained before, is always the
    same. Files of these names are replaced.

    Raises:
        ValueError: a seed that is not an integer of at least 0; ``folder/run`` is a run on other
            records, and nothing was written. OSError: folder not writable.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed={seed!r} must be an integer of at least 0")
    folder = Path(folder)
    data, model = folder / "data", folder / "model"
    if (folder / "run" / "run.json").is_file():
        _require_same(folder, seed)
    write_records(data, seed)
    write_model(model)
    return DemoFiles(data, model, tuple(TASKS))


def _require_same(folder: Path, seed: int) -> None:
    """``ValueError`` unless the demo in ``folder`` would be written as it is."""
    from aimmerge_fast.durable.files import read_json

    seeds = read_json(folder / "run" / "run.json").get("settings", {}).get("seeds")
    if seeds != [seed]:
        raise ValueError(
            f"{folder} holds a demo with seeds {seeds}, not {seed}; give another folder (--out)"
        )
    with tempfile.TemporaryDirectory() as aside:
        write_records(Path(aside), seed)
        for path in sorted((folder / "data").rglob("*.json")):
            new = Path(aside) / path.relative_to(folder / "data")
            if not new.is_file() or new.read_bytes() != path.read_bytes():
                raise ValueError(
                    f"{folder} holds a demo on other records ({path.name}); give another folder "
                    "(--out)"
                )


def demo_config(folder: Path, seed: int = 42) -> RunConfig:
    """Write the demo's files into ``folder``; the settings of its run, which is ``folder/run``.

    Raises: as ``write_demo``.
    """
    files = write_demo(folder, seed)
    paths = {"data": files.data, "model": files.model, "out": Path(folder) / "run"}
    return build({**DEMO_SETTINGS, **paths, "seeds": [seed]})
