"""Overrides of ``aimmerge simulate``: typed, and what another policy or schedule leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from aimmerge_fast.config import AIMConfig
from aimmerge_fast.simulate import simulate
from aimmerge_fast.simulate.config import configure, parse_overrides
from aimmerge_fast.simulate.output import simulate_file
from tests.recorded import TRACE, write


def test_overrides_are_typed() -> None:
    settings = ["policy=paper", "s_init = 4", "gamma_forget=1e1", "alpha_new=none", "merge_at=3,5"]
    assert parse_overrides([*settings, "probe_dropout=False", "s_hi=9", "alpha_floor=0"]) == {
        "policy": "paper",
        "s_init": 4,
        "gamma_forget": 10.0,
        "alpha_new": None,
        "merge_at": (3, 5),
        "probe_dropout": False,
        "s_hi": 9,
        "alpha_floor": 0.0,
    }
    assert parse_overrides(["merge_at="]) == {"merge_at": ()}


def test_an_override_acts(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", TRACE)
    [result] = simulate_file(path, ["s_init=2", "schedule=fixed"]).traces
    config = AIMConfig(s_init=2, schedule="fixed")
    assert result.config == config
    assert result.simulation == simulate(config, TRACE["history_loss"], TRACE["delta_l1"])


def test_another_policy_leaves_the_fields_of_the_old_one_behind() -> None:
    recorded = AIMConfig(window=5, s_init=4).to_dict()
    config, notes = configure(recorded, {"policy": "released"})
    assert config == AIMConfig(
        policy="released", s_init=4, probe="before", history_batch=8, memory_batch=8
    )
    assert len(notes) == 1
    assert notes[0].startswith("policy=released does not read window, gamma_plus_small")
    with pytest.raises(ValueError, match="window=2: policy 'released' does not read"):
        configure(recorded, {"policy": "released", "window": 2})
    assert configure(recorded, {"policy": "paper"}) == (AIMConfig(window=5, s_init=4), [])


def test_another_schedule_leaves_its_own_fields_behind() -> None:
    recorded = AIMConfig(schedule="at", merge_at=(3, 5)).to_dict()
    config, notes = configure(recorded, {"schedule": "fixed"})
    assert config == AIMConfig(schedule="fixed")
    assert notes == ["schedule=fixed does not read merge_at: left out of the config"]
