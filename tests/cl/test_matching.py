"""Controls with as many merges as another arm."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aimmerge_fast.cl import runner
from aimmerge_fast.cl.config import ArmSpec
from aimmerge_fast.cl.matching import matched_settings, mean_interval
from aimmerge_fast.cl.parallel import Ranks
from tests.cl.tiny import finished_run, make_config

NONE = {"early": 0, "due": 0, "deferred": 0, "forced": 0}


def task(steps: int, **merges: int) -> dict[str, Any]:
    return {"steps": steps, "merges": {**NONE, **merges}}


def context_of(out: Path, *tasks: dict[str, Any], finished: bool = True) -> Any:
    """A run folder whose arm ``aim`` made these merges."""
    folder = out / "aim-s7"
    folder.mkdir()
    entry = {"finished": finished, "merges": {"tasks": list(tasks)}}
    (folder / "arm.json").write_text(json.dumps(entry))
    return SimpleNamespace(config=SimpleNamespace(out=out), ranks=Ranks())


@pytest.mark.parametrize(
    ("settings", "tasks", "expected"),
    [
        # 240 updates with 30 merges; the first task, without a memory, does not count
        ({}, [task(120), task(120, due=10, early=5), task(120, forced=15)], 8),
        ({}, [task(120), task(120, due=9)], 13),  # 13.33
        ({}, [task(10), task(10, due=10)], 1),
        ({}, [task(500), task(500, forced=2)], 250),
    ],
)
def test_fixed_intervals_by_hand(
    tmp_path: Path, settings: dict[str, Any], tasks: list[dict[str, Any]], expected: int
) -> None:
    spec = ArmSpec(method="fixed", settings={"match": "aim", **settings})
    found = matched_settings(context_of(tmp_path, *tasks), spec, 7)
    assert found == {"s_init": expected, "s_min": 1, "s_max": max(128, expected)}


@pytest.mark.parametrize(
    ("settings", "merges", "low", "high"),
    [({}, 15, 2, 14), ({"s_min": 4}, 15, 4, 12), ({}, 60, 2, 2), ({"s_min": 6}, 15, 6, 10)],
)
def test_random_intervals_by_hand(
    tmp_path: Path, settings: dict[str, Any], merges: int, low: int, high: int
) -> None:
    """Their mean (low + high) / 2 is 120 / merges, as far as s_min lets it."""
    spec = ArmSpec(method="random", settings={"match": "aim", **settings})
    context = context_of(tmp_path, task(120), task(120, due=merges))
    assert matched_settings(context, spec, 7) == {"s_min": low, "s_hi": high}


def test_other_settings_are_kept(tmp_path: Path) -> None:
    spec = ArmSpec(method="fixed", settings={"match": "aim", "f_max": 2})
    context = context_of(tmp_path, task(120, due=12))
    assert matched_settings(context, spec, 7)["f_max"] == 2
    plain = ArmSpec(method="fixed", settings={"s_init": 3})
    assert matched_settings(context, plain, 7) == {"s_init": 3}


def test_the_mean_interval() -> None:
    assert mean_interval({"merges": {"tasks": [task(100), task(90, due=4, early=5)]}}) == 10
    assert mean_interval({"merges": {"tasks": [task(100)]}}) is None
    assert mean_interval({"merges": None}) is None


def test_an_arm_that_is_not_there_yet(tmp_path: Path) -> None:
    spec = ArmSpec(method="fixed", name="f", settings={"match": "aim"})
    context = context_of(tmp_path, task(120, due=12), finished=False)
    message = r"arm 'f' has match='aim', which is not finished with seed {}; put it before this arm"
    with pytest.raises(ValueError, match=message.format(7)):
        matched_settings(context, spec, 7)
    with pytest.raises(ValueError, match=message.format(8)):
        matched_settings(context, spec, 8)


def test_an_arm_that_never_merged(tmp_path: Path) -> None:
    spec = ArmSpec(method="fixed", name="f", settings={"match": "aim"})
    with pytest.raises(ValueError, match=r"arm 'f' has match='aim', which made no merge"):
        matched_settings(context_of(tmp_path, task(120)), spec, 7)


def test_a_run_with_a_matched_arm(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    folder = finished_run(tmp_path_factory)
    arms = ["aim:s_init=2,f_max=1", "fixed:match=aim-s_init=2-f_max=1"]
    aim, fixed = runner.run(make_config(folder, arms, out=tmp_path / "out", steps=12))["arms"]
    made = [
        sum(sum(task["merges"].values()) for task in arm["merges"]["tasks"]) for arm in (aim, fixed)
    ]
    interval = fixed["settings"]["s_init"]
    assert "match" not in fixed["settings"]
    assert interval == round(12 / made[0])
    assert made[1] == 12 // interval
