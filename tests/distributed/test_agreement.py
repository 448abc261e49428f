"""Ranks agree bit for bit, and with one process on the same batches to rounding."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from tests.distributed.agreeing import RUNS, STEPS
from tests.distributed.conftest import Launch, job, results

#: Not under DDP on two ranks.
ELSEWHERE = ("lora, cut", "lora, released", "causal", "causal, whole", "causal, in_batch")
#: (kind, run) by the number of ranks.
PLAN: dict[int, list[tuple[str, str]]] = {
    2: [
        *(("ddp", name) for name in RUNS if name not in ELSEWHERE),
        *(("fsdp", name) for name in ("plain, in_batch", "plain, clipped", "lora")),
        *(("fsdp", name) for name in ("causal, cut", "dropout", "parts")),
        *(("blocks", "lora, cut"), ("tables", "plain")),
    ],
    3: [("ddp", "plain, small"), ("ddp", "causal"), ("fsdp", "plain"), ("fsdp", "lora, released")],
    4: [("ddp", "causal, in_batch"), ("fsdp", "plain, small"), ("fsdp", "lora"), ("hsdp", "plain"),
        ("pairs", "plain, released")],
}  # fmt: skip
CASES = [(world, kind, name) for world, plan in PLAN.items() for kind, name in plan]
#: Rounding of another kind, or random numbers of every rank's own: not those of one process.
OWN = ("dropout", "halves")
COMPARED = [case for case in CASES if case[2] not in OWN]
OBSERVE, OPEN, CLOSE, CHECK = range(4)
Results = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def ran(launch: Launch) -> Results:
    """What the ranks kept, by the number of ranks; under 1 every run of one process."""
    alone = [*(("alone", name) for name in RUNS), ("tables", "plain")]
    plan = {1: alone, **PLAN}
    jobs = [
        job("agreeing:run", world, names=names) | {"limit": 300} for world, names in plan.items()
    ]
    return dict(zip(plan, map(results, launch(*jobs)), strict=True))


def of_one(ran: Results, name: str) -> dict[str, Any]:
    found: dict[str, Any] = ran[1][0][f"alone {name}"]
    return found


def of_all(ran: Results, world: int, kind: str, name: str) -> list[dict[str, Any]]:
    return [rank[f"{kind} {name}"] for rank in ran[world]]


def named(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == kind]


@pytest.mark.parametrize(("world", "kind", "name"), CASES)
def test_ranks_agree_bit_for_bit(ran: Results, world: int, kind: str, name: str) -> None:
    first, *others = of_all(ran, world, kind, name)
    assert len(named(first["events"], "probe")) == STEPS
    for other in others:
        assert other["events"] == first["events"]
        assert all(map(torch.equal, other["weights"], first["weights"]))
        assert other["exchanges"] == first["exchanges"]


@pytest.mark.parametrize(("world", "kind", "name"), COMPARED)
def test_ranks_train_what_one_process_does(ran: Results, world: int, kind: str, name: str) -> None:
    require_same_run(of_one(ran, name), of_all(ran, world, kind, name)[0])


def require_same_run(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Weights to 1e-5, decisions equal."""
    moved = 0.0
    for mine, theirs in zip(one["weights"], other["weights"], strict=True):
        torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-5)
        moved = max(moved, float(mine.abs().max()))
    assert moved > 0.1
    for mine, theirs in zip(one["events"], other["events"], strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            is_real = isinstance(value, float)
            expected = pytest.approx(value, rel=1e-4, abs=1e-6) if is_real else value
            assert theirs[key] == expected, (mine, theirs)


@pytest.mark.parametrize("name", [name for name in RUNS if name not in OWN])
def test_no_decision_of_these_runs_is_a_close_one(ran: Results, name: str) -> None:
    """Otherwise equal decisions would be luck, or unequal ones no fault."""
    events = of_one(ran, name)["events"]
    judged = [probe for probe in named(events, "probe") if probe["threshold"] is not None]
    assert all(abs(probe["loss"] - probe["threshold"]) >= 1e-4 for probe in judged)
    signals = [event["learning_signal"] for event in named(events, "open")]
    for one, other in itertools.combinations(signals, 2):
        assert abs(one - other) >= 1e-4 * max(one, other)
    assert len(named(events, "close")) == len(signals)
    assert len(signals) >= 5 or name == "quiet"


def test_these_runs_merge_early_and_late(ran: Results) -> None:
    kinds = {event["kind"] for name in RUNS for event in named(of_one(ran, name)["events"], "open")}
    assert {"merge_early", "merge_due", "merge_forced"} <= kinds


@pytest.mark.parametrize(
    ("cut", "whole"),
    [("plain, cut", "plain"), ("lora, cut", "lora"), ("causal, cut", "causal, whole")],
)
def test_micro_batches_train_what_whole_batches_do(ran: Results, cut: str, whole: str) -> None:
    mine, theirs = of_one(ran, cut), of_one(ran, whole)
    for one, other in zip(mine["weights"], theirs["weights"], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    losses = [[probe["loss"] for probe in named(r["events"], "probe")] for r in (mine, theirs)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert max(map(len, mine["draws"])) < max(map(len, theirs["draws"]))  # it was cut


@pytest.mark.parametrize(("world", "kind", "name"), [c for c in COMPARED if "cut" not in c[2]])
def test_draws_are_those_of_one_process(ran: Results, world: int, kind: str, name: str) -> None:
    alone = of_one(ran, name)["draws"]
    sizes = {len(drawn) for drawn in alone}
    assert len(alone) >= 15
    assert max(sizes) > 1
    for rank in of_all(ran, world, kind, name):
        found = [mine[: len(one)] for mine, one in zip(rank["draws"], alone, strict=True)]
        assert found == alone


@pytest.mark.parametrize(("world", "kind", "name"), CASES)
def test_one_exchange_a_step_and_half_of_a_merge(
    ran: Results, world: int, kind: str, name: str
) -> None:
    rank = of_all(ran, world, kind, name)[0]
    merges = {event["step"] for event in named(rank["events"], "open")}
    settings = named(rank["events"], "task_begin")[0]["config"]
    ahead = settings["probe"] == "before"
    expected = [[OBSERVE, 0]] if ahead else []
    for step in range(1, STEPS + 1):
        expected += [] if ahead else [[OBSERVE, step - 1]]
        expected += [[OPEN, step], [CLOSE, step]] if step in merges else []
        expected += [[OBSERVE, step]] if ahead else []
    seen = rank["exchanges"]
    checks = seen.index(expected[0])
    assert seen[:checks] == [[CHECK, 0]] * checks
    assert seen[checks:] == expected
    assert 5 <= checks <= 9


def test_two_tables_of_one_process_merge_like_one(ran: Results) -> None:
    """As ``device_map`` spreads a model; the sum of both tables' L1 is added in another order."""
    one, two = of_one(ran, "plain"), ran[1][0]["tables plain"]
    assert (one["tables"], two["tables"]) == (1, 2)
    require_same_run(one, two)
    assert two["exchanges"] == []
    assert [rank["tables"] for rank in of_all(ran, 2, "tables", "plain")] == [2, 2]


def test_one_process_exchanges_nothing(ran: Results) -> None:
    assert all(of_one(ran, name)["exchanges"] == [] for name in RUNS)
