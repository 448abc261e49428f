"""The same merge again and again beside a stream that keeps the device busy: always the same bits.

Everything that a merge writes is poisoned or put back before each repeat, and compared after it on
the device, so that the host reads once, at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aimmerge_fast import AIMConfig, kernels
from aimmerge_fast.kernels.tiles import SCRATCH_HEADER
from gpu.stage import Found, Stage, judged

REPEATS = 10_000
_POISON = 0xFF  # a NaN in every dtype
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Merge:
    """One table of mixed dtypes and odd places, with what its buffers hold at each stage."""

    def __init__(self, backend: str, device: torch.device, *, narrow: bool) -> None:
        draw = torch.Generator().manual_seed(9)
        dtypes = DTYPES[1:] if narrow else DTYPES
        sizes = [(1 << 16, 0), (4_099, 1), (33, 3), (12_288, 5), (0, 0), (8_200, 7)] * 3
        self.live, stages = [], []
        for index, (entries, offset) in enumerate(sizes):
            dtype = dtypes[index % len(dtypes)]
            self.live.append(torch.zeros(entries + offset, dtype=dtype, device=device)[offset:])
            values = [0.02 * torch.randn(entries, generator=draw) for _ in range(3)]
            stages.append([value.to(dtype).to(device) for value in values])
        self.stages = [list(values) for values in zip(*stages, strict=True)]
        self.anchor, self.mid = (kernels.new_arena(self.live).zero_() for _ in range(2))
        self.state = kernels.new_state(AIMConfig(alpha_new=0.6), device=device)
        self.engine = kernels.engine(backend, self.live, self.anchor, self.mid, self.state)
        table = getattr(self.engine, "_table", None)  # a CPU has its sums elsewhere
        self._sums = table.scratch[SCRATCH_HEADER:] if table is not None else None
        self.loss = torch.tensor(0.3, device=device)
        self._set(0)
        kernels.copy_into(self.anchor, self.live)
        self.start = [self.anchor.clone(), self.state.clone()]

    def _set(self, stage: int) -> None:
        torch._foreach_copy_(self.live, self.stages[stage])

    def play(self) -> None:
        """Poison, put back, observe, open, train, close."""
        self.mid.fill_(_POISON)
        if self._sums is not None:
            self._sums.fill_(_POISON)
        self.anchor.copy_(self.start[0])
        self.state.copy_(self.start[1])
        self._set(1)
        self.engine.observe_(self.loss)
        self.engine.open_()
        self._set(2)
        self.engine.close_()

    def written(self) -> list[Tensor]:
        """All that a merge can write, the state last; as integers, no copies."""
        return [t.view(torch.int16) for t in (*self.live, self.anchor, self.mid)] + [self.state]


def run(given: Stage, backend: str) -> None:
    count = 20 if given.quick else REPEATS
    for narrow in (False, True):
        title = f"{backend}: {count:,} repeats, {'16-bit' if narrow else 'mixed'} table"
        given.check(title, lambda n=narrow: repeats(given, backend, count // (1 + n), narrow=n))


def repeats(given: Stage, backend: str, count: int, *, narrow: bool) -> Found:
    merge = Merge(backend, given.device, narrow=narrow)
    merge.play()
    first = [part.clone() for part in merge.written()]
    reference = _on_cpu(narrow)
    wrong = sum(
        not torch.equal(a.cpu(), b) for a, b in zip(first[:-1], reference[:-1], strict=True)
    )
    if wrong:
        return judged(False, f"{wrong} buffers differ from the CPU's at the first merge")
    differing = torch.zeros((), dtype=torch.int64, device=given.device)
    busy = Busy(given.device) if given.on_gpu else None
    for _ in range(count):
        if busy:
            busy.keep()
        merge.play()
        parts = [(a != b).any() for a, b in zip(merge.written(), first, strict=True)]
        differing += torch.stack(parts).any()
    bad = int(differing)
    text = f"{bad} of {count:,} repeats differ"
    looks = f"; second stream busy at {busy.seen} of {busy.looks} looks" if busy else ""
    was_busy = busy is None or busy.seen > 0.9 * busy.looks
    return judged(bad == 0 and was_busy, text + looks, differing=bad, repeats=count)


def _on_cpu(narrow: bool) -> list[Tensor]:
    name = "native" if kernels.available("cpu")["native"] is None else "eager"
    merge = Merge(name, torch.device("cpu"), narrow=narrow)
    merge.play()
    return merge.written()


class Busy:
    """A second stream with many short products and copies, so that blocks of both streams mix.

    They are a graph: as single launches they would take more of the host than the merges do.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        factor = torch.randn(1_024, 1_024, device=device).to(torch.bfloat16)
        product, source = torch.empty_like(factor), torch.zeros(1 << 20, device=device)
        target = torch.zeros_like(source)
        self._held = factor, product, source, target
        torch.mm(factor, factor, out=product)  # what is made at first use cannot be captured
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for _ in range(256):
                torch.mm(factor, factor, out=product)
                target.copy_(source)
        torch.cuda.synchronize(device)
        self.looks = self.seen = 0
        self._more()

    def keep(self) -> None:
        """Note whether it is still busy; give it more when it is not."""
        self.looks += 1
        if self._stream.query():
            self._more()
        else:
            self.seen += 1

    def _more(self) -> None:
        with torch.cuda.stream(self._stream):
            for _ in range(8):
                self._graph.replay()
