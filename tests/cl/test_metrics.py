"""Metrics by hand on small matrices; every variant where it differs from the others."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest

from aimmerge_fast.cl import metrics
from aimmerge_fast.cl.metrics import (
    average_seen,
    backward_transfer,
    exact_match,
    forgetting,
    forward_transfer,
    mean_sd,
    metric,
    overall,
    rouge_l,
    summary,
)

#: three tasks; task 0 was better after stage 1 than after its own, and before it was known
FULL = [[80.0, 20.0, 12.0], [90.0, 70.0, 30.0], [50.0, 61.0, 95.0]]
SEEN = [[80.0, None, None], [90.0, 70.0, None], [50.0, 61.0, 95.0]]
SINGLE = [82.0, 74.0, 90.0]
INITIAL = [5.0, 14.0, 10.0]


def test_op_and_avg() -> None:
    assert overall(SEEN) == pytest.approx((50 + 61 + 95) / 3)
    assert average_seen(SEEN) == pytest.approx((80 + 160 / 2 + 206 / 3) / 3)


@pytest.mark.parametrize(
    ("variant", "value"),
    [("aimmerging", -19.5), ("easycl", -19.5), ("gem", -19.5), ("sapt", -13.0)],
)
def test_bwt(variant: str, value: float) -> None:
    """(50 - 80) + (61 - 70) = -39, over 2 tasks or over all 3."""
    assert backward_transfer(SEEN, variant) == pytest.approx(value)


def test_fwt() -> None:
    """(80 - 82) + (70 - 74) + (95 - 90) = -1; (20 - 14) + (30 - 10) = 26."""
    assert forward_transfer(SEEN, single=SINGLE) == pytest.approx(-1 / 3)
    assert forward_transfer(SEEN, "sapt", single=SINGLE) == pytest.approx(-1 / 3)
    assert forward_transfer(FULL, "easycl", initial=INITIAL) == pytest.approx(13.0)
    assert forward_transfer(FULL, "gem", initial=[0.0, 0.0, 0.0]) == pytest.approx(25.0)


def test_forgetting() -> None:
    """Best before the end: 90 - 50 and 70 - 61."""
    assert forgetting(SEEN) == pytest.approx(24.5)
    before = [[80.0, 75.0, 0.0], *FULL[1:]]  # task 1 did best before it was trained
    assert forgetting(before, "sapt") == pytest.approx(24.5)
    assert forgetting(before, "gem") == pytest.approx((40 + 14) / 2)


def test_summary_names_every_metric() -> None:
    found = summary(FULL, SINGLE, INITIAL, random=[0.0, 0.0, 0.0])
    assert set(found) == set(metrics.METRICS)
    assert all(value is not None for value in found.values())
    assert found["OP"] == overall(FULL)
    assert (found["BWT"], found["BWT_sapt"]) == pytest.approx((-19.5, -13.0))
    assert (found["FWT_easycl"], found["FWT_gem"]) == pytest.approx((13.0, 25.0))
    assert metric("BWT_sapt")[1] == "sapt"


def test_what_was_not_given_or_tested_is_none() -> None:
    found = summary(SEEN)
    assert {name for name, value in found.items() if value is None} == {
        *("FWT", "FWT_sapt", "FWT_easycl", "FWT_gem"),
    }
    assert forward_transfer(SEEN, "easycl", initial=INITIAL) is None  # not tested before training
    assert forward_transfer(SEEN, single=[82.0, None, 90.0]) is None


def test_unfinished_matrices_are_none() -> None:
    assert set(summary(SEEN[:2], SINGLE, INITIAL).values()) == {None}
    assert set(summary(FULL[:2], SINGLE, INITIAL).values()) == {None}
    assert set(summary([], SINGLE, INITIAL).values()) == {None}
    assert overall(SEEN[:1]) is None


def test_training_on_all_at_once_has_op_only() -> None:
    found = summary([FULL[2]], SINGLE, INITIAL)
    assert found["OP"] == overall(FULL)
    assert {name for name, value in found.items() if value is not None} == {"OP"}


def test_one_task_has_nothing_before_it() -> None:
    found = summary([[80.0]], [82.0], [5.0])
    assert (found["OP"], found["FWT"], found["BWT"], found["forgetting"]) == (80, -2, None, None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: backward_transfer(FULL, "trace"), "'trace'; known are aimmerging, sapt, easycl"),
        (lambda: forgetting(FULL, "easycl"), "'easycl'; known are sapt, gem"),
        (lambda: metric("bwt"), "unknown metric 'bwt'; known are OP, BWT"),
        (lambda: overall([[1.0], [1.0, 2.0]]), "2 rows of lengths"),
        (lambda: overall([[1.0], [2.0]]), "2 rows of lengths"),
        (lambda: forward_transfer(FULL, single=[1.0]), "1 scores to compare with, for 3 tasks"),
        (lambda: mean_sd([]), "no values"),
    ],
)
def test_bad_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_mean_and_sample_deviation() -> None:
    assert mean_sd([1.0, 2.0, 6.0]) == pytest.approx((3.0, math.sqrt((4 + 1 + 9) / 2)))
    assert mean_sd([4.0]) == (4.0, None)


@pytest.mark.parametrize(
    ("prediction", "reference", "equal"),
    [
        (" World</s><pad>", "world", True),
        ("Science or Technology", "Science or technology", True),
        ("World.", "World", False),
        ("Science  or", "Science or", False),
        ("", "no", False),
    ],
)
def test_exact_match(prediction: str, reference: str, equal: bool) -> None:
    assert exact_match(prediction, reference) is equal


@pytest.mark.parametrize(
    ("prediction", "reference", "f"),
    [
        # longest common subsequence "the cat sat" after stemming: P 3/3, R 3/6
        ("the cats sat", "the cat sat on the mat", 2 / 3),
        # LCS 2 of 3 words on either side
        ("red blue green", "red green blue", 2 / 3),
        ("Same, words!", "same words", 1.0),
        ("nothing", "like that", 0.0),
        ("", "x", 0.0),
    ],
)
def test_rouge_l(prediction: str, reference: str, f: float) -> None:
    assert rouge_l(prediction, reference) == pytest.approx(f)


def test_a_missing_rouge_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics._rouge.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    try:
        with pytest.raises(RuntimeError, match=r"rouge-score; pip install 'aimmerge_fast\[eval\]'"):
            rouge_l("a", "a")
    finally:
        metrics._rouge.cache_clear()
