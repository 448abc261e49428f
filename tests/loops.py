"""A small training loop around a merger, in pieces that tests can take apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from aimmerge_fast import AIMConfig, FastAIMMerger, RehearsalMemory
from aimmerge_fast.events import Event

Batch = tuple[Tensor, Tensor]


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 10), nn.Dropout(0.2), nn.Tanh(), nn.Linear(10, 4))
    return nn.Sequential(*layers).to(dtype)


def records(count: int = 40, seed: int = 1) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, 6, generator=generator).tolist()
    return [{"x": x, "label": i % 4} for i, x in enumerate(points)]


def memory(count: int = 40, seed: int = 1) -> RehearsalMemory:
    made = RehearsalMemory(ratio=0.5)
    made.add("earlier", records(count, seed))
    return made


def collate(chosen: list[Any]) -> Batch:
    return torch.tensor([r["x"] for r in chosen]), torch.tensor([r["label"] for r in chosen])


def loss_fn(model: Any, batch: Batch) -> Tensor:
    weight = next(model.parameters())
    return nn.functional.cross_entropy(model(batch[0].to(weight.dtype)).float(), batch[1])


class Loop:
    """Model, optimiser, data and merger of a plain PyTorch loop.

    Args:
        merge: make a merger; without one the same loop trains alone.
        fields: of ``AIMConfig``.
    """

    def __init__(
        self,
        *,
        model: nn.Module | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
        lr: float = 0.01,
        merge: bool = True,
        keywords: dict[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        self.model = model if model is not None else net()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = optimizer(self.parameters, lr=lr)
        self.memory = memory()
        self.data = torch.Generator().manual_seed(5)
        self.keywords = {"collate": collate, "loss_fn": loss_fn} | (keywords or {})
        self.config = AIMConfig(**fields)
        if merge:
            self.merger = FastAIMMerger(
                self.model, self.config, optimizer=self.optimizer, **self.keywords
            )

    def batch(self) -> Batch:
        x = torch.randn(8, 6, generator=self.data)
        return x, torch.randint(4, (8,), generator=self.data)

    def update(self) -> None:
        self.keywords["loss_fn"](self.model, self.batch()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def train(self, steps: int, *, step: bool = True) -> list[bool]:
        """Updates inside a task that is entered already; which of them merged."""
        merged = []
        for _ in range(steps):
            self.update()
            if step:
                merged.append(self.merger.step())
        return merged

    def run(self, steps: int, *, task: str = "task") -> list[bool]:
        """One whole task with rehearsal."""
        with self.merger.task(task, self.memory):
            return self.train(steps)

    def of_type(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.merger.events if isinstance(event, kind)]

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.parameters]

    def bits(self) -> bytes:
        return bits(self.parameters)


def bits(tensors: Any) -> bytes:
    return b"".join(t.detach().contiguous().view(torch.uint8).numpy().tobytes() for t in tensors)


def anchor_of(merger: FastAIMMerger) -> list[Tensor]:
    """The anchor, one 1-D tensor per parameter."""
    from aimmerge_fast import kernels

    flat = merger.binding.parameters.flat()
    return [a.clone() for a in kernels.arena_views(merger.binding.anchors[0], flat)]
