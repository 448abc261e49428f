"""The host's half of the controller: launches, counts, and waits where it must.

All state that decides anything lives in the state tensor beside the kernels. The host reads the
records that have arrived at every call and waits only where the run-ahead rule says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from aimmerge_fast import events, kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.distributed import CLOSE, OBSERVE, OPEN, Processes
from aimmerge_fast.events import Event
from aimmerge_fast.kernels.layout import RING_SIZE
from aimmerge_fast.reader import RecordReader
from aimmerge_fast.runahead import Verdict

#: Records: so many updates after the last of ``max_bad_probes`` losses, several ranks raise.
_LAG = 4


class MergeRejected(FloatingPointError):
    """A merge met non-finite entries; the parameters were put back before this was raised."""


class BadProbes(FloatingPointError):
    """``max_bad_probes`` history losses in a row were not finite."""


class Controller(RecordReader):
    """Drives one engine (a backend's, or a group of them) through the steps and merges of tasks.

    Args:
        config: the settings; also written into ``states``.
        engine: runs the ops.
        states: state tensors of the engine, the first one's ring is read.
        emit: called with every event, in order.
        processes: whose losses and partial results count; None: this one's alone.
    """

    def __init__(
        self,
        config: AIMConfig,
        engine: kernels.Engine,
        states: Sequence[torch.Tensor],
        emit: Callable[[Event], None],
        processes: Processes | None = None,
    ) -> None:
        super().__init__(config, states[0], emit, processes or Processes(None))
        self._engine = engine
        self._states = states
        self.observed = 0  # history losses launched in this task
        self.is_open = False
        self.captured = False  # a CUDA graph holds an observe(): replays launch, due() counts
        self._kept: list[torch.Tensor] = []  # the losses that graphs read
        devices = [state.device for state in states]
        self.graph_device = next((d for d in devices if d.type == "cuda"), devices[0])

    # ---- one task ------------------------------------------------------------------------

    def begin_task(self, name: str, number: int) -> None:
        """Start task ``number``: everything but the ring begins anew; blocks."""
        self.finish_records()
        for state in self._states:
            kernels.begin_task(state, number)
        self._forget_unread()  # an aborted task may have left a probe unread
        self.task = name
        self.host.begin_task(int(kernels.read_state(self._states[0])["state"]["S"]))
        self.observed = self.reported = self.bad_in_a_row = 0
        self.is_open, self.open_known = False, True
        self.rejected = self.bad_probes = None

    # ---- one step ------------------------------------------------------------------------

    def observe(self, loss: torch.Tensor, items: torch.Tensor | float | None = None) -> None:
        """Launch the judgement of one history loss: of several ranks the mean over all items.

        ``loss``: () the mean where ``items`` is None, else a sum of items of this rank.
        """
        self._make_room()
        device = self._states[0].device
        if self._processes.alone:
            if loss.device != device:  # a copy to the CPU must have arrived when the host reads it
                loss = loss.to(device, non_blocking=device.type != "cpu")
        else:
            self._exchange(OBSERVE)
            loss = self._processes.mean(loss, items, device)
        self._engine.observe_(loss)
        self.launched += 1
        self.observed += 1

    def _exchange(self, kind: int) -> None:
        """The next exchange between ranks stands behind the record launched next."""
        self._processes.at(self.launched + 1, kind, self.host.steps)

    def leave_ranks(self, why: str) -> None:
        """End an open merge on this rank alone; nothing is exchanged with the others any more."""
        self.is_open = False
        self._processes.leave(
            f"{why} inside a merge, at update {self.host.steps}: the parameters are theta_j, the "
            "other ranks are elsewhere; start all ranks again from the last checkpoint"
        )

    def capture(self, loss: torch.Tensor) -> None:
        """``observe`` into the CUDA graph that is being captured: nothing runs, nothing counts.

        Raises:
            RuntimeError: a loss on another device, or parameters on several.
        """
        devices = [state.device for state in self._states]
        if len(devices) > 1 or loss.device != devices[0] or not self._processes.alone:
            raise RuntimeError(
                "observe() in a CUDA graph takes one process and a loss on the parameters' one "
                f"device, got one on {loss.device} for {', '.join(map(str, devices))} in "
                f"{self._processes.world} ranks; call it outside the graph"
            )
        self._engine.observe_(loss)
        self._kept.append(loss)
        self.captured = True

    def due(self) -> bool:
        """Count one update and say whether to merge now; waits only where the rule demands it.

        With a captured ``observe`` and no other loss pending, one replay is counted as launched.

        Raises:
            BadProbes: ``max_bad_probes`` losses in a row were not finite.
            RuntimeError: the graph was replayed more often than this was called.
        """
        if self.captured and self.observed <= self.host.steps:
            self.launched += 1
            self.observed += 1
        self.host.count_step()
        self.drain()
        verdict = self.host.verdict()
        if verdict is Verdict.WAIT:
            self.mailbox.wait_for(self.launched)  # the newest record is this step's
            self.drain()
            verdict = self._decided()
        if self.captured:
            self._check_replays()
            self._make_room()  # for the next replay, which cannot ask
        if self._bad_probes_are_known():
            self.raise_bad_probes()
        return verdict is Verdict.CERTAIN

    def _bad_probes_are_known(self) -> bool:
        """Whether they may be raised now: on every rank at the same update.

        When a record arrives differs from rank to rank, so one counts when it is ``_LAG`` old.
        """
        if self._processes.alone:
            return True
        old = self.launched - _LAG
        self.mailbox.wait_until(max(0, old))
        self.drain()
        return self.bad_at <= old

    def _read_alike(self) -> None:
        """Read what has arrived; of several ranks all of it, or one would raise without the others.

        It is once or twice a merge that ranks wait for their devices.
        """
        if not self._processes.alone:
            self.finish_records()
        self.drain()

    def _check_replays(self) -> None:
        if self.mailbox.read == self.launched and self.mailbox.peek() is not None:
            raise RuntimeError(
                f"task {self.task!r}, step {self.host.steps}: the device judged more history "
                "losses than due() was called for; replay a graph that holds observe() once "
                "before each due(), and not inside a merge"
            )

    def _decided(self) -> Verdict:
        kind = self._last_kind
        merges = kind in events.MERGE_KINDS or kind == "measure"
        return Verdict.CERTAIN if merges else Verdict.IMPOSSIBLE

    # ---- one merge -----------------------------------------------------------------------

    def open(self) -> int:
        """Launch the first half of a merge; returns M, the memory steps to make before ``close``.

        Raises:
            MergeRejected: theta_j held non-finite entries and this is already known; live was put
                back on the anchor and the merge is closed.
        """
        self.merge_steps = self.host.merge_memory_steps()
        self._make_room()
        self._exchange(OPEN)
        self._engine.open_()
        self.launched += 1
        self.is_open, self.open_known = True, False
        self._read_alike()
        if self.rejected and self._config.on_reject == "raise":
            self.close()
        return self.merge_steps

    def learn_open(self) -> bool:
        """Wait for the open record, which names the next interval; False: open was rejected."""
        if not self.open_known:
            self.mailbox.wait_for(self.launched)  # the newest record is that of open
            self.drain()
        return self.rejected is None

    def close(self, not_finite: int = 0) -> None:
        """Launch the second half; waits for the open record.

        ``not_finite``: entries for which a fusion outside of the engine was undone.

        Raises:
            MergeRejected: either half met non-finite entries; the parameters were put back.
        """
        self.learn_open()
        self._make_room()
        self._exchange(CLOSE)
        self._engine.close_()
        self.launched += 1
        self.is_open = False
        if not_finite:
            self.finish_records()
        self._read_alike()
        if not_finite:
            self._note_rejection(self._merge, not_finite, "close")
        self.raise_rejection()

    def abandon(self) -> None:
        """End the open merge without its memory steps: live and anchor become theta_j. Blocks."""
        self.finish_records()
        self.drain()
        for state in self._states:
            kernels.abandon_merge(state)
        self.close()
        self._emit(events.Reject(self.task, self.reported, self._merge, "memory", 0))

    def raise_rejection(self) -> None:
        """Raise what the records said of a rejected merge, once nothing is open."""
        message, self.rejected = self.rejected, None
        if message and self._config.on_reject == "raise":
            raise MergeRejected(message)

    def raise_bad_probes(self) -> None:
        """Raise what the records said of non-finite history losses; never inside a merge."""
        message, self.bad_probes = self.bad_probes, None
        if message:
            if not self._processes.alone:  # which of these were read by now differs
                self.bad_until = self.launched
            raise BadProbes(message)

    def restart_interval(self, *, keep_progress: bool = False) -> None:
        """Forget a probe that was launched but not acted on; the interval begins anew.

        ``keep_progress`` keeps t and F for a merge at the task's end. Blocks; for task ends and
        roll-backs only.
        """
        self.finish_records()
        self.drain()
        self._forget_unread()  # what is left is the record of the forgotten probe
        self.observed = self.reported
        if not keep_progress:
            self.host.begin_interval(self.host.S)
        for state in self._states:
            kernels.restart_interval(
                state, steps=self.host.steps, t=self.host.t, F=self.host.known_F
            )
        self.is_open, self.open_known, self.rejected = False, True, None

    def _forget_unread(self) -> None:
        """Go on behind the newest record, replays that nobody counted included; blocks."""
        posted = int(kernels.read_state(self._states[0])["state"]["sequence"])
        self.launched = self.mailbox.read = posted

    def _make_room(self) -> None:
        if self.launched - self.mailbox.read >= RING_SIZE - 1:
            self.mailbox.wait_for(self.mailbox.read + 1)
            self.drain()
