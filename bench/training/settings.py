"""What a run is asked to do: sizes, rows, steps, and the defaults of a CPU and of a GPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

#: Records of a task, as in the paper, and the share of each that the memory keeps.
RECORDS = 1_000
MEMORY_RATIO = 0.02
#: An adapter's values: the paper's and the released code's.
RANK, ALPHA, DROPOUT = 8, 32, 0.05
LEARNING_RATE, CLIP = 3e-4, 1.0
PROBES = ("before", "after")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

#: On a CPU a step must last a second for its ratio to mean anything: so many layers reach that on
#: two cores, each at least 2. On a GPU every backbone has all of its layers.
CPU_LAYERS = {"t5-large": 24, "qwen3-1.7b": 8, "llama2-7b": 4, "llama2-13b": 3}
CPU_BACKBONES = ("t5-large", "llama2-7b")


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run's sizes; ``ValueError`` names the option, what it may be, and what to do.

    ``layers`` 0 means all of the architecture's. ``steps`` is per timed block, a multiple of the
    interval 2 * ``s_init``: random weights never activate the forgetting signal, so every merge is
    a forced one, after 2 * ``s_init`` steps, and every block holds the same number of them.
    ``graphs``: every arm's passes are replays of CUDA graphs.
    """

    layers: int
    batch: int
    seq: int
    history_rows: int
    memory_rows: int
    past_tasks: int
    steps: int
    s_init: int
    repeats: int
    dtype: str
    probe: str
    graphs: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        least = {"layers": 0, "batch": 1, "seq": 8, "history_rows": 1, "memory_rows": 1}
        least |= {"past_tasks": 1, "steps": 2, "s_init": 2, "repeats": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{_option(name)} {getattr(self, name)}: must be at least {low}")
        if self.s_init >= 64:
            raise ValueError(f"--s-init {self.s_init}: at most 63, above it M is not S' / 2")
        if self.steps % self.interval:
            raise ValueError(
                f"--steps {self.steps}: must be a multiple of {self.interval} (twice --s-init), so "
                "that every timed block holds whole intervals"
            )
        for name in ("history_rows", "memory_rows"):
            if getattr(self, name) > self.memory_size:
                raise ValueError(
                    f"{_option(name)} {getattr(self, name)}: the memory of {self.past_tasks} past "
                    f"tasks holds {self.memory_size} rows; ask for fewer or raise --past-tasks"
                )

    @property
    def interval(self) -> int:
        """S': updates from one merge to the next."""
        return 2 * self.s_init

    @property
    def memory_size(self) -> int:
        return self.past_tasks * int(MEMORY_RATIO * RECORDS)

    @property
    def trained_memory_rows(self) -> float:
        """Memory rows per step that AIM trains on: M = S' / 2 steps in an interval of S'."""
        return self.memory_rows / 2

    @property
    def matched_rows(self) -> float:
        """Rows per step that replay must train on to rehearse as much as AIM.

        A probed row has no backward pass, so it counts half; with as many history rows as memory
        rows this is ``memory_rows``.
        """
        return self.history_rows / 2 + self.trained_memory_rows

    @property
    def mixed_stretch(self) -> float:
        """Steps of an epoch over task and memory, by those of an epoch over the task alone."""
        return (RECORDS + self.memory_size) / RECORDS

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def defaults(device: torch.device, quick: bool) -> dict[str, Any]:
    """The settings that the command line may override; ``layers`` None: per backbone."""
    if device.type == "cuda":
        sizes = {"layers": 0, "batch": 8, "seq": 256, "steps": 16, "s_init": 8, "repeats": 5}
        quicker = {"repeats": 2}
    else:
        sizes = {"layers": None, "batch": 8, "seq": 64, "steps": 4, "s_init": 2, "repeats": 3}
        quicker = {"layers": 2, "batch": 2, "seq": 16, "repeats": 2}
    chosen = sizes | (quicker if quick else {})
    fast = device.type == "cuda" or _cpu_multiplies_bf16()
    return chosen | {
        "history_rows": None,  # as many as the batch
        "memory_rows": None,
        "past_tasks": 1,
        "dtype": "bfloat16" if fast else "float32",
        "probe": "before",
    }


def _cpu_multiplies_bf16() -> bool:
    """Whether bf16 matrix products have instructions of their own; without, fp32 is faster."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
