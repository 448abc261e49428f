"""Each diagnosis of the report appears where it belongs and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest

from aimmerge_fast.events import Event, Reject
from aimmerge_fast.report import summarise
from tests.made_events import begin, merge, merges

STUCK = {"S": 2, "next_S": 2}


def diagnoses(found: list[Event], **config: Any) -> tuple[str, ...]:
    return summarise([begin(**config), *found]).tasks[0].diagnoses


def test_oscillation_is_named() -> None:
    [sentence] = diagnoses([*merge(9, 4, S=3, next_S=2), *merges(4, **STUCK)])
    assert sentence == (
        "oscillation: in each of the last 4 merges S stayed at s_min = 2, so the model is merged "
        "as often as allowed and does not settle; raise s_min or gamma_forget, or lower the "
        "learning rate"
    )
    assert sentence in str(summarise([begin(), *merges(4, **STUCK)]))
    [sentence] = diagnoses(merges(6, S=4, next_S=4), s_min=4)
    assert "the last 6 merges S stayed at s_min = 4" in sentence
    [sentence] = diagnoses(merges(5, **STUCK), use_forgetting_signal=False)
    assert "raise s_min, or lower" in sentence


@pytest.mark.parametrize(
    ("found", "config"),
    [
        (merges(3, **STUCK), {}),  # not enough merges
        ([*merges(3, **STUCK), *merge(4, 40, S=2, next_S=4)], {}),  # just left
        ([*merges(4, **STUCK), *merge(5, 48, S=4, next_S=4)], {}),  # left before
        (merges(5, S=4, next_S=2), {}),  # arrives there again and again
        (merges(5, **STUCK, cold=True), {"s_init": 2}),  # the cold start keeps S
        (merges(5, **STUCK), {"s_min": 2, "s_max": 2, "s_init": 2}),  # nowhere else to go
        (merges(5, **STUCK), {"schedule": "fixed", "s_init": 2}),
        (merges(5, **STUCK), {"use_learning_signal": False, "s_init": 2}),
        (merges(5, **STUCK), {"policy": "released", "adaptive": False, "s_init": 2}),
    ],
)
def test_no_oscillation(found: list[Event], config: dict[str, Any]) -> None:
    assert diagnoses(found, **config) == ()


def test_stagnation_is_named() -> None:
    past: dict[str, Any] = {"alpha_new": 0.25, "alpha_past": 0.75}
    [sentence] = diagnoses(merges(4, **past))
    assert sentence == (
        "stagnation: alpha_past averaged 0.75 over the last 4 merges, so the past outweighs what "
        "the task learns; set alpha_floor (0.2, say), raise gamma_forget, or raise the learning "
        "rate"
    )
    # half of the merges drop their interval, the others are no-ops: the mean alone is 0.5
    drop: dict[str, Any] = {"alpha_new": 0.0, "alpha_past": 1.0}
    keep: dict[str, Any] = {"alpha_new": 1.0, "alpha_past": 0.0}
    found = [event for i in range(6) for event in merge(i + 1, 8 * i, **(drop if i % 2 else keep))]
    [sentence] = diagnoses(found, alpha_floor=0.0)
    assert "averaged 0.50 over the last 6 merges and 3 of them dropped the new progress" in sentence
    # only the newest eight count
    [sentence] = diagnoses([*merges(20), *[e for i in range(8) for e in merge(30 + i, i, **past)]])
    assert "over the last 8 merges" in sentence
    [sentence] = diagnoses(merges(4, **past), alpha_floor=0.1)
    assert "; raise alpha_floor" in sentence
    [sentence] = diagnoses(merges(5, alpha_new=0.4, alpha_past=0.6), policy="released")
    assert "; raise s_weight or gamma_forget, or raise the learning rate" in sentence


@pytest.mark.parametrize(
    ("found", "config"),
    [
        (merges(3, alpha_new=0.0, alpha_past=1.0), {}),  # not enough merges
        (merges(8), {}),  # one half each
        (merges(7, alpha_new=1.0, alpha_past=0.0) + merges(1), {}),
        (merges(8, alpha_new=0.2, alpha_past=0.8), {"alpha_new": 0.2}),  # asked for
        (merges(8, alpha_new=0.0, alpha_past=1.0), {"schedule": "fixed", "alpha_new": 0.0}),
    ],
)
def test_no_stagnation(found: list[Event], config: dict[str, Any]) -> None:
    assert diagnoses(found, **config) == ()


def test_merges_that_were_rejected_diagnose_nothing() -> None:
    found = merges(4, alpha_new=0.0, alpha_past=1.0)
    rejected = [Reject("a", 32, 4, "close", 1)]
    assert len(diagnoses(found)) == 1
    assert diagnoses([*found, *rejected]) == ()


def test_merges_without_effect_are_named() -> None:
    idle = {"alpha_new": 1.0, "alpha_past": 0.0}
    [sentence] = diagnoses(merges(5, **idle))
    assert sentence == (
        "no effect: all 5 merges had alpha = (1, 0), because no history loss passed the threshold, "
        "so the model trained as if alone; lower gamma_forget or set alpha_floor"
    )
    assert diagnoses(merges(3, **idle)) == ()
    assert diagnoses([*merges(5, **idle), *merges(1)]) == ()
    assert diagnoses(merges(5, **idle), alpha_new=1.0) == ()
