"""Every controller agrees with every trace.

Add a backend to ``BACKENDS``: a function from a config to an adapter as ``tests.traces.Controller``
describes it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest

from aimmerge_fast.config import AIMConfig
from aimmerge_fast.reference.controller import reference_controller
from tests.backends import USABLE, BackendController
from tests.traces import Controller, Trace, config_of, load_traces, run_trace

BACKENDS: dict[str, Callable[[AIMConfig], Controller]] = {
    "reference": reference_controller,
    **{name: functools.partial(BackendController, backend=name) for name in USABLE},
}
TRACES = load_traces()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: trace["id"])
def test_trace(trace: Trace, backend: str) -> None:
    compared = run_trace(BACKENDS[backend](config_of(trace)), trace)
    fields_per_merge = len(trace["merges"][0])
    assert compared == 5 * trace["T"] + fields_per_merge * len(trace["merges"])


def test_traces_cover_what_they_are_kept_for() -> None:
    assert len(TRACES) == 41
    merges = [merge for trace in TRACES for merge in trace["merges"]]
    assert {merge["kind"] for merge in merges} == {
        "merge_early",
        "merge_due",
        "merge_deferred",
        "merge_forced",
    }
    assert {merge["case"] for merge in merges if "case" in merge} == {0, 1, 2, 3}
    intervals = {merge["S"] for merge in merges}
    assert min(intervals) == 2
    assert max(intervals) == 128


def _altered(trace: Trace, change: Callable[[Trace], Any]) -> Trace:
    altered = copy.deepcopy(trace)
    change(altered)
    return altered


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t["steps"]["t"].__setitem__(3, 5), "step 4: t is 4, expected 5"),
        (lambda t: t["steps"]["code"].__setitem__(0, "monitor"), "step 1: code"),
        (lambda t: t["steps"]["threshold"].__setitem__(0, 0.5), "step 1: threshold is None"),
        (lambda t: t["steps"]["threshold"].__setitem__(4, None), "step 5: threshold"),
        (lambda t: t["merges"][0].__setitem__("lambda", 2.4 * (1 + 2e-12)), "step 10: lambda"),
        (lambda t: t["merges"][1].__setitem__("cold", 1), "step 26: cold is True, expected 1"),
        (lambda t: t["merges"][3].pop("case"), "step 50: fields .'case'"),
        (lambda t: t["merges"].append(t["merges"][3]), "1 merges of the trace did not happen"),
    ],
)
def test_the_driver_names_the_first_difference(change: Callable[[Trace], Any], named: str) -> None:
    trace = next(trace for trace in TRACES if trace["id"] == "paper-00-worked-example")
    with pytest.raises(AssertionError, match=named):
        run_trace(reference_controller(config_of(trace)), _altered(trace, change))
