"""``FastAIMMerger`` and the reference class train a model to the same bits over 300 steps.

Three tasks of 100 updates: dropout, a learning-rate schedule, tensors of several tiles, one weight
transposed. Compared: every parameter, every probe, Lambda's numerator and every merge.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aimmerge_fast import AIMConfig, FastAIMMerger, ReferenceAIMMerger, RehearsalMemory
from aimmerge_fast.events import Measure, Open, Probe
from tests.backends import USABLE

STEPS = 100
PAPER: dict[str, Any] = {"s_init": 4, "gamma_forget": 1.05, "max_grad_norm": 1.0}
RELEASED = {**PAPER, "policy": "released", "accumulation": 2, "history_batch": 16}
CASES: dict[str, tuple[dict[str, Any], torch.dtype]] = {
    "paper": (PAPER, torch.float32),
    "released": (RELEASED, torch.float32),
    "paper, bf16, after": ({**PAPER, "probe": "after"}, torch.bfloat16),
    "released, fp16, snapshot": ({**RELEASED, "memory_optimizer": "snapshot"}, torch.float16),
    "paper, random, no dropout in probes": (
        {"schedule": "random", "s_hi": 9, "probe_dropout": False, "merge_at_task_end": True},
        torch.float32,
    ),
    "paper, monitor": ({"schedule": "monitor"}, torch.float32),
    "released, slow+, separate": (
        {"policy": "released", "schedule": "slow+", "memory_optimizer": "separate"},
        torch.float32,
    ),
}


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(6, 90), nn.Dropout(0.2)
        self.middle, self.last = nn.Linear(90, 70), nn.Linear(70, 6)
        self.to(dtype)
        self.middle.weight.data = self.middle.weight.data.t().contiguous().t()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.middle(self.drop(torch.tanh(self.first(x))))
        return self.last(torch.tanh(hidden))


def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch[:, 0]) - batch[:, 1]).float().square().mean()


def train(kind: type[Any], config: AIMConfig, dtype: torch.dtype, **more: Any) -> tuple[Net, Any]:
    torch.manual_seed(0)
    model = Net(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, eps=1e-4)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 3 * STEPS)
    generator = torch.Generator().manual_seed(1)
    records = [{"x": torch.randn(2, 6, generator=generator), "label": i % 3} for i in range(600)]
    memory = RehearsalMemory(ratio=0.05)

    def collate(chosen: list[Any]) -> Tensor:
        noise = 0.01 * torch.randn(len(chosen), 2, 6)  # from the private stream
        return (torch.stack([record["x"] for record in chosen]) + noise).to(dtype)

    merger = kind(model, config, optimizer=optimizer, collate=collate, loss_fn=loss_fn, **more)
    for task in range(3):
        with merger.task(f"task {task}", memory=memory):
            for _ in range(STEPS):
                loss_fn(model, (torch.randn(4, 2, 6) + task).to(dtype)).backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                merger.step()
        memory.add(f"task {task}", records[200 * task : 200 * (task + 1)])
    return model, merger


@functools.cache
def trained_by_reference(case: str) -> tuple[Net, Any]:
    fields, dtype = CASES[case]
    return train(ReferenceAIMMerger, AIMConfig(**fields), dtype)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backend", USABLE)
@pytest.mark.parametrize("case", CASES)
def test_same_bits(case: str, backend: str) -> None:
    fields, dtype = CASES[case]
    expected, reference = trained_by_reference(case)
    model, merger = train(FastAIMMerger, AIMConfig(**fields), dtype, backend=backend)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    last = [event for event in merger.events if event.task == "task 2"]
    merges = [(e.step, e.l1, e.learning_signal) for e in last if isinstance(e, (Open, Measure))]
    assert merges == [(m["step"], m["delta_l1"], m["lambda"]) for m in reference.merges]
    probes = [(e.t, e.S, e.F, e.threshold, e.code, e.loss) for e in last if isinstance(e, Probe)]
    assert probes == [tuple(step) for step in reference.steps]
    assert len(probes) == STEPS
    assert len(merges) >= 4
