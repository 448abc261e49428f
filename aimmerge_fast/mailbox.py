"""The host's end of the record ring: reads what has arrived, waits only when told to.

The device posts 64-byte records into a ring in host memory, sequence number last. Reading costs no
synchronisation. A wait spins, bounded by a timeout, so that a dead device is an error, not a hang.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from aimmerge_fast import kernels
from aimmerge_fast.events import CODES
from aimmerge_fast.kernels.layout import CLOSE, OPEN, RING_SIZE

_CHECK_AFTER = 1e-3  # seconds of a wait between two looks at the device
_SPIN_FOR = 1e-3  # seconds of a wait that are worth a core
_IDLE_FOR = 2.0  # seconds without work after which a record cannot be under way any more


class Record(NamedTuple):
    """One decoded record; for an open record ``loss`` and ``threshold`` carry alpha."""

    loss: float
    threshold: float
    l1: float
    t: int
    S: int
    F: int
    code: int
    merge: int
    memory_steps: int
    next_S: int
    reject: int

    @property
    def is_step(self) -> bool:
        return self.code < OPEN

    @property
    def is_open(self) -> bool:
        return self.code & 0xFF == OPEN

    @property
    def is_close(self) -> bool:
        return self.code & 0xFF == CLOSE

    @property
    def kind(self) -> str:
        """Code name of a step, or the kind of the merge of an open record."""
        return CODES[self.code >> 8 & 0xF if self.is_open else self.code]

    @property
    def case(self) -> int:
        return self.code >> 12 & 0x7

    @property
    def cold(self) -> bool:
        return bool(self.code >> 15 & 1)

    @property
    def L_up(self) -> int:
        return self.code >> 16 & 0xFF

    @property
    def L_down(self) -> int:
        return self.code >> 24 & 0xFF


class Mailbox:
    """Records of one state tensor in order.

    Args:
        state: the state tensor whose ring is read.
        check_device: called in a wait that lasts: whether the device has nothing left to do; raises
            when it died. By default that of the state's device.
        timeout: seconds after which a wait raises ``TimeoutError``.
    """

    def __init__(
        self,
        state: torch.Tensor,
        *,
        check_device: Callable[[], bool] | None = None,
        timeout: float = 600.0,
    ) -> None:
        self._ring = kernels.ring(state)
        self._numbers = self._ring["sequence"]  # looked at several times a step
        self._check_device = check_device or _device_check(state.device)
        self._timeout = timeout
        self.read = 0  # records consumed
        self.waits = 0  # times that the host needed a record which had not arrived

    def peek(self) -> Record | None:
        """The next record when it has arrived, without consuming it."""
        place = self.read % RING_SIZE
        number = int(self._numbers[place])
        if number > self.read + 1:
            raise RuntimeError(
                f"records {self.read + 1} to {number - RING_SIZE} were overwritten before they were"
                " read: more launches were in flight than the ring holds"
            )
        if number != self.read + 1:
            return None
        return Record(*self._ring[place].item()[1:])

    def advance(self) -> None:
        """Consume the record that ``peek`` returned."""
        self.read += 1

    def wait_for(self, number: int) -> None:
        """``wait_until``, counted as one wait when the record was not there."""
        self.waits += not self._arrived(number)
        self.wait_until(number)

    def wait_until(self, number: int) -> None:
        """Spin until record ``number`` has been posted; raises ``TimeoutError`` in the end."""
        began = busy = time.monotonic()
        next_check = began + _CHECK_AFTER
        while not self._arrived(number):
            now = time.monotonic()
            if now > next_check:
                if not self._check_device():
                    busy = now
                next_check = now + _CHECK_AFTER
            if now > busy + _IDLE_FOR:
                raise RuntimeError(
                    f"the device has had nothing to do for {_IDLE_FOR:g} s and record {number} is "
                    "not there: replay the graph that holds observe() before each due(), and make "
                    "all calls on one stream"
                )
            if now > began + self._timeout:
                raise TimeoutError(f"no record from the device within {self._timeout:g} s")
            give_way(now - began)

    def _arrived(self, number: int) -> bool:
        return number == 0 or int(self._numbers[(number - 1) % RING_SIZE]) >= number


def give_way(waited: float, pause: float = 0.0) -> None:
    """Let other threads run, in a loop that has waited so many seconds; ``pause`` once it lasts.

    A sleep of nothing takes 50 us and more on Linux (its timers' slack), so a decision would be
    late by that. A look at no file gives the interpreter lock away too, and returns at once.
    """
    if waited < _SPIN_FOR and os.name == "posix":  # Windows refuses to look at nothing
        select.select((), (), (), 0)
    else:
        time.sleep(pause)


def _device_check(device: torch.device) -> Callable[[], bool]:
    """What says whether ``device`` is idle; raises when it died or when a graph is captured."""
    if device.type != "cuda":
        return lambda: False

    def check() -> bool:
        if kernels.is_capturing(device):  # and a query would spoil the capture
            raise RuntimeError(
                "a decision is awaited while a CUDA graph is captured, where nothing runs; capture "
                "observe() alone and call due() outside the graph"
            )
        try:
            return bool(torch.cuda.current_stream(device).query())
        except RuntimeError as error:
            raise RuntimeError(f"{device} failed while a decision was awaited: {error}") from error

    return check
