"""``aimmerge simulate`` on the ``events.jsonl`` of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from aimmerge_fast import FastAIMMerger, events, kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.events import Close, Event, EventLog, Measure, Open, Probe, Reject, TaskBegin
from aimmerge_fast.simulate import Simulation, simulate
from aimmerge_fast.simulate.output import simulate_file

BACKENDS = [name for name, missing in kernels.available().items() if missing is None]


def events_of(
    name: str, config: AIMConfig, losses: Sequence[float], run: Simulation
) -> list[Event]:
    """The events that a run which went like ``run`` leaves behind."""
    found: list[Event] = [TaskBegin(name, 0, 20, config.to_dict())]
    merges = {merge["step"]: merge for merge in run.merges}
    for step, loss in enumerate(losses, 1):
        t, S, F, threshold, code = (values[step - 1] for values in run.steps.values())
        found.append(Probe(name, step, t, S, F, loss, threshold, code))
        for measure in (m for m in run.measures if m["step"] == step):
            found.append(Measure(name, step, t, measure["delta_l1"], measure["lambda"]))
        if step in run.rejected:
            found += [Reject(name, step, 0, "open", 3), Close(name, step, 0)]
        if step in merges:
            found += [open_of(name, merges[step], number=len(found)), Close(name, step, 1)]
    return [*found, events.TaskEnd(name, len(losses))]


def open_of(name: str, merge: dict[str, Any], number: int) -> Open:
    return Open(
        task=name,
        merge=number,
        t=merge["S_actual"],
        l1=merge["delta_l1"],
        learning_signal=merge["lambda"],
        alpha_new=merge["alpha1"],
        alpha_past=merge["alpha2"],
        next_memory_steps=merge.get("next_memory_steps", 0),
        **{key: merge.get(key, 0) for key in ("L_up", "L_down", "case")},
        **{key: merge[key] for key in ("step", "kind", "S", "F", "memory_steps", "next_S", "cold")},
    )


def log(path: Path, recorded: Sequence[Event]) -> Path:
    sink = EventLog(path)
    for event in recorded:
        sink(event)
    sink.close()
    return path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "config",
    [
        AIMConfig(s_init=4),
        AIMConfig(policy="released", s_init=5),
        AIMConfig(schedule="monitor", s_init=4),
        AIMConfig(schedule="random", s_hi=9),
        AIMConfig(schedule="single"),
        AIMConfig(s_init=4, merge_at_task_end=True),
    ],
    ids=lambda config: f"{config.policy}-{config.schedule}",
)
def test_events_of_a_run_simulate_to_the_same_run(
    config: AIMConfig, backend: str, tmp_path: Path
) -> None:
    losses = [0.1 + 0.07 * (i * i % 7) for i in range(60)]
    losses[3] = float("nan")
    changes = [9.0, float("inf"), *(8.0 + i % 3 for i in range(28))]
    if config.schedule == "single":
        changes = changes[:1]
    run = simulate(config, losses, changes, task=1)
    assert len(run.merges) + len(run.measures) >= 1
    plain: list[Event] = [TaskBegin("first", 0, 0, config.to_dict()), events.TaskEnd("first", 9)]
    path = log(tmp_path / "run.log", [*plain, *events_of("second", config, losses, run)])
    results = simulate_file(path, backend=backend)
    [result] = results.traces
    assert result.trace.id == "second"
    assert result.config == config
    assert result.simulation == run
    assert result.notes == []
    assert results.notes == ["task 'first' has no probes (plain training): nothing to simulate"]


def test_a_resumed_run_repeats_steps_which_count_once(tmp_path: Path) -> None:
    config, losses = AIMConfig(s_init=4), [0.1] * 20
    run = simulate(config, losses, [8.0, 6.0])
    recorded = events_of("task", config, losses, run)
    killed_at, saved_at = 19, 10  # events written, events that the checkpoint knew of
    path = log(tmp_path / "events.jsonl", [*recorded[:killed_at], *recorded[saved_at:]])
    [result] = simulate_file(path).traces
    assert result.trace.history_loss == losses
    assert result.simulation == run


def test_a_run_from_the_start_again_is_a_trace_of_its_own(tmp_path: Path) -> None:
    config, losses = AIMConfig(s_init=4), [0.1] * 20
    recorded = events_of("task", config, losses, simulate(config, losses, [8.0, 6.0]))
    traces = simulate_file(log(tmp_path / "events.jsonl", [*recorded[:5], *recorded])).traces
    assert [(t.trace.id, len(t.trace.history_loss), t.trace.task) for t in traces] == [
        ("task", 4, 0),
        ("task (run 2)", 20, 0),
    ]


def test_what_the_caller_did_is_named_as_not_replayed(tmp_path: Path) -> None:
    config, losses = AIMConfig(s_init=4), [0.1] * 6
    recorded = events_of("task", config, losses, simulate(config, losses, []))
    merge = {**simulate(config, [0.1] * 8, [5.0]).merges[0], "step": 6, "kind": "merge_final"}
    asked = [events.Rollback("task", 2), open_of("task", merge, 1)]
    [result] = simulate_file(log(tmp_path / "events.jsonl", [*recorded, *asked])).traces
    assert result.notes == [
        "merges that the caller asked for (steps [6]) are not replayed",
        "roll-backs (steps [2]) are not replayed",
    ]


def test_the_events_of_the_merger_simulate_to_what_it_did(tmp_path: Path) -> None:
    live = torch.zeros(5000)
    config = AIMConfig(s_init=3, probe="in_batch")
    merger = FastAIMMerger([live.requires_grad_()], config, events=tmp_path / "events.jsonl")
    generator = torch.Generator().manual_seed(7)
    with merger.task("task"):
        for _ in range(80):
            with torch.no_grad():
                live += torch.randn(5000, generator=generator)
            merger.observe(torch.rand((), generator=generator) ** 4)
            if merger.due():
                merger.open_merge()
                merger.close_merge()
    [result] = simulate_file(tmp_path / "events.jsonl").traces
    opened = [event for event in merger.events if isinstance(event, Open)]
    assert len(opened) >= 8
    merges = [{"number": n, **merge} for n, merge in enumerate(result.simulation.merges, 1)]
    assert [open_of("task", merge, merge["number"]) for merge in merges] == opened
    probes = [event for event in merger.events if isinstance(event, Probe)]
    steps = result.simulation.steps
    assert steps["code"] == [probe.code for probe in probes]
    assert steps["threshold"] == [probe.threshold for probe in probes]


BEGIN = events.to_json(TaskBegin("a", 0, 9, AIMConfig().to_dict()))
PROBE = events.to_json(Probe("a", 1, 1, 8, 0, 0.1, None, "collect"))
BAD_EVENTS = {
    "{": "no task with probes",  # the only line, cut off
    "{\n": "events.jsonl, line 1: not JSON",
    f"{BEGIN}\n{{}}\n": "line 2: unknown event None",
    f'{BEGIN}\n{{"event": "probe", "task": "a"}}\n': "line 2: event 'probe': field 'F' is missing",
    f"{PROBE}\n": "task 'a' has no task_begin event, so its config is unknown",
    f"{BEGIN}\n": "no task with probes in it",
    f"{BEGIN}\n{PROBE.replace('1', '2', 1)}\n": "task 'a': the probe of step 1 is missing",
    f"{BEGIN.replace('s_init', 's_int')}\n{PROBE}\n": "unknown config field 's_int'",
}


@pytest.mark.parametrize("content", BAD_EVENTS, ids=BAD_EVENTS.values())
def test_bad_events(content: str, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"events\.jsonl") as error:
        simulate_file(path)
    assert BAD_EVENTS[content] in str(error.value)
