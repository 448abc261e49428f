"""The host's half of the controller: launches, counts, reads records, turns them into events.

All state that decides anything lives in the state tensor beside the kernels. The host reads the
records that have arrived at every call and waits only where the run-ahead rule says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from aimmerge_fast import events, kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.events import Event
from aimmerge_fast.kernels.layout import RING_SIZE
from aimmerge_fast.mailbox import Mailbox, Record
from aimmerge_fast.runahead import RunAhead, Verdict

#: What a rejection at open and one at close leave behind.
_PUT_BACK = "the parameters are back on the anchor"
_KEPT = "live and anchor are the snapshot theta_j"


class MergeRejected(FloatingPointError):
    """A merge met non-finite entries; the parameters were put back before this was raised."""


class BadProbes(FloatingPointError):
    """``max_bad_probes`` history losses in a row were not finite."""


class Controller:
    """Drives one engine (a backend's, or a group of them) through the steps and merges of tasks.

    Args:
        config: the settings; also written into ``states``.
        engine: runs the ops.
        states: state tensors of the engine, the first one's ring is read.
        emit: called with every event, in order.
    """

    def __init__(
        self,
        config: AIMConfig,
        engine: kernels.Engine,
        states: Sequence[torch.Tensor],
        emit: Callable[[Event], None],
    ) -> None:
        self._config = config
        self._engine = engine
        self._states = states
        self._emit = emit
        self.mailbox = Mailbox(states[0])
        self.host = RunAhead(config)
        self.launched = 0  # records that the device was asked for
        self.observed = 0  # history losses launched in this task
        self.reported = 0  # steps of the task whose records were consumed
        self.bad_in_a_row = 0
        self.is_open = False
        self.open_known = True  # the open record of the current merge was consumed
        self.merge_steps = 0
        self.task = ""
        self.rejected: str | None = None  # what to raise once nothing is open
        self.bad_probes: str | None = None  # what to raise at the next decision
        self._last_kind = "collect"
        self._merge = 0  # number of the newest merge
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

    def observe(self, loss: torch.Tensor) -> None:
        """Launch the judgement of one history loss."""
        self._make_room()
        self._engine.observe_(loss)
        self.launched += 1
        self.observed += 1

    def capture(self, loss: torch.Tensor) -> None:
        """``observe`` into the CUDA graph that is being captured: nothing runs, nothing counts.

        Raises:
            RuntimeError: a loss on another device, or parameters on several.
        """
        devices = [state.device for state in self._states]
        if len(devices) > 1 or loss.device != devices[0]:
            raise RuntimeError(
                f"observe() in a CUDA graph takes a loss on the parameters' one device, got one on "
                f"{loss.device} for {', '.join(map(str, devices))}; call it outside the graph"
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
        self.raise_bad_probes()
        return verdict is Verdict.CERTAIN

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
        self._engine.open_()
        self.launched += 1
        self.is_open, self.open_known = True, False
        self.drain()
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
        self._engine.close_()
        self.launched += 1
        self.is_open = False
        if not_finite:
            self.finish_records()
        self.drain()
        if not_finite:
            self._note_rejection(self._merge, not_finite, "close", _KEPT)
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

    # ---- records -------------------------------------------------------------------------

    def drain(self) -> None:
        """Consume every record that has arrived and that the host has acted up to."""
        while (record := self.mailbox.peek()) is not None:
            if record.is_step and self.reported == self.host.steps:
                return  # a probe launched ahead of its update
            self._consume(record)

    def finish_records(self) -> None:
        """Wait until the device has posted everything that was launched."""
        self.mailbox.wait_until(self.launched)

    def _forget_unread(self) -> None:
        """Go on behind the newest record, replays that nobody counted included; blocks."""
        posted = int(kernels.read_state(self._states[0])["state"]["sequence"])
        self.launched = self.mailbox.read = posted

    def _make_room(self) -> None:
        if self.launched - self.mailbox.read >= RING_SIZE - 1:
            self.mailbox.wait_for(self.mailbox.read + 1)
            self.drain()

    def _consume(self, record: Record) -> None:
        self.mailbox.advance()
        if record.is_step:
            self._consume_step(record)
        elif record.is_open:
            self._consume_open(record)
        elif self._config.schedule != "monitor":
            self._emit(events.Close(self.task, self.reported, record.merge))
            if record.reject:
                self._note_rejection(record.merge, record.reject, "close", _KEPT)

    def _consume_step(self, record: Record) -> None:
        self.reported += 1
        self._last_kind = record.kind
        self.host.learn(record.t, record.F)
        threshold = None if math.isnan(record.threshold) else record.threshold
        head = (self.task, self.reported, record.t, record.S, record.F)
        self._emit(events.Probe(*head, record.loss, threshold, record.kind))
        if math.isfinite(record.loss):
            self.bad_in_a_row = 0
            return
        self.bad_in_a_row += 1
        self._emit(events.Skip(self.task, self.reported, record.t, record.loss, self.bad_in_a_row))
        if self.bad_in_a_row >= self._config.max_bad_probes:
            count, self.bad_in_a_row = self.bad_in_a_row, 0
            self.bad_probes = (
                f"task {self.task!r}, step {self.reported}: the last {count} history losses were "
                f"not finite (the newest is {record.loss}); look at the model's weights and at the "
                "memory's records, or raise max_bad_probes"
            )

    def _consume_open(self, record: Record) -> None:
        self.open_known = True
        self._merge = record.merge
        self.host.begin_interval(record.next_S)
        if self._config.policy == "released":
            self.host.memory_steps = record.memory_steps
        if record.kind == "measure":
            signal = record.l1 / record.t
            self._emit(events.Measure(self.task, self.reported, record.t, record.l1, signal))
        elif record.reject:
            self._note_rejection(record.merge, record.reject, "open", _PUT_BACK)
        else:
            self._emit(self._open_event(record))

    def _open_event(self, record: Record) -> events.Open:
        return events.Open(
            task=self.task,
            step=self.reported,
            merge=record.merge,
            kind=record.kind,
            t=record.t,
            S=record.S,
            F=record.F,
            l1=record.l1,
            learning_signal=self._learning_signal(record),
            alpha_new=record.loss,
            alpha_past=record.threshold,
            memory_steps=self.merge_steps,
            next_S=record.next_S,
            next_memory_steps=record.memory_steps,
            cold=record.cold,
            L_up=record.L_up,
            L_down=record.L_down,
            case=record.case,
        )

    def _learning_signal(self, record: Record) -> float:
        unplanned = self._config.schedule in ("at", "random", "single")
        planned = self._config.policy == "released" and not unplanned
        steps = record.S if planned and record.kind != "merge_final" else record.t
        return record.l1 / steps if steps else 0.0

    def _note_rejection(self, merge: int, entries: int, half: str, outcome: str) -> None:
        self._emit(events.Reject(self.task, self.reported, merge, half, entries))
        what = "theta_j" if half == "open" else "the fused result"
        self.rejected = (
            f"task {self.task!r}, step {self.reported}: the merge was rejected at {half}, "
            f"{entries} entries of {what} are not finite; {outcome}. Lower the learning rate "
            "or clip gradients, or set on_reject='continue' to go on from here"
        )
