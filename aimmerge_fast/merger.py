"""``FastAIMMerger``: AIMMerging (arXiv 2509.17348) inside any training loop."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aimmerge_fast import events, state
from aimmerge_fast.binding import Binding
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.controller import BadProbes, Controller, MergeRejected
from aimmerge_fast.events import Event, EventLog
from aimmerge_fast.fusion import EntryFusion, new_importances
from aimmerge_fast.memory import RehearsalMemory
from aimmerge_fast.protocol import MergeProtocol
from aimmerge_fast.rehearsal import Collate, LossFn, Rehearsal, default_loss
from aimmerge_fast.report import MergeReport, summarise

log = logging.getLogger(__name__)


class FastAIMMerger(MergeProtocol):
    """Merges a model with its recent past while it trains, at moments it chooses itself.

    ::

        memory = RehearsalMemory(ratio=0.02, seed=42)
        merger = FastAIMMerger(model, AIMConfig(), optimizer=optimizer, collate=collate)
        for name, records, loader in tasks:
            with merger.task(name, memory=memory):  # the first task has no memory: plain training
                for batch in loader:
                    model(**batch).loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    merger.step()                   # once per optimiser update
            memory.add(name, records)
        print(merger.report())

    A custom loop calls ``observe(loss)``, ``due()``, ``open_merge()`` and ``close_merge()`` itself.

    Args:
        model: a PEFT model, any module (full fine-tuning), or an iterable of parameters.
        config: the method's settings.
        optimizer: the loop's optimiser; memory steps use it too. Needed by ``step()``.
        collate: list of memory records -> batch. Needed by ``step()``.
        loss_fn: (model, batch) -> scalar loss; by default ``model(**batch).loss``.
        adapters: PEFT adapters to merge; by default the active ones.
        backend: ``auto``, ``native`` or ``eager``.
        scaler: the loop's GradScaler, used for memory steps too.
        autocast: makes the context of our forwards, e.g. ``lambda: torch.autocast("cuda")``.
        events: path of an ``events.jsonl`` to append to.
        callbacks: called with every event (see ``aimmerge_fast.events``).
        fusion: weigh every entry by its importance instead of alpha; needs ``alpha_new=1.0``.

    Raises:
        ValueError: nothing trainable, an unsupported parameter, an optimizer without the
            parameters, an unknown backend. RuntimeError: a backend that cannot work here.
            OSError: events file not writable.
    """

    def __init__(
        self,
        model: nn.Module | Any,
        config: AIMConfig | None = None,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        collate: Collate | None = None,
        loss_fn: LossFn | None = None,
        adapters: str | Sequence[str] | None = None,
        backend: str = "auto",
        scaler: torch.amp.GradScaler | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] | None = None,
        events: str | Path | None = None,
        callbacks: Sequence[Callable[[Event], None]] = (),
        fusion: EntryFusion | None = None,
    ) -> None:
        self.config = config if config is not None else AIMConfig()
        if not isinstance(self.config, AIMConfig):
            raise TypeError(f"config must be an AIMConfig, got {type(self.config).__name__}")
        self.binding = Binding(model, self.config, adapters, backend, optimizer)
        self.rehearsal: Rehearsal | None = None
        if optimizer is not None and collate is not None:
            self.rehearsal = Rehearsal(
                model,
                self.config,
                optimizer,
                collate,
                loss_fn or default_loss,
                scaler,
                autocast,
                self.binding.parameters.devices(),
            )
        memory_optimizer = self.rehearsal.memory_optimizer if self.rehearsal else None
        self.importances = new_importances(
            fusion, self.config, self.binding, [optimizer, memory_optimizer], scaler
        )
        self.events: list[Event] = []
        self._sinks = [self.events.append, *callbacks]
        if events is not None:
            self._sinks.append(EventLog(events))
        self.controller = Controller(
            self.config, self.binding.engine, self.binding.states, self._emit
        )
        self.position = state.Position()
        self.resumed: dict[str, Any] | None = None
        log.info("aimmerge_fast: %s (%s)", self.binding.choice.name, self.binding.choice.reason)

    # ---- one task ------------------------------------------------------------------------

    @contextmanager
    def task(self, name: str, memory: RehearsalMemory | None = None) -> Iterator[FastAIMMerger]:
        """Train one task. An empty memory is plain training, allowed for the first task only.

        After ``load_state_dict`` the interrupted task continues where it was saved.

        Raises:
            RuntimeError: inside another task, or another task than the restored one.
            TypeError, ValueError: no RehearsalMemory, an empty one after the first task, one that
                differs from the restored state's, a non-finite parameter.
        """
        with self._watched():
            self._begin_task(name, memory)
            try:
                yield self
                self._finish_interval()
                self.position.tasks_done += 1
            finally:
                self.position.in_task = False
        self._emit(events.TaskEnd(name, self.controller.host.steps))

    def step(self, history_loss: torch.Tensor | None = None) -> bool:
        """Call once after each optimiser update; returns whether a merge was made.

        Args:
            history_loss: () fp32, only with ``probe="in_batch"``: the loss of history rows that
                were in the training batch.

        Raises:
            RuntimeError: outside a task. ValueError: loss given or missing against ``probe``.
            MergeRejected, BadProbes: see ``AIMConfig.on_reject`` and ``max_bad_probes``.
        """
        self._require_task("step()")
        in_batch = self.config.probe == "in_batch"
        if not self.position.monitors:
            self.controller.host.count_step()
            return False
        if in_batch != (history_loss is not None):
            raise ValueError(
                f"probe={self.config.probe!r}: step() "
                + ("needs the history loss: step(loss)" if in_batch else "takes no history loss")
            )
        if history_loss is not None:
            self.observe(history_loss)
        elif self.config.probe == "after":
            self.observe(self._rehearsal().probe())
        elif self.controller.observed <= self.controller.host.steps and not self.controller.is_open:
            self._probe_ahead()  # the last call ended in an exception: better late than never
        try:
            merged = self.due()
            if merged:
                self._merge()
        except (MergeRejected, BadProbes):
            self._probe_ahead()  # a caller that catches these goes on with the next update
            raise
        self._probe_ahead()
        return merged and self.config.schedule != "monitor"

    # ---- what happened -----------------------------------------------------------------------

    def report(self) -> MergeReport:
        """Merges by kind, what the controller did and why; ``print`` it."""
        return summarise(self.events)

    @property
    def waits(self) -> int:
        """How often the host waited for a decision of the device."""
        return self.controller.mailbox.waits

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-identical resume needs, at any step: JSON-able scalars and tensors.

        The model's and the optimiser's own states are saved by the caller, as always.
        """
        if self.resumed is not None:
            return copy.deepcopy(self.resumed)  # loaded, but its task was not entered yet
        parts = (self.config, self.position, self.binding, self.controller, self.rehearsal)
        saved = state.save(*parts)
        if self.importances is not None:
            saved["fusion"] = self.importances.state_dict()
        return saved

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore a ``state_dict``; then enter ``task()`` of the same name to go on.

        Raises:
            RuntimeError: inside a task.
            ValueError: another version, config or model; the first difference is named. Nothing
                has changed then.
        """
        if self.position.in_task:
            raise RuntimeError("load_state_dict() inside a task: load before entering task()")
        state.check_fusion(saved, self.importances)
        parts = (self.config, self.position, self.binding, self.controller, self.rehearsal)
        self.resumed = state.load(saved, *parts)
        if self.importances is not None:
            self.importances.load_state_dict(saved["fusion"])

    # ---- internals -------------------------------------------------------------------------

    def _begin_task(self, name: str, memory: RehearsalMemory | None) -> None:
        if self.position.in_task:
            raise RuntimeError(
                f"task {name!r} inside task {self.controller.task!r}: leave it first"
            )
        if not isinstance(name, str) or not name:
            raise TypeError(f"a task's name must be a non-empty string, got {name!r}")
        monitors = self._check_memory(name, memory)
        if self.resumed is not None:
            self._go_on(name, memory, self.resumed)
        else:
            self.binding.heal()
            self.binding.require_finite()
            self.controller.begin_task(name, self.position.tasks_begun)
            self.binding.set_anchor()
            self._forget_importances()
            self.position.probe_pending = False
            if memory is not None and monitors:
                self._rehearsal().begin_task(memory, self.position.tasks_begun)
                self._probe_ahead()  # what is wrong with the batches shows here, before the task
            self.position.monitors = monitors
            self.position.tasks_begun += 1
            size = len(memory) if memory is not None else 0
            self._emit(events.TaskBegin(name, 0, size, self._settings()))
        self.position.in_task = True

    def _settings(self) -> dict[str, Any]:
        """The config, and the fusion where there is one: its merges are no-ops by alpha alone."""
        settings = self.config.to_dict()
        if self.importances is not None:
            settings["fusion"] = self.importances.settings.to_dict()
        return settings

    def _go_on(self, name: str, memory: RehearsalMemory | None, saved: dict[str, Any]) -> None:
        """Enter the task that the loaded state was saved in."""
        state.enter(saved, name, memory, self.rehearsal)
        self.resumed = None
        self.position.in_task = True
        try:
            if self.controller.is_open and self.position.steps_made is not None:
                self._rehearse(self.controller.merge_steps)  # saved inside a merge of step()
            ahead = self.position.probe_pending or self.controller.is_open
            if self.position.monitors and not ahead:
                self._probe_ahead()  # saved between a merge and the probe after it
        except BaseException:
            self.position.in_task = False
            raise

    def _check_memory(self, name: str, memory: RehearsalMemory | None) -> bool:
        if memory is None:
            return False
        if not isinstance(memory, RehearsalMemory):
            raise TypeError(f"memory must be a RehearsalMemory, got {type(memory).__name__}")
        if len(memory) == 0 and (self.position.tasks_done > 0 and self.resumed is None):
            raise ValueError(
                f"task {name!r}: the memory is empty though a task was trained before; call "
                "memory.add(task, records) after each task, or pass memory=None for plain training"
            )
        if len(memory):
            self._rehearsal()
        return len(memory) > 0

    def _finish_interval(self) -> None:
        """The end of a task: merge what is unfinished if asked, forget the probe ahead."""
        final = self.config.schedule == "single" or self.config.merge_at_task_end
        if self.controller.is_open:
            raise RuntimeError("the task ended inside an open merge: call close_merge() first")
        if self.position.probe_pending:
            self.controller.restart_interval(keep_progress=True)
            self.position.probe_pending = False
        self.controller.finish_records()
        self.controller.drain()
        self.controller.raise_bad_probes()
        if final and self.position.monitors and self.controller.host.t > 0:
            self._merge()
