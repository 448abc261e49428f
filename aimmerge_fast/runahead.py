"""The run-ahead rule: when the host knows a decision that the device has not yet reported.

The device judges every history loss. The host counts steps and keeps the newest record (t_s, F_s)
of the interval; from these it can often tell that a merge is impossible, or certain, at step t:

    F_hi       = F_s + max(0, t - max(t_s, n))       every unread, judged step may have activated
    impossible = not (F_hi >= F_max  or  (t >= S and F_hi >= 1)  or  t >= 2S)
    certain    = t >= 2S  or  (t >= S and F_s >= 1)

Only otherwise must it wait for record t. This needs three things of the device: M is known at the
decision, a non-finite loss advances t, and an update skipped by a GradScaler counts as a step.
"""

from __future__ import annotations

from enum import Enum

from aimmerge_fast.config import AIMConfig


class Verdict(Enum):
    """What the host can say about a merge at this step."""

    IMPOSSIBLE = "impossible"
    CERTAIN = "certain"
    WAIT = "wait"


class RunAhead:
    """The host's count of an interval.

    Attributes:
        S: interval in force. t: steps since the merge. steps: steps of the task.
        known_t, known_F: the newest record read in this interval, (0, 0) after a merge.
        memory_steps: M of the coming merge under policy ``released``.
    """

    def __init__(self, config: AIMConfig) -> None:
        self._config = config
        self.begin_task(config.s_init)

    def begin_task(self, first_interval: int) -> None:
        self.steps = 0
        self.memory_steps = self._config.outer_init or 0
        self.begin_interval(first_interval)

    def begin_interval(self, S: int) -> None:
        self.S = S
        self.t = self.known_t = self.known_F = 0

    def count_step(self) -> None:
        self.t += 1
        self.steps += 1

    def learn(self, t: int, F: int) -> None:
        """A record of this interval was read."""
        self.known_t, self.known_F = t, F

    def merge_memory_steps(self) -> int:
        """M of a merge at this step; needs no record."""
        if self._config.schedule == "monitor":
            return 0
        return self.memory_steps if self._config.policy == "released" else max(1, self.t // 2)

    def verdict(self) -> Verdict:
        config = self._config
        if config.schedule == "adaptive":
            return self._adaptive()
        if config.schedule == "single":
            return Verdict.IMPOSSIBLE
        if config.schedule == "at":
            return _known(self.steps in config.merge_at)
        return _known(self.t >= self.S)

    def _adaptive(self) -> Verdict:
        config, t, S = self._config, self.t, self.S
        paper = config.policy == "paper"
        if paper and not config.use_forgetting_signal:
            return _known(t >= S)
        judged_from = max(self.known_t, _last_sample(paper, S))
        most = self.known_F + max(0, t - judged_from)
        if paper and not config.use_learning_signal:
            return Verdict.WAIT if most >= 1 else Verdict.IMPOSSIBLE
        if t >= 2 * S or (t >= S and self.known_F >= 1):
            return Verdict.CERTAIN
        if most >= config.f_max or (t >= S and most >= 1):
            return Verdict.WAIT
        return Verdict.IMPOSSIBLE


def _last_sample(paper: bool, S: int) -> int:
    two_thirds = 2 * S // 3
    return max(1, two_thirds) if paper else two_thirds + 1


def _known(merges: bool) -> Verdict:
    return Verdict.CERTAIN if merges else Verdict.IMPOSSIBLE
