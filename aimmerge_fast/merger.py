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

from aimmerge_fast import agreement, events, state
from aimmerge_fast.binding import Binding
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.controller import BadProbes, Controller, MergeRejected
from aimmerge_fast.distributed import Processes
from aimmerge_fast.events import Event, EventLog
from aimmerge_fast.fusion import EntryFusion, new_importances
from aimmerge_fast.memory import RehearsalMemory
from aimmerge_fast.passes import Collate, Items, LossFn, Passes, default_loss, shifts_labels
from aimmerge_fast.rehearsal import Rehearsal
from aimmerge_fast.report import MergeReport, summarise
from aimmerge_fast.tasks import TaskProtocol
from aimmerge_fast.wrapping import Wrapped

log = logging.getLogger(__name__)


class FastAIMMerger(TaskProtocol):
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
        model: a PEFT model, any module (full fine-tuning), or an iterable of parameters; of several
            ranks the one that trains: wrapped in DDP, or sharded by FSDP2.
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
        items: batch -> how many items its mean loss is over, to weigh ranks and micro-batches; by
            default labels that are not -100, else records.
        micro_batch: records of a forward at most; history and memory batches are cut to it.
        process_group: ``auto`` (torch.distributed's where it has several ranks), None (this process
            alone, whatever else runs), or a group. Every rank draws the same records and passes
            its share of them; decisions are the same bits on all.
        timeout: seconds for which another rank may keep this one waiting; then it is named.
        tasks_before: tasks of the stream that earlier mergers trained.

    Raises:
        ValueError: nothing trainable, an unsupported parameter or wrapper, an optimizer without the
            parameters, an unknown backend. RuntimeError: a backend that cannot work here.
            PeerError: ranks with another config or model. OSError: events file not writable.
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
        items: Items | None = None,
        micro_batch: int | None = None,
        process_group: Any = "auto",
        timeout: float = 600.0,
        tasks_before: int = 0,
    ) -> None:
        self.config = config if config is not None else AIMConfig()
        if not isinstance(self.config, AIMConfig):
            raise TypeError(f"config must be an AIMConfig, got {type(self.config).__name__}")
        _refuse_accelerated(optimizer)
        self.processes = Processes(process_group, timeout)
        wrapped = Wrapped(model)
        wrapped.require_peers(self.processes.world)
        settings = {"micro_batch": micro_batch, "tasks_before": tasks_before, "adapters": adapters}
        agreement.require_same_settings(self.processes, self.config, fusion, **settings)
        self.binding = Binding(wrapped, self.config, adapters, backend, optimizer, self.processes)
        agreement.require_same_model(self.processes, self.binding, scaler)
        self.rehearsal: Rehearsal | None = None
        if optimizer is not None and collate is not None:
            losses = (loss_fn or default_loss, items, micro_batch)
            passes = Passes(collate, *losses, self.processes, shifts_labels(wrapped.inner))
            devices = self.binding.parameters.devices()
            self.rehearsal = Rehearsal(
                wrapped, self.config, optimizer, passes, scaler, autocast, devices
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
            self.config, self.binding.engine, self.binding.states, self._emit, self.processes
        )
        self.position = state.Position(tasks_begun=tasks_before, tasks_done=tasks_before)
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
            except (RuntimeError, TimeoutError) as error:
                self.processes.reraise(error, "a collective of the training loop")
            finally:
                self.position.in_task = False
        self._emit(events.TaskEnd(name, self.controller.host.steps))

    def step(
        self, history_loss: torch.Tensor | None = None, items: torch.Tensor | float = 1.0
    ) -> bool:
        """Call once after each optimiser update, on every rank; returns whether a merge was made.

        Args:
            history_loss: () fp32, only with ``probe="in_batch"``: the loss of history rows that
                were in the training batch.
            items: of several ranks, what this one's ``history_loss`` is the mean of.

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
            self.observe(history_loss, items)
        elif self.config.probe == "after":
            self._require_observable()
            self._observe(*self._rehearsal().probe())
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
        saved = state.save(self._parts())
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
        self.resumed = state.load(saved, self._parts())
        if self.importances is not None:
            self.importances.load_state_dict(saved["fusion"])

    # ---- internals -------------------------------------------------------------------------

    def _parts(self) -> state.Parts:
        parts = (self.config, self.position, self.binding, self.controller, self.rehearsal)
        return state.Parts(*parts, self.processes)


def _refuse_accelerated(optimizer: object) -> None:
    if type(optimizer).__name__ == "AcceleratedOptimizer":
        raise ValueError(
            "optimizer is Accelerate's wrapper, which skips or rescales steps by its own rules: "
            "use integrations.accelerate.AccelerateMerger, or give optimizer.optimizer and "
            "scaler=accelerator.scaler"
        )
