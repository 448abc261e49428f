"""What several ranks cannot do is refused by name before anything trains."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed.conftest import Launch, job, results

WRONG = {
    "unwrapped": "2 ranks, but the model is neither wrapped in DDP nor sharded by FSDP2",
    "parameters": "2 ranks, but the model is neither wrapped in DDP nor sharded by FSDP2",
    "DeepSpeed": "DeepSpeedEngine is not supported: .* use DDP or FSDP2",
    "FSDP1": "FullyShardedDataParallel is not supported: .* use FSDP2",
    "DataParallel": "DataParallel is not supported: .* start processes with torchrun",
    "tensor parallel": "a device mesh with tp: tensor, context, .* not supported; use DDP or FSDP2",
    "partly sharded": "'middle.weight' is whole on every rank where others are sharded",
    "sharded, alone": "sharded over ranks that this merger does not know: leave process_group",
    "separate": "memory_optimizer='separate' copies moments, .* use 'shared'",
    "snapshot": "memory_optimizer='snapshot' copies moments, .* use 'shared'",
    "scaler": "scaler= with sharded parameters .* bfloat16 without a GradScaler, or use DDP",
    "fusion": "fusion= needs all entries on every rank, and these are sharded .* use DDP",
    "accelerated": "Accelerate's wrapper.* give optimizer.optimizer",
    "group": "process_group='all' must be 'auto', None or a process group",
    "timeout": "timeout=0 must be a number of seconds above 0",
}


@pytest.fixture(scope="module")
def ranks(launch: Launch) -> list[dict[str, Any]]:
    (found,) = launch(job("refusing:refusals", 2))
    return results(found)


@pytest.mark.parametrize("what", WRONG)
def test_refused_by_name(ranks: list[dict[str, Any]], what: str) -> None:
    for rank in ranks:
        error, message = rank[what]
        assert error == "ValueError"
        with pytest.raises(ValueError, match=WRONG[what]):
            raise ValueError(message)


def test_a_captured_loss_is_of_one_process(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        error, message = rank["capture"]
        assert error == "RuntimeError"
        assert "observe() in a CUDA graph takes one process" in message
        assert "in 2 ranks; call it outside the graph" in message


def test_a_group_of_others(ranks: list[dict[str, Any]]) -> None:
    error, message = ranks[1]["not a member"]
    assert (error, message[:46]) == ("ValueError", "process_group is one of which this process is ")


def test_without_a_group_nothing_is_exchanged(ranks: list[dict[str, Any]]) -> None:
    assert [rank["alone"]["exchanges"] for rank in ranks] == [[], []]
    assert ranks[0]["alone"]["merges"] >= 1
