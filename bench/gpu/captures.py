"""The ops in a CUDA graph, which cannot hold a call that synchronises, allocates or copies."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from aimmerge_fast import AIMConfig, kernels
from aimmerge_fast.kernels import layout
from gpu.stage import Found, judged


def _ops(engine: kernels.Engine, live: list[Tensor], change: list[Tensor], loss: Tensor) -> None:
    torch._foreach_add_(live, change)
    engine.observe_(loss)
    engine.open_()
    torch._foreach_sub_(live, change)
    engine.close_()


def captured(backend: str, device: torch.device, replays: int) -> Found:
    """The engine's ops in one graph, against the same number of calls."""
    results = []
    for in_graph in (False, True):
        draw = torch.Generator(device).manual_seed(3)
        live = [torch.randn(n, generator=draw, device=device) for n in (33, 8_200)]
        step = [torch.randn(n, generator=draw, device=device) * 1e-2 for n in (33, 8_200)]
        anchor, mid = (kernels.new_arena(live).zero_() for _ in range(2))
        state = kernels.new_state(AIMConfig(alpha_new=0.6), device=device)
        kernels.copy_into(anchor, live)
        engine = kernels.engine(backend, live, anchor, mid, state)
        ops = functools.partial(_ops, engine, live, step, torch.tensor(0.3, device=device))
        graph = torch.cuda.CUDAGraph()
        if in_graph:
            with torch.cuda.graph(graph):
                ops()
        for _ in range(replays):
            graph.replay() if in_graph else ops()
        saved = kernels.save_state(state)
        layout.block(saved)["state"]["ring"] = 0
        results.append([*(t.cpu() for t in (*live, anchor, mid)), saved])
    same = [
        torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(*results, strict=True)
    ]
    return judged(all(same), f"{sum(same)} of {len(same)} buffers equal those of calls")
