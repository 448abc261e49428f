"""What the two reference controllers share: one interval's signals, and the calendar schedules.

Plain Python, one attribute per symbol of the paper. ``reference.controller`` has the two policies.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

from aimmerge_fast.config import AIMConfig

#: One merge: step, S, S_actual, F, delta_l1, lambda, cold, alpha1, alpha2, memory_steps, next_S and
#: kind; policy paper adds L_up, L_down and case (0: cold), released change_factor and
#: next_memory_steps.
Merge = dict[str, Any]

_MASK = (1 << 64) - 1


class ReferenceController(ABC):
    """What both policies share: one interval's signals, and the schedules that do not adapt.

    ``observe(loss)`` once per optimiser update, then ``merge(delta_l1)`` (or ``reject()``) if its
    code names a merge or a measurement. Calling ``merge`` at another time is a ``merge_final``.

    Attributes:
        step: optimiser updates of the task so far (g).
        S: planned interval, in updates.
        t: updates since the last merge.
        F: activations in this interval.
        threshold: delta of this interval; None until computed.
        merges: merges of the task so far (b).
    """

    def __init__(self, config: AIMConfig, *, task: int = 0) -> None:
        self.config = config
        self._task = task
        self.step = 0
        self.merges = 0
        self.t = 0
        self.F = 0
        self.threshold: float | None = None
        self._sum = 0.0
        self._count = 0
        self._due: str | None = None
        self.S = self._drawn_interval() if config.schedule == "random" else config.s_init

    def observe(self, loss: float) -> str:
        """Count one update, judge its history loss, decide; returns the code of this step."""
        self.step += 1
        self.t += 1
        code = self._judge(loss)
        self._due = self._decide(code) if self.config.schedule == "adaptive" else self._scheduled()
        return self._due or code

    def merge(self, delta_l1: float) -> Merge:
        """Weigh the merge of this moment and start the next interval.

        ``delta_l1`` is sum |theta_j - anchor| over all trainable entries.
        """
        kind = self._due or "merge_final"
        steps = self._divisor(kind)
        self.merges += 1
        record: Merge = {
            "step": self.step,
            "S": self.S,
            "S_actual": self.t,
            "F": self.F,
            "delta_l1": delta_l1,
            "lambda": delta_l1 / steps if steps > 0 else 0.0,
            "memory_steps": self.memory_steps,
            "kind": kind,
        }
        record |= self._weigh(record["lambda"])
        if self.config.alpha_new is not None:
            record |= {"alpha1": self.config.alpha_new, "alpha2": 1.0 - self.config.alpha_new}
        elif self.config.schedule != "adaptive":
            record |= {"alpha1": 0.5, "alpha2": 0.5}
        if self.config.schedule == "monitor":  # nothing is merged: theta_j stays as it is
            record |= {"alpha1": 1.0, "alpha2": 0.0}
        self.S = record["next_S"]
        self._restart()
        return record

    def reject(self) -> None:
        """Theta_j was not finite: the interval restarts, as if this merge had never been due."""
        self._restart()

    @property
    def memory_steps(self) -> int:
        """Memory steps M of a merge at this moment."""
        return 0 if self.config.schedule == "monitor" else self._memory_steps()

    def _judge(self, loss: float) -> str:
        """Eq. 1-2: sample the loss until the threshold stands, count activations afterwards.

        A loss that is not finite is no sample and never activates.
        """
        finite = math.isfinite(loss)
        last_sample = self._last_sample()
        if self.t <= last_sample:
            if finite:
                self._sum += loss
                self._count += 1
            if self.t < last_sample or self._count == 0:
                return "collect"
            self.threshold = self.config.gamma_forget * (self._sum / self._count)
            return "threshold"
        if self.threshold is not None and finite and self._activates(loss, self.threshold):
            self.F += 1
            return "activate"
        return "monitor"

    def _scheduled(self) -> str | None:
        """Merge by the calendar: the schedules that look at no signal."""
        config = self.config
        if config.schedule == "single":
            return None
        if config.schedule == "at":
            return "merge_due" if self.step in config.merge_at else None
        if self.t < self.S:
            return None
        return "measure" if config.schedule == "monitor" else "merge_due"

    def _scheduled_interval(self, signal: float, previous: float | None) -> int:
        """S after a merge that does not adapt; ``previous`` is None at the first merge."""
        config = self.config
        if config.schedule == "random":
            return self._drawn_interval()
        if previous is not None and (
            (config.schedule == "rapid+" and signal > previous)
            or (config.schedule == "slow+" and signal < previous)
        ):
            return max(config.s_min, config.s_init // 2)
        return config.s_init

    def _drawn_interval(self) -> int:
        """Schedule ``random``: uniform in [s_min, s_hi], a pure function of seed, task and b."""
        config = self.config
        if config.s_hi is None:
            raise ValueError("schedule 'random' needs s_hi, the longest interval to draw")
        draw = splitmix64(config.seed, self._task, self.merges)
        return config.s_min + draw % (config.s_hi - config.s_min + 1)

    def _restart(self) -> None:
        self.t = 0
        self.F = 0
        self.threshold = None
        self._sum = 0.0
        self._count = 0
        self._due = None

    def _timing(self) -> str:
        """Kind of a merge that an activation caused."""
        if self.t < self.S:
            return "merge_early"
        return "merge_due" if self.t == self.S else "merge_deferred"

    @abstractmethod
    def _last_sample(self) -> int:
        """The t that computes the threshold."""

    @abstractmethod
    def _activates(self, loss: float, threshold: float) -> bool: ...

    @abstractmethod
    def _decide(self, code: str) -> str | None:
        """Kind of the merge that is due now under schedule ``adaptive``, or None."""

    @abstractmethod
    def _memory_steps(self) -> int: ...

    @abstractmethod
    def _divisor(self, kind: str) -> int:
        """Updates that the learning signal is a mean over."""

    @abstractmethod
    def _weigh(self, signal: float) -> Merge:
        """The rest of the record: cold, alphas, next_S and the policy's own fields."""


def splitmix64(seed: int, task: int, merges: int) -> int:
    """64 random bits that depend on nothing but the three numbers."""
    x = (seed + task * 0xD1B54A32D192ED03 + (merges + 1) * 0x9E3779B97F4A7C15) & _MASK
    x ^= x >> 30
    x = (x * 0xBF58476D1CE4E5B9) & _MASK
    x ^= x >> 27
    x = (x * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
