"""Controller traces with known outcomes, and the driver that holds any controller to them.

A trace is inputs (``history_loss`` per step, ``delta_l1`` per merge) and outputs (per step t, S, F,
threshold, code; per merge one object). A backend is tested through a small adapter that looks like
:class:`Controller`.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from aimmerge_fast.config import AIMConfig

Trace = dict[str, Any]
FILES = ("worked_example", "controller_paper", "controller_released")
RELATIVE_TOLERANCE = 1e-12


class Controller(Protocol):
    """What ``run_trace`` needs; the four attributes describe the last observed step."""

    t: int
    S: int
    F: int
    threshold: float | None

    def observe(self, loss: float) -> str: ...

    def merge(self, delta_l1: float) -> Mapping[str, Any]: ...


@functools.cache
def load_traces() -> tuple[Trace, ...]:
    """Every trace of ``tests/vectors``."""
    folder = Path(__file__).parent / "vectors"
    files = [json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in FILES]
    traces = tuple(trace for file in files for trace in file["traces"])
    for trace in traces:
        for merge in trace["merges"]:  # the worked example leaves the kind to the step's code
            merge.setdefault("kind", trace["steps"]["code"][merge["step"] - 1])
    return traces


def config_of(trace: Trace) -> AIMConfig:
    return AIMConfig(policy=trace["policy"], **trace["config"])


def run_trace(controller: Controller, trace: Trace) -> int:
    """Drive ``controller`` through ``trace``; ``AssertionError`` names the first difference.

    Integers, strings, booleans and None must be equal, floats to 1e-12 relative. Returns how many
    values were compared.
    """
    compared = 0
    merges = iter(trace["merges"])
    changes = iter(trace["delta_l1"])
    steps = trace["steps"]
    for index, loss in enumerate(trace["history_loss"]):
        code = controller.observe(loss)
        got = {"code": code} | {name: getattr(controller, name) for name in steps if name != "code"}
        expected = {name: values[index] for name, values in steps.items()}
        compared += _compare(f"{trace['id']}, step {index + 1}", got, expected)
        if code.startswith("merge_"):
            merge = controller.merge(next(changes))
            where = f"{trace['id']}, merge at step {index + 1}"
            compared += _compare(where, merge, next(merges))
    left = len(list(merges))
    assert left == 0, f"{trace['id']}: {left} merges of the trace did not happen"
    return compared


def _compare(where: str, got: Mapping[str, Any], expected: Mapping[str, Any]) -> int:
    assert set(got) == set(expected), f"{where}: fields {sorted(set(got) ^ set(expected))}"
    for name, value in expected.items():
        assert _agree(got[name], value), f"{where}: {name} is {got[name]!r}, expected {value!r}"
    return len(expected)


def _agree(got: Any, expected: Any) -> bool:
    if isinstance(expected, float):
        return isinstance(got, float) and math.isclose(got, expected, rel_tol=RELATIVE_TOLERANCE)
    return type(got) is type(expected) and bool(got == expected)
