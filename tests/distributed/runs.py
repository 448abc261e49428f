"""One training run of a rank, as a user's loop would make it, and what is kept of it."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from aimmerge_fast import AIMConfig, FastAIMMerger
from aimmerge_fast import distributed as exchanges
from aimmerge_fast.events import to_json
from tests.distributed import nets

BATCH = 12  # records of a global batch: as many on each of 2, 3 and 4 ranks


class Run:
    """Model, optimizer, data and merger.

    Args:
        rank, world: which rows of each batch are trained on here.
        net: see ``nets.MAKERS``. kind: how it is wrapped. wrapping: options of that.
        config: fields of AIMConfig. keywords: of FastAIMMerger.
        records: in the memory. in_batch: of them, in each training batch, first.
        parts: of each batch, one backward each (accumulated under ``no_sync``).
        scaler: train and rehearse with a GradScaler. leave: gradients are still there at step().
        noise: that collating memory records adds to them.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        *,
        net: str = "plain",
        kind: str | None = "ddp",
        wrapping: dict[str, Any] | None = None,
        dropout: float = 0.0,
        dtype: str = "float32",
        config: dict[str, Any] | None = None,
        keywords: dict[str, Any] | None = None,
        records: int = 20,
        in_batch: int = 0,
        parts: int = 1,
        lr: float = 0.01,
        scaler: bool = False,
        leave: bool = False,
        noise: float = 0.0,
    ) -> None:
        self.rank, self.world, self.net = rank, world, net
        self.parts, self.in_batch, self.leave, self.noise = parts, in_batch, leave, noise
        made = nets.plain(dropout) if dropout else nets.MAKERS[net]()
        made = made.to(getattr(torch, dtype))
        self.model = nets.wrap(made, kind if world > 1 else None, **(wrapping or {}))
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, eps=1e-4)
        self.memory = nets.memory_of(net, records)
        self.data = nets.data_of(net, BATCH * 60, 2, shift=1)
        self.scaler = torch.amp.GradScaler("cpu", enabled=scaler, init_scale=8.0, growth_interval=7)
        self.collated: list[list[int]] = []
        self.update = 0
        torch.manual_seed(100 + rank)
        self.merger = FastAIMMerger(
            self.model,
            AIMConfig(**{"s_init": 4, "gamma_forget": 1.02, "seed": 3} | (config or {})),
            optimizer=self.optimizer,
            collate=self.collate,
            loss_fn=nets.loss_fn,
            scaler=self.scaler if scaler else None,
            **(keywords or {}),
        )

    def collate(self, chosen: list[nets.Record]) -> Any:
        self.collated.append([record["id"] for record in chosen])
        batch = nets.collate(chosen)
        if self.noise:
            batch[0].add_(torch.randn_like(batch[0]), alpha=self.noise)
        return batch

    def train(self, steps: int) -> None:
        for _ in range(steps):
            loss = self.train_once()
            pending = [self._gradient(p) for p in self.parameters]
            self.merger.step(*loss)
            kept = [self._gradient(p) for p in self.parameters]
            assert all(map(torch.equal, pending, kept)), "step() changed the loop's gradients"

    def _gradient(self, parameter: nn.Parameter) -> Tensor:
        """A copy of what this rank has; nothing is an empty one."""
        if parameter.grad is None:
            return torch.empty(0)
        return local_bits([parameter.grad])[0]

    def train_once(self) -> tuple[Any, ...]:
        """One update of the loop; the loss of the history rows, and their items, for step()."""
        at = BATCH * self.update
        self.update += 1
        rows = self.data[at : at + BATCH]
        history = self.memory_rows()
        rows = history + rows[len(history) :]
        self.optimizer.zero_grad()
        kept: tuple[Any, ...] = ()
        shares = [rows[part :: self.parts] for part in range(self.parts)]
        whole = sum(nets.items(nets.collate([row])) for row in rows)
        for part, share in enumerate(shares):
            mine = share[self.rank :: self.world]
            batch = nets.collate(mine)
            with self.accumulating(last=part == self.parts - 1):
                loss = nets.loss_fn(self.model, batch)
                weight = nets.items(batch) * self.world / whole
                self.scaler.scale(loss * weight).backward()
        if history:
            mine = history[self.rank :: self.world]
            with torch.no_grad():
                inner = getattr(self.model, "module", self.model)
                kept = nets.loss_fn(inner, nets.collate(mine)), nets.items(nets.collate(mine))
            for module in self.model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()  # a forward without backward left it gathered
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if not self.leave:
            self.optimizer.zero_grad()
        return kept

    def memory_rows(self) -> list[nets.Record]:
        held = nets.data_of(self.net, 20, 1)
        first = self.update * self.in_batch
        return [held[(first + i) % len(held)] for i in range(self.in_batch)]

    def accumulating(self, last: bool) -> Any:
        if last or self.world == 1 or not hasattr(self.model, "no_sync"):
            return contextlib.nullcontext()
        return self.model.no_sync()

    # ---- what is kept ----------------------------------------------------------------------------

    def weights(self) -> list[Tensor]:
        """Of the whole model, not of this rank's shards: a collective."""
        return [whole(p) for p in self.parameters]

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(to_json(event)) for event in self.merger.events]

    def draws(self, size: int) -> list[list[int]]:
        """The first batches drawn, put together from the shares that were collated.

        A rank without a record collates the first one again.
        """
        found, made = [], list(self.collated)
        while made and len(found) < 20:
            shares, made = made[: self.world], made[self.world :]
            longest = max(map(len, shares))
            rows = [share[i] for i in range(longest) for share in shares if i < len(share)]
            found.append(rows[:size])
        return found

    def result(self) -> dict[str, Any]:
        found = [p for p in self.model.parameters() if p.requires_grad]
        assert list(map(id, found)) == list(map(id, self.parameters)), "left gathered"
        return {"events": self.events(), "weights": self.weights()}


def whole(tensor: Tensor) -> Tensor:
    """A copy; of a DTensor all of it."""
    full = getattr(tensor, "full_tensor", None)
    return (full() if full is not None else tensor).detach().clone()


def local_bits(parameters: list[Any]) -> list[Tensor]:
    """Copies of what this rank holds."""
    return [(p.to_local() if hasattr(p, "to_local") else p).detach().clone() for p in parameters]


class Exchanges:
    """Counts the collectives of the package: ``seen`` is [kind, update] of each, in order."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __enter__(self) -> Exchanges:
        self._original = exchanges._all_gather
        exchanges._all_gather = self._note
        return self

    def __exit__(self, *_: object) -> None:
        exchanges._all_gather = self._original

    def _note(self, out: Tensor, row: Tensor, **keywords: Any) -> Any:
        step, kind = divmod(int(row[0]), 4)
        self.seen.append([kind, step])
        return self._original(out, row, **keywords)
