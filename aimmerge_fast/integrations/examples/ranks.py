"""What the loops under torchrun share: the group of ranks, and what they print at the end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from aimmerge_fast import FastAIMMerger

SAVE_EVERY = 10


def start() -> tuple[torch.device, int, int]:
    """Join the other processes; (this one's device, its rank, how many there are)."""
    if torch.cuda.is_available():
        dist.init_process_group("nccl")
        device = torch.device("cuda", dist.get_node_local_rank())
        torch.cuda.set_device(device)
    else:
        dist.init_process_group("gloo")
        device = torch.device("cpu")
    return device, dist.get_rank(), dist.get_world_size()


def finish(merger: FastAIMMerger, weights: Sequence[Tensor]) -> None:
    """Print a sum over ``weights``, to compare ranks and starts, and rank 0's report."""
    total = sum(w.detach().double().abs().sum().item() for w in weights)
    print(f"rank {dist.get_rank()}: sum of |weights| {total!r}", flush=True)
    dist.barrier()
    if dist.get_rank() == 0:
        print(merger.report(), flush=True)
    dist.destroy_process_group()
