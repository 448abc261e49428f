"""AIMMerging, slow and plain: the public reference that reads like the paper.

One merge, with the symbols of arXiv 2509.17348:

    tau_new   = theta_j - anchor                                      (5)
    theta_M   = theta_j after M optimiser steps on rehearsal records
    tau_past  = theta_M - theta_j                                     (6)
    theta_hat = anchor + (alpha1 * tau_new + alpha2 * tau_past)       (7)
    theta, anchor <- theta_hat

``FastAIMMerger`` is used in the same way and gives the same bits. This class is for reading and
comparing: it copies, waits at every step, and has no scaler, autocast, events or saved state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aimmerge_fast.config import AIMConfig
from aimmerge_fast.reference.controller import (
    PaperController,
    ReleasedController,
    reference_controller,
)
from aimmerge_fast.reference.numerics import dense, fuse, l1_order_p, non_finite
from aimmerge_fast.reference.schedules import Merge, ReferenceController
from aimmerge_fast.reference.training import (
    Memory,
    MemoryOptimizer,
    PrivateRng,
    Stream,
    probing,
    to_device,
)

__all__ = ["PaperController", "ReferenceAIMMerger", "ReleasedController", "l1_order_p"]

LossFn = Callable[[nn.Module, Any], Tensor]


class Step(NamedTuple):
    """What the controller made of one update; ``loss`` is the history loss that it judged."""

    t: int
    S: int
    F: int
    threshold: float | None
    code: str
    loss: float


class ReferenceAIMMerger:
    """Merge a model with its own recent past while it trains; see ``FastAIMMerger``.

    Args:
        model: its parameters that require a gradient are merged: fp32, bf16 or fp16, dense, all on
            one device; their order is that of ``named_parameters``.
        config: the method's settings.
        optimizer: the one that trains.
        collate: list of records -> the batch that ``loss_fn`` takes.
        loss_fn: ``(model, batch) -> 0-dim loss``; default ``model(**batch).loss``.

    Attributes:
        steps: one ``Step`` per update of the current (or last) task; empty without rehearsal.
        merges: the controller's record of every merge of that task.
        anchor: theta after its last merge, one 1-D tensor per parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        config: AIMConfig | None = None,
        *,
        optimizer: torch.optim.Optimizer,
        collate: Callable[[list[Any]], Any],
        loss_fn: LossFn | None = None,
    ) -> None:
        self.config = AIMConfig() if config is None else config
        self._model = model
        self._memory_optimizer = MemoryOptimizer(self.config.memory_optimizer, optimizer)
        self._collate = collate
        self._loss_fn: LossFn = loss_fn or (lambda model, batch: model(**batch).loss)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("no trainable parameters: none of the model requires a gradient")
        self._tasks = 0
        self._in_task = False
        self._controller: ReferenceController | None = None
        self.steps: list[Step] = []
        self.merges: list[Merge] = []
        self.anchor: list[Tensor] = []
        self._probed = math.nan

    @contextmanager
    def task(self, name: str, memory: Memory | None = None) -> Iterator[ReferenceAIMMerger]:
        """One task; without rehearsal records it is plain training, with no probe and no merge."""
        if self._in_task:
            raise RuntimeError(f"task {name!r} within another task; leave that one first")
        if non_finite(self._copy()):
            raise ValueError(f"task {name!r} starts from parameters that are not finite")
        self._begin(memory)
        try:
            yield self
            at_end = self.config.merge_at_task_end or self.config.schedule == "single"
            if at_end and self._controller is not None and self._controller.t > 0:
                self._merge(self._controller)
        finally:
            self._in_task = False
            self._controller = None

    def step(self, history_loss: Tensor | float | None = None) -> None:
        """Call after every optimiser update; merges when it is due.

        ``history_loss`` is for ``probe="in_batch"`` alone: the loss of the rehearsal rows that the
        caller had in the training batch.
        """
        if not self._in_task:
            raise RuntimeError("step() outside a task; use it within `with merger.task(...)`")
        controller = self._controller
        if controller is None:
            return
        probe = self.config.probe
        if (history_loss is not None) != (probe == "in_batch"):
            raise ValueError(f"history_loss={history_loss!r} with probe={probe!r}: 'in_batch' only")
        if probe == "before":
            loss = self._probed
        else:
            loss = self._probe() if history_loss is None else float(history_loss)
        code = controller.observe(loss)
        self.steps.append(
            Step(controller.t, controller.S, controller.F, controller.threshold, code, loss)
        )
        try:
            self._count_bad(loss)
            if code == "measure":
                self._measure(controller)
            elif code.startswith("merge_"):
                self._merge(controller)
        finally:
            if probe == "before":
                self._probed = self._probe()

    def _begin(self, memory: Memory | None) -> None:
        config, index = self.config, self._tasks
        self._tasks += 1
        self._in_task = True
        self.steps, self.merges = [], []
        self.anchor = self._copy()
        self._bad_in_a_row = 0
        if memory is None or len(memory) == 0:
            return
        self._controller = reference_controller(config, task=index)
        fresh = config.policy == "released"
        self._probe_stream = memory.stream("probe", fresh=fresh, salt=index)
        self._memory_stream = memory.stream("memory", fresh=fresh, salt=index)
        devices = {p.device for p in self._model.parameters()}
        seed = config.seed * 1_000_003 + index
        self._probe_rng = PrivateRng(seed, devices)
        self._memory_rng = PrivateRng(seed + 1, devices)
        if config.probe == "before":
            self._probed = self._probe()

    # --- the two signals ----------------------------------------------------------------------

    def _probe(self) -> float:
        """Forgetting signal: the loss on rehearsal records, on the parameters as they are."""
        mode = probing(self._model, dropout=self.config.probe_dropout)
        with torch.no_grad(), self._probe_rng.swapped_in(), mode:
            return float(self._loss(self._probe_stream, self.config.history_batch))

    def _loss(self, stream: Stream, records: int) -> Tensor:
        batch = to_device(self._collate(stream.draw(records)), self.parameters[0].device)
        return self._loss_fn(self._model, batch)

    def _count_bad(self, loss: float) -> None:
        count = 0 if math.isfinite(loss) else self._bad_in_a_row + 1
        self._bad_in_a_row = count % self.config.max_bad_probes  # a caller may go on: count anew
        if count >= self.config.max_bad_probes:
            raise FloatingPointError(
                f"step {len(self.steps)}: {count} history losses in a row were not finite "
                f"(max_bad_probes); the last is {loss}"
            )

    def _measure(self, controller: ReferenceController) -> None:
        """Learning signal without a merge; training must not notice, so nothing is restored."""
        theta = self._copy()
        if non_finite(theta):
            controller.reject()
            return
        self.merges.append(controller.merge(l1_order_p(theta, self.anchor)))
        self.anchor = theta

    # --- one merge ----------------------------------------------------------------------------

    def _merge(self, controller: ReferenceController) -> None:
        theta_j = self._copy()
        memory_steps = controller.memory_steps
        bad = non_finite(theta_j)
        if bad:  # the anchor is always finite: go back to it and merge nothing
            self._store(self.anchor)
            theta_j = self._copy()
            alphas = (1.0, 0.0)
            controller.reject()
            self._rejected(f"theta_j had {bad} non-finite entries; restored the anchor")
        else:
            self.merges.append(controller.merge(l1_order_p(theta_j, self.anchor)))
            alphas = self.merges[-1]["alpha1"], self.merges[-1]["alpha2"]
        with self._memory_optimizer.merging():
            for _ in range(memory_steps):
                self._memory_step()
        theta_hat = [
            fuse(a, j, m, *alphas)
            for a, j, m in zip(self.anchor, theta_j, self._copy(), strict=True)
        ]
        bad = non_finite(theta_hat)
        self.anchor = theta_j if bad else theta_hat
        self._store(self.anchor)
        if bad:
            self._rejected(f"the merged theta had {bad} non-finite entries; restored theta_j")

    def _memory_step(self) -> None:
        config, optimizer = self.config, self._memory_optimizer.optimizer
        optimizer.zero_grad(set_to_none=True)
        with self._memory_rng.swapped_in():
            loss = self._loss(self._memory_stream, config.memory_batch)
            released = config.policy == "released"
            (loss / config.accumulation if released else loss).backward()
        if config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._memory_optimizer.parameters, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _rejected(self, why: str) -> None:
        if self.config.on_reject == "raise":
            raise FloatingPointError(f"merge at step {len(self.steps)} rejected: {why}")

    def _copy(self) -> list[Tensor]:
        """Theta, one 1-D copy per parameter in memory order."""
        return [dense(p).clone() for p in self.parameters]

    def _store(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value.as_strided(parameter.shape, parameter.stride()))
