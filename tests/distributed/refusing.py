"""What is refused by name when several ranks train, and the merger that is alone among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from aimmerge_fast import AIMConfig, FastAIMMerger
from aimmerge_fast.fusion import EntryFusion
from tests.distributed import nets
from tests.distributed.failing import raised
from tests.distributed.runs import Exchanges, Run


class DeepSpeedEngine(nn.Module):
    """By this name a real one is known."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class FullyShardedDataParallel(nn.Sequential):
    """FSDP1 by its name: torch builds a real one only where it finds an accelerator."""


class AcceleratedOptimizer(torch.optim.SGD):
    pass


def refusals(rank: int, world: int) -> dict[str, Any]:
    return {name: raised(call) for name, call in calls(world).items()} | alone(rank, world)


def calls(world: int) -> dict[str, Callable[[], Any]]:
    def merger(model: Any, config: AIMConfig | None = None, **keywords: Any) -> FastAIMMerger:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        given = {"optimizer": optimizer, "collate": nets.collate} | keywords
        return FastAIMMerger(model, config, **given)

    def sharded(**keywords: Any) -> FastAIMMerger:
        return merger(nets.wrap(nets.plain(), "fsdp"), **keywords)

    def tensor_parallel() -> FastAIMMerger:
        mesh = dist.init_device_mesh("cpu", (1, world), mesh_dim_names=("dp", "tp"))
        plan = {"first": ColwiseParallel()}
        return merger(nets.wrap(parallelize_module(nets.plain(), mesh["tp"], plan), None))

    def partly_sharded() -> FastAIMMerger:
        model = nets.plain()
        fully_shard(model.first, mesh=dist.init_device_mesh("cpu", (world,)))
        return merger(model)

    def capture() -> None:
        made = Run(0, world).merger
        made.controller.capture(torch.tensor(1.0))

    def replicated(**keywords: Any) -> FastAIMMerger:
        return merger(nets.wrap(nets.plain(), "ddp"), **keywords)

    modes = {
        mode: lambda mode=mode: sharded(config=AIMConfig(memory_optimizer=mode))
        for mode in ("separate", "snapshot")
    }
    fusing = AIMConfig(alpha_new=1.0)
    optimizer = AcceleratedOptimizer(nets.plain().parameters(), lr=0.1)
    return {
        "unwrapped": lambda: merger(nets.plain()),
        "parameters": lambda: FastAIMMerger(list(nets.plain().parameters())),
        "DeepSpeed": lambda: merger(DeepSpeedEngine(nets.plain())),
        "FSDP1": lambda: merger(FullyShardedDataParallel(nets.plain())),
        "DataParallel": lambda: merger(nn.DataParallel(nets.plain())),
        "tensor parallel": tensor_parallel,
        "partly sharded": partly_sharded,
        "sharded, alone": lambda: sharded(process_group=None),
        "scaler": lambda: sharded(scaler=torch.amp.GradScaler("cpu")),
        "fusion": lambda: sharded(config=fusing, fusion=EntryFusion()),
        "capture": capture,
        "accelerated": lambda: replicated(optimizer=optimizer),
        "group": lambda: replicated(process_group="all"),
        "timeout": lambda: replicated(timeout=0),
        **modes,
    }


def alone(rank: int, world: int) -> dict[str, Any]:
    """With ``process_group=None`` every rank trains by itself, and says nothing to the others."""
    member = dist.new_group([0])
    result: dict[str, Any] = {
        "not a member": raised(lambda: Run(rank, world, keywords={"process_group": member}))
    }
    with Exchanges() as exchanges:
        made = Run(0, 1, kind=None, keywords={"process_group": None})
        if rank == 0:  # the other one would be missed
            with made.merger.task("later", made.memory):
                made.train(12)
    merges = sum(event["event"] == "close" for event in made.events())
    result["alone"] = {"exchanges": exchanges.seen, "merges": merges}
    return result
