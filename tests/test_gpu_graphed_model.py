"""A model whose passes are CUDA graphs: updates and merges reach the replays."""

from __future__ import annotations

import pytest
import torch

from tests import gpu
from tests.test_bench_training_graphs import small, through_graphs
from training import arms, blocks, phases

pytestmark = [
    gpu.CUDA_ONLY,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]


def trained(setup: arms.Setup) -> torch.Tensor:
    for _ in range(2):  # the first captures, and draws random numbers for it
        blocks.untimed(phases.Ours, setup)
    return torch.cat([p.detach().reshape(-1).clone() for p in setup.parameters])


@pytest.mark.parametrize("name", ["llama2-7b", "t5-large"])
def test_aim_ends_where_it_ends_without_graphs(name: str) -> None:
    setup = small(name, torch.device("cuda", 0))
    start = torch.cat([p.detach().reshape(-1).clone() for p in setup.parameters])
    plain = trained(setup)
    assert (plain - start).abs().max() > 1e-4
    torch.testing.assert_close(trained(through_graphs(setup)), plain, rtol=1e-3, atol=1e-6)
