"""A rank dies, hangs, or goes its own way: the others say which, soon, at old or new weights."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from tests.distributed.conftest import Launch, Ranks, job

KILLED = -9


class Fall(NamedTuple):
    """How the last rank (``victim``) falls out of the merge, or the update, at update 8."""

    world: int
    kind: str
    moment: str
    end: str

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.world} ranks, {self.end} {self.moment}"


FALLS = [
    Fall(3, "ddp", "before", "die"),
    Fall(2, "ddp", "open", "die"),
    Fall(3, "ddp", "memory", "die"),
    Fall(2, "ddp", "close", "die"),
    Fall(2, "ddp", "after", "die"),
    Fall(2, "fsdp", "memory", "die"),
    Fall(3, "fsdp", "close", "die"),
    Fall(3, "ddp", "memory", "refuse"),
    Fall(2, "fsdp", "memory", "refuse"),
]
#: The rank that fails lives on and waits for nobody: gloo's own timeout ends the wait for it.
LINGERS = job("failing:fall", 2, kind="ddp", moment="memory", end="refuse", linger=8.0)
#: Rank 0 dies, and the store in which the ranks met with it.
FIRST = job("failing:fall", 2, kind="ddp", moment="before", end="die", victim=0)
OTHERS = {
    "lingers": LINGERS | {"patience": 4},
    "first": FIRST | {"store": "tcp"},
    "skip": job("failing:skip", 2),
    "leave": job("failing:leave_early", 2),
    "late": job("failing:late", 2),
}
#: Where the others were: in our exchange, in a memory step, or in the loop's own collective.
PLACES = {
    "before": "step() after update 7",
    "open": "the opening of a merge after update 8",
    "memory": "a memory step after update 8",
    "close": "the close of a merge after update 8",
    "after": "a collective of the training loop",
}


@pytest.fixture(scope="module")
def fell(launch: Launch) -> dict[str, Ranks]:
    falls = [job("failing:fall", f.world, kind=f.kind, moment=f.moment, end=f.end) for f in FALLS]
    names = [*(fall.name for fall in FALLS), *OTHERS]
    return dict(zip(names, launch(*falls, *OTHERS.values()), strict=True))


def require_clean(ranks: Ranks) -> None:
    """Whoever was not killed ended by itself, not by an abort."""
    assert set(ranks.codes) <= {0, KILLED}, ranks.logs
    assert all("terminate called" not in log for log in ranks.logs)


@pytest.mark.parametrize("fall", FALLS, ids=lambda fall: fall.name)
def test_the_rank_that_fell_out_is_named(fell: dict[str, Ranks], fall: Fall) -> None:
    ranks = fell[fall.name]
    require_clean(ranks)
    *survivors, last = range(fall.world)
    assert ranks.codes[last] == (KILLED if fall.end == "die" else 0)
    for rank in survivors:
        told = ranks.results[rank]
        assert told["error"] == "PeerError"
        assert told["cause"] == "RuntimeError"
        if fall.end == "die":
            message = f"rank {last} did not take part in {PLACES[fall.moment]} ("
        else:
            message = f"rank {last} said: a memory step failed on this rank (ValueError) inside"
        assert told["message"].startswith(message)
        assert told["seconds"] < 30
        assert told["again"] == f"PeerError: {told['message']}"
    if fall.end == "refuse":
        assert ranks.results[last]["error"] == "ValueError"
        assert ranks.results[last]["message"] == "no such record"
        assert ranks.results[last]["again"].startswith("PeerError: a memory step failed on this")


@pytest.mark.parametrize("fall", FALLS, ids=lambda fall: fall.name)
def test_the_others_keep_the_weights_of_before_the_merge(
    fell: dict[str, Ranks], fall: Fall
) -> None:
    """Of a rank that dies after it, the merge is complete."""
    for told in fell[fall.name].results[: -1 if fall.end == "die" else None]:
        same = list(map(torch.equal, told["before"], told["after"]))
        assert len(same) >= 6
        assert all(same) == (fall.moment != "after")
        assert all(bool(tensor.isfinite().all()) for tensor in told["after"])


def test_replicas_that_are_left_are_equal(fell: dict[str, Ranks]) -> None:
    for fall in FALLS:
        if fall.kind == "ddp" and fall.world == 3:
            first, second = (fell[fall.name].results[rank]["after"] for rank in (0, 1))
            assert all(map(torch.equal, first, second))


def test_a_rank_that_failed_and_lives_on_is_named(fell: dict[str, Ranks]) -> None:
    ranks = fell["lingers"]
    require_clean(ranks)
    told = ranks.results[0]
    assert told["error"] == "PeerError"
    assert told["message"].startswith("rank 1 said: a memory step failed on this rank (ValueError)")
    assert "start all ranks again from the last checkpoint" in told["message"]
    assert all(map(torch.equal, told["before"], told["after"]))


def test_rank_0_that_held_the_store(fell: dict[str, Ranks]) -> None:
    ranks = fell["first"]
    require_clean(ranks)
    told = ranks.results[1]
    assert (ranks.codes[0], told["error"]) == (KILLED, "PeerError")
    assert "rank 0, where they met, may be gone" in told["message"]
    assert all(map(torch.equal, told["before"], told["after"]))


def test_a_skipped_step_is_noticed_within_the_timeout(fell: dict[str, Ranks]) -> None:
    ranks = fell["skip"]
    require_clean(ranks)
    first, other = ranks.results
    assert first["message"].startswith("rank 1 did not take part in step() after update 6 within 4")
    assert 4 <= first["seconds"] < 20
    assert first["update"] == 7
    assert other["error"] == "PeerError"  # once the first one's end breaks the loop's all-reduce
    assert "rank 0 at step() after update 6" in other["message"]


def test_a_rank_in_another_place_is_named_at_once(fell: dict[str, Ranks]) -> None:
    ranks = fell["leave"]
    require_clean(ranks)
    for told in ranks.results:
        assert told["error"] == "PeerError"
        assert "rank 0 at step() after update 2, rank 1 at a check" in told["message"]


def test_a_merger_that_one_rank_does_not_build(fell: dict[str, Ranks]) -> None:
    ranks = fell["late"]
    require_clean(ranks)
    assert ranks.results[0]["error"] == "PeerError"
    assert "not all of ranks [0, 1] came to build a merger" in ranks.results[0]["message"]
