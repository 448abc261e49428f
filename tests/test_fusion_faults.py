"""A fusion entry by entry when things go wrong: non-finite entries, exceptions, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aimmerge_fast.config import AIMConfig
from aimmerge_fast.controller import MergeRejected
from aimmerge_fast.events import Close, Reject
from aimmerge_fast.fusion import EntryFusion
from aimmerge_fast.merger import FastAIMMerger
from aimmerge_fast.report import summarise
from tests.fusing import Bench, S, total


def test_a_fused_entry_that_is_not_finite_undoes_the_merge() -> None:
    """Weights of 1e38 overflow: live, anchor and mid are theta_j, and training goes on."""
    huge = EntryFusion(weights=((3e38, 3e38),) * 4)
    bench = Bench(huge)
    after: list[Tensor] = []
    bench.optimizer.register_step_post_hook(lambda *_: after.append(bench.flat()))
    with bench.merger.task("new", bench.memory):
        bench.run(1, S - 1)
        bench.update(S)
        with torch.no_grad():
            for parameter in bench.net.parameters():
                parameter.add_(10.0)  # so that 3e38 times the difference is infinite
        theta_j = bench.flat()
        with pytest.raises(MergeRejected, match="entries of the fused result are not finite"):
            bench.merger.step()
        assert torch.equal(bench.flat(), theta_j)
        assert total(bench.importances()["past"]) == 0
        bench.run(S + 1, S + 2)
    kinds = [event for event in bench.merger.events if isinstance(event, (Close, Reject))]
    assert [type(event) for event in kinds] == [Close, Reject]
    assert isinstance(kinds[1], Reject)
    assert kinds[1].half == "close"
    assert kinds[1].entries == len(theta_j)
    report = summarise(bench.merger.events)
    assert (sum(report.merges.values()), report.count("rejected")) == (0, 1)


@pytest.mark.parametrize("on_reject", ["raise", "continue"])
def test_theta_j_that_is_not_finite_goes_back_to_the_anchor(on_reject: str) -> None:
    bench = Bench(on_reject=on_reject)
    start = bench.flat()
    with bench.merger.task("new", bench.memory):
        bench.run(1, S - 1)
        bench.update(S, spoil=float("nan"))
        if on_reject == "raise":
            with pytest.raises(MergeRejected, match="entries of theta_j"):
                bench.merger.step()
        else:
            bench.merger.step()
        assert torch.equal(bench.flat(), start)
        assert total(bench.importances()["new"]) == total(bench.importances()["past"]) == 0
        bench.run(S + 1, 2 * S)
    assert summarise(bench.merger.events).merges["due"] == 1
    assert bool(torch.isfinite(bench.flat()).all())


def test_rollback_and_a_failing_memory_step_forget() -> None:
    bench = Bench()
    with bench.merger.task("new", bench.memory):
        bench.run(1, 2)
        bench.merger.rollback()
        assert total(bench.importances()["new"]) == 0
        bench.run(3, 2 + S - 1)
        bench.update(2 + S)
        theta_j = bench.flat()
        assert bench.merger.rehearsal is not None
        passes: Any = bench.merger.rehearsal._passes
        good, passes._collate = passes._collate, lambda records: 1 / 0
        with pytest.raises(ZeroDivisionError):
            bench.merger.step()
        passes._collate = good
        assert torch.equal(bench.flat(), theta_j)
        assert total(bench.importances()["new"]) == 0


def test_states_and_mergers_must_agree_on_fusion() -> None:
    bench = Bench()
    saved = bench.merger.state_dict()
    with pytest.raises(ValueError, match=r"saved with fusion .*'quantile': 0\.8"):
        Bench(EntryFusion(quantile=0.5)).merger.load_state_dict(saved)
    without = {name: value for name, value in saved.items() if name != "fusion"}
    with pytest.raises(ValueError, match="saved without fusion="):
        Bench().merger.load_state_dict(without)
    plain = FastAIMMerger(bench.net, bench.merger.config, optimizer=bench.optimizer)
    with pytest.raises(ValueError, match="saved with fusion="):
        plain.load_state_dict(saved)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantile": 1.01}, r"quantile=1\.01 must be a number from 0 to 1"),
        ({"beta": True}, "beta=True"),
        ({"weights": ((1, 0),)}, "four pairs"),
        ({"weights": ((1, 0, 0),) * 4}, "four pairs"),
    ],
)
def test_bad_settings(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EntryFusion(**fields)


def test_a_merger_that_cannot_fuse() -> None:
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    whole = AIMConfig(alpha_new=1.0)
    fusion = EntryFusion()
    for config in (AIMConfig(), AIMConfig(alpha_new=0.5), AIMConfig(schedule="monitor")):
        with pytest.raises(ValueError, match=r"set alpha_new=1\.0"):
            FastAIMMerger(net, config, optimizer=optimizer, fusion=fusion)
    with pytest.raises(ValueError, match="give optimizer="):
        FastAIMMerger(net, whole, fusion=fusion)
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(ValueError, match="scaler="):
        FastAIMMerger(net, whole, optimizer=optimizer, scaler=scaler, fusion=fusion)
