"""``schedule="monitor"`` trains to the same bits as training without a merger, dropout included."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aimmerge_fast.events import Measure, Open, Probe
from tests.backends import USABLE
from tests.loops import Loop, collate, loss_fn


class Noisy(nn.Module):
    """Everything that a forward can disturb: dropout, running statistics, numpy's and Python's
    random numbers, a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.drop = nn.Linear(6, 10), nn.Dropout(0.3)
        self.norm, self.frozen = nn.BatchNorm1d(10), nn.BatchNorm1d(10)
        self.last = nn.Linear(10, 4)
        self.frozen.eval()

    def forward(self, x: Tensor) -> Tensor:
        jitter = float(np.random.uniform(0.9, 1.1)) * random.uniform(0.9, 1.1)
        hidden = self.frozen(self.norm(self.first(x) * jitter))
        out: Tensor = self.last(self.drop(torch.tanh(hidden)))
        return out


def augmented(chosen: list[Any]) -> Any:
    """A collate that draws, from all three sources."""
    x, y = collate(chosen)
    return x + 0.1 * torch.randn_like(x) + float(np.random.rand()) + random.random(), y


def draws() -> tuple[Any, ...]:
    """What the next draw of each global generator is."""
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()


def end_of(loop: Loop, *, monitors: bool, steps: int = 35) -> tuple[Any, ...]:
    """Everything that training leaves behind after two tasks."""
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    at_each_step = []
    for task in ("one", "two"):
        if monitors:
            with loop.merger.task(task, loop.memory):
                for _ in range(steps):
                    loop.train(1)
                    at_each_step.append(torch.get_rng_state().sum().item())
        else:
            for _ in range(steps):
                loop.train(1, step=False)
                at_each_step.append(torch.get_rng_state().sum().item())
    moments = loop.optimizer.state_dict()["state"]
    tensors = [t for state in moments.values() for t in state.values()]
    tensors += [*loop.parameters, *loop.model.buffers()]
    modes = [module.training for module in loop.model.modules()]
    return [t.detach().numpy().tobytes() for t in tensors], modes, draws(), at_each_step


@pytest.mark.parametrize("backend", USABLE)
@pytest.mark.parametrize("dropout", [True, False])
@pytest.mark.parametrize("probe", ["before", "after", "in_batch"])
@pytest.mark.parametrize("policy", ["paper", "released"])
def test_monitoring_is_free(policy: str, probe: str, dropout: bool, backend: str) -> None:
    plain = end_of(Loop(model=Noisy(), merge=False), monitors=False)
    keywords: dict[str, Any] = {"collate": augmented, "backend": backend}
    loop = Loop(
        model=Noisy(), schedule="monitor", policy=policy, probe=probe, probe_dropout=dropout,
        memory_optimizer="separate", keywords=keywords,
    )  # fmt: skip
    if probe == "in_batch":
        step = loop.merger.step
        loop.merger.step = lambda: step(torch.tensor(1.0))  # type: ignore[method-assign]
    assert end_of(loop, monitors=True) == plain
    probes, measures = loop.of_type(Probe), loop.of_type(Measure)
    assert [event.step for event in probes] == 2 * list(range(1, 36))
    assert [event.step for event in measures] == 2 * [10, 20, 30]
    assert loop.of_type(Open) == []
    assert all(event.learning_signal > 0 for event in measures)
    assert len({event.loss for event in probes}) == (1 if probe == "in_batch" else 70)


@pytest.mark.parametrize("policy", ["paper", "released"])
def test_until_the_first_merge_every_schedule_is_free(policy: str) -> None:
    plain = end_of(Loop(model=Noisy(), merge=False), monitors=False, steps=5)
    loop = Loop(model=Noisy(), policy=policy, keywords={"collate": augmented})
    assert end_of(loop, monitors=True, steps=5) == plain


def test_a_merge_leaves_the_global_generators_alone() -> None:
    """Dropout and draws of the memory steps come from a stream of their own."""
    plain = end_of(Loop(model=Noisy(), merge=False), monitors=False)
    loop = Loop(model=Noisy(), schedule="fixed", s_init=4, keywords={"collate": augmented})
    merged = end_of(loop, monitors=True)
    assert merged[0] != plain[0]
    assert merged[1:] == plain[1:]
    assert len(loop.of_type(Open)) == 16


def test_plain_training_is_free() -> None:
    plain = end_of(Loop(model=Noisy(), merge=False), monitors=False)
    loop = Loop(model=Noisy(), s_init=2)
    loop.memory = None  # type: ignore[assignment]
    assert end_of(loop, monitors=True) == plain


@pytest.mark.parametrize("backend", USABLE)
def test_gradients_and_graphs_are_left_alone(backend: str) -> None:
    """Monitoring between the micro-batches of an update changes no gradient and breaks no graph."""
    loop = Loop(schedule="monitor", s_init=2, keywords={"backend": backend})
    with loop.merger.task("task", loop.memory):
        for _ in range(4):
            loss_fn(loop.model, loop.batch()).backward()
            kept = loss_fn(loop.model, loop.batch())
            held = [p.grad for p in loop.parameters]
            values = [g.clone() for g in held if g is not None]
            loop.merger.step()
            assert all(p.grad is g for p, g in zip(loop.parameters, held, strict=True))
            assert all(torch.equal(g, v) for g, v in zip(held, values, strict=True))
            kept.backward()
            loop.optimizer.step()
            loop.optimizer.zero_grad()
    assert len(loop.of_type(Measure)) == 2


def test_weights_that_are_not_finite_are_not_touched() -> None:
    """Monitoring reports; it neither raises nor repairs."""
    loop = Loop(schedule="monitor", s_init=2, probe="in_batch")
    with loop.merger.task("task", loop.memory):
        for step in range(6):
            with torch.no_grad():
                loop.parameters[0].fill_(float("nan") if step == 3 else float(step))
            before = loop.bits()
            loop.merger.step(torch.tensor(1.0))
            assert loop.bits() == before
    signals = [event.learning_signal for event in loop.of_type(Measure)]
    assert len(signals) == 3
    assert [signal > 0 for signal in signals] == [True, False, True]
