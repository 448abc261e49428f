"""A net that trains in milliseconds, and a rehearsal memory for it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from aimmerge_fast.config import AIMConfig
from aimmerge_fast.reference import ReferenceAIMMerger


class StubStream:
    def __init__(self, records: list[Any], seed: str) -> None:
        self.records, self.random, self.drawn = records, random.Random(seed), 0

    def draw(self, n: int) -> list[Any]:
        self.drawn += 1
        return self.random.sample(self.records, min(n, len(self.records)))


class StubMemory:
    """Twenty records (x, y); remembers the streams that were asked of it."""

    def __init__(self, size: int = 20) -> None:
        generator = torch.Generator().manual_seed(7)
        self.records = [torch.randn(2, 6, generator=generator) for _ in range(size)]
        self.streams: dict[tuple[str, bool, int], StubStream] = {}

    def __len__(self) -> int:
        return len(self.records)

    def stream(self, name: str, *, fresh: bool = False, salt: int = 0) -> StubStream:
        key = (name, fresh, salt)
        self.streams[key] = StubStream(self.records, str(key))
        return self.streams[key]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.drop, self.b = nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 6)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.drop(torch.tanh(self.a(x))))


def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch[:, 0]) - batch[:, 1]).square().mean()


def train(
    config: AIMConfig | None,
    steps: int = 40,
    *,
    memory: StubMemory | None = None,
    before: Callable[[int, nn.Module], None] = lambda step, model: None,
) -> tuple[nn.Module, ReferenceAIMMerger | None]:
    """``steps`` updates of a small net with dropout; ``config`` None: without a merger."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    merger = None
    if config is not None:
        merger = ReferenceAIMMerger(
            model, config, optimizer=optimizer, collate=torch.stack, loss_fn=loss_fn
        )

    def loop() -> None:
        for step in range(1, steps + 1):
            loss_fn(model, torch.randn(4, 2, 6)).backward()
            optimizer.step()
            optimizer.zero_grad()
            before(step, model)
            if merger is not None:
                merger.step()

    if merger is None:
        loop()
    else:
        with merger.task("one", StubMemory() if memory is None else memory):
            loop()
    return model, merger


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)
