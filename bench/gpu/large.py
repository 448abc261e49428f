"""One tensor of more than 2^31, and of more than 2^32 entries: every entry, every sum.

Values are a code of their position, so a wrapped or swapped offset shows. What is expected is made
anew from the positions, chunk by chunk, and never read from what the kernels have touched.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aimmerge_fast import AIMConfig, kernels
from gpu.stage import NOT_RUN, Found, Stage, judged

TILE, LANES = 4_096, 256
CHUNK = 1 << 26  # entries, a multiple of TILE
TAIL = 4_099
POWERS = (31, 32)
_BYTES = 3 * 2  # live, anchor and mid in bf16
_WORK = 8 << 30  # temporaries of a chunk


def run(given: Stage, backend: str) -> None:
    for power in POWERS:
        entries = (1 << power - 14 if given.quick else 1 << power) + TAIL
        title = f"{backend}: a bf16 tensor of {entries:,} entries"
        given.check(title, lambda n=entries: merged(given, backend, n))


def merged(given: Stage, backend: str, entries: int) -> Found:
    """``merge`` where there is memory for it."""
    if not given.on_gpu:
        return merge(backend, given.device, entries)
    needed, free = entries * _BYTES + _WORK, torch.cuda.mem_get_info(given.device)[0]
    if free < needed:
        text = f"needs {needed / 1e9:.0f} GB of GPU memory, {free / 1e9:.0f} are free"
        return Found(text, NOT_RUN)
    try:
        return merge(backend, given.device, entries)
    finally:
        torch.cuda.empty_cache()


def merge(backend: str, device: torch.device, entries: int, chunk: int = CHUNK) -> Found:
    """observe, open, train, close; compares mid, L1, live and anchor."""
    live = torch.empty(entries, dtype=torch.bfloat16, device=device)
    anchor, mid = kernels.new_arena([live]), kernels.new_arena([live])
    state = kernels.new_state(AIMConfig(schedule="fixed", alpha_new=0.6), device=device)
    engine = kernels.engine(backend, [live], anchor, mid, state)
    anchor_view, mid_view = (kernels.arena_views(a, [live])[0] for a in (anchor, mid))
    write(anchor_view, 0, chunk)
    write(mid_view, 3, chunk)  # so that what open leaves out is wrong
    write(live, 1, chunk)
    engine.observe_(torch.tensor(1.0, device=device))
    engine.open_()
    wrong = {"mid": differences(mid_view, chunk, lambda at: coded(at, 1))}
    opened = kernels.read_state(state)["state"].copy()
    expected = summed(entries, device, chunk)
    write(live, 2, chunk)
    engine.close_()
    alphas = [float(opened[name]) for name in ("alpha1", "alpha2")]
    wrong["live"] = differences(live, chunk, lambda at: fused(at, *alphas))
    wrong["anchor"] = differences(anchor_view, chunk, lambda at: fused(at, *alphas))
    rejects = int(opened["reject"]), int(kernels.read_state(state)["state"]["reject"])
    same_sum = float(opened["partial_l1"]) == expected
    text = ", ".join(f"{name}: {count} wrong" for name, count in wrong.items())
    return judged(
        not any(wrong.values()) and same_sum and rejects == (0, 0) and alphas[0] == 0.6,
        f"{text}; L1 {'to the bit' if same_sum else 'DIFFERS'}",
        l1=float(opened["partial_l1"]),
        expected_l1=expected,
        **wrong,
    )


# ---- positions and values -----------------------------------------------------------------------


def coded(at: Tensor, stage: int) -> Tensor:
    """bf16 values below 2 of positions (int64), other ones for each stage."""
    word = (at + 1) * 2_654_435_761 + stage * 40_503
    bits = (word >> 9 & 0x3FFF) | (word >> 31 & 1) << 15
    return bits.to(torch.int16).view(torch.bfloat16)


def spans(entries: int, chunk: int) -> list[tuple[int, int]]:
    return [(k, min(k + chunk, entries)) for k in range(0, entries, chunk)]


def write(tensor: Tensor, stage: int, chunk: int) -> None:
    for first, end in spans(tensor.numel(), chunk):
        at = torch.arange(first, end, device=tensor.device)
        tensor[first:end] = coded(at, stage)


def differences(tensor: Tensor, chunk: int, expected: Callable[[Tensor], Tensor]) -> int:
    """Entries of ``tensor`` whose bits are not those of ``expected(positions)``."""
    count = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for first, end in spans(tensor.numel(), chunk):
        at = torch.arange(first, end, device=tensor.device)
        count += (tensor[first:end].view(torch.int16) != expected(at).view(torch.int16)).sum()
    return int(count)


def fused(at: Tensor, alpha1: float, alpha2: float) -> Tensor:
    """Eq. 7 on the coded values: fp32, one rounding per operation."""
    a, m, x = (coded(at, stage).float() for stage in (0, 1, 2))
    weights = torch.tensor([alpha1, alpha2], dtype=torch.float64).float().to(at.device)
    new, past = weights[0] * (m - a), weights[1] * (x - m)
    return (a + (new + past)).to(torch.bfloat16)


def summed(entries: int, device: torch.device, chunk: int) -> float:
    """sum |theta_j - anchor| in order P (csrc/core/tiles.h)."""
    partials = []
    for first, end in spans(entries, chunk):
        at = torch.arange(first, end, device=device)
        change = (coded(at, 1).float() - coded(at, 0).float()).abs().double()
        rows = torch.nn.functional.pad(change, (0, -len(change) % TILE)).view(-1, 4, TILE // 4)
        partials.append(halved((rows[:, 0] + rows[:, 2]) + (rows[:, 1] + rows[:, 3])))
    tiles = torch.cat(partials)
    lanes = torch.zeros(LANES, dtype=torch.float64, device=device)
    for row in torch.nn.functional.pad(tiles, (0, -len(tiles) % LANES)).view(-1, LANES):
        lanes = lanes + row
    return float(halved(lanes))


def halved(values: Tensor) -> Tensor:
    """Neighbours of the last axis are added until one is left."""
    while values.shape[-1] > 1:
        values = values[..., 0::2] + values[..., 1::2]
    return values[..., 0]
