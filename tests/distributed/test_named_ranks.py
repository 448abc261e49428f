"""All ranks live and one is wrong: all of them say the same, and name it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from aimmerge_fast import AIMConfig
from aimmerge_fast.reference.controller import PaperController
from tests.distributed.conftest import Launch, job, results
from tests.driving import observe

#: What differs on rank 1, and what is said of it.
DIFFER = {
    "config": "rank 1 has another config than rank 0",
    "micro_batch": "rank 1 has another fusion=, micro_batch=, tasks_before= or adapters= than",
    "tasks_before": "rank 1 has another fusion=, micro_batch=, tasks_before= or adapters= than",
    "adapters": "rank 1 has another fusion=, micro_batch=, tasks_before= or adapters= than",
    "task": "rank 1 has another task, or a state of another step, than rank 0",
    "records": "rank 1 has another memory in task 'later' than rank 0",
    "seed": "rank 1 has another memory in task 'later' than rank 0",
    "weights": "rank 1 has other trainable parameters than rank 0",
    "drift": "rank 1 has another L1 of the learning signal at the opening of a merge after update",
    "resumed": "rank 1 has another task, or a state of another step, than rank 0",
}
ENTRIES = (
    *("ddp nan open raise", "ddp -inf open continue", "ddp nan close raise"),
    *("ddp inf close continue", "fsdp nan open raise", "fsdp inf close raise"),
    *("late nan open raise", "late nan close raise"),  # records reach some ranks later than others
)


@pytest.fixture(scope="module")
def ranks(launch: Launch) -> list[dict[str, Any]]:
    (found,) = launch(job("naming:naming", 3))
    return results(found)


@pytest.mark.parametrize("what", DIFFER)
def test_what_differs_is_named(ranks: list[dict[str, Any]], what: str) -> None:
    said = [rank["differ"][what] for rank in ranks]
    assert said[0] == said[1] == said[2]
    assert said[0][0] == "PeerError"
    assert said[0][1].startswith(DIFFER[what])


@pytest.mark.parametrize("arrival", ["prompt", "late"])
def test_a_bad_history_loss_of_one_rank_is_skipped_by_all(
    ranks: list[dict[str, Any]], arrival: str
) -> None:
    """All ranks raise at the same updates, also where some read the records later."""
    told = [rank["losses"][arrival] for rank in ranks]
    assert all(str(rank["events"]) == str(told[0]["events"]) for rank in told)  # NaN is not NaN
    first, second, *_ = told[0]["updates"]
    assert all(rank["updates"] == [first, second] for rank in told)
    assert 7 < first < 13
    assert first < second
    skips = [event for event in told[0]["events"] if event["event"] == "skip"]
    assert [event["step"] for event in skips] == [*range(5, second + 1)]
    for rank in told:
        kind, message, again, _ = rank["told"]
        assert kind == again == "BadProbes"
        assert "step 7: the last 3 history losses were not finite (the newest is nan (rank 1))" in (
            message
        )


@pytest.mark.parametrize("case", ENTRIES)
def test_bad_entries_of_one_rank_undo_the_merge_on_all(
    ranks: list[dict[str, Any]], case: str
) -> None:
    _, _, half, on_reject = case.split()
    told = [rank["entries"][case] for rank in ranks]
    for rank in told:
        left, expected = rank["at"]["left"], "anchor" if half == "open" else "theta_j"
        assert all(map(torch.equal, left, rank["at"][expected]))
        assert rank["events"] == told[0]["events"]
        assert all(map(torch.equal, rank["weights"], told[0]["weights"]))
        rejects = [event for event in rank["events"] if event["event"] == "reject"]
        assert [(e["half"], e["step"], e["entries"]) for e in rejects] == [(half, 4, 1)]
        if on_reject == "continue":
            assert rank["told"] == []
        else:
            error, message = rank["told"]
            assert error == "MergeRejected"
            assert f"rejected at {half}, 1 entries of" in message
            assert "are not finite (rank 1)" in message
    anchor, theta_j = (told[1]["at"][name] for name in ("anchor", "theta_j"))
    assert not all(map(torch.equal, anchor, theta_j))
    closes = [event["step"] for event in told[0]["events"] if event["event"] == "close"]
    assert closes[-1:] == [8]  # training goes on, and so do merges


def test_a_task_starts_from_finite_weights_on_all_ranks(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["start"]["ddp"]["told"][1].startswith("rank 1 has other trainable parameters")
        error, message = rank["start"]["fsdp"]["told"]
        assert error == "ValueError"
        assert "of rank 1 holds non-finite entries" in message


def test_all_ranks_decide_by_the_mean_of_what_each_observes(ranks: list[dict[str, Any]]) -> None:
    """A rank without a history row may observe anything, with ``items=0``."""
    told = [rank["own"] for rank in ranks]
    for rank in told[1:]:
        assert rank["merges"] == told[0]["merges"]
        assert rank["events"] == told[0]["events"]
        assert all(map(torch.equal, rank["weights"], told[0]["weights"]))
    probes = [event for event in told[0]["events"] if event["event"] == "probe"]
    means = told[0]["means"]
    assert [probe["loss"] for probe in probes] == pytest.approx(means, rel=1e-6)
    assert all(math.isfinite(mean) for mean in means)
    assert len(told[0]["merges"]) >= 4
    oracle = PaperController(AIMConfig(s_init=4, gamma_forget=1.02))
    first = told[0]["merges"][0] + 1
    codes = observe(oracle, means[:first])
    assert codes == [probe["code"] for probe in probes[:first]]
