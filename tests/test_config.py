"""``AIMConfig``: what it refuses and how it says so, what it fills in, and its way through JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimmerge_fast.config import (
    MEMORY_OPTIMIZERS,
    ON_REJECT,
    POLICIES,
    PROBES,
    SCHEDULES,
    AIMConfig,
)

NAMES = tuple(field.name for field in dataclasses.fields(AIMConfig))
PAPER_ONLY = (
    *("window", "gamma_plus_small", "gamma_minus_small", "gamma_plus_large", "gamma_minus_large"),
    *("p_new_cold", "alpha_floor", "use_learning_signal", "use_forgetting_signal"),
)
RELEASED_ONLY = ("accumulation", "outer_init", "cold_start", "s_weight", "adaptive")

#: field -> lowest and highest allowed integer
INTEGERS: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("s_init", "s_min", "s_max", "f_max"), (1, 1 << 24)),
    "s_switch": (2, 1 << 24),
    **dict.fromkeys(("history_batch", "memory_batch", "accumulation"), (1, 1 << 30)),
    "max_bad_probes": (1, 1 << 30),
    "seed": (0, (1 << 63) - 1),
    "window": (1, 32),
    "outer_init": (1, 1 << 24),
    "cold_start": (0, 1 << 30),
    "s_weight": (1, 1 << 24),
    "s_hi": (2, 1 << 24),
}
#: field -> the interval as the message writes it, and numbers just outside of it
NUMBERS: dict[str, tuple[str, tuple[float, ...]]] = {
    "gamma_forget": (r"\(0\.0, inf\)", (0, -0.5)),
    "alpha_new": (r"\[0\.0, 1\.0\]", (-1e-9, 1.0000001)),
    "max_grad_norm": (r"\(0\.0, inf\)", (0, -1)),
    "p_new_cold": (r"\[0\.0, 1\.0\]", (-0.1, 1.5)),
    "alpha_floor": (r"\[0\.0, 0\.5\]", (-0.1, 0.51)),
    **dict.fromkeys(
        ("gamma_plus_small", "gamma_minus_small", "gamma_plus_large", "gamma_minus_large"),
        (r"\[1\.0, inf\)", (0.999, -2)),
    ),
}
BOOLEANS = (
    *("probe_dropout", "merge_at_task_end", "use_learning_signal", "use_forgetting_signal"),
    "adaptive",
)
CHOICES = {
    "policy": POLICIES,
    "schedule": SCHEDULES,
    "probe": PROBES,
    "memory_optimizer": MEMORY_OPTIMIZERS,
    "on_reject": ON_REJECT,
}


def fields_for(name: str, value: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {name: value}
    if name in RELEASED_ONLY:
        fields["policy"] = "released"
    if name == "s_hi":
        fields["schedule"] = "random"
    return fields


def refuse(name: str, value: Any, pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern) as caught:
        AIMConfig(**fields_for(name, value))
    assert "\n" not in str(caught.value)


def test_every_field_has_a_test_of_its_range() -> None:
    assert {*INTEGERS, *NUMBERS, *BOOLEANS, *CHOICES, "merge_at"} == set(NAMES)


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(name: str) -> None:
    low, high = INTEGERS[name]
    wrong: list[Any] = [low - 1, high + 1, -5, 1.5, float(low + 1), True, "8", math.nan]
    if name in ("s_hi",):
        wrong = wrong[:3]
    for value in wrong:
        refuse(name, value, rf"^{name}={value!r} must be an integer in \[{low}, {high}\]")


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name: str) -> None:
    written, outside = NUMBERS[name]
    for value in (*outside, math.nan, math.inf, -math.inf, "1", True):
        refuse(name, value, rf"^{name}={value!r} must be a finite number in {written}")


@pytest.mark.parametrize("name", BOOLEANS)
def test_booleans(name: str) -> None:
    for value in (0, 1, "yes", 0.0):
        refuse(name, value, f"^{name}={value!r} must be True or False")


@pytest.mark.parametrize("name", CHOICES)
def test_choices_list_what_is_known(name: str) -> None:
    known = ", ".join(CHOICES[name]).replace("+", r"\+")
    for value in ("papers", "", 3):
        refuse(name, value, f"^{name}={value!r} is unknown; choose one of {known}$")


@pytest.mark.parametrize(
    "value", [(0,), (3, 3), (5, 4), (1.5,), (True,), "12", 7, {3, 4}, tuple(range(1, 66)), ("a",)]
)
def test_merge_steps(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^merge_at=") as caught:
        AIMConfig(schedule="at", merge_at=value)
    assert "must be a" in str(caught.value)


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"s_min": 9, "s_max": 8}, "s_min=9 exceeds s_max=8"),
    ({"s_init": 9, "s_max": 8}, r"s_init=9 lies outside \[s_min, s_max\] = \[2, 8\]"),
    ({"s_init": 1}, r"s_init=1 lies outside \[s_min, s_max\] = \[2, 128\]"),
    ({"schedule": "random"}, "schedule='random' with s_hi=None.*which needs it"),
    ({"s_hi": 9}, "schedule='adaptive' with s_hi=9: 's_hi' belongs to schedule 'random'"),
    ({"schedule": "random", "s_hi": 1}, r"s_hi=1 must be an integer in \[2, "),
    ({"schedule": "at"}, r"schedule='at' with merge_at=\(\).*which needs it"),
    ({"merge_at": (3,)}, r"schedule='adaptive' with merge_at=\(3,\): 'merge_at' belongs"),
    ({"schedule": "monitor", "merge_at_task_end": True}, "contradicts schedule 'monitor'"),
    (
        {"use_learning_signal": False, "use_forgetting_signal": False},
        "leave nothing to adapt to; use schedule='fixed'",
    ),
    ({"use_learning_signal": False, "schedule": "fixed"}, "need schedule 'adaptive', got 'fixed'"),
    ({"alpha_floor": 0.1, "schedule": "fixed"}, "only schedule 'adaptive' without ablations"),
    ({"alpha_floor": 0.1, "use_learning_signal": False}, "alpha_floor=0.1 clamps Eq. 8"),
    ({"alpha_new": 0.5, "schedule": "monitor"}, "alpha_new=0.5 contradicts schedule 'monitor'"),
    ({"alpha_floor": 0.1, "alpha_new": 0.5}, "alpha_floor=0.1 has no effect beside alpha_new=0.5"),
]


@pytest.mark.parametrize(("fields", "message"), CONTRADICTIONS)
def test_contradictions(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AIMConfig(**fields)


@pytest.mark.parametrize("name", [*PAPER_ONLY, *RELEASED_ONLY])
def test_a_field_of_the_other_policy_is_refused_by_name(name: str) -> None:
    mine, other = ("released", "paper") if name in PAPER_ONLY else ("paper", "released")
    value = getattr(AIMConfig(policy=other), name)
    message = f"{name}={value!r}: policy '{mine}' does not read it; .* policy '{other}'"
    with pytest.raises(ValueError, match=message):
        AIMConfig(policy=mine, **{name: value})
    assert getattr(AIMConfig(policy=mine), name) is None


def test_defaults_are_the_paper_s_and_the_code_s() -> None:
    paper, released = AIMConfig(), AIMConfig(policy="released")
    assert (paper.s_init, paper.s_min, paper.s_max, paper.f_max, paper.window) == (8, 2, 128, 3, 3)
    assert (paper.gamma_forget, paper.gamma_plus_small, paper.gamma_minus_small) == (2, 2, 1.5)
    assert (paper.gamma_plus_large, paper.gamma_minus_large, paper.s_switch) == (1.5, 2, 64)
    assert (paper.probe, paper.history_batch, paper.memory_batch) == ("before", 8, 8)
    assert (released.probe, released.history_batch, released.memory_batch) == ("after", 32, 32)
    assert (released.outer_init, released.cold_start, released.s_weight) == (8, 3, 70)
    assert AIMConfig(policy="released", s_init=5).outer_init == 5
    assert AIMConfig(schedule="monitor").s_init == 10
    assert AIMConfig(schedule="at", merge_at=[3, 5]).merge_at == (3, 5)  # type: ignore[arg-type]


def test_unknown_keys() -> None:
    with pytest.raises(ValueError, match="unknown config field 'S_init'; the fields are accumul"):
        AIMConfig.from_dict({"policy": "paper", "S_init": 4})
    with pytest.raises(TypeError, match="unexpected keyword argument 's_inti'"):
        AIMConfig(s_inti=4)  # type: ignore[call-arg]


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        AIMConfig().s_init = 4  # type: ignore[misc]


@st.composite
def configs(draw: st.DrawFn) -> AIMConfig:
    """Any valid configuration."""
    policy = draw(st.sampled_from(POLICIES))
    schedule = draw(st.sampled_from(SCHEDULES))
    s_min, s_init, s_max = sorted(draw(st.lists(st.integers(1, 500), min_size=3, max_size=3)))
    factor = st.floats(1.0, 1e6)
    every: dict[str, st.SearchStrategy[Any]] = {
        "gamma_forget": st.floats(1e-300, 1e300),
        "f_max": st.integers(1, 9),
        "s_switch": st.integers(2, 200),
        "alpha_new": st.none() | st.floats(0.0, 1.0),
        "probe": st.sampled_from(PROBES),
        "memory_optimizer": st.sampled_from(MEMORY_OPTIMIZERS),
        "max_grad_norm": st.none() | st.floats(1e-9, 1e9),
        "seed": st.integers(0, (1 << 63) - 1),
        "on_reject": st.sampled_from(ON_REJECT),
    }
    own = {
        "paper": {
            "window": st.integers(1, 32),
            "gamma_plus_small": factor,
            "gamma_minus_large": factor,
            "p_new_cold": st.floats(0.0, 1.0),
        },
        "released": {"outer_init": st.integers(1, 99), "adaptive": st.booleans()},
    }
    fields = {name: draw(some) for name, some in (every | own[policy]).items()}
    if schedule == "random":
        fields["s_hi"] = draw(st.integers(s_min, 600))
    if schedule == "at":
        fields["merge_at"] = tuple(sorted(draw(st.sets(st.integers(1, 900), min_size=1))))[:64]
    if schedule == "monitor":
        fields["alpha_new"] = None
    return AIMConfig(
        policy=policy, schedule=schedule, s_min=s_min, s_init=s_init, s_max=s_max, **fields
    )


@given(config=configs())
def test_to_dict_and_back_through_json(config: AIMConfig) -> None:
    fields = config.to_dict()
    assert AIMConfig.from_dict(fields) == config
    assert AIMConfig.from_dict(json.loads(json.dumps(fields, allow_nan=False))) == config
    foreign = RELEASED_ONLY if config.policy == "paper" else PAPER_ONLY
    assert set(fields) == set(NAMES) - set(foreign)
    assert hash(config) == hash(AIMConfig.from_dict(fields))


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)


@given(name=st.sampled_from(NAMES), value=ANYTHING | st.lists(ANYTHING, max_size=3))
def test_any_value_gives_a_config_or_one_error_that_names_the_field(name: str, value: Any) -> None:
    message = ""
    try:
        config = AIMConfig(**{name: value})
    except ValueError as error:
        message = str(error)
    if message:
        assert name in message
    else:
        given_value = tuple(value) if isinstance(value, list) else value
        assert value is None or getattr(config, name) == given_value
