"""The per-entry ops on the GPU: what the formulas say, without a wait, and in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from aimmerge_fast import kernels
from tests import gpu
from tests.entry_cases import Case, problems, public
from tests.tables import DTYPES, SIZES, Spec
from tests.test_kernels_entries import KINDS, MIXED

pytestmark = [gpu.REQUIRED, pytest.mark.parametrize("backend", gpu.BACKENDS)]


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_tensors(backend: str, kind: str) -> None:
    case = Case(MIXED, kind, 1, without=(0, 3, 13))
    assert problems(case, public(backend), gpu.device()) == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_size_and_offset(backend: str, dtype: torch.dtype) -> None:
    sizes = [*(Spec(dtype, n, n % 16) for n in SIZES), *(Spec(dtype, 4099, k) for k in range(9))]
    assert problems(Case(sizes, "specials"), public(backend), gpu.device()) == []


def test_large_tensors(backend: str) -> None:
    """More blocks than the device holds at once, and 600 small tiles more."""
    table = [Spec(DTYPES[k % 3], 150_000, 3) for k in range(14)]
    table += [Spec(DTYPES[k % 3], 1 + k % 3, k % 5) for k in range(600)]
    assert problems(Case(table), public(backend), gpu.device()) == []


class Round:
    """One step, two quantiles and a fusion on buffers that stay."""

    def __init__(self, backend: str, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(1)
        sizes = (5000, 33, 4096)
        drawn = [[torch.randn(n, generator=generator) for n in sizes] for _ in range(4)]
        start, middle, self.end, slopes = (
            [tensor.to(device) for tensor in tensors] for tensors in drawn
        )
        self.live = [tensor.clone() for tensor in start]
        self.gradients: list[torch.Tensor | None] = [*slopes]
        self.anchor, self.mid = (kernels.new_arena(self.live).zero_() for _ in range(2))
        kernels.copy_into(self.anchor, start)
        kernels.copy_into(self.mid, middle)
        self.importance = kernels.new_importance(self.live)
        self.none = kernels.new_importance(self.live)
        self.backend = backend

    def run(self) -> torch.Tensor:
        torch._foreach_copy_(self.live, self.end)
        pair = self.importance.state_dict().values()
        kernels.importance_(self.live, self.gradients, *pair, backend=self.backend)
        limits = [kernels.quantile(each, 0.8) for each in (self.importance, self.none)]
        merge = (self.live, self.anchor, self.mid, self.importance, self.none, limits)
        return kernels.weighted_(*merge, backend=self.backend)

    def state(self) -> list[torch.Tensor]:
        return [t.cpu().clone() for t in (*self.live, *self.importance.state_dict().values())]


def same_as_on_the_cpu(backend: str, run: Callable[[Round], Any], rounds: int) -> bool:
    """``run`` on the GPU leaves what as many rounds on the CPU leave."""
    ours, cpu = Round(backend, gpu.device()), Round(gpu.REFERENCE, torch.device("cpu"))
    run(ours)
    for _ in range(rounds):
        cpu.run()
    return all(map(torch.equal, ours.state(), cpu.state()))


def test_a_round_gives_the_bits_of_the_cpu(backend: str) -> None:
    assert same_as_on_the_cpu(backend, lambda each: [each.run() for _ in range(3)], 3)


@gpu.CUDA_ONLY
def test_nothing_waits_for_the_device(backend: str) -> None:
    """Not where gradients lie elsewhere each time, either."""

    def run(each: Round) -> None:
        each.run()
        kept = []
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                kept.append([None if t is None else t.clone() for t in each.gradients])
                each.gradients = kept[-1]
                each.run()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    assert same_as_on_the_cpu(backend, run, 4)


@gpu.CUDA_ONLY
def test_a_round_in_a_graph(backend: str) -> None:
    def run(each: Round) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            each.run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            each.run()
        for _ in range(3):
            graph.replay()
        torch.cuda.synchronize()

    assert same_as_on_the_cpu(backend, run, 4)
