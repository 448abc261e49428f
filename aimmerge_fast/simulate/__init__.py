"""Open-loop simulation: the controller on recorded losses and changes, without a model.

The i-th recorded change is used for the i-th merge, whatever its length: another configuration
merges at other steps, where the parameters would have moved by another amount. What is exact is the
controller's answer to these numbers, on every backend.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.events import CODES, MERGE_KINDS
from aimmerge_fast.kernels.eager_controller import memory_steps_now

_NON_FINITE = ("nan", "inf", "-inf")


@dataclass(frozen=True)
class Simulation:
    """What the controller did.

    Attributes:
        steps: per step ``t``, ``S``, ``F``, ``threshold`` (None until computed) and ``code``.
        merges: one mapping per merge; the fields depend on the policy.
        ran_out: a merge was decided and no recorded change was left for it; the last step is that
            decision.
        rejected: steps whose merge met a change that is not finite: it is undone, leaves no entry
            in ``merges``, and the interval stays.
        measures: schedule ``monitor`` only: ``step``, ``S_actual``, ``delta_l1``, ``lambda``.
    """

    steps: dict[str, list[Any]] = field(
        default_factory=lambda: {name: [] for name in ("t", "S", "F", "threshold", "code")}
    )
    merges: list[dict[str, Any]] = field(default_factory=list)
    ran_out: bool = False
    rejected: list[int] = field(default_factory=list)
    measures: list[dict[str, Any]] = field(default_factory=list)


def simulate(
    config: AIMConfig,
    history_loss: Sequence[float | str | None],
    delta_l1: Sequence[float | str | None],
    *,
    backend: str = "auto",
    task: int = 0,
) -> Simulation:
    """Run the controller of ``config`` over one task.

    Args:
        config: the settings. ``single`` and ``merge_at_task_end`` merge after the last step.
        history_loss: one loss per optimiser update; None and "nan" are NaN.
        delta_l1: sum |theta - anchor| of each merge in order (``monitor``: of each measurement);
            a value that is not finite makes the merge a rejected one.
        backend: whose transitions run.
        task: number of the task in the run, read by schedule ``random`` only.

    Raises: ValueError naming a value that is no number, a negative change, an unknown backend.
        RuntimeError for a backend that cannot work here.
    """
    losses = as_numbers("history_loss", history_loss)
    changes = as_numbers("delta_l1", delta_l1, at_least=0.0)
    run = _Run(config, kernels.choose(backend, "cpu").name, task)
    coming = iter(changes)
    for loss in losses:
        code = run.step(loss)
        if (code in MERGE_KINDS or code == "measure") and not run.merge(next(coming, None), code):
            return run.result(ran_out=True)
    unfinished = int(run.state["t"]) > 0
    if unfinished and (config.schedule == "single" or config.merge_at_task_end):
        return run.result(ran_out=not run.merge(next(coming, None), "merge_final"))
    return run.result(ran_out=False)


def as_numbers(name: str, values: Sequence[Any], *, at_least: float = -math.inf) -> list[float]:
    """Floats of a recorded list; ``ValueError`` names the index of what is no number."""
    found = []
    for index, value in enumerate(values):
        if value is None:
            number = math.nan
        elif isinstance(value, str) and value.lower() in _NON_FINITE:
            number = float(value)
        elif isinstance(value, numbers.Real) and not isinstance(value, bool):
            number = _float(value)
        else:
            raise ValueError(
                f'{name}[{index}] is {value!r}, not a number (or null, "nan", "inf", "-inf")'
            )
        if number < at_least:
            raise ValueError(f"{name}[{index}] is {number}; it must be {at_least:g} or more")
        found.append(number)
    return found


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond fp64
        return math.inf if value > 0 else -math.inf


class _Run:
    """One task on one state tensor."""

    def __init__(self, config: AIMConfig, backend: str, task: int) -> None:
        self.config = config
        self.backend = backend
        self.tensor = kernels.new_state(config, task=task)
        block = kernels.read_state(self.tensor)
        self.fields, self.state = block["config"], block["state"]
        self.found = Simulation()

    def step(self, loss: float) -> str:
        """One update; returns the code."""
        kernels.observe_(torch.tensor(loss, dtype=torch.float64), self.tensor, backend=self.backend)
        state, steps = self.state, self.found.steps
        for name in ("t", "S", "F"):
            steps[name].append(int(state[name]))
        steps["threshold"].append(float(state["threshold"]) if state["has_threshold"] else None)
        code = CODES[int(state["code"])]
        steps["code"].append(code)
        return code

    def merge(self, change: float | None, kind: str) -> bool:
        """Both halves of a merge; False when there is no change left for it."""
        if change is None:
            return False
        state, step = self.state, len(self.found.steps["code"])
        before = {name: int(state[name]) for name in ("S", "F")}
        memory_steps = memory_steps_now(self.fields, state)
        finite = math.isfinite(change)
        self._advance(change if finite else 0.0, 0.0 if finite else 1.0)
        if not finite:
            self.found.rejected.append(step)
        elif kind == "measure":
            self.found.measures.append(
                {
                    "step": step,
                    "S_actual": int(state["elapsed"]),
                    "delta_l1": change,
                    "lambda": float(state["lambda"]),
                }
            )
        else:
            self.found.merges.append(
                self._record(step, before, change, memory_steps) | {"kind": kind}
            )
        self._advance(0.0, 0.0)
        return True

    def result(self, *, ran_out: bool) -> Simulation:
        found = self.found
        return Simulation(found.steps, found.merges, ran_out, found.rejected, found.measures)

    def _advance(self, l1: float, bad: float) -> None:
        partials = torch.tensor([[l1, bad]], dtype=torch.float64)
        kernels.advance_(partials, self.tensor, backend=self.backend)

    def _record(
        self, step: int, before: dict[str, int], change: float, memory_steps: int
    ) -> dict[str, Any]:
        """A merge in the fields of its policy, read between the two halves."""
        state = self.state
        head = {
            "step": step,
            "S": before["S"],
            "S_actual": int(state["elapsed"]),
            "F": before["F"],
            "delta_l1": change,
            "lambda": float(state["lambda"]),
            "cold": bool(state["cold"]),
        }
        weights = {
            "alpha1": float(state["alpha1"]),
            "alpha2": float(state["alpha2"]),
            "memory_steps": memory_steps,
            "next_S": int(state["S"]),
        }
        if self.config.policy == "paper":
            trend = {name: int(state[name]) for name in ("L_up", "L_down")}
            return head | trend | {"case": int(state["case_"])} | weights
        factor = float(state["change_factor"])
        ratio = {"change_factor": None if math.isnan(factor) else factor}
        return head | ratio | weights | {"next_memory_steps": int(state["memory_steps"])}
