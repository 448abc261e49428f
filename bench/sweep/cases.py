"""What is swept: adapters of any number of entries in any number of tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from overhead.gate import SCALES

#: Half decades.
ENTRIES = tuple(round(10 ** (half / 2)) for half in range(10, 19))
TENSORS = tuple(round(10 ** (half / 2)) for half in range(2, 9))
#: Of LLaMA2-7B: tensors while entries grow, and entries while tensors grow.
HELD_TENSORS, HELD_ENTRIES = 128, 4_194_304
#: Most entries of a sweep that names no others: a larger one takes minutes on a CPU.
CPU_MOST, QUICK_MOST = 10**8, 10**7
BY_ENTRIES, BY_TENSORS = "entries", "tensors"


@dataclasses.dataclass(frozen=True)
class Case:
    """One adapter; ``grows`` names what grows in its sweep."""

    grows: str
    entries: int
    tensors: int

    def sizes(self) -> list[int]:
        """Entries of each tensor: in turns about 4/3 and 2/3 of the mean, so that both whole tiles
        and what is left over occur."""
        mean = self.entries // self.tensors
        ends = [self.entries * k // self.tensors for k in range(self.tensors + 1)]
        for k in range(1, self.tensors, 2):
            ends[k] += mean // 3 | 1
        return [end - begin for begin, end in zip(ends, ends[1:], strict=False)]

    def text(self) -> str:
        return f"{self.entries:,} entries in {self.tensors:,} tensors"


def cases(most: int, *, quick: bool) -> list[Case]:
    """Both sweeps, the smallest first; ``quick`` leaves out sizes."""
    entries = [n for n in ENTRIES[:: 2 if quick else 1] if n <= most]
    return [
        *(Case(BY_ENTRIES, n, HELD_TENSORS) for n in entries),
        *(Case(BY_TENSORS, HELD_ENTRIES, n) for n in TENSORS[:: 3 if quick else 1]),
    ]


def most_entries(text: str | None, device: torch.device, *, quick: bool) -> int:
    """The largest N to run, as given or by default.

    Raises: ValueError when ``text`` is no number among those that are swept.
    """
    if text is None:
        on_device = CPU_MOST if device.type == "cpu" else ENTRIES[-1]
        return min(on_device, QUICK_MOST) if quick else on_device
    try:
        most = float(text)
    except ValueError:
        most = 0.0
    if not ENTRIES[0] <= most <= ENTRIES[-1]:
        raise ValueError(
            f"--most-entries {text}: a number from {ENTRIES[0]:,} to {ENTRIES[-1]:,}, as in 1e8"
        )
    return int(most)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Values of a merge (``overhead.gate.Values``) that are drawn anew whenever they are read: at a
    billion entries there is no room to keep them."""

    sizes: list[int]
    device: torch.device
    seed: int = 42

    def tensors(self) -> list[Tensor]:
        return list(self.pieces(0))

    def pieces(self, stage: int) -> Iterator[Tensor]:
        generator = torch.Generator(self.device).manual_seed(self.seed + stage)
        for size in self.sizes:
            drawn = torch.randn(size, generator=generator, device=self.device)
            yield drawn.mul_(SCALES[stage])
