"""A small net whose merger fuses entry by entry every S updates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aimmerge_fast.config import AIMConfig
from aimmerge_fast.fusion import EntryFusion
from aimmerge_fast.memory import RehearsalMemory
from aimmerge_fast.merger import FastAIMMerger

S = 4


def collate(records: list[Any]) -> tuple[Tensor, Tensor]:
    draw = [torch.Generator().manual_seed(record["seed"]) for record in records]
    pairs = torch.stack([torch.randn(2, 6, generator=generator) for generator in draw])
    return pairs[:, 0], pairs[:, 1]


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    loss: Tensor = (model(batch[0]) - batch[1]).square().mean()
    return loss


class Bench:
    """A small net, its optimizer, a memory, and a merger that fuses every S updates."""

    def __init__(self, fusion: EntryFusion | None = None, dtype: Any = None, **fields: Any) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)).to(dtype)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=3e-3)
        self.memory = RehearsalMemory(1.0)
        self.memory.add("old", [{"seed": seed} for seed in range(20)])
        settings = {"schedule": "fixed", "s_init": S, "alpha_new": 1.0, **fields}
        self.merger = FastAIMMerger(
            self.net,
            AIMConfig(**settings),
            optimizer=self.optimizer,
            collate=lambda records: tuple(part.to(dtype) for part in collate(records)),
            loss_fn=loss_fn,
            fusion=fusion if fusion is not None else EntryFusion(),
        )

    def update(self, step: int, spoil: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(1000 + step)
        x = torch.randn(4, 6, generator=generator).to(self.net[0].weight.dtype)
        loss_fn(self.net, (x, x)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if spoil != 1.0:
            with torch.no_grad():
                self.net[0].weight[0, 0] = spoil

    def run(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            self.update(step)
            self.merger.step()

    def flat(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.net.parameters()])

    def importances(self) -> dict[str, list[dict[str, Tensor]]]:
        return {name: self.merger.state_dict()["fusion"][name] for name in ("new", "past")}


def total(pairs: list[dict[str, Tensor]]) -> float:
    return sum(float(tensor.abs().sum()) for pair in pairs for tensor in pair.values())
