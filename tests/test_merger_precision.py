"""The merger under GradScaler and autocast, with several dtypes, on every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aimmerge_fast.events import Open, to_json
from tests.backends import USABLE
from tests.loops import Loop, anchor_of, bits, loss_fn

ONE_MERGE: dict[str, Any] = {"schedule": "at", "merge_at": (4,)}


def scaled(loop: Loop, scaler: torch.amp.GradScaler, *, spoil: bool = False) -> None:
    scaler.scale(loss_fn(loop.model, loop.batch())).backward()
    if spoil:
        loop.parameters[0].grad.fill_(float("inf"))  # type: ignore[union-attr]
    scaler.step(loop.optimizer)
    scaler.update()
    loop.optimizer.zero_grad()


@pytest.mark.parametrize("norm", [None, 0.5])
def test_a_grad_scaler_changes_no_bit(norm: float | None) -> None:
    """Scaling by a power of two is exact, in training and in the memory steps."""
    fields: dict[str, Any] = {"s_init": 2, "s_max": 6, "max_grad_norm": norm}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    one = Loop(keywords={"scaler": scaler}, **fields)
    torch.manual_seed(7)
    with one.merger.task("task", one.memory):
        for _ in range(20):
            scaled(one, scaler)
            one.merger.step()
    other = Loop(**fields)
    torch.manual_seed(7)
    other.run(20)
    assert one.bits() == other.bits()
    assert len(one.of_type(Open)) >= 3


def test_an_update_that_the_scaler_skipped_counts_as_a_step() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    loop = Loop(keywords={"scaler": scaler}, schedule="fixed", s_init=4)
    with loop.merger.task("task", loop.memory):
        for step in range(1, 13):
            before = loop.bits()
            scaled(loop, scaler, spoil=step in (2, 4))
            assert (loop.bits() == before) == (step in (2, 4))
            assert loop.merger.step() == (step % 4 == 0)
    assert scaler.get_scale() == 2.0**10
    assert [event.t for event in loop.of_type(Open)] == [4, 4, 4]


def test_forwards_run_under_the_loop_s_autocast() -> None:
    seen: list[torch.dtype] = []

    def spy(model: nn.Module, batch: Any) -> Tensor:
        out = model(batch[0])
        seen.append(out.dtype)
        return nn.functional.cross_entropy(out.float(), batch[1])

    loop = Loop(
        keywords={"loss_fn": spy, "autocast": lambda: torch.autocast("cpu", torch.bfloat16)},
        **ONE_MERGE,
    )
    with loop.merger.task("task", loop.memory):
        loop.train(4)
    assert seen[:4] == [torch.bfloat16, torch.float32] * 2  # probe, update, probe, update
    assert seen[-3:] == [torch.bfloat16] * 3  # two memory steps and a probe
    assert all(p.dtype is torch.float32 for p in loop.parameters)


class Mixed(nn.Module):
    """bf16 below, fp32 above, an fp16 scale and a parameter of no entries."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.low, self.drop = nn.Linear(6, 70, dtype=torch.bfloat16), nn.Dropout(0.2)
        self.high = nn.Linear(70, 4)
        self.high.weight.data = self.high.weight.data.t().contiguous().t()
        self.scale = nn.Parameter(torch.ones(70, dtype=torch.float16))
        self.nothing = nn.Parameter(torch.empty(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.low(x.bfloat16()).float()) * self.scale.float()
        out: Tensor = self.high(self.drop(hidden))
        return out


SGD: dict[str, Any] = {"optimizer": torch.optim.SGD, "lr": 0.3}  # Adam's eps is 0 in fp16


def in_memory_order(tensors: list[Tensor]) -> bytes:
    return bits(t.as_strided((t.numel(),), (1,)) for t in tensors)


@pytest.mark.parametrize("policy", ["paper", "released"])
@pytest.mark.parametrize("mixed", [False, True], ids=["fp32", "mixed"])
def test_every_backend_trains_to_the_same_bits(mixed: bool, policy: str) -> None:
    ends = []
    for backend in (*USABLE, "auto"):
        loop = Loop(
            **({"model": Mixed(), **SGD} if mixed else {}),
            keywords={"backend": backend},
            policy=policy,
            s_init=3,
            s_max=9,
            gamma_forget=1.02,
            merge_at_task_end=True,
        )
        torch.manual_seed(7)
        for task in ("one", "two"):
            loop.run(30, task=task)
        assert len(loop.of_type(Open)) >= 8
        assert bits(anchor_of(loop.merger)) == in_memory_order(loop.parameters)
        ends.append((loop.bits(), [to_json(event) for event in loop.merger.events]))
    assert all(end == ends[0] for end in ends)


def test_each_dtype_is_merged_in_its_own() -> None:
    loop = Loop(model=Mixed(), **SGD, **ONE_MERGE)
    start = loop.weights()
    loop.run(4)
    for before, after in zip(start, loop.weights(), strict=True):
        assert after.dtype == before.dtype
        assert after.numel() == 0 or not torch.equal(before, after)
    assert loop.model.high.weight.stride() == (1, 4)  # type: ignore[union-attr,operator]
