"""Backend ``eager``: plain torch on any device, the plain formula first.

It runs the controller on the host and reads one scalar per step, so it is outside the promise that
no call synchronises. Same bits as the compiled backends: the same order of additions (order P of
``csrc/core/tiles.h``), multiplications and additions rounded apart (no ``alpha=``, no ``addcmul``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from aimmerge_fast.kernels import eager_controller as controller
from aimmerge_fast.kernels.arena import arena_views, check_apart, check_live, copy_into, copy_out
from aimmerge_fast.kernels.layout import MERGE_OPEN, Block
from aimmerge_fast.kernels.states import edit_state, read_state, ring

Tensor = torch.Tensor
_TILE, _ROW, _LANES = 4096, 1024, 256
_SMALLEST_NORMAL = 1.1754943508222875e-38  # fp32
_STACK = 1 << 20  # entries of one stack, so that its fp64 temporaries stay small
_GRAIN = 1 << 15  # entries from which torch shares an element-wise operation among threads


@contextmanager
def exact_denormals(entries: int = 1) -> Iterator[None]:
    """Denormals kept for the block, as the native kernels keep them, in work on ``entries``.

    torch.set_flush_denormal sets the mode of the calling thread; torch's workers inherited theirs
    when they started, and nothing resets it. Where one of them flushes, one thread does the work.
    """
    threads = torch.get_num_threads()
    flushing = sys.float_info.min / 2.0 == 0.0
    alone = threads > 1 and entries > _GRAIN and (flushing or _worker_flushes(threads))
    if flushing:
        torch.set_flush_denormal(False)
    if alone:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if flushing:
            torch.set_flush_denormal(True)
        if alone:
            torch.set_num_threads(threads)


def _worker_flushes(threads: int) -> bool:
    """Whether one of torch's threads flushes denormals; each gets its share of the entries."""
    entries = torch.full((threads * _GRAIN,), _SMALLEST_NORMAL, dtype=torch.float32, device="cpu")
    return not bool(entries.mul_(0.5).all())


def observe_(loss: Tensor, state: Tensor) -> None:
    """Give one history loss to the controller."""
    with exact_denormals(), edit_state(state) as shared:
        controller.observe_step(shared, ring(state), float(loss.item()))


def open_(live: Sequence[Tensor], anchor: Tensor, mid: Tensor, state: Tensor) -> None:
    """mid <- live; L1 and the controller's transition; undone when live is not finite."""
    check_apart(live, anchor, mid)
    _open(live, anchor, mid, state)


def close_(live: Sequence[Tensor], anchor: Tensor, mid: Tensor, state: Tensor) -> None:
    """live, anchor <- anchor + (alpha1 * (mid - anchor) + alpha2 * (live - mid)), Eq. 7."""
    check_apart(live, anchor, mid)
    _close(live, anchor, mid, state)


def _open(live: Sequence[Tensor], anchor: Tensor, mid: Tensor, state: Tensor) -> None:
    with torch.no_grad(), exact_denormals(_entries(live)), edit_state(state) as shared:
        copy_into(mid, live)
        total, bad = l1_change(live, arena_views(anchor, live))
        shared["state"]["partial_l1"], shared["state"]["partial_bad"] = total, bad
        if shared["state"]["defer"]:
            return
        controller.open_merge(shared, ring(state), total, bad)
    repair_(live, anchor, mid, state)


def _close(live: Sequence[Tensor], anchor: Tensor, mid: Tensor, state: Tensor) -> None:
    with edit_state(state) as shared:
        if controller.changes_live(shared["config"]):
            bad = _fuse_all(live, arena_views(anchor, live), arena_views(mid, live), shared)
        else:
            bad = 0
            if not shared["state"]["reject"]:  # a snapshot that was not finite is no anchor
                copy_into(anchor, live)
        shared["state"]["partial_bad"] = bad
        if shared["state"]["defer"]:
            return
        controller.close_merge(shared, ring(state), bad)
    repair_(live, anchor, mid, state)


def advance_(partials: Tensor, state: Tensor) -> None:
    """The transition of the next half from rows of (L1, non-finite entries), added in row order."""
    l1, bad = 0.0, 0
    with exact_denormals(), edit_state(state) as shared:
        for row_l1, row_bad in partials.tolist():
            l1 += row_l1
            bad += controller.truncate_within(row_bad, 0, controller.INT32_MAX)
        if shared["state"]["phase"] == MERGE_OPEN:
            controller.close_merge(shared, ring(state), bad)
        else:
            controller.open_merge(shared, ring(state), l1, bad)


def repair_(live: Sequence[Tensor], anchor: Tensor, mid: Tensor, state: Tensor) -> None:
    """Undo the half that met a non-finite entry: open goes back to anchor, close to mid."""
    shared = read_state(state)
    if not shared["state"]["reject"] or not controller.changes_live(shared["config"]):
        return
    source, other = (anchor, mid) if shared["state"]["phase"] == MERGE_OPEN else (mid, anchor)
    copy_out(live, source)
    copy_into(other, live)


def _fuse_all(
    live: Sequence[Tensor], anchors: Sequence[Tensor], mids: Sequence[Tensor], shared: Block
) -> int:
    """Eq. 7 into live and anchor; how many of the stored entries are not finite."""
    alpha = float(shared["state"]["alpha1"]), float(shared["state"]["alpha2"])
    bad = 0
    with torch.no_grad(), exact_denormals(_entries(live)):
        for members in _alike(live):
            a, m, x = (torch.stack([t[i] for i in members]) for t in (anchors, mids, live))
            stored = fuse(a, m, x, *alpha)
            bad += _count_bad(stored)
            torch._foreach_copy_([live[i] for i in members], stored.unbind())
            torch._foreach_copy_([anchors[i] for i in members], stored.unbind())
    return bad


def fuse(anchor: Tensor, mid: Tensor, live: Tensor, alpha1: float, alpha2: float) -> Tensor:
    """Eq. 7 in fp32 with one rounding per operation, then rounded to the storage dtype."""
    exact = torch.tensor([alpha1, alpha2], dtype=torch.float64, device="cpu")
    weights = exact.float().to(live.device)
    if weights[0] == 1.0 and weights[1] == 0.0:
        return mid.clone()
    a, m, x = anchor.float(), mid.float(), live.float()
    return (a + (weights[0] * (m - a) + weights[1] * (x - m))).to(live.dtype)


def l1_change(live: Sequence[Tensor], anchor: Sequence[Tensor]) -> tuple[float, int]:
    """sum |live - anchor| in order P, and how many entries of live are not finite.

    An fp32 difference, then fp64 additions in one fixed order.
    """
    tiles = [-(-tensor.numel() // _TILE) for tensor in live]
    if not sum(tiles):
        return 0.0, 0
    bad = 0
    first = [sum(tiles[:i]) for i in range(len(tiles))]
    partials = torch.empty(sum(tiles), dtype=torch.float64, device=live[0].device)
    for members in _alike(live):
        x, a = (torch.stack([t[i] for i in members]) for t in (live, anchor))
        bad += _count_bad(x)
        sums = _tile_sums(x, a)
        places = [first[i] + k for i in members for k in range(tiles[i])]
        partials[torch.tensor(places, device=partials.device)] = sums
    lanes = torch.zeros(_LANES, dtype=torch.float64, device=live[0].device)
    for row in _padded_rows(partials[None], _LANES):
        lanes = lanes + row
    return float(_halve(lanes, 8).item()), bad


def _alike(live: Sequence[Tensor]) -> list[list[int]]:
    """Indices of tensors of one size and dtype, as many as one stacked operation should treat."""
    groups: dict[tuple[int, torch.dtype], list[int]] = {}
    for index, tensor in enumerate(live):
        if tensor.numel():
            groups.setdefault((tensor.numel(), tensor.dtype), []).append(index)
    stacks = []
    for (entries, _), members in groups.items():
        many = max(1, _STACK // entries)
        stacks += [members[i : i + many] for i in range(0, len(members), many)]
    return stacks


def _tile_sums(live: Tensor, anchor: Tensor) -> Tensor:
    """(k, n) live and anchor -> partial sums of their tiles, tensor after tensor."""
    change = (live.float() - anchor.float()).abs().double()
    rows = _padded_rows(change, _TILE).view(-1, 4, _ROW)
    return _halve((rows[:, 0] + rows[:, 2]) + (rows[:, 1] + rows[:, 3]), 10)


def _padded_rows(values: Tensor, width: int) -> Tensor:
    """(k, n) -> (rows, width), each of the k zero-padded to whole rows."""
    missing = -values.shape[-1] % width
    return torch.nn.functional.pad(values, (0, missing)).view(-1, width)


def _halve(values: Tensor, times: int) -> Tensor:
    for _ in range(times):
        values = values[..., 0::2] + values[..., 1::2]
    return values[..., 0]


def _entries(live: Sequence[Tensor]) -> int:
    """Entries that CPU threads work on."""
    return sum(tensor.numel() for tensor in live if tensor.device.type == "cpu")


def _count_bad(values: Tensor) -> int:
    return int((~torch.isfinite(values)).sum().item())


class Engine:
    """The ops bound to one set of tensors; see ``aimmerge_fast.kernels`` for what each does."""

    def __init__(self, live: Sequence[Tensor], anchor: Tensor, mid: Tensor, state: Tensor) -> None:
        self._anchor, self._mid, self._state = anchor, mid, state
        self.rebind(live)

    def rebind(self, live: Sequence[Tensor]) -> None:
        check_live(live)
        check_apart(live, self._anchor, self._mid)
        self._live = list(live)

    def observe_(self, loss: Tensor) -> None:
        observe_(loss, self._state)

    def open_(self) -> None:
        _open(self._live, self._anchor, self._mid, self._state)

    def close_(self) -> None:
        _close(self._live, self._anchor, self._mid, self._state)

    def advance_(self, partials: Tensor) -> None:
        advance_(partials, self._state)

    def repair_(self) -> None:
        repair_(self._live, self._anchor, self._mid, self._state)
