"""What the device's records say: events, what the host must know next, and what is to be raised."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from aimmerge_fast import events
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.distributed import Processes
from aimmerge_fast.events import Event
from aimmerge_fast.mailbox import Mailbox, Record
from aimmerge_fast.runahead import RunAhead

#: What a rejection at open and one at close leave behind.
_PUT_BACK = "the parameters are back on the anchor"
_KEPT = "live and anchor are the snapshot theta_j"


class RecordReader:
    """Reads the records of one state tensor in order and tells the host's half what they say.

    Args:
        config: the settings.
        state: the state tensor whose ring is read.
        emit: called with every event, in order.
        processes: whose numbers lie behind the records.
    """

    def __init__(
        self,
        config: AIMConfig,
        state: torch.Tensor,
        emit: Callable[[Event], None],
        processes: Processes,
    ) -> None:
        self._config, self._emit, self._processes = config, emit, processes
        self.mailbox = Mailbox(state, timeout=processes.timeout)
        self.host = RunAhead(config)
        self.launched = 0  # records that the device was asked for
        self.reported = 0  # steps of the task whose records were consumed
        self.bad_in_a_row = 0
        self.open_known = True  # the open record of the current merge was consumed
        self.merge_steps = 0
        self.task = ""
        self.rejected: str | None = None  # what to raise once nothing is open
        self.bad_probes: str | None = None  # what to raise at the next decision
        self.bad_at = 0  # the record that said so
        self.bad_until = 0  # newest record that was under way when it was raised last
        self._last_kind = "collect"
        self._merge = 0  # number of the newest merge

    def drain(self) -> None:
        """Consume every record that has arrived and that the host has acted up to."""
        while (record := self.mailbox.peek()) is not None:
            if record.is_step and self.reported == self.host.steps:
                return  # a probe launched ahead of its update
            self._consume(record)

    def finish_records(self) -> None:
        """Wait until the device has posted everything that was launched."""
        self.mailbox.wait_until(self.launched)

    def _consume(self, record: Record) -> None:
        self.mailbox.advance()
        self._processes.examine(self.mailbox.read, record.is_open)
        if record.is_step:
            self._consume_step(record)
        elif record.is_open:
            self._consume_open(record)
        elif self._config.schedule != "monitor":
            self._emit(events.Close(self.task, self.reported, record.merge))
            if record.reject:
                self._note_rejection(record.merge, record.reject, "close")

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
            if self.bad_probes is None and self.mailbox.read > self.bad_until:
                self._note_bad_probes(count, record.loss)

    def _note_bad_probes(self, count: int, loss: float) -> None:
        self.bad_at = self.mailbox.read
        self.bad_probes = (
            f"task {self.task!r}, step {self.reported}: the last {count} history losses were not "
            f"finite (the newest is {loss}{self._bad_ranks()}); look at the model's weights and at "
            "the memory's records, or raise max_bad_probes"
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
            self._note_rejection(record.merge, record.reject, "open")
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

    def _bad_ranks(self) -> str:
        """Whose numbers behind the record just read were not finite."""
        return self._processes.bad_ranks(self.mailbox.read)

    def _note_rejection(self, merge: int, entries: int, half: str) -> None:
        self._emit(events.Reject(self.task, self.reported, merge, half, entries))
        what = "theta_j" if half == "open" else "the fused result"
        outcome = _PUT_BACK if half == "open" else _KEPT
        self.rejected = (
            f"task {self.task!r}, step {self.reported}: the merge was rejected at {half}, "
            f"{entries} entries of {what} are not finite{self._bad_ranks()}; {outcome}. Lower the "
            "learning rate or clip gradients, or set on_reject='continue' to go on from here"
        )
