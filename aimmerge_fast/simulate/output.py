"""``aimmerge simulate`` from file to table and JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.kernels import Choice
from aimmerge_fast.simulate import Simulation, simulate
from aimmerge_fast.simulate.config import configure, parse_overrides
from aimmerge_fast.simulate.input import Trace, read_recording

FORMAT = "controller traces of aimmerge simulate, version 1; open loop"
OPEN_LOOP = (
    "open loop: the i-th recorded change is used for the i-th merge, whatever its length; a model "
    "trained with these settings would have moved by other amounts"
)
_COLUMNS = {
    **{"step": "step", "kind": "kind", "S": "S", "S_actual": "S'", "F": "F", "lambda": "Lambda"},
    **{"alpha1": "alpha_new", "alpha2": "alpha_past", "memory_steps": "M", "next_S": "next S"},
}
_MEASURED = {"step": "step", "S_actual": "S'", "delta_l1": "L1", "lambda": "Lambda"}


@dataclass(frozen=True)
class Result:
    """One trace, simulated with ``config``."""

    trace: Trace
    config: AIMConfig
    simulation: Simulation
    notes: list[str]


@dataclass(frozen=True)
class Results:
    """A file, simulated on the backend of ``choice``."""

    choice: Choice
    notes: list[str]
    traces: list[Result] = field(default_factory=list)


def simulate_file(path: Path, settings: Sequence[str] = (), backend: str = "auto") -> Results:
    """Simulate every trace or task of ``path`` with ``settings`` (``field=value``) changed.

    Raises: ValueError or RuntimeError naming what is wrong with file, setting or backend; OSError
        when the file cannot be read.
    """
    choice = kernels.choose(backend, "cpu")
    overrides = parse_overrides(settings)
    recording = read_recording(path)
    results = Results(choice, recording.notes)
    for trace in recording.traces:
        try:
            config, notes = configure(trace.config, overrides)
        except ValueError as error:
            raise ValueError(f"{path}: trace {trace.id!r}: {error}") from None
        simulation = simulate(
            config, trace.history_loss, trace.delta_l1, backend=choice.name, task=trace.task
        )
        results.traces.append(Result(trace, config, simulation, [*trace.notes, *notes]))
    return results


# ---- JSON ------------------------------------------------------------------------------------


def write_json(path: Path, results: Results) -> None:
    """Write all steps and merges as a trace file, whole or not at all.

    Raises: OSError naming the path and what is wrong with it.
    """
    document = {"format": FORMAT, "traces": [_as_trace(result) for result in results.traces]}
    text = json.dumps(document, allow_nan=False)
    target = path.resolve()  # a link keeps pointing where it points
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        if target.exists() and not target.is_file():
            raise OSError("it exists and is no regular file")
        try:
            with part.open("w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error.strerror or error}; "
            "give a file in a folder that exists and is writable"
        ) from None


def _as_trace(result: Result) -> dict[str, Any]:
    """The result as a trace; what came after the changes ran out is left out of the losses."""
    trace, simulation = result.trace, result.simulation
    steps = len(simulation.steps["code"])
    config = result.config.to_dict()
    more: dict[str, Any] = {"ran_out": simulation.ran_out, "rejected": simulation.rejected}
    if result.config.schedule == "monitor":
        more["measures"] = simulation.measures
    return {
        "id": trace.id,
        "policy": config.pop("policy"),
        "config": config,
        "task": trace.task,
        "T": steps,
        "history_loss": [_strict(loss) for loss in trace.history_loss[:steps]],
        "delta_l1": [_strict(change) for change in trace.delta_l1],
        "steps": simulation.steps,
        "merges": simulation.merges,
        **more,
    }


def _strict(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


# ---- table -----------------------------------------------------------------------------------


def show(results: Results, console: Console) -> None:
    """Print what happened: tables on a terminal, aligned plain text elsewhere."""
    lines = [OPEN_LOOP, f"backend {results.choice.name}", *results.notes]
    for line in lines:
        _print(line, console)
    for result in results.traces:
        _print("", console)
        _print(_title(result), console)
        measured = result.config.schedule == "monitor"
        rows = result.simulation.measures if measured else result.simulation.merges
        if rows:
            _print_rows(rows, _MEASURED if measured else _COLUMNS, console)
        for note in _remarks(result):
            _print(note, console)


def _title(result: Result) -> str:
    config, simulation = result.config, result.simulation
    merges, steps = len(simulation.merges), len(simulation.steps["code"])
    settings = f"policy {config.policy}, schedule {config.schedule}"
    return f"{result.trace.id}: {settings}, {_count(steps, 'step')}, {_count(merges, 'merge')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _remarks(result: Result) -> list[str]:
    simulation, remarks = result.simulation, list(result.notes)
    if simulation.rejected:
        where = ", ".join(map(str, simulation.rejected))
        remarks.append(f"rejected, since the recorded change is not finite: at step {where}")
    if simulation.ran_out:
        steps, recorded = len(simulation.steps["code"]), len(result.trace.history_loss)
        changes = _count(len(result.trace.delta_l1), "recorded change")
        remarks.append(f"stopped at step {steps} of {recorded}: the {changes} ran out")
    return remarks


def _print_rows(rows: list[dict[str, Any]], columns: dict[str, str], console: Console) -> None:
    cells = [[_cell(row[name]) for name in columns] for row in rows]
    if console.is_terminal:
        table = Table()
        for name, title in columns.items():
            table.add_column(title, justify="left" if name == "kind" else "right")
        for row in cells:
            table.add_row(*row)
        console.print(table)
        return
    cells.insert(0, list(columns.values()))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        _print("  ".join(map(str.rjust, row, widths)), console)


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value).removeprefix("merge_")


def _print(line: str, console: Console) -> None:
    if console.is_terminal:
        console.print(Text(line))  # as it is, brackets included
    else:
        print(line)
