"""The controller of AIMMerging in plain Python: when to merge, with what weights, how often.

It decides from two numbers. The *forgetting signal* is the loss on rehearsal records, one per
optimiser update; a loss above the interval's threshold is an activation. The *learning signal* is
the mean L1 change of the parameters per update, one per merge. ``PaperController`` follows
Eq. 1-8 of arXiv 2509.17348, ``ReleasedController`` the authors' code. Every formula is evaluated in
float64 in the order in which it is printed, so that a fast controller can agree to the last bit.
"""

from __future__ import annotations

import itertools
import math
from collections import deque

from aimmerge_fast.config import AIMConfig
from aimmerge_fast.reference.schedules import Merge, ReferenceController


class PaperController(ReferenceController):
    """Policy ``paper``: Eq. 1-8 as printed, with the ablations -LS and -FS."""

    def __init__(self, config: AIMConfig, *, task: int = 0) -> None:
        super().__init__(config, task=task)
        self._history: deque[float] = deque(maxlen=config.window + 1)  # H

    def _judge(self, loss: float) -> str:
        return super()._judge(loss) if self.config.use_forgetting_signal else "monitor"

    def _last_sample(self) -> int:
        return max(1, 2 * self.S // 3)

    def _activates(self, loss: float, threshold: float) -> bool:
        return loss > threshold

    def _decide(self, code: str) -> str | None:
        if not self.config.use_forgetting_signal:  # -FS: by the interval alone
            return "merge_due" if self.t >= self.S else None
        if not self.config.use_learning_signal:  # -LS: by the first activation alone
            return self._timing() if self.F >= 1 else None
        activations, interval = self.F, self.S
        if activations >= self.config.f_max and self.t < interval:
            return "merge_early"
        if self.t >= interval and activations >= 1:
            return self._timing()
        return "merge_forced" if self.t >= 2 * interval else None

    def _memory_steps(self) -> int:
        return max(1, self.t // 2)

    def _divisor(self, kind: str) -> int:
        return self.t

    def _weigh(self, signal: float) -> Merge:
        config = self.config
        previous = self._history[-1] if self._history else None
        self._history.append(signal)
        pairs = list(itertools.pairwise(self._history))
        up = sum(later > earlier for earlier, later in pairs)  # L_up; a tie is neither
        down = sum(later < earlier for earlier, later in pairs)  # L_down
        cold = self.merges <= config.window
        case = 0 if cold else 1 if up > down else 3 if down > up else 2
        if config.schedule != "adaptive":
            next_interval = self._scheduled_interval(signal, previous)
        else:
            next_interval = self._adapted_interval(case)
        alpha1, alpha2 = self._alphas(config.p_new_cold if cold else up / config.window)
        return {
            "cold": cold,
            "L_up": up,
            "L_down": down,
            "case": case,
            "alpha1": alpha1,
            "alpha2": alpha2,
            "next_S": next_interval,
        }

    def _alphas(self, p_new: float) -> tuple[float, float]:
        """Eq. 8: what is learned now against what was forgotten."""
        config = self.config
        if not (config.use_learning_signal and config.use_forgetting_signal):
            return 0.5, 0.5
        p_past = self.F / config.f_max
        if p_new + p_past == 0:
            alpha1 = alpha2 = 0.5
        else:
            alpha1 = p_new / (p_new + p_past)
            alpha2 = p_past / (p_new + p_past)
        if config.alpha_floor > 0:
            alpha1 = min(max(alpha1, config.alpha_floor), 1.0 - config.alpha_floor)
            alpha2 = 1.0 - alpha1
        return alpha1, alpha2

    def _adapted_interval(self, case: int) -> int:
        """Eq. 4: rapid learning (case 1) shortens the interval, slow learning (3) lengthens it."""
        config, interval = self.config, self.S
        if not config.use_learning_signal:
            return interval
        large = interval > config.s_switch
        if case == 1:
            shrink = config.gamma_minus_large if large else config.gamma_minus_small
            return max(config.s_min, int(interval / shrink))
        if case == 3:
            grow = config.gamma_plus_large if large else config.gamma_plus_small
            return int(min(float(config.s_max), interval * grow))  # clipped first: may overflow
        return interval


class ReleasedController(ReferenceController):
    """Policy ``released``: the authors' code, statement by statement."""

    def __init__(self, config: AIMConfig, *, task: int = 0) -> None:
        super().__init__(config, task=task)
        self._previous: float | None = None  # the last learning signal
        self._planned_memory_steps = config.outer_init  # M

    def _last_sample(self) -> int:
        return 2 * self.S // 3 + 1

    def _activates(self, loss: float, threshold: float) -> bool:
        return loss >= threshold

    def _decide(self, code: str) -> str | None:
        # The code's "else if": a judged loss that does not activate at 2S counts as an activation.
        judged = self.t > self._last_sample()
        forced = judged and code != "activate" and self.t >= 2 * self.S
        if forced:
            self.F += 1
        activations = self.F
        if activations >= self.config.f_max or (self.t >= self.S and activations >= 1):
            return "merge_forced" if forced else self._timing()
        return None

    def _memory_steps(self) -> int:
        return self._planned_memory_steps

    def _divisor(self, kind: str) -> int:
        planned = self.config.schedule in ("adaptive", "fixed", "rapid+", "slow+")
        return self.S if planned and kind != "merge_final" else self.t

    def _weigh(self, signal: float) -> Merge:
        config = self.config
        previous = self._previous
        self._previous = signal
        cold = self.merges - 1 <= config.cold_start  # signals before this one
        alpha1, alpha2 = self._alphas()
        factor: float | None = None
        if config.schedule != "adaptive":
            next_interval = self._scheduled_interval(signal, previous)
        elif cold or previous is None or not config.adaptive:
            next_interval = self.S
        else:
            factor = self._change_factor(signal, previous)
            next_interval = self._adapted_interval(factor, rising=signal >= previous)
        self._planned_memory_steps = max(
            1, int(next_interval * (config.outer_init / config.s_init))
        )
        return {
            "cold": cold,
            "change_factor": factor,
            "alpha1": alpha1,
            "alpha2": alpha2,
            "next_S": next_interval,
            "next_memory_steps": self._planned_memory_steps,
        }

    def _alphas(self) -> tuple[float, float]:
        """The table of four cells that the code has in place of Eq. 8."""
        interval, activations = self.S, self.F
        if interval <= self.config.s_weight:
            return (0.5, 0.5) if activations > 1 else (0.6, 0.4)
        return (0.4, 0.6) if activations > 1 else (0.5, 0.5)

    def _change_factor(self, signal: float, previous: float) -> float:
        """c, with the guards for zeros: 0/0 is no change, x/0 the largest change there is."""
        interval = self.S
        if signal >= previous:
            factor = _divide(signal, previous)
        else:
            extra = 1.0 if interval < self.config.s_switch else 0.5
            factor = _divide(previous, signal) + extra
        return 1.0 if math.isnan(factor) else factor

    def _adapted_interval(self, factor: float, *, rising: bool) -> int:
        config = self.config
        if not rising:
            return int(min(float(config.s_max), self.S * factor))  # clipped first: it may be inf
        shrunk = max(config.s_min, int(self.S / factor))
        return shrunk // 2 if shrunk >= config.s_switch else shrunk


def reference_controller(config: AIMConfig, *, task: int = 0) -> ReferenceController:
    """The controller of ``config.policy``; ``task`` numbers the tasks for schedule ``random``."""
    kind = PaperController if config.policy == "paper" else ReleasedController
    return kind(config, task=task)


def _divide(numerator: float, denominator: float) -> float:
    """IEEE division of non-negative numbers, which Python refuses at zero."""
    if denominator == 0.0:
        return math.nan if numerator == 0.0 else math.inf
    return numerator / denominator
