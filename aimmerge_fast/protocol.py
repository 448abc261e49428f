"""The pieces of a step in the order in which they may be called: observe, due, open, close.

``FastAIMMerger`` is these and the loop around them; a custom loop calls them itself.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn

import torch

from aimmerge_fast import events, kernels
from aimmerge_fast.binding import Binding
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.controller import Controller
from aimmerge_fast.distributed import PeerError, Processes
from aimmerge_fast.events import Event
from aimmerge_fast.fusion import Importances
from aimmerge_fast.passes import weighed
from aimmerge_fast.rehearsal import Rehearsal
from aimmerge_fast.state import Position


class MergeProtocol:
    """One merger's parts, and the calls that drive them; calls out of order raise RuntimeError."""

    config: AIMConfig
    binding: Binding
    controller: Controller
    processes: Processes
    rehearsal: Rehearsal | None
    position: Position
    importances: Importances | None  # of a fusion entry by entry
    _sinks: list[Callable[[Event], None]]

    # ---- the pieces of a step, for custom loops --------------------------------------------

    def observe(self, history_loss: torch.Tensor, items: torch.Tensor | float = 1.0) -> None:
        """Give the controller one history loss, a floating-point scalar tensor; never waits.

        Of several ranks each gives the mean loss of its rows and, as ``items``, what that is the
        mean of (labels that count, or rows); judged is the mean over all of them.

        While a CUDA graph is captured nothing is judged: every later replay of the graph judges
        what the tensor then holds, and ``due()`` follows each replay once.
        """
        if kernels.is_capturing(self.controller.graph_device):
            kernels.check_loss(history_loss)
            self.controller.capture(history_loss.detach())
            return
        self._require_task("observe()", capturable=True)
        self._require_observable()
        if self.processes.alone:
            self._observe(history_loss, None)
        else:
            self._observe(weighed(history_loss, items), items)

    def due(self) -> bool:
        """Count one update and say whether to merge now (under ``monitor``: to measure)."""
        self._require_task("due()")
        if self.controller.is_open:
            raise RuntimeError("due() between open_merge() and close_merge(): close it first")
        replayed = self.controller.captured  # only the device knows of its losses
        if self.controller.observed <= self.controller.host.steps and not replayed:
            raise RuntimeError("due() without a new history loss: call observe(loss) first")
        self.position.probe_pending = False
        return self.controller.due()

    def open_merge(self) -> int:
        """First half of a merge: snapshot and weigh; returns the memory steps to make now.

        A merge that was not due is a final one; a probe launched ahead is then made anew.

        Raises: RuntimeError inside an open merge, between observe() and due(), or when nothing was
            trained since the last merge.
        """
        self._require_task("open_merge()")
        if self.controller.is_open:
            raise RuntimeError("open_merge() twice: call close_merge() first")
        if self.controller.host.t == 0:
            raise RuntimeError("open_merge() right after a merge: there is no interval to merge")
        if (
            self.controller.observed > self.controller.host.steps
            and not self.position.probe_pending
        ):
            raise RuntimeError("open_merge() between observe() and due(): call due() first")
        self.binding.heal()
        if self.position.probe_pending:  # the device has counted an update that is still to come
            self.controller.restart_interval(keep_progress=True)
        try:
            return self.controller.open()
        except PeerError:  # live is theta_j
            self._forget_importances()
            self.controller.leave_ranks("another rank is gone")
            raise
        except BaseException:
            self._forget_importances()
            raise
        finally:
            self._bump_versions()  # a rejected snapshot was put back
            self._renew_probe()

    def close_merge(self) -> None:
        """Second half of a merge: live and anchor become the fused parameters.

        Raises: RuntimeError when no merge is open.
        """
        self._require_task("close_merge()")
        if not self.controller.is_open:
            raise RuntimeError("close_merge() before open_merge()")
        self.binding.heal()
        try:
            self._close()
        finally:
            self._bump_versions()
            self._renew_probe()

    def rollback(self) -> None:
        """Put the live parameters back on the anchor (the last merge or the task's start).

        The interval begins anew, an open merge is abandoned. Optimiser moments stay.
        """
        self._require_task("rollback()")
        self.binding.heal()
        self.controller.restart_interval()
        self.binding.restore_anchor()
        self._forget_importances()
        self._emit(events.Rollback(self.controller.task, self.controller.host.steps))
        if self.rehearsal:
            self.rehearsal.restore_moments()
        if self.position.monitors:
            self._probe_ahead()

    # ---- internals -------------------------------------------------------------------------

    def _merge(self) -> None:
        self.position.steps_made = 0
        try:
            memory_steps = self.open_merge()
        except BaseException:
            self.position.steps_made = None
            raise
        self._rehearse(memory_steps)

    def _rehearse(self, memory_steps: int) -> None:
        """The memory steps of an open merge, and its close; an exception leaves theta_j behind."""
        position = self.position
        made = position.steps_made or 0
        try:
            if memory_steps:  # also when all were made: the phase puts moments back
                rehearsal = self._rehearsal()
                with rehearsal.memory_phase():
                    for position.steps_made in range(made + 1, memory_steps + 1):
                        rehearsal.memory_step()
        except BaseException as error:
            self._forget_importances()
            if self.processes.alone:
                self.controller.abandon()
                self.binding.bump_versions()
                raise
            self._leave_at_snapshot(error)
        finally:
            position.steps_made = None
        self.close_merge()

    def _leave_at_snapshot(self, error: BaseException) -> NoReturn:
        """A memory step failed on this rank; was it for another one that is gone, it is named."""
        try:
            self._stay_at_snapshot()
            place = f"a memory step after update {self.controller.host.steps}"
            self.processes.reraise(error, place)
        finally:
            why = f"a memory step failed on this rank ({type(error).__name__})"
            self.controller.leave_ranks(why)

    def _stay_at_snapshot(self) -> None:
        """live, anchor <- theta_j on this rank; a failed pass may have left shards gathered."""
        self.binding.heal()
        self.binding.restore_mid()

    def _close(self) -> None:
        try:
            self._fuse()
        except PeerError:  # live may be fused here and not elsewhere
            self._stay_at_snapshot()
            self.controller.leave_ranks("another rank is gone")
            raise

    def _fuse(self) -> None:
        """The engine's fusion, or ours: alpha = (1, 0) then installs what we put into mid."""
        if self.importances is None:
            self.controller.close()
            return
        fuses = self.controller.learn_open()
        bad = self.importances.fuse() if fuses else 0
        if fuses and not bad:
            self.importances.begin_interval()
        else:
            self.importances.begin_task()
        self.controller.close(bad)

    def _watched(self) -> AbstractContextManager[None]:
        if self.importances is None:
            return nullcontext()
        return self.importances.watching(
            lambda: self.position.monitors, lambda: self.controller.is_open
        )

    def _forget_importances(self) -> None:
        if self.importances is not None:
            self.importances.begin_task()

    def _bump_versions(self) -> None:
        if self.config.schedule != "monitor":  # which leaves every bit as it was
            self.binding.bump_versions()

    def _probe_ahead(self) -> None:
        if self.config.probe == "before":
            self._observe(*self._rehearsal().probe())
            self.position.probe_pending = True

    def _renew_probe(self) -> None:
        """The probe ahead was forgotten for a merge that the caller asked for."""
        gone = self.controller.is_open or self.processes.gone
        if self.position.probe_pending and not gone:
            self._probe_ahead()

    def _observe(self, loss: torch.Tensor, items: torch.Tensor | float | None) -> None:
        kernels.check_loss(loss)
        self.controller.observe(loss.detach(), items)

    def _rehearsal(self) -> Rehearsal:
        if self.rehearsal is None:
            raise ValueError(
                "rehearsal needs optimizer= and collate=; give both to FastAIMMerger, or use "
                "observe(), due(), open_merge() and close_merge() in a task without memory"
            )
        return self.rehearsal

    def _require_observable(self) -> None:
        if self.controller.is_open:
            raise RuntimeError("observe() between open_merge() and close_merge(): close it first")
        if self.controller.observed > self.controller.host.steps:
            raise RuntimeError(
                "observe() although a history loss waits for its update (under probe='before' "
                "step() observes ahead): call due() or step() first"
            )

    def _require_task(self, what: str, *, capturable: bool = False) -> None:
        if not self.position.in_task:
            raise RuntimeError(f"{what} outside a task: use `with merger.task(name, memory):`")
        if not capturable and kernels.is_capturing(self.controller.graph_device):
            raise RuntimeError(
                f"{what} while a CUDA graph is captured, where nothing runs; capture observe() "
                "alone and call the rest outside the graph"
            )

    def _emit(self, event: Event) -> None:
        for sink in self._sinks:
            sink(event)
