"""Where a training step's time goes: bench/training/phases.py."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from training import arms, blocks, check, phases, tables
from training.phases import Phases

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The host's clock, moved by hand."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(phases, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_an_inner_phase_is_not_the_outer_ones_time(clock: SimpleNamespace) -> None:
    seen = Phases(CPU)
    seen.mark()
    clock.now += 1
    with seen.phase("engine"):
        clock.now += 2
        with seen.phase("probe"):
            clock.now += 4
        clock.now += 8
        with seen.phase("probe"):
            clock.now += 16
    clock.now += 32
    seen.mark()
    clock.now += 64  # after the last mark: nobody's
    assert seen.seconds() == {
        "loop": {"host": 33.0, "device": None},
        "engine": {"host": 10.0, "device": None},
        "probe": {"host": 20.0, "device": None},
    }


def test_a_phase_ends_where_its_call_raises(clock: SimpleNamespace) -> None:
    class Fails:
        def step(self) -> None:
            clock.now += 3
            raise OSError("no")

    seen, owner = Phases(CPU), Fails()
    seen.around(owner, "step", "optimiser")
    seen.mark()
    with pytest.raises(OSError, match="no"):
        owner.step()
    clock.now += 5
    seen.mark()
    assert {name: both["host"] for name, both in seen.seconds().items()} == {
        "loop": 5.0,
        "optimiser": 3.0,
    }


@pytest.mark.parametrize("kind", phases.PHASED)
def test_watching_changes_nothing_and_misses_nothing(
    kind: type[arms.Arm], monkeypatch: pytest.MonkeyPatch
) -> None:
    one_interval = dataclasses.replace(check._SMALL, steps=check._SMALL.interval)
    setup = arms.set_up_small("llama2-7b", one_interval, CPU)
    blocks.untimed(kind, setup)
    expected = setup.theta()
    calls: list[str] = []
    watch = Phases.phase

    def noted(self: Phases, name: str) -> AbstractContextManager[None]:
        calls.append(name)
        return watch(self, name)

    monkeypatch.setattr(Phases, "phase", noted)
    found = phases.measure(kind, setup)
    steps = setup.settings.interval
    assert found["steps"] == steps
    assert setup.theta() == expected
    assert found["busy"] is None
    aim = kind.name == "aim"
    wanted = {"training pass": steps, "optimiser": steps}
    if aim:  # every update probes; M = S' / 2 memory steps end in the same optimiser
        wanted |= {"optimiser": steps + steps // 2, "memory step": steps // 2, "engine": steps}
        wanted |= {"probe": steps}
    assert {name: calls.count(name) for name in set(calls)} == wanted
    assert set(found["phases"]) == {*wanted, "loop"}
    assert all(both["host"] > 0 and both["device"] is None for both in found["phases"].values())


def test_named_ranges_are_no_work() -> None:
    def event(device: str, us: float, named: bool = False) -> SimpleNamespace:
        spent = SimpleNamespace(elapsed_us=lambda: us)
        kind = SimpleNamespace(name=device)
        return SimpleNamespace(device_type=kind, time_range=spent, is_user_annotation=named)

    events = [event("CUDA", 3.0), event("CPU", 50.0), event("CUDA", 4.5), event("CUDA", 9.0, True)]
    assert phases.kernel_seconds(events) == pytest.approx(7.5e-6)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
        torch.ones(3).sum()
    assert phases.kernel_seconds(trace.events()) == 0.0


def test_the_table_shows_both_clocks() -> None:
    on_gpu: dict[str, Any] = {"training pass": {"host": 0.004, "device": 0.0125}}
    record = {"phases": [{"arm": "aim", "phases": on_gpu, "busy": 0.756}]}
    head, row = tables._phases(record)
    assert head.split()[-2:] == ["GPU", "busy"]
    assert row.split() == ["AIM,", "FastAIMMerger", "4.00", "(12.50)", *"-----", "76%"]
    assert tables._phases({"phases": []}) == []
