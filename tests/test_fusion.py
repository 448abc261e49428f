"""``FastAIMMerger(fusion=...)``: per-entry weights, and what becomes of them when things go wrong.

The formula itself is checked against float64 in tests/cl/test_method_kif.py.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aimmerge_fast.config import AIMConfig
from aimmerge_fast.events import Open, TaskBegin
from aimmerge_fast.fusion import EntryFusion
from aimmerge_fast.kernels import KIF_WEIGHTS
from aimmerge_fast.merger import FastAIMMerger
from aimmerge_fast.report import summarise
from aimmerge_fast.simulate.config import configure
from tests.fusing import Bench, S, collate, total


@pytest.mark.parametrize(
    ("weights", "which"),
    [
        (((1, 0), (1, 0), (1, 0), (1, 0)), "theta_j"),
        (((1, 1), (1, 1), (1, 1), (1, 1)), "theta_M"),
        (((0, 0), (0, 0), (0, 0), (0, 0)), "anchor"),
    ],
)
def test_weights_that_pick_one_state(weights: Any, which: str) -> None:
    """Weights of all entries alike give back theta_j, theta_M or the anchor."""
    bench = Bench(EntryFusion(weights=weights))
    states = {"anchor": bench.flat()}
    after: list[Tensor] = []
    bench.optimizer.register_step_post_hook(lambda *_: after.append(bench.flat()))
    with bench.merger.task("new", bench.memory):
        bench.run(1, S)
        states |= {"theta_j": after[S - 1], "theta_M": after[-1]}
        assert len(after) == S + S // 2
        assert torch.allclose(bench.flat(), states[which], rtol=0, atol=1e-7)
        others = [state for name, state in states.items() if name != which]
        assert all(not torch.allclose(bench.flat(), other, atol=1e-4) for other in others)


def test_the_anchor_follows() -> None:
    """The next interval's tau starts at the fused parameters: l1 is measured from there."""
    bench = Bench()
    with bench.merger.task("new", bench.memory):
        bench.run(1, S)
        start = bench.flat()
        bench.run(S + 1, 2 * S - 1)
        bench.update(2 * S)
        moved = float((bench.flat() - start).abs().double().sum())
        bench.merger.step()
    opens = [event for event in bench.merger.events if isinstance(event, Open)]
    assert opens[1].l1 == pytest.approx(moved, rel=1e-6)


def test_new_is_of_one_interval_and_past_of_the_task() -> None:
    bench = Bench()
    with bench.merger.task("new", bench.memory):
        bench.run(1, S - 1)
        assert total(bench.importances()["new"]) > 0
        assert total(bench.importances()["past"]) == 0
        bench.run(S, S)
        assert total(bench.importances()["new"]) == 0
        assert total(bench.importances()["past"]) > 0
        bench.run(S + 1, S + 2)
    assert total(bench.importances()["new"]) > 0
    bench.optimizer.step()  # outside of a task nobody listens
    seen = bench.importances()
    with bench.merger.task("next", bench.memory):
        assert total(bench.importances()["past"]) == 0
        assert total(seen["past"]) > 0


def test_nothing_is_noted_in_plain_training() -> None:
    bench = Bench()
    with bench.merger.task("first"):
        bench.run(1, 3)
        assert total(bench.importances()["new"]) == 0


@pytest.mark.parametrize("cut", [2, S, 2 * S + 1])
def test_resume_is_bit_identical(cut: int) -> None:
    whole = Bench()
    with whole.merger.task("new", whole.memory):
        whole.run(1, cut)
        saved = copy.deepcopy([x.state_dict() for x in (whole.merger, whole.net, whole.optimizer)])
        whole.run(cut + 1, 4 * S)
    again = Bench()
    again.net.load_state_dict(saved[1])
    again.optimizer.load_state_dict(saved[2])
    again.merger.load_state_dict(saved[0])
    with again.merger.task("new", again.memory):
        again.run(cut + 1, 4 * S)
    assert torch.equal(whole.flat(), again.flat())
    forgetful = Bench()
    forgetful.net.load_state_dict(saved[1])
    forgetful.optimizer.load_state_dict(saved[2])
    for pair in (*saved[0]["fusion"]["new"], *saved[0]["fusion"]["past"]):
        for tensor in pair.values():
            tensor.zero_()
    forgetful.merger.load_state_dict(saved[0])
    with forgetful.merger.task("new", forgetful.memory):
        forgetful.run(cut + 1, 4 * S)
    assert not torch.equal(whole.flat(), forgetful.flat())  # the importances do matter


def test_memory_layout_of_a_parameter() -> None:
    """Of a transposed weight too, entry k of the importance is entry k of its memory."""
    weight = nn.Parameter(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).t())
    optimizer = torch.optim.SGD([weight], lr=0.0)
    config = AIMConfig(alpha_new=1.0, schedule="fixed")
    merger = FastAIMMerger(
        nn.ParameterList([weight]),
        config,
        optimizer=optimizer,
        collate=collate,
        loss_fn=lambda model, batch: model[0].sum(),
        fusion=EntryFusion(),
    )
    with merger.task("new", Bench().memory):
        weight.grad = torch.tensor([[0.1, 0.4], [0.2, 0.5], [0.3, 0.6]])  # in rows, not as weight
        assert weight.grad.stride() != weight.stride()
        optimizer.step()
        merger.step()
    seen = merger.state_dict()["fusion"]["new"][0]["sensitivity"][:6]
    expected = [0.15 * value for value in (0.1, 0.4, 0.9, 1.6, 2.5, 3.6)]
    assert seen.tolist() == pytest.approx(expected)


def test_half_precision_parameters() -> None:
    bench = Bench(dtype=torch.bfloat16)
    with bench.merger.task("new", bench.memory):
        bench.run(1, S)
    assert bool(torch.isfinite(bench.flat()).all())
    assert summarise(bench.merger.events).merges["due"] == 1


def test_a_separate_memory_optimizer_is_listened_to() -> None:
    bench = Bench(memory_optimizer="separate")
    with bench.merger.task("new", bench.memory):
        bench.run(1, S)
        assert total(bench.importances()["past"]) > 0


def test_the_fusion_is_in_the_events() -> None:
    bench = Bench(EntryFusion(quantile=0.7))
    with bench.merger.task("new", bench.memory):
        bench.run(1, 2 * S)
    (begin,) = (event for event in bench.merger.events if isinstance(event, TaskBegin))
    assert begin.config["fusion"]["quantile"] == 0.7
    assert begin.config["fusion"]["weights"] == [list(pair) for pair in KIF_WEIGHTS]
    report = summarise(bench.merger.events)
    assert (report.merges["due"], report.count("no_op"), report.tasks[0].diagnoses) == (2, 0, ())
    config, notes = configure(begin.config, {})  # a simulation replays the decisions
    assert (config, notes) == (bench.merger.config, [])
