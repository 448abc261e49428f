"""Ranks that stop anywhere and go on in new objects end at the same bits, each with its state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aimmerge_fast import FastAIMMerger
from tests.distributed import nets
from tests.distributed.conftest import Launch, Ranks, job, results

KINDS = ("ddp", "fsdp")


@pytest.fixture(scope="module")
def jobs(launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> list[Ranks]:
    folder = str(tmp_path_factory.mktemp("saved"))
    resume = job("resuming:resume", 2, kinds=KINDS, folder=folder)
    return launch(resume, job("resuming:refuse", 2))


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_ranks_end_at_the_same_bits(jobs: list[Ranks], kind: str) -> None:
    """The ranks themselves compare every resumed run with the whole one, and raise."""
    for rank in results(jobs[0]):
        points = rank[kind]["points"]
        assert sum(point.startswith("inside") for point in points) == 4
        assert sum(point.startswith("after") for point in points) == 4
        assert len(rank[kind]["merges"]) >= 3


def test_the_state_of_another_rank_or_world_is_refused(jobs: list[Ranks]) -> None:
    for index, rank in enumerate(results(jobs[1])):
        assert rank["rank"][0] == rank["world"][0] == "ValueError"
        assert (
            f"the state is that of rank {1 - index} of 2, this is rank {index}" in rank["rank"][1]
        )
        assert f"the state is that of rank {index} of 3, this is rank" in rank["world"][1]


def test_one_process_refuses_the_state_of_a_rank(jobs: list[Ranks], tmp_path: Path) -> None:
    state: dict[str, Any] = results(jobs[0])[0]["ddp"]["state"]
    merger = FastAIMMerger(nets.plain())
    changed = state | {"config": merger.config.to_dict()}
    with pytest.raises(
        ValueError, match="state is that of rank 0 of 2, this is rank 0 of 1; go on"
    ):
        merger.load_state_dict(changed)
