"""The paper's four backbones as numbers: which LoRA tensors an adapter on q and v trains.

Adapter shapes follow from the architecture alone, so nothing is downloaded; a test compares them
with what PEFT builds from the transformers configs on the meta device.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

Shape = tuple[int, int]

#: LoRA rank of the paper and of the released code.
RANK = 8


@dataclasses.dataclass(frozen=True)
class Backbone:
    """What decides the adapter's shapes, and what the paper's Table 6 says about its cost.

    ``attentions`` counts attention blocks (T5: encoder self, decoder self and decoder cross);
    ``table6_overhead`` is AIMMerging minus LoRAReplay in minutes per epoch on 8 V100-32GB.
    """

    name: str
    title: str
    attentions: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    table6_overhead: float | None

    def shapes(self) -> list[Shape]:
        """Shapes of A and B of q, then of v, for every attention block in model order."""
        queries, values = self.heads * self.head_dim, self.kv_heads * self.head_dim
        block = [(RANK, self.hidden), (queries, RANK), (RANK, self.hidden), (values, RANK)]
        return block * self.attentions

    def entries(self) -> int:
        """N, the number of trainable entries."""
        return sum(math.prod(shape) for shape in self.shapes())


BACKBONES = {
    backbone.name: backbone
    for backbone in (
        Backbone("t5-large", "T5-large", 24 + 24 + 24, 1024, 16, 16, 64, 0.0),
        Backbone("qwen3-1.7b", "Qwen3-1.7B", 28, 2048, 16, 8, 128, 1.1),
        Backbone("llama2-7b", "LLaMA2-7B", 32, 4096, 32, 32, 128, 1.4),
        Backbone("llama2-13b", "LLaMA2-13B", 40, 5120, 40, 40, 128, 1.9),
    )
}


def choose(names: Iterable[str]) -> list[Backbone]:
    """The backbones of these names in the given order; ``ValueError`` lists the known ones."""
    chosen = []
    for name in names:
        if name not in BACKBONES:
            raise ValueError(f"unknown backbone {name!r}; known are {', '.join(BACKBONES)}")
        chosen.append(BACKBONES[name])
    return chosen
