"""The processes that train one model together: what they tell each other, and who fell out.

Each record of the controller takes one all-gather of three fp64 numbers per rank: (loss * items,
items) of a history loss, or (L1, non-finite entries) of a half of a merge, behind a tag that says
what it is and of which step. Every rank adds the same rows in rank order, so all decide alike.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from aimmerge_fast.groups import device_of, first_line, resolve
from aimmerge_fast.kernels.layout import RING_SIZE
from aimmerge_fast.mailbox import give_way
from aimmerge_fast.presence import PeerError, Presence

__all__ = ["CHECK", "CLOSE", "OBSERVE", "OPEN", "PeerError", "Processes"]

OBSERVE, OPEN, CLOSE, CHECK = range(4)
_all_gather: Any = getattr(dist, "all_gather_single", None) or getattr(
    dist, "all_gather_into_tensor", None
)
_KINDS = ("step()", "the opening of a merge", "the close of a merge", "a check")
_ROW = 3
_LOOK = 0.5  # seconds between two looks at whether another rank is in trouble


class Processes:
    """This process and its peers; alone, nothing is exchanged.

    Args:
        group: ``auto`` (torch.distributed's default group where it has more than one rank), None
            (alone), or a process group.
        timeout: seconds for which a peer may keep this one waiting (NCCL: its group's own).

    Attributes: rank, world, timeout. replicated: whether every rank holds all of every parameter.
        gone: why this rank meets the others no more.

    Raises: ValueError for another group, or none of which this process is a member.
    """

    def __init__(self, group: Any = "auto", timeout: float = 600.0) -> None:
        if not isinstance(timeout, (int, float)) or not timeout > 0:
            raise ValueError(f"timeout={timeout!r} must be a number of seconds above 0")
        self.timeout = float(timeout)
        self._group = resolve(group, self.timeout)
        self.world = 1 if self._group is None else dist.get_world_size(self._group)
        self.rank = 0 if self._group is None else dist.get_rank(self._group)
        self._on_host = self._group is not None and dist.get_backend(self._group) == "gloo"
        self._presence = Presence(self._group, self.rank, self.world, self.timeout)
        self.gone: str | None = None
        self.replicated = True
        self._owners = [True] * self.world
        self._rows: Tensor | None = None
        self._number, self._tag = 0, float(CHECK)

    @property
    def alone(self) -> bool:
        return self.world == 1

    # ---- what is exchanged -------------------------------------------------------------------

    def at(self, number: int, kind: int, step: int) -> None:
        """The exchange that comes next is of record ``number``; ``PeerError`` after another."""
        if self.gone:
            raise PeerError(self.gone)
        self._number, self._tag = number, float(step * len(_KINDS) + kind)

    def mean(self, total: Tensor, items: Tensor | float | None, device: torch.device) -> Tensor:
        """() fp64: sum of all ranks' ``total`` over the sum of their ``items`` (None: 1)."""
        rows = self._gather(_on(total, device), _on(1 if items is None else items, device), device)
        added = rows[0, 1:]
        for row in rows[1:]:
            added = added + row[1:]
        return added[0] / added[1]

    def partials(self, row: Tensor) -> Tensor:
        """(world, 2) fp64 from this rank's (2,): replicas of an entry count once.

        Of non-finite entries they do so where all ranks have as many; else none may be lost.
        """
        rows = self._gather(row[0], row[1], row.device)[:, 1:]
        if all(self._owners):
            return rows.contiguous()
        alike = (rows[:, 1] == rows[0, 1]).all()
        counted = []
        for owner, (l1, bad) in zip(self._owners, rows, strict=True):
            nothing = torch.zeros_like(l1)
            fewer = torch.where(alike, nothing, bad)
            counted.append(torch.stack([l1, bad] if owner else [nothing, fewer]))
        return torch.stack(counted)

    def require_equal(self, what: str, content: Any) -> None:
        """``PeerError``, "rank 1 has ``what`` than rank 0", unless all have this ``content``.

        It is JSON-able, or bytes.
        """
        if self.alone:
            return
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        digest = int.from_bytes(hashlib.sha256(raw).digest()[:6], "little")  # exact in fp64
        self.at(0, CHECK, 0)
        values = self._gather_numbers(digest)
        self._name(values, values[0], what)

    def where(self, here: bool) -> list[int]:
        """Ranks on which this holds; all of them call it."""
        if self.alone:
            return [0] if here else []
        self.at(0, CHECK, 0)
        return [rank for rank, value in enumerate(self._gather_numbers(int(here))) if value]

    def share_layout(self, *, replicated: bool, owner: bool) -> None:
        """Tell the peers which ranks count: one of each group that holds the same entries."""
        self.replicated = replicated
        owners = self.where(owner)
        self._owners = [rank in owners for rank in range(self.world)]

    # ---- what the rows say, once the record behind them has been read ----------------------------

    def examine(self, number: int, opens: bool) -> None:
        """Raise ``PeerError`` where the ranks' rows behind record ``number`` cannot be.

        ``opens``: it is of the first half of a merge, for which replicas have one L1.
        """
        rows = self._row_of(number)
        if rows is None:
            return
        self._require_in_step(rows)
        if opens and self.replicated and not rows[:, 2].any():
            place = _place(rows[0, 0].item())
            what = f"another L1 of the learning signal at {place}"
            self._name(rows[:, 1].tolist(), rows[0, 1].item(), what)

    def bad_ranks(self, number: int) -> str:
        """`` (rank 1)``: whose history loss, or parameters, behind a record were not finite."""
        rows = self._row_of(number)
        if rows is None:
            return ""
        observed = int(rows[0, 0]) % len(_KINDS) == OBSERVE
        bad = ~rows[:, 1:].isfinite().all(1) if observed else rows[:, 2] != 0
        ranks = [str(rank) for rank in bad.nonzero().flatten().tolist()]
        return f" (rank {', '.join(ranks)})" if ranks else ""

    # ---- what goes wrong elsewhere -------------------------------------------------------------

    def leave(self, why: str) -> None:
        """This rank meets the others no more; ``why`` is told to those that look for it."""
        if not self.gone:
            self.gone = why
            self._presence.leave(why)

    def reraise(self, error: BaseException, place: str) -> NoReturn:
        """``PeerError`` for an error of torch's own collectives at ``place``; others as is."""
        if self.alone or self.gone or isinstance(error, PeerError) or not _of_a_collective(error):
            raise error
        message = self._presence.missing(place, f"({first_line(error)})")
        raise self._failed(message) from error

    # ---- internals -------------------------------------------------------------------------

    def _lost(self, why: str) -> PeerError:
        return self._failed(self._presence.missing(_place(self._tag), why))

    def _failed(self, message: str) -> PeerError:
        self.gone = message
        return PeerError(message)

    def _row_of(self, number: int) -> Tensor | None:
        return None if self._rows is None else self._rows[number % RING_SIZE]

    def _require_in_step(self, rows: Tensor) -> None:
        tags = rows[:, 0].tolist()
        if len(set(tags)) > 1:
            places = ", ".join(f"rank {rank} at {_place(tag)}" for rank, tag in enumerate(tags))
            raise self._failed(
                f"the ranks are out of step: {places}; call step() alike on every rank"
            )

    def _name(self, values: Sequence[float], expected: float, what: str) -> None:
        others = [str(rank) for rank, value in enumerate(values) if value != expected]
        if others:
            raise self._failed(
                f"rank {', '.join(others)} has {what} than rank 0: they no longer train one model; "
                "start all ranks from the same checkpoint, with the same settings"
            )

    def _gather_numbers(self, value: int) -> list[float]:
        device = device_of(self._group)
        row = torch.tensor([float(value), 0.0], dtype=torch.float64, device=device)
        rows = self._gather(row[0], row[1], device, keep=False)
        self._require_in_step(rows)
        numbers: list[float] = rows[:, 1].tolist()
        return numbers

    def _gather(
        self, first: Tensor, second: Tensor, device: torch.device, *, keep: bool = True
    ) -> Tensor:
        """(world, 3) fp64 on ``device``: every rank's tag and two numbers."""
        tag = torch.full((), self._tag, dtype=torch.float64, device=device)
        row = torch.stack([tag, first.double(), second.double()])
        out = torch.empty(self.world * _ROW, dtype=torch.float64, device=device)
        began = time.monotonic()
        try:
            work = _all_gather(out, row, group=self._group, async_op=True)
            if self._on_host:
                self._await(work, began)
            work.wait()
        except PeerError:
            raise
        except RuntimeError as error:
            raise self._lost(f"({first_line(error)})") from error
        rows = out.view(self.world, _ROW)
        if keep:
            self._keep(rows)
        return rows

    def _keep(self, rows: Tensor) -> None:
        """On the host when the record behind them is: the copy is launched before its kernel."""
        if self._rows is None:
            pinned = rows.device.type == "cuda"
            self._rows = torch.zeros(
                (RING_SIZE, self.world, _ROW),
                dtype=torch.float64,
                device="cpu",  # whatever the default device is
                pin_memory=pinned,
            )
        self._rows[self._number % RING_SIZE].copy_(rows, non_blocking=True)

    def _await(self, work: Any, began: float) -> None:
        looked = began
        while not work.is_completed():
            now = time.monotonic()
            if now - looked > _LOOK:
                looked = now
                if self._presence.trouble():
                    raise self._lost("(another rank reported it)")
            if now - began > self.timeout:
                raise self._lost(f"within {self.timeout:g} s")
            give_way(now - began, pause=2e-4)


def _of_a_collective(error: BaseException) -> bool:
    """Whether other ranks made it: torch's collectives raise, or a GPU waits in them for ever."""
    if isinstance(error, (dist.DistError, TimeoutError)):
        return True
    return isinstance(error, RuntimeError) and any(n in str(error) for n in ("gloo", "NCCL"))


def _place(tag: float) -> str:
    step, kind = divmod(int(tag), len(_KINDS))
    return f"{_KINDS[kind]} after update {step}"


def _on(value: Tensor | float, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().reshape(()).to(device, non_blocking=device.type != "cpu")
    return torch.full((), float(value), dtype=torch.float64, device=device)
