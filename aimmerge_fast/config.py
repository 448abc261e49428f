"""Settings of a run: the names, defaults and ranges of everything the controller reads.

The field names are the paper's (arXiv 2509.17348, Tables 10 and 11). Two policies share one class:
``paper`` (Eq. 1-8 as printed) and ``released`` (what the authors' code does). A field that only one
policy reads is ``None`` under the other, and setting it there is an error.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

POLICIES = ("paper", "released")
SCHEDULES = ("adaptive", "monitor", "fixed", "rapid+", "slow+", "random", "at", "single")
PROBES = ("before", "after", "in_batch")
MEMORY_OPTIMIZERS = ("shared", "separate", "snapshot")
ON_REJECT = ("raise", "continue")

#: Longest window of learning-signal comparisons; the device keeps ``MAX_WINDOW + 1`` values.
MAX_WINDOW = 32
#: Most steps that ``merge_at`` can name; they live in the device's configuration block.
MAX_MERGE_AT = 64
#: ``monitor`` reports the change of the parameters over this many steps (the paper's Fig. 2).
MONITOR_INTERVAL = 10
_S_LIMIT = 1 << 24  # 2 * S must stay exact in int32 and float32 alike

_POLICY_DEFAULTS: dict[str, dict[str, Any]] = {
    "paper": {
        "window": 3,
        "gamma_plus_small": 2.0,
        "gamma_minus_small": 1.5,
        "gamma_plus_large": 1.5,
        "gamma_minus_large": 2.0,
        "p_new_cold": 1.0,
        "alpha_floor": 0.0,
        "use_learning_signal": True,
        "use_forgetting_signal": True,
    },
    "released": {
        "accumulation": 1,
        "outer_init": None,
        "cold_start": 3,
        "s_weight": 70,
        "adaptive": True,
    },
}
_UNSET: Any = None


@dataclasses.dataclass(frozen=True)
class AIMConfig:
    """Settings of AIMMerging; invalid values raise ``ValueError`` naming field, value and range.

    In brackets the default, then the range. Steps are optimiser updates.

    Both policies:
        policy: [paper; paper, released] Eq. 1-8, or the authors' code statement by statement.
        schedule: [adaptive] the method. ``monitor`` measures and never merges; ``fixed``,
            ``rapid+``, ``slow+``, ``random``, ``at`` and ``single`` are controls with
            alpha = (0.5, 0.5): every s_init steps; every s_init // 2 steps while the learning
            signal rises (rapid+) or falls (slow+); random intervals; given steps; once at the end.
        s_init: [8, under monitor 10; s_min to s_max] first merge interval S.
        s_min, s_max: [2, 128; 1 to 2^24] limits of S (Eq. 4).
        gamma_forget: [2.0; > 0] threshold delta = gamma_forget * mean(history loss).
        f_max: [3; >= 1] activations F that merge before S is reached; P_past = F / f_max.
        s_switch: [64; >= 2] boundary of the interval rule (paper: S > 64; released: S >= 64).
        alpha_new: [None; 0 to 1] constant weight of the new task vector, alpha_past = 1 -
            alpha_new (the +MGM ablation); None lets the policy or the schedule choose.
        s_hi: [None; >= s_min] ``random`` only: intervals are uniform in [s_min, s_hi], so their
            mean is (s_min + s_hi) / 2: choose it to match another run's number of merges.
        merge_at: [(); at most 64, increasing] ``at`` only: steps of the task at which to merge.
        probe: [before, released after] which parameters the history loss is taken on.
            ``before``: those that the coming update's forward sees; ``after``: those after the
            update; ``in_batch``: the caller hands the loss over.
        probe_dropout: [True] keep dropout on in the probe, as the paper's in-batch loss implies.
        history_batch, memory_batch: [8, released 32; >= 1] records per probe and memory step.
        memory_optimizer: [shared] the loop's optimiser and its moments; ``separate``: one of its
            own; ``snapshot``: the loop's, its moments put back after each merge.
        max_grad_norm: [None; > 0] clip norm of the memory steps; None does not clip.
        max_bad_probes: [10; >= 1] non-finite history losses in a row that raise.
        on_reject: [raise; raise, continue] after a merge with non-finite entries was undone.
        merge_at_task_end: [False] merge the unfinished interval of a task with a memory at its end.
        seed: [42; 0 to 2^63 - 1] of the probes', the memory steps' and ``random``'s streams.

    Policy ``paper`` only:
        window: [3; 1 to 32] L_w, comparisons of the learning signal in Eq. 4 and Eq. 8.
        gamma_plus_small, gamma_minus_small: [2.0, 1.5; >= 1] growth and shrink while S <= s_switch.
        gamma_plus_large, gamma_minus_large: [1.5, 2.0; >= 1] the same for S > s_switch.
        p_new_cold: [1.0; 0 to 1] P_new during the cold start (merges 1 to L_w).
        alpha_floor: [0.0; 0 to 0.5] clamp alpha_new to [f, 1 - f]; 0 is the literal Eq. 8.
            ``adaptive`` only.
        use_learning_signal, use_forgetting_signal: [True] false for the ablations -LS and -FS.
            ``adaptive`` only, not both.

    Policy ``released`` only:
        accumulation: [1; >= 1] micro-batches per update; memory losses are divided by it, as the
            authors' code does.
        outer_init: [s_init; >= 1] memory steps M of the first merge; then int(S * (outer_init /
            s_init)).
        cold_start: [3; >= 0] the interval is first adjusted at merge cold_start + 2.
        s_weight: [70; >= 1] S above which the fusion weights lean to the past.
        adaptive: [True] false keeps S.
    """

    policy: str = "paper"
    schedule: str = "adaptive"
    s_init: int = _UNSET
    s_min: int = 2
    s_max: int = 128
    gamma_forget: float = 2.0
    f_max: int = 3
    s_switch: int = 64
    alpha_new: float | None = None
    s_hi: int | None = None
    merge_at: tuple[int, ...] = ()
    probe: str = _UNSET
    probe_dropout: bool = True
    history_batch: int = _UNSET
    memory_batch: int = _UNSET
    memory_optimizer: str = "shared"
    max_grad_norm: float | None = None
    max_bad_probes: int = 10
    on_reject: str = "raise"
    merge_at_task_end: bool = False
    seed: int = 42
    # policy paper
    window: int = _UNSET
    gamma_plus_small: float = _UNSET
    gamma_minus_small: float = _UNSET
    gamma_plus_large: float = _UNSET
    gamma_minus_large: float = _UNSET
    p_new_cold: float = _UNSET
    alpha_floor: float = _UNSET
    use_learning_signal: bool = _UNSET
    use_forgetting_signal: bool = _UNSET
    # policy released
    accumulation: int = _UNSET
    outer_init: int = _UNSET
    cold_start: int = _UNSET
    s_weight: int = _UNSET
    adaptive: bool = _UNSET

    def __post_init__(self) -> None:
        _one_of("policy", self.policy, POLICIES)
        _one_of("schedule", self.schedule, SCHEDULES)
        self._resolve_defaults()
        self._check_ranges()
        self._check_contradictions()

    def to_dict(self) -> dict[str, Any]:
        """The fields that this policy reads, JSON-able; ``from_dict`` gives the config back."""
        fields = dataclasses.asdict(self)
        fields["merge_at"] = list(self.merge_at)
        foreign = _foreign_fields(self.policy)
        return {name: value for name, value in fields.items() if name not in foreign}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> AIMConfig:
        """Build a config from a mapping; an unknown key raises ``ValueError`` listing the known."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise ValueError(
                f"unknown config field {unknown[0]!r}; the fields are {', '.join(sorted(known))}"
            )
        return cls(**fields)

    def _resolve_defaults(self) -> None:
        for name in sorted(_foreign_fields(self.policy)):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: policy {self.policy!r} does not read it; "
                    f"leave it out or choose policy {_other(self.policy)!r}"
                )
        released = self.policy == "released"
        defaults = dict(_POLICY_DEFAULTS[self.policy])
        defaults["s_init"] = MONITOR_INTERVAL if self.schedule == "monitor" else 8
        defaults["probe"] = "after" if released else "before"
        defaults["history_batch"] = defaults["memory_batch"] = 32 if released else 8
        for name, default in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        if released and self.outer_init is None:
            object.__setattr__(self, "outer_init", self.s_init)
        merge_at = self.merge_at
        if isinstance(merge_at, list):
            object.__setattr__(self, "merge_at", tuple(merge_at))

    def _check_ranges(self) -> None:
        for name in ("s_min", "s_max", "s_init", "f_max"):
            _integer(name, getattr(self, name), 1, _S_LIMIT)
        _integer("s_switch", self.s_switch, 2, _S_LIMIT)  # released halves S from here on
        for name in ("history_batch", "memory_batch", "max_bad_probes"):
            _integer(name, getattr(self, name), 1, 1 << 30)
        _integer("seed", self.seed, 0, (1 << 63) - 1)
        _number("gamma_forget", self.gamma_forget, 0.0, math.inf, open_low=True)
        for name, low, high in (("alpha_new", 0.0, 1.0), ("max_grad_norm", 0.0, math.inf)):
            if getattr(self, name) is not None:
                _number(name, getattr(self, name), low, high, open_low=name == "max_grad_norm")
        for name in ("probe_dropout", "merge_at_task_end"):
            _boolean(name, getattr(self, name))
        _one_of("probe", self.probe, PROBES)
        _one_of("memory_optimizer", self.memory_optimizer, MEMORY_OPTIMIZERS)
        _one_of("on_reject", self.on_reject, ON_REJECT)
        if self.policy == "paper":
            self._check_paper_ranges()
        else:
            _integer("accumulation", self.accumulation, 1, 1 << 30)
            _integer("outer_init", self.outer_init, 1, _S_LIMIT)
            _integer("cold_start", self.cold_start, 0, 1 << 30)
            _integer("s_weight", self.s_weight, 1, _S_LIMIT)
            _boolean("adaptive", self.adaptive)

    def _check_paper_ranges(self) -> None:
        _integer("window", self.window, 1, MAX_WINDOW)
        for name in (f"gamma_{sign}_{size}" for sign in ("plus", "minus") for size in _SIZES):
            _number(name, getattr(self, name), 1.0, math.inf)
        _number("p_new_cold", self.p_new_cold, 0.0, 1.0)
        _number("alpha_floor", self.alpha_floor, 0.0, 0.5)
        _boolean("use_learning_signal", self.use_learning_signal)
        _boolean("use_forgetting_signal", self.use_forgetting_signal)

    def _check_contradictions(self) -> None:
        if self.s_min > self.s_max:
            raise ValueError(f"s_min={self.s_min} exceeds s_max={self.s_max}")
        if not self.s_min <= self.s_init <= self.s_max:
            raise ValueError(
                f"s_init={self.s_init} lies outside [s_min, s_max] = [{self.s_min}, {self.s_max}]"
            )
        self._check_schedule_fields()
        if self.policy == "paper":
            self._check_ablations()

    def _check_schedule_fields(self) -> None:
        if (self.schedule == "random") != (self.s_hi is not None):
            raise ValueError(
                f"schedule={self.schedule!r} with s_hi={self.s_hi!r}: 's_hi' belongs to "
                "schedule 'random', which needs it"
            )
        if self.s_hi is not None:
            _integer("s_hi", self.s_hi, self.s_min, _S_LIMIT)
        if (self.schedule == "at") != bool(self.merge_at):
            raise ValueError(
                f"schedule={self.schedule!r} with merge_at={self.merge_at!r}: 'merge_at' belongs "
                "to schedule 'at', which needs it"
            )
        _merge_steps(self.merge_at)
        if self.alpha_new is not None and self.schedule == "monitor":
            raise ValueError(f"alpha_new={self.alpha_new} contradicts schedule 'monitor': no merge")
        if self.merge_at_task_end and self.schedule == "monitor":
            raise ValueError("merge_at_task_end=True contradicts schedule 'monitor': never a merge")

    def _check_ablations(self) -> None:
        ablated = not (self.use_learning_signal and self.use_forgetting_signal)
        if not (self.use_learning_signal or self.use_forgetting_signal):
            raise ValueError(
                "use_learning_signal=False and use_forgetting_signal=False leave nothing to adapt "
                "to; use schedule='fixed'"
            )
        if ablated and self.schedule != "adaptive":
            raise ValueError(
                f"the ablations -LS and -FS need schedule 'adaptive', got {self.schedule!r}"
            )
        if self.alpha_floor > 0 and (ablated or self.schedule != "adaptive"):
            raise ValueError(
                f"alpha_floor={self.alpha_floor} clamps Eq. 8, which only schedule 'adaptive' "
                "without ablations uses; leave it out"
            )
        if self.alpha_floor > 0 and self.alpha_new is not None:
            raise ValueError(
                f"alpha_floor={self.alpha_floor} has no effect beside alpha_new={self.alpha_new}; "
                "set one of them"
            )


_SIZES = ("small", "large")


def _other(policy: str) -> str:
    return POLICIES[1 - POLICIES.index(policy)]


def _foreign_fields(policy: str) -> set[str]:
    return set(_POLICY_DEFAULTS[_other(policy)])


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(allowed)}")


def _boolean(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be True or False")


def _integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name}={value!r} must be an integer in [{low}, {high}]")


def _number(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and low <= value <= high:  # type: ignore[arg-type,operator]
        if not (open_low and value == low):
            return
    left = "(" if open_low else "["
    right = ")" if math.isinf(high) else "]"
    raise ValueError(f"{name}={value!r} must be a finite number in {left}{low}, {high}{right}")


def _merge_steps(steps: object) -> None:
    if not isinstance(steps, tuple) or len(steps) > MAX_MERGE_AT:
        raise ValueError(f"merge_at={steps!r} must be a tuple of at most {MAX_MERGE_AT} steps")
    previous = 0
    for step in steps:
        _integer("merge_at", step, previous + 1, 1 << 30)
        previous = step
